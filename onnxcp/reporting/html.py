"""The outcome of the main job as one page that needs nothing else: no network, no script."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from onnxcp import units
from onnxcp.profiling.environment import describe
from onnxcp.reporting import facts, picture, plans
from onnxcp.reporting.picture import Mark, Picture

if TYPE_CHECKING:
    from onnxcp.optimizer import Optimized
    from onnxcp.planning.latency import Timing
    from onnxcp.profiling.timing import Trial
    from onnxcp.reporting.job import Job

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Bars:
    """Two times as bars.

    Attributes
    ----------
    before, after
        The times, as text.
    before_width, after_width
        Their lengths in percent of the longest bar of the figure.
    ratio
        How many times faster, as text.
    about
        Whether the second time was not measured but reckoned from others.
    """

    before: str
    after: str
    before_width: float
    after_width: float
    ratio: str
    about: bool = False


def render(result: Optimized, job: Job, *, now: datetime | None = None) -> str:
    """Return the page.

    Parameters
    ----------
    result
        Of the main job.
    job
        What was asked for.
    now
        When it was measured; the present time by default.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = resources.files("onnxcp.reporting").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    custom = job.script is not None
    seen = result.verification
    lines = facts.site_lines(result.decisions)
    longest = max((line.alone.before for line in lines if line.alone is not None), default=0.0)
    return environment.from_string(text).render(
        job=job,
        result=result,
        units=units,
        headline=_headline(result),
        interval=_interval(seen.trial if seen else None),
        whole=_bars(*_medians(seen.trial)) if seen else None,
        planned=_goal(result),
        preset="" if result.planned is None else result.planned.preset,
        rounds=_rounds(result, custom_score=custom),
        frontier=plans.frontier_lines(result.frontier, custom_score=custom),
        pictures=_pictures(result, custom_score=custom),
        axes=picture,
        rows=[*facts.measures(result, custom_score=custom), *facts.sizes(result)],
        notes=[
            note.replace(" %", "\N{NO-BREAK SPACE}%")
            for note in facts.notes(result, custom_score=custom, passes_refit=job.passes_refit)
        ],
        refitted=facts.refitted(result),
        sites=[(line, _alone(line.alone, longest) if line.alone else None) for line in lines],
        refusals=facts.grouped(result.refusals),
        machine=describe(job.settings.machine),
        shapes=[(name, units.shape(shape)) for name, shape in result.shapes.items()],
        date=f"{now or datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _goal(result: Optimized) -> str | None:
    """Return what was planned for, in words; None where nothing was planned."""
    if result.planned is None:
        return None
    if result.planned.preset and result.plan is not None:
        return result.plan.goal
    return str(result.planned.goal)


def _headline(result: Optimized) -> str:
    if result.improved and result.verification is not None:
        if result.verification.trial.faster or result.after is None:
            return f"{units.ratio(result.verification.trial.ratio)} faster"
        return f"{units.ratio(result.before.nbytes / result.after.nbytes)} smaller"
    return "Left as it was"


def _interval(trial: Trial | None) -> str:
    if trial is None:
        return ""
    return (
        f"95 % interval {units.interval(trial.low, trial.high)}, "
        f"from {trial.pairs} runs of each in turns"
    )


def _rounds(result: Optimized, *, custom_score: bool) -> list[plans.RoundLine]:
    planned = result.planned
    return [] if planned is None else plans.round_lines(planned, custom_score=custom_score)


def _pictures(result: Optimized, *, custom_score: bool) -> list[Picture]:
    """Draw what was planned for several speed-ups: what it loses, and what it scores."""
    if not result.frontier:
        return []
    errors = [Mark(1.0, 0.0, "original", "original")]
    scores = []
    seen = result.verification
    accuracy = None if seen is None else seen.accuracy
    if accuracy is not None:
        scores.append(Mark(1.0, accuracy[0], "original", "original"))
    for planned in result.frontier:
        kept, label = planned.kept, plans.goal_label(planned.goal)
        speedup = None if kept is None else plans.measured_speedup(kept)
        if kept is None or speedup is None:
            continue
        if kept.error is not None:
            errors.append(Mark(speedup, kept.error, label))
        if kept.score is not None:
            scores.append(Mark(speedup, kept.score, label))
    if result.improved and seen is not None:
        error = math.hypot(*(each.error for each in seen.differences))
        errors.append(Mark(seen.trial.ratio, error, "taken", "taken"))
        if accuracy is not None:
            scores.append(Mark(seen.trial.ratio, accuracy[1], "taken", "taken"))
    drawn = (
        picture.draw("error", "output error", errors, "{:.6g}".format, floor=0.0),
        picture.draw("score", "score", scores, "{:.6g}".format)
        if custom_score
        else picture.draw("score", "accuracy", scores, lambda share: f"{100 * share:.6g} %"),
    )
    return [each for each in drawn if each is not None]


def _alone(timing: Timing, longest: float) -> Bars:
    return replace(_bars(timing.before, timing.after, longest), about=not timing.measured)


def _bars(before: float, after: float, longest: float = 0.0) -> Bars:
    """Return bars of two times in seconds; the longest of all is of full width."""
    longest = longest or max(before, after)
    return Bars(
        before=units.seconds(before),
        after=units.seconds(after),
        before_width=round(100 * before / longest, 2),
        after_width=round(min(100.0, 100 * after / longest), 2),
        ratio=units.ratio(before / after),
    )


def _medians(trial: Trial) -> tuple[float, float]:
    return trial.a.median, trial.b.median
