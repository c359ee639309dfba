"""Options that several commands share. A command receives what they mean, not their text."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxcp.calibration.preprocess import Preprocess
    from onnxcp.profiling.inputs import Shape
    from onnxcp.profiling.machine import Machine

Command = TypeVar("Command", bound=Callable[..., Any])

PRECISIONS = ("fp32", "fp16", "int8")  # those of a machine, which takes long to import
SCOPES = ("all", "factorised", "none")
TARGETS = ("auto", "linear")
PREFIXES = ("full", "deployed")
"""Those of `onnxcp.refit`, which is not imported for the help."""

MOST_THREADS = 1024
"""Within a node: beyond that a mistyped number would bring a machine to a halt."""

PATH = click.Path(path_type=Path)
"""A path that nobody has looked at: whoever reads or writes it says what is wrong with it."""

model_argument = click.argument("model", type=PATH)


def comma_separated(text: str) -> tuple[str, ...]:
    """Split names separated by commas; an empty text holds none."""
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if not all(names):
        raise click.BadParameter(f"'{text}' holds an empty name; write names separated by commas.")
    return names


def machine_list(text: str) -> tuple[Machine, ...]:
    """Parse machines: providers as in ``cuda+cpu,cpu:1``, after a colon the number of threads."""
    from onnxcp.profiling.machine import Machine
    from onnxcp.profiling.providers import split_providers

    found = []
    for item in split_providers(text) if text else ():
        match = re.fullmatch(r"(.+?)(?::([0-9]{1,4}))?", item, re.DOTALL)
        assert match is not None  # no item is empty
        threads = int(match[2] or 0)
        if threads > MOST_THREADS:
            raise click.BadParameter(f"'{item}': there are at most {MOST_THREADS} threads.")
        found.append(Machine(split_providers(match[1], "+"), threads))
    return tuple(dict.fromkeys(found))


def provider_names(text: str) -> tuple[str, ...]:
    """Split names of execution providers separated by commas, options in brackets kept whole."""
    from onnxcp.profiling.providers import split_providers

    return split_providers(text)


def input_shapes(text: str) -> dict[str, Shape]:
    """Parse shapes of inputs; an empty text holds none."""
    if not text:
        return {}
    from onnxcp.profiling.inputs import parse_input_shapes

    return parse_input_shapes(text)


def given_options(*parameters: str) -> list[str]:
    """Return the options that were typed, of those of these parameters."""
    source = click.get_current_context().get_parameter_source
    given = [name for name in parameters if source(name) is ParameterSource.COMMANDLINE]
    return [f"--{name.replace('_', '-')}" for name in given]


def verbosity_options(command: Command) -> Command:
    """Add -v and -q, which set the verbosity of the terminal."""

    def louder(context: click.Context, _: click.Parameter, times: int) -> None:
        if times:
            context.ensure_object(Terminal).verbosity = times

    def quiet(context: click.Context, _: click.Parameter, given: bool) -> None:
        if given:
            context.ensure_object(Terminal).verbosity = -1

    verbose = click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=louder,
        help="Say more; after an error, where it happened.",
    )
    silence = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=quiet,
        help="Say nothing but errors.",
    )
    return verbose(silence(command))


def json_option(command: Command) -> Command:
    """Add --json, received as `as_json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."
    )(command)


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --providers and --intra-op-num-threads, received as one `machine`."""

    @click.option(
        "--providers",
        type=provider_names,
        default="cpu",
        show_default=True,
        metavar="NAME,...",
        help="Execution providers of ONNX Runtime in order of preference: cpu, cuda, ... With "
        "options: 'cuda{use_tf32=0}'.",
    )
    @click.option(
        "--intra-op-num-threads",
        type=click.IntRange(0, MOST_THREADS),
        default=0,
        metavar="N",
        help="Threads within a node. By default ONNX Runtime chooses.",
    )
    @functools.wraps(command)
    def with_machine(
        *args: Any, providers: tuple[str, ...], intra_op_num_threads: int, **kwargs: Any
    ) -> Any:
        from onnxcp.profiling.machine import Machine

        return command(*args, machine=Machine(providers, intra_op_num_threads), **kwargs)

    return with_machine


def precision_option(effect: str) -> Callable[[Command], Command]:
    """Add --precision, received as a word; `effect` is its help: what it does to what."""
    return click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default=PRECISIONS[0],
        show_default=True,
        help=effect,
    )


def input_shapes_option(command: Command) -> Command:
    """Add --input-shapes, received as a dictionary."""
    return click.option(
        "--input-shapes",
        type=input_shapes,
        default="",
        metavar="TEXT",
        help="Shapes of inputs to measure with, such as 'x:8,3,224,224 mask:8,77'. A model of one "
        "input needs no name. Otherwise that of a sample, if there are any, or with open extents "
        "of 1, those of pictures of 224.",
    )(command)


def sample_count(text: str) -> int | None:
    """Return a number of samples, or None for ``all``."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"'{text}' is neither all nor a whole number from 1 on.")
    return int(text)


def preprocessing(text: str) -> Preprocess:
    """Parse what is done to pictures."""
    from onnxcp.calibration.preprocess import Preprocess

    return Preprocess.parse(text)


def refuse_without_data(*parameters: str) -> None:
    """Fail if any of the options of these parameters was typed: they say what to do with data."""
    for option in given_options(*parameters):
        raise click.UsageError(
            f"{option} has no say without --calibration-data or --data-loader-script."
        )


def calibration_options(
    *, use: str, without: str, also: Sequence[str] = (), samples: str = "1024"
) -> Callable[[Command], Callable[..., Any]]:
    """Add the options that tell what to calibrate on, received as one `calibration` or None.

    Parameters
    ----------
    use
        What a command does with samples, as the end of a sentence that begins with "Samples".
    without
        What it does where there are none, as the end of one that begins with "Without them".
    also
        Other names of --calibration-data.
    samples
        How many of them are taken by default.
    """
    return functools.partial(
        _with_calibration, use=use, without=without, also=also, samples=samples
    )


def _with_calibration(
    command: Callable[..., Any], *, use: str, without: str, also: Sequence[str], samples: str
) -> Callable[..., Any]:
    @click.option(
        "--calibration-data",
        *also,
        "calibration_data",
        type=PATH,
        metavar="X.npz|DIR",
        help=f"Samples {use}: an npz file of one array for each input, or a folder of npz files, "
        f"npy files or pictures. Without them {without}.",
    )
    @click.option(
        "--data-loader-script",
        metavar="F.py:FUNC",
        help="Function that returns them instead: a path, a dictionary of arrays, a "
        "CalibrationDataReader, or an iterable of batches, each a dictionary of arrays.",
    )
    @click.option(
        "--preprocess",
        type=preprocessing,
        metavar="TEXT",
        help="What is done to pictures: resize=N|HxW, crop=N|HxW, layout=nchw|nhwc, "
        "channels=rgb|bgr|grey, scale=1/255, mean=M:M:M and std=S:S:S after scaling, "
        "interpolation=bilinear|bicubic|nearest; such as 'resize=256,crop=224,"
        "mean=0.485:0.456:0.406,std=0.229:0.224:0.225'. By default pictures are stretched to the "
        "model's size, and scaled to 0..1 for an input of floats.",
    )
    @click.option(
        "--calibration-samples",
        type=sample_count,
        default=samples,
        show_default=True,
        metavar="N|all",
        help="Take so many samples at most: of files a seeded random choice, of what a function "
        "gives the first.",
    )
    @functools.wraps(command)
    def with_calibration(
        *args: Any,
        calibration_data: Path | None,
        data_loader_script: str | None,
        preprocess: Preprocess | None,
        calibration_samples: int | None,
        **kwargs: Any,
    ) -> Any:
        from onnxcp.calibration.sources import CalibrationSource, DataSource
        from onnxcp.cli.script import deferred, split_reference

        if calibration_data is not None and data_loader_script is not None:
            raise click.UsageError("Give one of --calibration-data and --data-loader-script.")
        data: DataSource
        if calibration_data is not None:
            data = path = calibration_data
        elif data_loader_script is not None:
            data, path = deferred(data_loader_script), split_reference(data_loader_script)[0]
        else:
            refuse_without_data("preprocess", "calibration_samples")
            return command(*args, calibration=None, **kwargs)
        calibration = CalibrationSource(data, preprocess, calibration_samples, path=path)
        return command(*args, calibration=calibration, **kwargs)

    return with_calibration


_UNITS = ("", "k", "m", "g", "t")


def memory_size(text: str) -> int:
    """Return a size in bytes: ``2GiB``, ``500MB``, ``1.5 GB``, or a plain number of bytes."""
    match = re.fullmatch(r"([0-9]{1,15})(\.[0-9]{1,9})? *(?:([kmgt]?)(i?)b)?", text.strip().lower())
    # Of bytes there are no fractions, and no binary multiples without a letter: "1.5", "2iB".
    if match is None or (not match[3] and (match[2] or match[4])):
        raise click.BadParameter(
            f"'{text}' is no size; write a number of bytes, or one with kB, MB, GB, KiB, MiB or "
            "GiB after it, such as 500MB or 2GiB."
        )
    unit = (1024 if match[4] else 1000) ** _UNITS.index(match[3] or "")
    return int(float(match[1] + (match[2] or "")) * unit)


def refit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --refit and --memory-limit, received as one `refit`; belongs below the calibration."""

    @click.option(
        "--refit",
        type=click.Choice(SCOPES),
        default="all",
        show_default=True,
        help="What is fitted to the calibration data: also the layers that stay as they are, only "
        "what replaces layers, or nothing.",
    )
    @click.option(
        "--memory-limit",
        type=memory_size,
        default="2GiB",
        show_default=True,
        metavar="SIZE",
        help="How much of the intermediate results of the calibration data to keep in memory, "
        "such as 500MB; the rest goes to a temporary folder.",
    )
    @click.option(
        "--refit-target",
        type=click.Choice(TARGETS),
        default="auto",
        show_default=True,
        help="Whether, where a ReLU follows, what comes out of it is fitted, too (auto: if that "
        "is closer on samples held out), or only what goes in.",
    )
    @click.option(
        "--refit-prefix",
        type=click.Choice(PREFIXES),
        default="full",
        show_default=True,
        help="What layers are fitted behind: the layers before them in full precision, or as they "
        "are deployed (--precision), so that rounding is made good for as well.",
    )
    @functools.wraps(command)
    def with_refit(
        *args: Any,
        refit: str,
        memory_limit: int,
        refit_target: str,
        refit_prefix: str,
        **kwargs: Any,
    ) -> Any:
        from onnxcp.refit import RefitSettings

        settings = RefitSettings(refit, memory_limit, target=refit_target, prefix=refit_prefix)
        return command(*args, refit=settings, **kwargs)

    return with_refit
