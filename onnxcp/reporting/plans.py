"""Plans as words: what was expected of each, and what was found."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcp import units

if TYPE_CHECKING:
    from onnxcp.planned import Planned
    from onnxcp.planning.goal import Goal
    from onnxcp.planning.plan import Row
    from onnxcp.planning.search import Round


@dataclass(frozen=True)
class RoundLine:
    """One plan for a network, as text.

    Attributes
    ----------
    label
        Its number, or the goal that it was made for.
    sites
        How many sites it replaces.
    speedup, error
        Expected, and found.
    score
        What its network scored; "" if nothing scores.
    remark
        What else there is to say of it, in a word or two.
    strong
        Whether it is the one that was taken.
    left
        Shares of the parameters and multiply-adds; "" where they were not counted.
    """

    label: str
    sites: str = units.NONE
    speedup: tuple[str, str] = (units.NONE, units.NONE)
    error: tuple[str, str] = (units.NONE, units.NONE)
    score: str = ""
    remark: str = ""
    strong: bool = False
    left: tuple[str, str] = ("", "")

    @property
    def counted(self) -> bool:
        """Whether it was chosen by size."""
        return any(self.left)


def round_lines(planned: Planned, *, custom_score: bool = False) -> list[RoundLine]:
    """Return the rounds on the way to a plan.

    Parameters
    ----------
    planned
        How the plan came about.
    custom_score
        Whether scores are what a user's function gave, in its own unit.
    """
    return [
        _line(str(number), each, "taken" if each.kept else "", custom_score, strong=each.kept)
        for number, each in enumerate(planned.rounds, 1)
    ]


def frontier_lines(frontier: Iterable[Planned], *, custom_score: bool = False) -> list[RoundLine]:
    """Return what came of plans for several goals; parameters are those of `round_lines`."""
    lines = []
    for planned in frontier:
        remark = "out of reach" if planned.shortfall else ""
        label, kept = goal_label(planned.goal), planned.kept
        if kept is None:
            lines.append(RoundLine(label, remark="no plan"))
        else:
            lines.append(_line(label, kept, remark, custom_score))
    return lines


def goal_label(goal: Goal) -> str:
    """Return a goal, in as few words as there are: ``3×``."""
    return str(goal) if goal.speedup is None else f"{goal.speedup:g}×"


def measured_speedup(done: Round) -> float | None:
    """Return how many times faster a plan was measured to be; None if it was not timed."""
    return None if done.before is None or done.after is None else done.before / done.after


def decision_text(row: Row) -> str:
    """Return what a plan makes of a site, or why it stays."""
    if row.family is None:
        return f"left alone: {row.keep}"
    return f"{row.family}, rank {units.shape(row.ranks)}{cosine_text(row.cosine)}"


def cosine_text(cosine: float | None) -> str:
    """Return a similarity behind what was chosen by it; "" where it was not."""
    return "" if cosine is None or math.isnan(cosine) else f", cosine {cosine:.4g}"


def forecast_note(done: Round, speedup: float | None = None) -> str:
    """Return how far a forecast was off, as a sentence; "" where it was not put to the test.

    Parameters
    ----------
    done
        What was planned, and found.
    speedup
        How many times faster its network was measured to be later, if it was.
    """
    speedup = measured_speedup(done) if speedup is None else speedup
    if speedup is None or math.isnan(done.forecast.speedup):
        return ""
    expected = f"{units.digits(done.forecast.speedup)} times faster"
    found = units.digits(speedup)
    if not math.isnan(done.forecast.error):
        expected += f" and an output error of {units.error(done.forecast.error)}"
        found += "" if done.error is None else f" and {units.error(done.error)}"
    return f"Expected {expected}; measured {found}."


def _line(
    label: str, done: Round, remark: str, custom_score: bool, *, strong: bool = False
) -> RoundLine:
    forecast = done.forecast
    return RoundLine(
        label=label,
        sites=str(done.sites),
        speedup=(units.ratio(forecast.speedup), units.ratio(measured_speedup(done))),
        error=(units.error(forecast.error), units.error(done.error)),
        score="" if done.score is None else units.score(done.score, custom=custom_score),
        remark=remark,
        strong=strong,
        left=(
            "" if done.parameters is None else units.share(done.parameters),
            "" if done.macs is None else units.share(done.macs),
        ),
    )
