"""`onnxcp profile`: how long a model takes, alone or against another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcp.cli.options import (
    PATH,
    input_shapes_option,
    json_option,
    machine_options,
    model_argument,
    verbosity_options,
)
from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxcp.profiling.inputs import Shape
    from onnxcp.profiling.machine import Machine
    from onnxcp.profiling.session import Feeds

_MAX_SECONDS = 60.0


@click.command(short_help="Time a model, alone or against another.")
@model_argument
@click.option(
    "--baseline",
    type=PATH,
    metavar="OTHER",
    help="Time OTHER in turns with MODEL, and say how many times faster MODEL is.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    metavar="N",
    help="Runs before the first that counts.",
)
@click.option(
    "--iterations",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    metavar="N",
    help="Runs that count; with --baseline clean pairs of runs, for a minute at most.",
)
@click.option(
    "--per-node",
    is_flag=True,
    help="List the time of each node; chains are summed under the node they replaced.",
)
@machine_options
@input_shapes_option
@json_option
@verbosity_options
@click.pass_obj
def profile(
    terminal: Terminal,
    model: Path,
    *,
    baseline: Path | None,
    warmup: int,
    iterations: int,
    per_node: bool,
    machine: Machine,
    input_shapes: dict[str, Shape],
    as_json: bool,
) -> None:
    """Time MODEL on random inputs, interrupted runs left out."""
    from onnxcp.graph.model import load
    from onnxcp.profiling import timing
    from onnxcp.profiling.inputs import check_feeds
    from onnxcp.profiling.machine import runnable_feeds
    from onnxcp.profiling.session import Runner
    from onnxcp.reporting import record, table
    from onnxcp.reporting.inspection import chain_owner, installed_families, time_nodes

    with terminal.progress() as progress:
        progress("loading", 0, 1)
        models = [load(model)] if baseline is None else [load(model), load(baseline)]
        session = machine.open(models[0], label=f"'{model}'")
        feeds = runnable_feeds(session, input_shapes, str(model))
        runner = Runner(session, feeds, label=f"'{model}'")
        shapes = {name: value.shape for name, value in feeds.items()}
        result: dict[str, Any] = {"model": str(model), "shapes": shapes}
        if baseline is None:
            progress("timing", 0, 1)
            latency = timing.measure(runner.run, warmup=warmup, iterations=iterations)
            columns = [(model.name, latency)]
            result["latency"] = record.latency_record(latency)
        else:
            other = machine.open(models[1], label=f"'{baseline}'")
            check_feeds(other, feeds)
            progress("timing in turns", 0, 1)
            trial = timing.paired(
                Runner(other, feeds, label=f"'{baseline}'").run,
                runner.run,
                warmup=warmup,
                rounds=iterations,
                max_seconds=_MAX_SECONDS,
            )
            columns = [(f"{baseline} (baseline)", trial.a), (str(model), trial.b)]
            result |= {"baseline": str(baseline), "trial": record.trial_record(trial)}
    terminal.show(table.latencies(columns, _batch(feeds)))
    if baseline is not None:
        outcome = "not told apart from the baseline"
        if trial.faster or trial.slower:
            outcome = f"{'faster' if trial.faster else 'slower'} than the baseline"
        terminal.say(f"{model} is {outcome}: {trial}.")
    if not all(latency.clean for _, latency in columns):
        terminal.say("The machine was too busy for clean timings; interrupted ones are included.")
    if per_node:
        with terminal.progress() as progress:
            progress("timing nodes", 0, 1)
            owner = chain_owner(tuple(installed_families()))
            rows = [time_nodes(each, feeds, machine, owner=owner) for each in models]
        _show_nodes(terminal, rows)
        result["nodes"] = rows[0]
        if baseline is not None:
            result["baseline_nodes"] = rows[1]
    if as_json:
        terminal.json(result)


def _show_nodes(terminal: Terminal, times: list[dict[str, float]]) -> None:
    """Show the times of one model, or of one and its baseline."""
    from onnxcp import units
    from onnxcp.reporting import table

    names = list(dict.fromkeys(name for each in reversed(times) for name in each))
    totals = [sum(each.values()) for each in times]
    shown = [
        (
            name or "(changes of layout, others)",
            *(units.seconds(each.get(name)) for each in reversed(times)),
            units.share(times[0].get(name, 0.0) / totals[0] if totals[0] else None),
        )
        for name in names
    ]
    shown.append(("all nodes", *(units.seconds(total) for total in reversed(totals)), "100 %"))
    columns = ["node", "time>", "share>"]
    if len(times) > 1:
        columns = ["node", "baseline>", "time>", "share>"]
    terminal.show(table.plain(columns, shown))


def _batch(feeds: Feeds) -> int | None:
    firsts = {len(value) for value in feeds.values() if value.ndim}
    return firsts.pop() if len(firsts) == 1 else None
