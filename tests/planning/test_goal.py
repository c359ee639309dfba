"""Goals: one at a time, each in its range, each a phrase."""

from __future__ import annotations

import math

import pytest

from onnxcp.errors import OnnxcpError
from onnxcp.planning.goal import DEFAULT_MAX_ERROR, Goal


class TestErrorThatIsTolerated:
    def test_is_the_default_where_nothing_is_asked_for(self) -> None:
        assert Goal().error == DEFAULT_MAX_ERROR
        assert str(Goal()) == "a relative error of the outputs of at most 0.1"

    @pytest.mark.parametrize("value", [1e-6, 0.03, 1.0])
    def test_is_what_was_asked_for(self, value: float) -> None:
        assert Goal(max_error=value).error == value

    @pytest.mark.parametrize(
        "goal",
        [
            Goal(speedup=2),
            Goal(latency=0.005),
            Goal(macs=0.5),
            Goal(parameters=0.5),
            Goal(size=0.5),
            Goal(max_accuracy_drop=0.01),
            Goal(max_accuracy_drop=0),
            Goal(min_agreement=0.99),
        ],
    )
    def test_is_none_where_the_goal_is_another(self, goal: Goal) -> None:
        assert goal.error is None


@pytest.mark.parametrize(
    ("goal", "phrase"),
    [
        (Goal(speedup=2), "2 times faster"),
        (Goal(speedup=1.25), "1.25 times faster"),
        (Goal(latency=0.0125), "12.5 ms per run"),
        (Goal(latency=3), "3000 ms per run"),
        (Goal(macs=0.5), "50 % of the MACs"),
        (Goal(parameters=0.125), "12.5 % of the parameters"),
        (Goal(size=0.25), "25 % of the file's size"),
        (Goal(size=2e6), "a file of 2000000 bytes"),
        (Goal(max_error=0.02), "a relative error of the outputs of at most 0.02"),
        (Goal(max_accuracy_drop=0.01), "a score at most 0.01 lower"),
        (Goal(max_accuracy_drop=0), "a score at most 0 lower"),
        (Goal(min_agreement=0.99), "the same top class on 99 % of the samples"),
    ],
)
def test_a_goal_is_a_phrase(goal: Goal, phrase: str) -> None:
    assert str(goal) == phrase


@pytest.mark.parametrize(
    ("goal", "baseline", "least"),
    [
        (Goal(max_accuracy_drop=0.01), 0.9, 0.89),
        (Goal(max_accuracy_drop=0), 33.2, 33.2),
        (Goal(min_agreement=0.99), None, 0.99),
        (Goal(min_agreement=0.99), 0.9, 0.99),
    ],
)
def test_goals_of_a_score_say_what_is_enough(
    goal: Goal, baseline: float | None, least: float
) -> None:
    assert goal.scored
    assert goal.least(baseline) == pytest.approx(least)


@pytest.mark.parametrize("goal", [Goal(), Goal(speedup=2), Goal(macs=0.5), Goal(max_error=0.1)])
def test_other_goals_need_no_score(goal: Goal) -> None:
    assert not goal.scored


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("speedup", 1, "The goal speedup must lie in (1, inf]; not 1."),
            ("speedup", 0.5, "The goal speedup must lie in (1, inf]; not 0.5."),
            ("speedup", math.nan, "The goal speedup must lie in (1, inf]; not nan."),
            ("latency", 0.0, "The goal latency must lie in (0, inf]; not 0."),
            ("latency", -1.0, "The goal latency must lie in (0, inf]; not -1."),
            ("macs", 0.0, "The goal macs must lie in (0, 1]; not 0."),
            ("macs", 1.5, "The goal macs must lie in (0, 1]; not 1.5."),
            ("parameters", -0.5, "The goal parameters must lie in (0, 1]; not -0.5."),
            ("parameters", 50, "The goal parameters must lie in (0, 1]; not 50."),
            ("max_error", 0.0, "The goal max_error must lie in (0, 1]; not 0."),
            ("max_error", 1.01, "The goal max_error must lie in (0, 1]; not 1.01."),
            ("min_agreement", 0.0, "The goal min_agreement must lie in (0, 1]; not 0."),
            ("min_agreement", 99, "The goal min_agreement must lie in (0, 1]; not 99."),
            ("max_accuracy_drop", math.nan, None),
            ("max_accuracy_drop", -0.01, None),
        ],
    )
    def test_in_one_sentence(self, name: str, value: float, sentence: str | None) -> None:
        with pytest.raises(OnnxcpError) as caught:
            Goal(**{name: value})
        if sentence is None:
            sentence = f"The goal {name} must lie in "
            assert str(caught.value).startswith(sentence)
            assert str(caught.value).endswith(f"; not {value:g}.")
        else:
            assert str(caught.value) == sentence

    def test_with_a_range_that_holds_what_it_takes(self) -> None:
        """No drop at all can be asked for, so the range that is told must not leave out 0."""
        assert Goal(max_accuracy_drop=0).max_accuracy_drop == 0
        with pytest.raises(OnnxcpError) as caught:
            Goal(max_accuracy_drop=-1)
        assert "(0," not in str(caught.value)

    def test_two_at_a_time(self) -> None:
        with pytest.raises(OnnxcpError) as caught:
            Goal(speedup=2, max_error=0.1)
        expected = "Give only one goal: speedup and max_error exclude each other."
        assert str(caught.value) == expected
        with pytest.raises(OnnxcpError, match="speedup and latency and macs exclude each other"):
            Goal(speedup=2, latency=1, macs=0.5)
