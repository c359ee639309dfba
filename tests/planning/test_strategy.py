"""Greedy acceptance: what one by one would accept, in fewer trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcp.planning.strategy import accept

Losses = Mapping[str, float]


class Judge:
    """Allows what loses no more than so much in all, and counts how often it was asked."""

    def __init__(self, most: float, loss: Callable[[str, float], float]) -> None:
        self.asked: dict[frozenset[tuple[str, float]], bool] = {}
        self._most, self._loss = most, loss

    def __call__(self, chosen: Losses) -> bool:
        key = frozenset(chosen.items())
        if key not in self.asked:
            self.asked[key] = sum(self._loss(*each) for each in chosen.items()) <= self._most
        return self.asked[key]


def one_by_one(level: Losses, judge: Callable[[Losses], bool]) -> dict[str, float]:
    """The strategy as it is written down: each layer after the other."""
    state: dict[str, float] = {}
    for place, option in level.items():
        if judge({**state, place: option}):
            state[place] = option
    return state


levels = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=12).map(
    lambda losses: {f"site{k}": loss for k, loss in enumerate(losses)}
)


@given(levels, st.integers(0, 60))
def test_one_level_is_accepted_as_if_one_by_one(level: Losses, most: int) -> None:
    judge = Judge(most, lambda _, loss: loss)
    accepted, refused = accept([level], judge)
    assert accepted == one_by_one(level, Judge(most, lambda _, loss: loss))
    assert accepted.keys() | refused.keys() == level.keys()
    assert not accepted.keys() & refused.keys()


@given(st.lists(levels, min_size=1, max_size=6), st.integers(0, 60))
def test_what_is_accepted_is_allowed_and_no_refused_place_would_be(
    drawn: list[dict[str, float]], most: int
) -> None:
    # Bolder levels lose more of each place, and hold more places.
    bold: list[dict[str, float]] = [{}]
    for level in drawn:
        before = bold[-1]
        bold.append({**before, **{p: before.get(p, 0) + loss for p, loss in level.items()}})
    judge = Judge(most, lambda _, loss: loss)
    accepted, refused = accept(bold[1:], judge)
    assert not accepted or judge(accepted)
    for place, option in refused.items():
        assert not judge({**accepted, place: option})
    for place, option in accepted.items():
        assert place in refused or option == bold[-1][place]


def test_a_level_that_is_allowed_takes_few_trials_and_one_place_that_is_not_is_found() -> None:
    level = dict.fromkeys((f"site{k}" for k in range(64)), 1.0)
    judge = Judge(math.inf, lambda _, loss: loss)
    assert accept([level], judge) == (level, {})
    assert len(judge.asked) == 1
    judge = Judge(1e6, lambda place, loss: 1e9 if place == "site37" else loss)
    accepted, refused = accept([level], judge)
    assert (set(refused), len(accepted)) == ({"site37"}, 63)
    assert len(judge.asked) <= 1 + 2 * math.log2(64)


def test_the_boldest_common_level_is_found_by_bisection() -> None:
    bold = [{"a": float(k), "b": float(k)} for k in range(1, 33)]
    judge = Judge(20, lambda _, loss: loss)
    accepted, _ = accept(bold, judge)
    # 10 of each is allowed as a whole; then a goes on alone until b has no room left.
    assert sum(accepted.values()) == 20
    assert len(judge.asked) <= math.log2(32) + 5


@pytest.mark.parametrize("levels", [[], [{}], [{}, {}]])
def test_of_nothing_nothing_is_accepted(levels: list[dict[str, float]]) -> None:
    assert accept(levels, lambda _: True) == ({}, {})


def test_where_nothing_is_allowed_everything_is_refused() -> None:
    level = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert accept([level], lambda chosen: not chosen) == ({}, level)
