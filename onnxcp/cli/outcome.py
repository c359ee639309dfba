"""Showing and keeping what the main job did; `optimize` and `demo` end here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxcp.optimizer import Optimized
    from onnxcp.reporting.job import Job
    from onnxcp.reporting.page import Page


def show(terminal: Terminal, result: Optimized, job: Job) -> None:
    """Print the tables, what must be said about them, and the verdict."""
    from onnxcp.reporting import facts, table

    custom = job.script is not None
    if result.decisions:
        terminal.show(table.sites(result))
    if result.refusals:
        terminal.show(table.left_alone(result))
    coupled = result.after is not None and not result.decisions
    if job.settings.passes or coupled or terminal.verbose:
        terminal.show(table.passes(result, notes=True))
    if terminal.verbose:
        for decision in result.decisions:
            for refusal in decision.refusals:
                terminal.say(f"{refusal}.")
    if result.planned is not None and result.planned.rounds:
        terminal.show(table.rounds(result.planned, custom_score=custom))
    if result.frontier:
        terminal.show(table.frontier(result.frontier, custom_score=custom))
    if result.steps:
        terminal.show(table.steps(result, custom_score=custom))
    terminal.show(table.before_after(result, custom_score=custom))
    for note in facts.notes(result, custom_score=custom, passes_refit=job.passes_refit):
        terminal.say(note)
    terminal.say(table.verdict(result))


def keep(
    terminal: Terminal,
    result: Optimized,
    job: Job,
    *,
    output: Path | None,
    report: Path | None,
    external: bool,
    plan: Path | None = None,
) -> Page | None:
    """Write the model, the report and the plan, each whole or not at all; None is not written.

    Plans of a frontier are written beside the plan.

    Returns
    -------
    Page or None
        What the report tells, where there is one.
    """
    from onnxcp.files import write_text
    from onnxcp.graph.model import save
    from onnxcp.planning.plan import save_plan
    from onnxcp.reporting.html import render
    from onnxcp.reporting.page import page_of

    # Rendered first: if that fails, nothing has been written yet.
    page = None if report is None else page_of(result, job)
    text = "" if page is None else render(page)
    if output is not None:
        save(result.model, output, external=external or None)
        what = "the rewritten model" if result.improved else "the original, unchanged,"
        terminal.wrote(output, what)
    if report is not None:
        write_text(report, text)
        terminal.wrote(report, "the report")
    if plan is not None:
        plans = {plan: ("the plan", result.plan)}
        for each in result.frontier:
            what, path = plan_of_point(plan, each.goal.speedup or 1.0)
            plans[path] = what, each.plan
        for path, (what, made) in plans.items():
            if made is not None:
                save_plan(made, path)
                terminal.wrote(path, what)
    return page


def plan_of_point(plan: Path, speedup: float) -> tuple[str, Path]:
    """Return what a frontier's plan for a speed-up is called, and where it is written."""
    return f"the plan for {speedup:g}x", plan.with_name(f"{plan.stem}.{speedup:g}x{plan.suffix}")
