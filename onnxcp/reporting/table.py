"""Tables for the terminal: they fit 80 columns, and are plain text when piped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxcp import units
from onnxcp.profiling.compare import OutputDifference
from onnxcp.reporting import facts, plans

if TYPE_CHECKING:
    from onnxcp.optimizer import Optimized
    from onnxcp.planned import Planned
    from onnxcp.planning.latency import Timing
    from onnxcp.planning.plan import Plan


def before_after(result: Optimized, *, custom_score: bool = False) -> Table:
    """Return a network before and after: size, cost, latency, error, accuracy."""
    table = _table("", "before>", "after>", "change>")
    for row in (*facts.sizes(result), *facts.measures(result, custom_score=custom_score)):
        change = Text(row.change, style="bold" if row.strong else "")
        table.add_row(row.label, row.before, row.after, change)
    return table


def steps(result: Optimized, *, custom_score: bool = False) -> Table:
    """Return the way to a network of lower precision: what each step is worth, and costs."""
    table = _table("step", "times as fast>", "interval>", "output error>", "score>")
    for line in facts.step_lines(result, custom_score=custom_score):
        table.add_row(line.name, line.ratio, line.interval, line.error, line.score)
    return table


def sites(result: Optimized) -> Table:
    """Return what became of each site: with the error of its output where it was refitted."""
    refitted = facts.refitted(result)
    error = "output error" if refitted else "weight error"
    table = _table("site", "decision", "MACs kept>", f"{error}>", "alone>")
    for line in facts.site_lines(result):
        replaced = line.alone is not None
        errors = line.output_errors
        if errors is not None:
            shown = units.errors(*errors)
        elif refitted:
            shown = units.NONE
        else:
            shown = units.error(line.weight_error)
        table.add_row(
            line.name,
            Text(line.decision, style="" if line.changed else "dim"),
            units.share(line.macs_kept) if replaced else "",
            shown if replaced or errors is not None else "",
            _alone(line.alone) if line.alone is not None else "",
        )
    return table


def rounds(planned: Planned, *, custom_score: bool = False) -> Table:
    """Return what was planned in each round, what was expected of it and what was found."""
    return _expected_and_found("round", plans.round_lines(planned, custom_score=custom_score))


def frontier(frontier: Iterable[Planned], *, custom_score: bool = False) -> Table:
    """Return what came of plans for several goals."""
    return _expected_and_found("wanted", plans.frontier_lines(frontier, custom_score=custom_score))


def planned_sites(plan: Plan) -> Table:
    """Return what a plan makes of each site: its time alone, and what it does to the outputs."""
    table = _table("site", "decision", "alone\nbefore>", "alone\nafter>", "expected\nerror>")
    for row in plan.sites:
        if row.family is None:
            table.add_row(row.site, Text(plans.decision_text(row), style="dim"))
            continue
        times = (
            units.NONE if each is None else units.seconds(1e-3 * each)
            for each in (row.before_ms, row.after_ms)
        )
        table.add_row(row.site, plans.decision_text(row), *times, units.error(row.error))
    return table


def left_alone(result: Optimized) -> Table:
    """Return the nodes that are no sites, and why."""
    table = _table("no site", "because")
    for who, why in facts.grouped(result.refusals):
        table.add_row(who, why)
    return table


def passes(result: Optimized, *, notes: bool) -> Table:
    """Return what each pass did; what it noted, too, if asked."""
    table = _table("pass", "time>", "changed")
    for record in result.records:
        text: RenderableType = record.text
        if notes and record.notes:
            lines = Text("\n".join(f"  {note}" for note in record.notes), style="dim")
            text = Group(record.text, lines)
        table.add_row(text, units.seconds(record.seconds), "yes" if record.changed else "no")
    return table


def verdict(result: Optimized) -> Text:
    """Return the one sentence on the outcome."""
    sentence = result.verdict if result.verdict.endswith(".") else f"{result.verdict}."
    return Text(sentence, style="bold green" if result.improved else "bold yellow")


def differences(outputs: Iterable[tuple[OutputDifference, bool]]) -> Table:
    """Return how outputs differ, each with whether that is within tolerance."""
    table = _table("output", "max>", "mean>", "relative>", "cosine>", "top-1>", "within")
    for each, within in outputs:
        if each.problem:
            table.add_row(each.name, Text(each.problem), "", "", "", "", "no")
            continue
        if each.equal is not None:
            equal = f"{units.share(each.equal, 2)} equal"
            table.add_row(each.name, equal, "", "", "", "", "yes" if within else "no")
            continue
        cosine = units.NONE if each.cosine is None else f"{each.cosine:.6f}"
        numbers = map(units.error, (each.max_abs, each.mean_abs, each.relative))
        top1 = units.share(each.top1_agreement, 2)
        table.add_row(each.name, *numbers, cosine, top1, "yes" if within else "no")
    return table


def plain(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table of text.

    Columns whose name ends in ``>`` stand to the right and, as those whose name ends in ``=``, are
    never folded while there is room.
    """
    table = _table(*columns)
    for row in rows:
        table.add_row(*row)
    return table


def _expected_and_found(first: str, lines: Sequence[plans.RoundLine]) -> Table:
    """Return a table of plans; columns that none of them fills are left out."""
    counted, scored, remarked = (
        any(getattr(line, name) for line in lines) for name in ("counted", "score", "remark")
    )
    columns = [f"{first}=", "sites>"]
    if counted:  # by size, and not by what time was expected
        columns += ["parameters\nleft>", "MACs\nleft>", "speed-up\nmeasured>", "error\nfound>"]
    else:
        columns += ["speed-up\nexpected>", "speed-up\nmeasured>"]
        columns += ["error\nexpected>", "error\nfound>"]
    table = _table(*columns, *(["score>"] if scored else []), *(["="] if remarked else []))
    for line in lines:
        cells = [line.label, line.sites]
        cells += (
            [*line.left, line.speedup[1], line.error[1]]
            if counted
            else [*line.speedup, *line.error]
        )
        cells += [line.score or units.NONE] if scored else []
        cells += [line.remark] if remarked else []
        table.add_row(*cells, style="bold" if line.strong else "")
    return table


def _alone(timing: Timing) -> str:
    """Return how many times faster a chain is alone, and whether that is only reckoned."""
    return ("" if timing.measured else "≈") + units.ratio(timing.ratio)


def _table(*columns: str) -> Table:
    # Columns stand two apart: the padding, and the box's own divider.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        right = column.endswith(">")
        table.add_column(
            column.rstrip(">="),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=column[-1:] in (">", "="),
        )
    return table
