"""`onnxcp compare`: whether two models compute the same, nearly; or which profile is faster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcp.cli.options import (
    PATH,
    calibration_options,
    given_options,
    input_shapes_option,
    json_option,
    machine_options,
    precision_option,
    verbosity_options,
)
from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    import onnxruntime as ort

    from onnxcp.calibration.sources import CalibrationSource
    from onnxcp.profiling.compare import Infer, OutputDifference
    from onnxcp.profiling.inputs import Shape
    from onnxcp.profiling.machine import Machine
    from onnxcp.profiling.session import Feeds
    from onnxcp.progress import Progress

_RANDOM_BATCHES = 4

_OF_MODELS = (
    *("rtol", "atol", "input_shapes", "providers", "intra_op_num_threads", "calibration_data"),
    *("data_loader_script", "preprocess", "calibration_samples", "precision"),
)


@click.command(short_help="Compare what two models compute, or two profiles of them.")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option(
    "--rtol",
    type=click.FloatRange(0),
    default=1e-3,
    show_default=True,
    metavar="R",
    help="Tolerated relative error of an output: |B - A| / |A|, Frobenius norms over all samples.",
)
@click.option(
    "--atol",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="A",
    help="An output of which no element differs by more than this passes, whatever its "
    "relative error.",
)
@calibration_options(use="to compare outputs on", without="seeded random inputs serve")
@input_shapes_option
@machine_options
@precision_option(
    "Compare A with what B computes in it: int8 is calibrated on the calibration data. A quantized "
    "model stays as it is."
)
@json_option
@verbosity_options
@click.pass_obj
def compare(
    terminal: Terminal,
    a: Path,
    b: Path,
    *,
    rtol: float,
    atol: float,
    calibration: CalibrationSource | None,
    input_shapes: dict[str, Shape],
    machine: Machine,
    precision: str,
    as_json: bool,
) -> int:
    """Compare what models A (the reference) and B compute on the same inputs.

    An output passes if its relative error is at most --rtol, or its largest error at most --atol.
    Of outputs that are no floats, the share of unequal elements counts as the relative error. The
    exit code is 1 if any output fails or cannot be compared.

    A and B may also be two files that `onnxcp profile --json` printed. Their times are compared
    then, and the exit code is 1 if B is slower in any setting.
    """
    from onnxcp.reporting.profiles import is_saved

    if is_saved(a) or is_saved(b):
        return _compare_profiles(terminal, a, b, as_json=as_json)
    from onnxcp.calibration.data import load_calibration
    from onnxcp.graph.model import load
    from onnxcp.lowering import as_deployed
    from onnxcp.profiling.compare import compare as differences_of
    from onnxcp.profiling.inputs import assume_extents, check_feeds, random_feeds, session_inputs
    from onnxcp.profiling.machine import runnable_feeds
    from onnxcp.reporting import record, table

    with terminal.progress() as progress:
        progress("loading", 0, 1)
        first = machine.open(load(a), label=f"'{a}'")
        specs = session_inputs(first)
        data = None if calibration is None else load_calibration(calibration, specs)
        deployed = as_deployed(load(b), precision, data, machine)
        second = machine.open(deployed, label=f"'{b}'")
        if data is None:
            feeds = runnable_feeds(first, input_shapes, str(a))
            check_feeds(second, feeds)
            shapes = {name: value.shape for name, value in feeds.items()}
            count = _RANDOM_BATCHES
            stream: Iterator[Feeds] = (
                random_feeds(first, shapes=shapes, seed=seed) for seed in range(count)
            )
        else:
            shapes = assume_extents(specs, input_shapes)
            size = max((shape[0] for shape in shapes.values() if shape), default=1)
            count, stream = data.batch_count(size), data.batches(size)
            check_feeds(second, next(data.batches(size)))
        names = [output.name for output in first.get_outputs()]
        found = differences_of(
            _infer(first, names, a), _infer(second, names, b), _told(stream, count, progress), names
        )
    judged = [(each, _within(each, rtol, atol)) for each in found]
    terminal.show(table.differences(judged))
    if calibration is None:
        terminal.say("Compared on random inputs, for want of data.")
    failing = [each.name for each, within in judged if not within]
    if failing:
        terminal.say(f"Beyond tolerance: {', '.join(failing)}.")
    else:
        terminal.say("All outputs are within tolerance.")
    if as_json:
        outputs = [{**record.difference_record(each), "within": ok} for each, ok in judged]
        summary: dict[str, Any] = {"a": str(a), "b": str(b), "rtol": rtol, "atol": atol}
        summary |= {"data_is_random": calibration is None, "within": not failing}
        terminal.json({**summary, "outputs": outputs})
    return 1 if failing else 0


def _compare_profiles(terminal: Terminal, a: Path, b: Path, *, as_json: bool) -> int:
    from onnxcp.profiling.noise import Verdict
    from onnxcp.reporting import profile_tables as tables
    from onnxcp.reporting import profiles

    for option in given_options(*_OF_MODELS):
        raise click.UsageError(f"{option} has no say where two profiles are compared.")
    first, second = profiles.read_profile(a), profiles.read_profile(b)
    changes = profiles.compare_profiles(first, second)
    for name, each in (("a", first), ("b", second)):
        terminal.say(f"{name}: {each.model}, {each.environment.precision}")
    terminal.show(tables.saved(changes))
    terminal.show(tables.saved_costs(changes))
    for change in changes:
        if (sites := tables.saved_sites(change)) is not None:
            if len(changes) > 1:
                terminal.say(f"{change.setting}:")
            terminal.show(sites)
    if apart := profiles.differences_of_machine(first, second):
        terminal.say(f"Which is faster is not said, for the machines differ in {'; '.join(apart)}.")
    elif any(change.verdict is Verdict.REFUSED for change in changes):
        terminal.say("Where it says refused, a machine was too busy to say which is faster.")
    for change in changes:
        factor = profiles.pace(change.a.noise, change.b.noise)
        if factor is not None and change.interval is not None and not apart:
            where = f" ({change.setting})" if len(changes) > 1 else ""
            slower = f"{max(factor, 1 / factor):.2f} times slower"
            which = "second" if factor > 1 else "first"
            terminal.say(
                f"The machine itself was {slower} for the {which} profile{where}: identical work "
                "took so much longer, and the interval holds what that explains."
            )
    if left := tables.only_in_one(first, second):
        what = "setting is" if left == 1 else "settings are"
        terminal.say(f"{left} {what} in one of the profiles only.")
    if as_json:
        terminal.json(profiles.comparison_record(str(a), str(b), changes))
    return 1 if any(change.verdict is Verdict.SLOWER for change in changes) else 0


def _within(difference: OutputDifference, rtol: float, atol: float) -> bool:
    small = difference.max_abs is not None and difference.max_abs <= atol
    return difference.error <= rtol or small


def _infer(session: ort.InferenceSession, names: Sequence[str], path: Path) -> Infer:
    """Run a session; return outputs in the order of `names` if it has these, else in its own."""
    from onnxcp.profiling.session import infer

    own = [output.name for output in session.get_outputs()]
    order = [own.index(name) for name in names] if set(own) == set(names) else range(len(own))

    def run(feeds: Feeds) -> list[Any]:
        outputs = infer(session, feeds, label=f"'{path}'")
        return [outputs[position] for position in order]

    return run


def _told(batches: Iterator[Feeds], count: int, progress: Progress) -> Iterator[Feeds]:
    for done, batch in enumerate(batches):
        progress("comparing", done, count)
        yield batch
