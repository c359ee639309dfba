from __future__ import annotations

import math
from dataclasses import replace

import pytest

from onnxcp.planning.goal import Goal
from onnxcp.reporting import plans
from tests.reporting.conftest import NOTHING, PLAN, SHORT, THREE_TIMES, done


def test_rounds_say_what_was_expected_and_what_was_found() -> None:
    first, second = plans.round_lines(THREE_TIMES)
    assert first == plans.RoundLine("1", "1", ("3.00×", "2.61×"), ("0.0387", "–"))
    assert second == plans.RoundLine(
        "2", "1", ("3.03×", "3.01×"), ("0.0412", "0.0351"), "94.12 %", "taken", strong=True
    )


def test_scores_of_a_function_keep_their_own_unit() -> None:
    assert plans.round_lines(THREE_TIMES, custom_score=True)[1].score == "0.9412"


def test_goals_out_of_reach_and_without_a_plan_are_marked() -> None:
    nothing, reached, short = plans.frontier_lines([NOTHING, THREE_TIMES, SHORT])
    assert nothing == plans.RoundLine("2×", remark="no plan")
    assert (reached.label, reached.speedup[1], reached.remark) == ("3×", "3.01×", "")
    assert (short.label, short.speedup[1], short.remark) == ("8×", "5.40×", "out of reach")


@pytest.mark.parametrize(
    ("goal", "label"),
    [(Goal(speedup=1.5), "1.5×"), (Goal(latency=5e-3), "5 ms per run")],
)
def test_goals_are_short(goal: Goal, label: str) -> None:
    assert plans.goal_label(goal) == label


def test_decisions() -> None:
    assert [plans.decision_text(row) for row in PLAN.sites] == [
        "left alone: it makes up 0.12% of the MACs, too few to pay",
        "tucker2, rank 48×64",
        "cp3, rank 96",
    ]


class TestForecastNote:
    def test_of_what_was_built(self) -> None:
        assert plans.forecast_note(THREE_TIMES.rounds[1]) == (
            "Expected 3.03 times faster and an output error of 0.0412; measured 3.01 and 0.0351."
        )

    def test_of_what_was_measured_again(self) -> None:
        assert plans.forecast_note(THREE_TIMES.rounds[1], 2.9).endswith("measured 2.90 and 0.0351.")

    def test_of_what_was_only_timed(self) -> None:
        note = plans.forecast_note(THREE_TIMES.rounds[0])
        assert note.endswith("error of 0.0387; measured 2.61.")

    def test_without_an_expected_error(self) -> None:
        note = plans.forecast_note(done(3.0, math.nan, measured=2.5, found=0.1))
        assert note == "Expected 3.00 times faster; measured 2.50."

    def test_is_empty_where_nothing_was_timed(self) -> None:
        assert plans.forecast_note(done(3.0, 0.1)) == ""


def test_an_unknown_error_is_a_dash() -> None:
    unknown = replace(THREE_TIMES, rounds=(done(3.0, math.nan),))
    assert plans.round_lines(unknown)[0].error == ("–", "–")
