"""Offers: what each family has for a site, counted before anything is measured."""

from __future__ import annotations

import itertools

import pytest
from onnx import helper

from onnxcp.factorize import FactorizePass
from onnxcp.graph.chain import chain_macs, site_macs
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.passes import registered_passes
from onnxcp.planning.offer import SHARES, Offer, anchors, ladder
from tests.networks import conv_model, model_of, noise, only_site

FAMILIES: dict[str, FactorizePass] = {
    name: kind()
    for name, kind in registered_passes().items()
    if issubclass(kind, FactorizePass) and kind.__module__.startswith("onnxcp_passes.")
}
CONV = only_site(conv_model(channels=(32, 48), pads=(1, 1, 1, 1)))
CONV_SHAPE = (2, 32, 14, 14)


def matrix() -> Site:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    weights = {"w": noise(40, 30)}
    return only_site(model_of([node], inputs={"x": (2, 5, 40)}, weights=weights))


def offers_of(
    family: str, site: Site = CONV, shape: tuple[int, ...] = CONV_SHAPE, round_to: int = 1
) -> list[Offer]:
    found = ladder(site, FAMILIES[family], shape, site_macs(site, shape), round_to)
    assert not isinstance(found, Refusal)
    return found


def refused(
    family: str, site: Site, shape: tuple[int, ...], round_to: int = 1, macs: int | None = None
) -> Refusal:
    total = site_macs(site, shape) if macs is None else macs
    found = ladder(site, FAMILIES[family], shape, total, round_to)
    assert isinstance(found, Refusal)
    assert found.site == site.name
    return found


def test_the_shares_are_those_that_are_told() -> None:
    assert SHARES[0] == 0.025
    assert 0.59 < SHARES[-1] < 0.6
    assert all(b / a == pytest.approx(1.12) for a, b in itertools.pairwise(SHARES))


@pytest.mark.parametrize("family", FAMILIES)
class TestALadder:
    def test_goes_from_cheap_to_dear_without_repetitions(self, family: str) -> None:
        offers = offers_of(family)
        assert len(offers) >= 3
        macs = [offer.macs for offer in offers]
        assert macs == sorted(macs)
        assert len({offer.ranks for offer in offers}) == len(offers)
        for rung, other in itertools.pairwise(offers):
            assert all(a <= b for a, b in zip(rung.ranks, other.ranks, strict=True))

    def test_stays_below_the_largest_share(self, family: str) -> None:
        total = site_macs(CONV, CONV_SHAPE)
        for offer in offers_of(family):
            assert offer.macs <= SHARES[-1] * total

    def test_has_the_largest_rank_within_every_share(self, family: str) -> None:
        offers = {offer.ranks for offer in offers_of(family)}
        for share in SHARES:
            ranks = FAMILIES[family].ranks_for_macs(CONV, share, 1, CONV_SHAPE)
            assert isinstance(ranks, Refusal) or ranks in offers

    def test_counts_what_the_chain_really_costs(self, family: str) -> None:
        for offer in offers_of(family)[::6]:
            chain = FAMILIES[family].apply(CONV, offer.ranks).chain
            assert offer.macs == chain_macs(CONV, chain, CONV_SHAPE)
            assert offer.parameters == chain.parameters
            assert offer.sketch.parameters == chain.parameters

    def test_rounds_ranks(self, family: str) -> None:
        each = FAMILIES[family]
        for offer in offers_of(family, round_to=4):
            assert offer.ranks[0] % 4 == 0 or offer.ranks[0] == each.full_ranks(CONV)[0]
            assert each.rounded(CONV, offer.ranks, 4, up=False) == offer.ranks

    def test_says_what_it_offers(self, family: str) -> None:
        offer = offers_of(family)[0]
        assert str(offer) == f"{family} {'x'.join(str(rank) for rank in offer.ranks)}"
        assert offer.family is FAMILIES[family]
        assert offer.site is CONV


class TestNoLadder:
    def test_where_the_family_does_not_apply(self) -> None:
        site = only_site(conv_model((1, 1), channels=(32, 48)))
        found = refused("cp3", site, (2, 32, 9, 10))
        assert found == FAMILIES["cp3"].applies(site)
        assert found.reason is Reason.INEXPRESSIBLE

    def test_where_the_least_rank_keeps_too_much(self) -> None:
        """A rank rounded to at least 16 of at most 6 is the full one."""
        found = refused("channel-svd", only_site(conv_model(channels=(4, 6))), (2, 4, 9, 10), 16)
        assert found.reason is Reason.NO_REDUCTION
        assert "channel-svd keeps more than" in found.detail

    def test_of_what_costs_as_much_as_the_site(self) -> None:
        offers = offers_of("channel-svd")
        found = refused("channel-svd", CONV, CONV_SHAPE, macs=offers[0].macs)
        assert found.reason is Reason.NO_REDUCTION
        some = ladder(CONV, FAMILIES["channel-svd"], CONV_SHAPE, offers[3].macs)
        assert [each.ranks for each in some] == [each.ranks for each in offers[:3]]


def test_matrices_are_offered_too() -> None:
    site = matrix()
    offers = offers_of("channel-svd", site, (2, 5, 40))
    for offer in offers:
        (rank,) = offer.ranks
        assert offer.macs == 5 * rank * (40 + 30)
        assert offer.parameters == rank * (40 + 30)


def test_a_sketch_takes_no_memory() -> None:
    site = only_site(conv_model(channels=(64, 64), size=(5, 5)))
    offer = Offer.of(site, FAMILIES["channel-svd"], (32,), (1, 64, 5, 5))
    assert all(step.kernel.strides == (0,) * 4 for step in offer.sketch.steps)
    assert offer.sketch is offer.sketch


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 20, 29])
def test_anchors_are_the_first_the_middle_and_the_last(count: int) -> None:
    offers = [Offer(CONV, FAMILIES["cp3"], (rank,), rank) for rank in range(1, count + 1)]
    chosen = anchors(offers)
    assert chosen[0] is offers[0]
    assert chosen[-1] is offers[-1]
    assert len(chosen) == min(count, 3)
    assert [each.macs for each in chosen] == sorted({each.macs for each in chosen})
    if count > 2:
        assert abs(offers.index(chosen[1]) - (count - 1) / 2) <= 0.5
