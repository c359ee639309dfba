"""What was decided for a site, before and after a refit."""

from __future__ import annotations

import math

import pytest
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.spatial_svd import SpatialSvd

from onnxcp.factorize import FactorizePass
from onnxcp.graph.chain import with_kernel
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.planning.latency import Timing
from onnxcp.planning.option import Candidate, Decision, Option
from onnxcp.refit import Refit
from tests.networks import conv_model, noise, only_site

SITE = only_site(conv_model())
TIMING = Timing(before=3.0, after=1.5, low=1.9, high=2.1)
SLOW = Refusal(SITE.name, Reason.NOT_FASTER, "cp3 3 is not faster")


def candidate(family: FactorizePass, rank: int) -> Candidate:
    result = family.apply(SITE, (rank,))
    return Candidate(Option(SITE, family, (rank,), 100, TIMING), result)


FIRST, SECOND = candidate(ChannelSvd(), 3), candidate(SpatialSvd(), 4)
DECISION = Decision(SITE, 1000, (FIRST, SECOND), (SLOW,))


def test_the_first_candidate_is_what_the_site_becomes() -> None:
    assert DECISION.option is FIRST.option
    assert DECISION.result is FIRST.result
    assert DECISION.chain is not None
    assert DECISION.chain[0] == "channel-svd"
    errors = [each.result.error for each in (SECOND, FIRST)]
    assert DECISION.refusals == (
        SLOW,
        Refusal(
            SITE.name,
            Reason.INACCURATE,
            f"spatial-svd has a weight error of {errors[0]:.3g}, channel-svd one of "
            f"{errors[1]:.3g} at the same cost",
        ),
    )


def test_without_candidates_it_becomes_nothing() -> None:
    alone = Decision(SITE, 1000, reasons=(SLOW,))
    assert alone.option is alone.result is alone.chain is None
    assert alone.refusals == (SLOW,)
    assert not alone.excluded
    assert Decision(SITE, 1, reasons=(Refusal("c", Reason.EXCLUDED, "it is not wanted"),)).excluded


def test_an_option_saves_what_its_timing_says() -> None:
    option = FIRST.option
    assert option.saving == 1.5
    assert option.parameters == 3 * 4 * 9 + 6 * 3
    assert str(option) == "channel-svd 3"
    assert math.isnan(option.distortion)
    assert math.isnan(option.error)


@pytest.mark.parametrize("chosen", [FIRST, SECOND])
def test_a_refit_may_choose_another(chosen: Candidate) -> None:
    result = chosen.option.family.measured(
        SITE, chosen.option.ranks, chosen.result.factors, noise(6)
    )  # fmt: skip
    fitted = DECISION.refitted(Refit(0.5, 0.2, result))
    assert fitted.option is chosen.option
    assert fitted.result is result
    assert fitted.chain is not None
    assert fitted.chain[0] == chosen.option.family.name
    assert fitted.chain[1].bias is result.bias
    assert len(fitted.candidates) == 2
    loser = SECOND if chosen is FIRST else FIRST
    assert fitted.candidates[1] is loser
    names = loser.option.family.name, chosen.option.family.name
    assert fitted.refusals[1].detail == (
        "{} has a larger output error than {} at the same cost".format(*names)
    )


def test_a_refit_that_is_not_known_to_help_leaves_the_reason_as_it_was() -> None:
    fitted = DECISION.refitted(Refit(math.nan, math.nan, FIRST.result))
    assert fitted.chain is not None
    assert fitted.refusals == DECISION.refusals


@pytest.mark.parametrize("chosen", [FIRST, SECOND])
def test_a_refit_can_be_taken_back(chosen: Candidate) -> None:
    result = chosen.option.family.measured(
        SITE, chosen.option.ranks, tuple(2 * each for each in chosen.result.factors)
    )
    fitted = DECISION.refitted(Refit(0.5, 0.2, result))
    again = fitted.refitted(Refit(0.5, 0.1, result))
    for each in (fitted, again):
        back = each.unfitted()
        assert back.refit is None
        assert {c.result for c in back.candidates} == {FIRST.result, SECOND.result}
    assert DECISION.unfitted().result is FIRST.result


def test_a_site_can_be_given_back() -> None:
    why = Refusal(SITE.name, Reason.NOT_FASTER, "the whole is not faster with it")
    back = DECISION.refitted(Refit(0.5, 0.2, FIRST.result)).given_back(why)
    assert back.option is back.result is back.chain is back.refit is None
    assert back.refusals == (SLOW, why)
    assert (back.site, back.macs) == (SITE, 1000)


def test_a_site_that_stays_may_get_other_weights() -> None:
    alone = Decision(SITE, 1000, reasons=(SLOW,))
    dense = with_kernel(SITE, 2 * SITE.kernel(), noise(6))
    fitted = alone.refitted(Refit(0.5, 0.2, dense=dense))
    assert fitted.chain == ("refit", dense)
    assert fitted.option is fitted.result is None
    assert fitted.refusals == (SLOW,)
    assert alone.refitted(Refit(0.5, 0.5)).chain is None


@pytest.mark.parametrize(
    ("before", "after", "improved"),
    [(0.5, 0.2, True), (0.2, 0.2, False), (math.nan, math.nan, False)],
)
def test_a_refit_has_improved_where_the_error_fell(
    before: float, after: float, improved: bool
) -> None:
    assert Refit(before, after).improved == improved
    assert Refit(before, after).chain is None
