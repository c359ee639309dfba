"""Refusals: which of several says most."""

from __future__ import annotations

import itertools

import pytest

from onnxcp.graph.refusal import Reason, Refusal, main_refusal

# From the first question that an option is asked to the last.
COURSE = (
    Reason.INEXPRESSIBLE,
    Reason.NO_REDUCTION,
    Reason.NOT_FASTER,
    Reason.NOT_FINITE,
    Reason.INACCURATE,
    Reason.NOT_NEEDED,
)


def refusal(reason: Reason, detail: str = "it is so") -> Refusal:
    return Refusal("conv1", reason, detail)


def test_prints_as_a_sentence() -> None:
    assert str(refusal(Reason.DEPTHWISE, "it is depthwise")) == "conv1: it is depthwise"


@pytest.mark.parametrize(("early", "late"), list(itertools.combinations(COURSE, 2)))
def test_that_which_came_furthest_says_most(early: Reason, late: Reason) -> None:
    refusals = [refusal(early), refusal(late)]
    assert main_refusal(refusals) is refusals[1]
    assert main_refusal(refusals[::-1]) is refusals[1]


def test_of_equals_the_first() -> None:
    refusals = [refusal(Reason.NOT_FASTER, detail) for detail in "ab"]
    assert main_refusal(refusals) is refusals[0]


@pytest.mark.parametrize("reason", sorted(set(Reason) - set(COURSE)))
def test_what_shuts_a_site_out_alone(reason: Reason) -> None:
    assert main_refusal([only := refusal(reason)]) is only
    assert main_refusal([only, late := refusal(Reason.INEXPRESSIBLE)]) is late


def test_of_none() -> None:
    assert main_refusal([]) is None
