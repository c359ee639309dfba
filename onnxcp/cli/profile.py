"""`onnxcp profile`: how long a model takes and where, alone or against another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcp.cli.options import (
    MOST_THREADS,
    PATH,
    input_shapes_option,
    json_option,
    model_argument,
    precision_option,
    provider_names,
    verbosity_options,
)
from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxcp.profiling.inputs import Shape
    from onnxcp.profiling.machine import Machine
    from onnxcp.profiling.profile import Row


def thread_counts(text: str) -> tuple[int, ...]:
    """Parse numbers of threads, of which 0 leaves the choice to ONNX Runtime."""
    return _numbers(text, 0, MOST_THREADS)


def batch_sizes(text: str) -> tuple[int, ...]:
    """Parse numbers of samples; an empty text holds none."""
    return _numbers(text, 1) if text else ()


def _numbers(text: str, least: int, most: int | None = None) -> tuple[int, ...]:
    items = [item.strip() for item in text.split(",")]
    if not all(item.isdecimal() and int(item) >= least for item in items):
        raise click.BadParameter(
            f"'{text}' is no list of whole numbers from {least} on; write such as 1,8."
        )
    found = tuple(dict.fromkeys(map(int, items)))
    if most is not None and max(found) > most:
        raise click.BadParameter(f"{max(found)} is more than {most}.")
    return found


@click.command(short_help="Time a model, alone or against another.")
@model_argument
@click.option(
    "--baseline",
    type=PATH,
    metavar="OTHER",
    help="Time OTHER in turns with MODEL, and say how many times faster MODEL is.",
)
@click.option(
    "--providers",
    type=provider_names,
    default="cpu",
    show_default=True,
    metavar="NAME,...",
    help="Execution providers to profile on, one after the other: cpu, cuda, ... With options: "
    "'cuda,cuda{use_tf32=0}'; one preferred to another: tensorrt+cuda. The CPU takes what is left.",
)
@click.option(
    "--intra-op-num-threads",
    "threads",
    type=thread_counts,
    default="0",
    metavar="N,...",
    help="Threads within a node, each in turn. By default, and for 0, ONNX Runtime chooses.",
)
@click.option(
    "--batch-sizes",
    "batches",
    type=batch_sizes,
    default="",
    metavar="N,...",
    help="Samples per run, each in turn. By default as --input-shapes says, or 1.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    metavar="N",
    help="Runs before the first that counts, at least: it goes on until times are stable.",
)
@click.option(
    "--iterations",
    type=click.IntRange(1),
    metavar="N",
    help="Runs that count; with --baseline clean pairs of runs, for a minute at most. By default "
    "3 s of them, and up to 20 s for 100 runs or pairs.",
)
@click.option(
    "--per-node",
    is_flag=True,
    help="Show the time of each node, chains under the node they replaced, and of each operator; "
    "and how near nodes come to the speed of a large matrix product.",
)
@precision_option(
    "Time models as they would run in it, with made-up ranges for int8: time does not depend on "
    "them. A quantized model stays as it is."
)
@input_shapes_option
@json_option
@verbosity_options
@click.pass_obj
def profile(
    terminal: Terminal,
    model: Path,
    *,
    baseline: Path | None,
    providers: tuple[str, ...],
    threads: tuple[int, ...],
    batches: tuple[int, ...],
    warmup: int,
    iterations: int | None,
    per_node: bool,
    precision: str,
    input_shapes: dict[str, Shape],
    as_json: bool,
) -> None:
    """Time MODEL on random inputs, interrupted runs left out.

    Several providers, numbers of threads and batches make a row each. Identical work is timed
    before and after: on a noisy machine intervals are wider, on a busy one nothing is claimed.
    Memory and the time to the first result are those of processes of their own. With --json, a
    profile is kept for `onnxcp compare A.json B.json`.
    """
    from onnxcp.graph.model import load
    from onnxcp.lowering import as_timed
    from onnxcp.profiling.environment import describe
    from onnxcp.profiling.profile import Effort
    from onnxcp.profiling.profile import profile as measured
    from onnxcp.reporting import profiles
    from onnxcp.reporting.inspection import installed_families

    machines = _machines(providers, threads, precision)
    with terminal.progress() as progress:
        progress("loading", 0, 1)
        rows = measured(
            as_timed(load(model), precision),
            machines,
            baseline=None if baseline is None else as_timed(load(baseline), precision),
            batches=batches,
            shapes=input_shapes,
            effort=Effort(warmup, iterations, per_node, tuple(installed_families())),
            progress=progress,
        )
    _show(terminal, rows, str(model), baseline=baseline, per_node=per_node)
    if as_json:
        record = profiles.profile_record(
            rows,
            model=str(model),
            baseline=None if baseline is None else str(baseline),
            environment=describe(*machines),
            command=terminal.command,
        )
        terminal.json(record)


def _machines(providers: Sequence[str], threads: Sequence[int], precision: str) -> list[Machine]:
    from onnxcp.profiling.machine import Machine
    from onnxcp.profiling.providers import split_providers

    return [
        Machine(split_providers(preferred, "+"), number, precision)
        for preferred in providers
        for number in threads
    ]


def _show(
    terminal: Terminal, rows: Sequence[Row], model: str, *, baseline: Path | None, per_node: bool
) -> None:
    from onnxcp.profiling.installation import conflict
    from onnxcp.profiling.noise import Level
    from onnxcp.reporting import profile_tables as tables

    against = "" if baseline is None else f" against {baseline}"
    where = f" on {rows[0].setting}" if len(rows) == 1 else ""
    terminal.say(f"{model}{against}{where}:")
    if len(rows) == 1:
        terminal.show(tables.statistics(rows[0]))
    else:
        terminal.show(tables.latencies(rows))
        terminal.show(tables.samplings(rows))
        terminal.show(tables.costs(rows))
        if baseline is not None:
            terminal.show(tables.against(rows))
    for row in rows:
        ahead = f"{row.setting}: " if len(rows) > 1 else ""
        if row.claim is not None and row.trial is not None:
            terminal.say(ahead + tables.claimed(row.claim, model, row.trial.pairs))
        found = row.timed.breakdown
        if found is not None and (said := tables.fallen_back(found)):
            terminal.say(ahead + said)
        if not row.timed.latency.clean:
            terminal.say(f"{ahead}Too few runs were undisturbed; interrupted ones are included.")
        if not row.timed.warmup.stable:
            terminal.say(f"{ahead}Times had not settled when warming up ended.")
    worst = max((row.noise for row in rows), key=lambda noise: noise.worst)
    if worst.level is not Level.QUIET or terminal.verbose or baseline is None:
        terminal.say(tables.quiet(worst))
    if clash := conflict():
        terminal.say(f"Note that {clash}")
    if per_node:
        for row in rows:
            _show_nodes(terminal, row, title=len(rows) > 1)


def _show_nodes(terminal: Terminal, row: Row, *, title: bool) -> None:
    from onnxcp.reporting import profile_tables as tables

    terminal.say("")
    if title:
        terminal.say(f"{row.setting}:")
    terminal.show(tables.sites(row))
    terminal.show(tables.operators(row))
    if row.timed.breakdown is not None:
        said = tables.farthest(row.timed.breakdown, row.ceiling)
        if said:
            terminal.say(said)
