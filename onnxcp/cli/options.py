"""Options that several commands share. A command receives what they mean, not their text."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxcp.profiling.inputs import Shape

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
"""A path that nobody has looked at: whoever reads or writes it says what is wrong with it."""

model_argument = click.argument("model", type=PATH)


def comma_separated(text: str) -> tuple[str, ...]:
    """Split names separated by commas; an empty text holds none."""
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if not all(names):
        raise click.BadParameter(f"'{text}' holds an empty name; write names separated by commas.")
    return names


def input_shapes(text: str) -> dict[str, Shape]:
    """Parse shapes of inputs; an empty text holds none."""
    if not text:
        return {}
    from onnxcp.profiling.inputs import parse_input_shapes

    return parse_input_shapes(text)


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
        type=comma_separated,
        default="cpu",
        show_default=True,
        metavar="NAME,...",
        help="Execution providers of ONNX Runtime in order of preference: cpu, cuda, ...",
    )
    @click.option(
        "--intra-op-num-threads",
        type=click.IntRange(0),
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


def input_shapes_option(command: Command) -> Command:
    """Add --input-shapes, received as a dictionary."""
    return click.option(
        "--input-shapes",
        type=input_shapes,
        default="",
        metavar="TEXT",
        help="Shapes of inputs to measure with, such as 'x:8,3,224,224 mask:8,77'. A model of one "
        "input needs no name. Open extents are otherwise 1, those of pictures 224.",
    )(command)


def data_option(command: Command) -> Command:
    """Add --calibration-data, received as `calibration_data`."""
    return click.option(
        "--calibration-data",
        type=PATH,
        metavar="X.npz",
        help="Samples to compare outputs on, one array for each input. Without them seeded "
        "random inputs serve.",
    )(command)
