"""Forms and ranks by cosine similarity: the rule against its definition."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.output_first_svd import OutputFirstSvd
from onnxcp_passes.spatial_svd import SpatialSvd

from onnxcp.errors import OnnxcpError
from onnxcp.factorize import FactorizePass
from onnxcp.graph.chain import chain_macs, site_macs
from onnxcp.graph.model import load
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site, find_sites
from onnxcp.planning.cosine import (
    Compared,
    CosineSvd,
    Form,
    cost,
    form_of_weights,
    worthwhile,
)
from tests.networks import model_of, noise

FORMS: tuple[FactorizePass, ...] = (ChannelSvd(), SpatialSvd(), OutputFirstSvd())
SHAPE = (1, 12, 10, 10)


@functools.cache
def conv(outputs: int = 16, group: int = 1, kernel: int = 3, **attributes: Any) -> Site:
    """Return a convolution of 12 channels whose singular values fall off."""
    weight = noise(outputs, 12 // group, kernel, kernel)
    weight *= (0.8 ** np.arange(outputs, dtype=np.float32))[:, None, None, None]
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=group, **attributes)
    return find_sites(load(model_of([node], inputs={"x": SHAPE}, weights={"w": weight})))[0][0]


@functools.cache
def matrix() -> Site:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")
    weights = {"w": noise(12, 20)}
    return find_sites(load(model_of([node], inputs={"x": (1, 12)}, weights=weights)))[0][0]


def cosine(a: Any, b: Any) -> float:
    one, two = (np.asarray(each, np.float64).ravel() for each in (a, b))
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def looked_at(site: Site, family: FactorizePass) -> Form:
    """Return a form at all ranks, worth it or not."""
    (full,) = family.full_ranks(site)
    return form_of_weights(site, family, np.arange(1, full + 1))


def compared(site: Site, *families: FactorizePass, round_to: int = 1) -> Compared:
    shape = SHAPE if site.geometry is not None else (1, 12)
    macs = site_macs(site, shape)
    forms = []
    for family in families:
        ranks = worthwhile(site, family, shape, macs, round_to)
        assert not isinstance(ranks, Refusal)
        forms.append(form_of_weights(site, family, ranks))
    return Compared(site, shape, macs, tuple(forms))


class TestWeights:
    @pytest.mark.parametrize("group", [1, 2, 4])
    @pytest.mark.parametrize("family", FORMS, ids=lambda family: family.name)
    def test_the_cosine_is_that_of_the_kernel_and_what_the_factors_stand_for(
        self, family: FactorizePass, group: int
    ) -> None:
        site = conv(group=group)
        form = looked_at(site, family)
        for rank, found in zip(form.ranks, form.cosines, strict=True):
            made = family.apply(site, (int(rank),))
            # Kernels are kept in float32, cosines are reckoned from them in float64.
            assert found == pytest.approx(cosine(site.kernel(), made.kernel), abs=1e-6)
            assert found**2 == pytest.approx(1 - made.error**2, abs=1e-6)  # the energy kept

    @pytest.mark.parametrize("tau", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
    @pytest.mark.parametrize("family", FORMS, ids=lambda family: family.name)
    def test_the_rank_is_that_of_the_energy_squared(
        self, family: FactorizePass, tau: float
    ) -> None:
        form = looked_at(conv(), family)
        position = form.at(tau)
        assert position is not None
        assert (int(form.ranks[position]),) == family.ranks_for_energy(conv(), tau**2)

    @pytest.mark.parametrize("family", FORMS, ids=lambda family: family.name)
    def test_factors_of_a_lower_rank_are_part_of_those_of_a_higher_one(
        self, family: FactorizePass
    ) -> None:
        site = conv(group=2)
        (full,) = family.full_ranks(site)
        whole = family.factorize(site, (full,))
        for rank in range(1, full + 1):
            expected = family.factorize(site, (rank,))
            for part, other in zip(family.truncated(site, whole, rank), expected, strict=True):
                # Products of other sizes are summed in another order, in float64.
                np.testing.assert_allclose(part, other, rtol=0, atol=1e-13)

    def test_of_a_matrix_there_is_the_plain_svd(self) -> None:
        site = matrix()
        form = looked_at(site, ChannelSvd())
        values = np.linalg.svd(site.kernel().astype(np.float64), compute_uv=False)
        expected = np.sqrt(np.cumsum(values**2) / np.sum(values**2))
        np.testing.assert_allclose(form.cosines, expected, rtol=1e-12)


class TestBreakEven:
    @pytest.mark.parametrize("family", FORMS, ids=lambda family: family.name)
    @pytest.mark.parametrize("strides", [[1, 1], [2, 2]])
    def test_ranks_are_those_with_fewer_parameters_and_multiply_adds(
        self, family: FactorizePass, strides: list[int]
    ) -> None:
        site = conv(strides=tuple(strides))
        macs = site_macs(site, SHAPE)
        ranks = worthwhile(site, family, SHAPE, macs, 1)
        assert not isinstance(ranks, Refusal)
        (full,) = family.full_ranks(site)

        def is_worth_it(rank: int) -> bool:
            sketch = family.sketch(site, (rank,))
            return sketch.parameters < site.parameters and chain_macs(site, sketch, SHAPE) < macs

        assert ranks.tolist() == [rank for rank in range(1, full + 1) if is_worth_it(rank)]

    @pytest.mark.parametrize(("family", "rank"), [(ChannelSvd(), 13), (SpatialSvd(), 20)])
    def test_is_where_the_literature_has_it(self, family: FactorizePass, rank: int) -> None:
        """S T d²/(S d² + T) = 13.9 and S T d/(S + T) = 20.6 for S = 12, T = 16, d = 3."""
        ranks = worthwhile(conv(pads=(1, 1, 1, 1)), family, SHAPE, 10**9, 1)
        assert not isinstance(ranks, Refusal)
        assert ranks[-1] == rank

    def test_ranks_are_multiples_where_asked(self) -> None:
        site = conv()
        ranks = worthwhile(site, ChannelSvd(), SHAPE, site_macs(site, SHAPE), 4)
        assert not isinstance(ranks, Refusal)
        assert ranks.tolist() == [4, 8, 12]

    def test_nothing_is_worth_it_where_the_least_rank_is_beyond(self) -> None:
        site = conv()
        refusal = worthwhile(site, ChannelSvd(), SHAPE, site_macs(site, SHAPE), 16)
        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.NO_REDUCTION
        assert refusal.detail == "channel-svd saves nothing at rank 16"

    def test_a_family_that_cannot_express_a_site_says_so(self) -> None:
        refusal = worthwhile(matrix(), SpatialSvd(), (1, 12), 240, 1)
        assert isinstance(refusal, Refusal)


class TestCut:
    @pytest.mark.parametrize("tau", [0.6, 0.8, 0.9, 0.95])
    @pytest.mark.parametrize("fewest", ["parameters", "macs"])
    def test_is_the_form_that_costs_least(self, tau: float, fewest: str) -> None:
        site = conv(strides=(2, 2))
        both = compared(site, ChannelSvd(), SpatialSvd())
        cut = both.cut(tau, fewest)
        assert cut is not None
        alone = [compared(site, family).cut(tau, fewest) for family in FORMS[:2]]
        costs = [cost(each.offer, fewest) for each in alone if each is not None]
        assert cost(cut.offer, fewest) == min(costs)
        assert cut.cosine >= tau

    def test_comes_back_itself_where_nothing_changes(self) -> None:
        """So that two choices are seen to be the same."""
        both = compared(conv(), ChannelSvd(), SpatialSvd())
        assert both.cut(0.9, "parameters") is both.cut(0.9 - 1e-9, "parameters")

    def test_is_none_above_break_even_and_says_why(self) -> None:
        both = compared(conv(), ChannelSvd(), SpatialSvd())
        assert both.cut(1.0, "parameters") is None
        assert str(both.refusal(1.0)) == (
            "conv: neither channel-svd nor spatial-svd comes to a cosine of 1 below break-even"
        )
        one = compared(matrix(), ChannelSvd())
        assert one.cut(0.999, "parameters") is None
        assert str(one.refusal(0.999)) == (
            "fc: channel-svd does not come to a cosine of 0.999 below break-even"
        )

    def test_saves_what_it_costs_less(self) -> None:
        both = compared(conv(), ChannelSvd(), SpatialSvd())
        cut = both.cut(0.8, "parameters")
        assert cut is not None
        assert both.saving(cut, "parameters") == both.site.parameters - cut.offer.parameters > 0
        assert both.macs is not None
        assert both.saving(cut, "macs") == both.macs - cut.offer.macs > 0


class TestCurvesThatFallAgain:
    def test_the_rank_is_that_from_which_on_it_stays(self) -> None:
        form = Form(ChannelSvd(), np.array([2, 4, 6, 8]), np.array([0.7, 0.92, 0.88, 0.95]))
        assert form.at(0.9) == 3
        assert form.at(0.6) == 0
        assert form.at(0.95) == 3
        assert form.at(0.96) is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cosine": 0.0}, "A cosine must lie in (0, 1]; 0 does not."),
        ({"cosine": 1.1}, "A cosine must lie in (0, 1]; 1.1 does not."),
        ({"fewest": "time"}, "cosine-svd has no fewest 'time'; there are: parameters, macs."),
        ({"of": "x"}, "cosine-svd has no of 'x'; there are: auto, weights, responses."),
    ],
)
def test_bad_rules_are_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OnnxcpError) as caught:
        CosineSvd(**options)
    assert str(caught.value) == sentence


def test_a_rule_is_a_phrase() -> None:
    assert str(CosineSvd()) == "cosine-svd"
    assert str(CosineSvd(0.95)) == "cosine-svd at a cosine of 0.95"
