"""The outcome of the main job as one page that needs nothing else: no network, no script."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from onnxcp.reporting import facts, units
from onnxcp.reporting.environment import describe

if TYPE_CHECKING:
    from onnxcp.optimizer import Optimized
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
    """

    before: str
    after: str
    before_width: float
    after_width: float
    ratio: str


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
    longest = max((line.alone.a.median for line in lines if line.alone is not None), default=0.0)
    return environment.from_string(text).render(
        job=job,
        result=result,
        units=units,
        headline=_headline(result),
        interval=_interval(seen.trial if seen else None),
        whole=_bars(seen.trial, _longer(seen.trial)) if seen else None,
        rows=[*facts.measures(result, custom_score=custom), *facts.sizes(result)],
        notes=facts.notes(result, custom_score=custom, passes_refit=job.passes_refit),
        refitted=facts.refitted(result),
        sites=[(line, _bars(line.alone, longest) if line.alone else None) for line in lines],
        refusals=facts.grouped(result.refusals),
        machine=describe(job.settings.machine),
        shapes=[(name, units.shape(shape)) for name, shape in result.shapes.items()],
        date=f"{now or datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _headline(result: Optimized) -> str:
    if result.improved and result.verification is not None:
        return f"{units.ratio(result.verification.trial.ratio)} faster"
    return "Left as it was"


def _interval(trial: Trial | None) -> str:
    if trial is None:
        return ""
    return (
        f"95 % interval {units.interval(trial.low, trial.high)}, "
        f"from {trial.pairs} runs of each in turns"
    )


def _bars(trial: Trial, longest: float) -> Bars:
    return Bars(
        before=units.seconds(trial.a.median),
        after=units.seconds(trial.b.median),
        before_width=round(100 * trial.a.median / longest, 2),
        after_width=round(min(100.0, 100 * trial.b.median / longest), 2),
        ratio=units.ratio(trial.ratio),
    )


def _longer(trial: Trial) -> float:
    return max(trial.a.median, trial.b.median)
