"""What is particular to sums of low rank and a small convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.sparse_low_rank import SUPPORTS, SparseLowRank

from onnxcp.errors import PassError
from onnxcp.factorize import FactorizePass
from onnxcp.graph.chain import ConvStep, PickStep
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.model import load
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.site import Site
from onnxcp.graph.splice import replace_kernels, splice
from onnxcp.passes import Context
from onnxcp.pipeline import parse_pipeline
from tests.networks import FLOAT32, conv_model, difference, noise, only_site, operators, run

PADDED = {"pads": (1, 1, 1, 1)}
SHAPE = (1, 16, 20, 20)


def site_of(kernel: tuple[int, ...] = (3, 3), **options: Any) -> Site:
    return only_site(conv_model(kernel, channels=(16, 24), **options))


def small_step(family: FactorizePass, site: Site, ranks: tuple[int, ...]) -> ConvStep:
    (row,) = family.sketch(site, ranks).beside
    assert isinstance(row[-1], ConvStep)
    return row[-1]


@pytest.mark.parametrize(
    ("support", "kernel", "pads"),
    [
        ("centre", (1, 1), (0, 0, 0, 0)),
        ("row", (1, 3), (0, 1, 0, 1)),
        ("column", (3, 1), (1, 0, 1, 0)),
        ("inputs", (3, 3), (1, 1, 1, 1)),
    ],
)
def test_supports(support: str, kernel: tuple[int, ...], pads: tuple[int, ...]) -> None:
    site, family = site_of(**PADDED), SparseLowRank(support=support)
    ranks = family.ranks_for_macs(site, 0.6, 4, SHAPE)
    assert isinstance(ranks, tuple)
    rank, inputs, *box = ranks
    assert rank % 4 == 0
    assert tuple(box) == kernel
    assert inputs == 16 if support != "inputs" else inputs < 16
    step = small_step(family, site, ranks)
    assert step.geometry == Geometry(kernel, (1, 1), pads, (1, 1))
    (row,) = family.sketch(site, ranks).beside
    assert isinstance(row[0], PickStep) == (support == "inputs")


@pytest.mark.parametrize(
    ("kernel", "attributes", "wanted", "box", "pads"),
    [
        ((3, 3), {}, (1, 1), (3, 3), (0, 0, 0, 0)),
        ((3, 3), {"auto_pad": "VALID"}, (1, 1), (3, 3), None),
        ((3, 3), {"pads": (1, 0, 1, 0)}, (1, 1), (1, 3), (0, 0, 0, 0)),
        ((3, 3), {"pads": (2, 1, 0, 1)}, (1, 1), (1, 1), (0, 0, 0, 0)),
        ((5, 5), {"pads": (2, 2, 2, 2)}, (1, 3), (1, 3), (0, 1, 0, 1)),
        ((5, 5), {"pads": (1, 1, 1, 1)}, (1, 1), (3, 3), (0, 0, 0, 0)),
        ((3, 3), {"pads": (2, 2, 2, 2), "dilations": (2, 2)}, (1, 1), (1, 1), (0, 0, 0, 0)),
        ((3, 3), {"pads": (1, 1, 1, 1), "dilations": (2, 2)}, (1, 1), (3, 3), (1, 1, 1, 1)),
        ((3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)}, (1, 1), (1, 1), (0, 0, 0, 0)),
        ((3, 3), {"auto_pad": "SAME_UPPER"}, (1, 1), (1, 1), (0, 0, 0, 0)),
        ((4, 4), {"auto_pad": "SAME_UPPER"}, (1, 1), (1, 1), (0, 0, 0, 0)),
        ((4, 4), {"auto_pad": "SAME_LOWER"}, (2, 2), (2, 2), (1, 1, 0, 0)),
        ((3, 3), {"auto_pad": "SAME_UPPER", "strides": (2, 1)}, (1, 1), (3, 3), None),
    ],
)
def test_a_box_is_no_smaller_than_pads_allow(
    kernel: tuple[int, ...],
    attributes: dict[str, Any],
    wanted: tuple[int, ...],
    box: tuple[int, ...],
    pads: tuple[int, ...] | None,
) -> None:
    proto = conv_model(kernel, size=(11, 12), **attributes)
    model = load(proto)
    site, family = only_site(proto), SparseLowRank()
    ranks = (2, 3, *wanted)
    step = small_step(family, site, ranks)
    assert step.geometry.kernel == box
    if pads is None:
        assert step.geometry == site.geometry, "the whole kernel, with its own attributes"
    else:
        assert step.geometry.pads == pads
    factors = tuple(noise(*s, seed=n) for n, s in enumerate(family.factor_shapes(site, ranks)))
    made = splice(model, {site: ("s", family.lower(site, factors))})
    whole = replace_kernels(model, {site: family.kernel(site, factors)})
    assert difference(run(made)[0], run(whole)[0]) < FLOAT32


@pytest.mark.parametrize("group", [1, 2])
def test_a_planted_sum_is_found(group: int) -> None:
    kernels = []
    for g in range(group):
        outer, inner = noise(24 // group, 2, seed=g), noise(2, 16 // group, 3, 3, seed=g + 5)
        kernel = np.einsum("tr,rsij->tsij", outer, inner)
        kernel[:, [1 + g, 5]] += noise(24 // group, 2, 3, 3, seed=g + 9)
        kernels.append(kernel)
    kernel = np.concatenate(kernels)
    site = site_of(group=group, **PADDED).holding(kernel)
    made = SparseLowRank().apply(site, (2, 2, 3, 3))
    assert made.error < 1e-6
    chosen = made.factors[3].reshape(group, 2)
    np.testing.assert_array_equal(chosen, [[1 + g, 5] for g in range(group)])
    assert ChannelSvd().apply(site, (8,)).error > 0.05


def test_data_choose_the_inputs() -> None:
    """Of inputs that matter as much in the weights, those are kept that vary in the data."""
    site, family = site_of(**PADDED), SparseLowRank(support="inputs")
    power = np.repeat(np.where(np.isin(np.arange(16), [2, 7, 11]), 100.0, 0.01), 9)
    made = family.apply(site, (2, 3, 3, 3))
    grams = [np.diag(power)]
    kept = family.refine(site, made.factors, site.group_kernels(), grams, 0)
    np.testing.assert_array_equal(kept[3], made.factors[3])
    chosen = family.refine(site, made.factors, site.group_kernels(), grams)
    np.testing.assert_array_equal(chosen[3], [2, 7, 11])


@pytest.mark.parametrize("support", SUPPORTS)
def test_energy_is_kept_and_one_rank_less_keeps_less(support: str) -> None:
    site, family = site_of(**PADDED), SparseLowRank(support=support)
    ranks = family.ranks_for_energy(site, 0.8)
    assert family.apply(site, ranks).error ** 2 <= 0.2
    if support != "inputs":
        assert family.apply(site, (ranks[0] - 1, *ranks[1:])).error ** 2 > 0.2


def test_mixing_outputs_mixes_both_rows() -> None:
    site, family = site_of(group=2, **PADDED), SparseLowRank()
    made = family.apply(site, (2, 3, 1, 1))
    mixing = noise(24, 12, seed=3)
    mixed = family.kernel(site, family.mixed(site, made.factors, mixing))
    halves = zip(np.split(mixing, 2), np.split(made.kernel, 2), strict=True)
    expected = np.concatenate([np.tensordot(mix, part, axes=1) for mix, part in halves])
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


@pytest.mark.parametrize(("kernel", "pads"), [((3, 3), (0, 0, 0, 0)), ((1, 3), (0, 1, 0, 1))])
def test_supports_that_are_others_are_refused(
    kernel: tuple[int, ...], pads: tuple[int, ...]
) -> None:
    refusal = SparseLowRank(support="row").applies(site_of(kernel, pads=pads))
    assert isinstance(refusal, Refusal)
    assert str(refusal) == (
        "conv: sparse-low-rank: a row of its kernel is its centre or all that pads allow"
    )
    assert SparseLowRank(support="inputs").applies(site_of(kernel, pads=pads)) is None


def test_all_forms_are_offered() -> None:
    forms = SparseLowRank().forms()
    assert [form.support for form in forms if isinstance(form, SparseLowRank)] == list(SUPPORTS)
    site = site_of(**PADDED)
    ranks = forms[1].ranks_for_macs(site, 0.6, 1, SHAPE)
    assert isinstance(ranks, tuple)
    one, other = (form.apply(site, ranks) for form in (forms[0], forms[1]))
    assert one.error == other.error, "ranks say all: a plan need not name the support"


def test_as_a_pass() -> None:
    (each,) = parse_pipeline("sparse-low-rank{macs=0.5,support=column}")
    proto = conv_model(channels=(16, 24), **PADDED)
    result = each.run(load(proto), Context())
    assert operators(result.model.proto) == ["Conv", "Conv", "Conv", "Add"]
    assert result.notes[0].startswith("conv: sparse-low-rank rank 3x16x3x1, weight error 0.")


def test_the_support_is_checked() -> None:
    sentence = (
        "Option 'support' of pass 'sparse-low-rank' is 'corner', "
        "not one of centre, row, column, inputs."
    )
    with pytest.raises(PassError) as caught:
        SparseLowRank(rank=2, support="corner")
    assert str(caught.value) == sentence
