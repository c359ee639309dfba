"""The rewritten model computes what its new weights say, whatever a convolution can be.

At full rank these are the old weights. At any other rank the chain has to agree with the original
operator on the kernel that its factors multiply out to, and that for any factors at all: no
decomposition need be good, or be run, to test this.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import helper

from onnxcp.factorize import FactorizePass
from onnxcp.graph.model import Model, load
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.graph.splice import replace_kernels, splice
from onnxcp.passes import registered_passes
from tests.convolutions import GRID, Case, case, cases, grid
from tests.covering import thinned
from tests.networks import FLOAT32, Array, difference, model_of, noise, only_site, run

FAMILIES: dict[str, FactorizePass] = {
    name: kind()
    for name, kind in registered_passes().items()
    if issubclass(kind, FactorizePass) and kind.__module__.startswith("onnxcp_passes.")
}
CASES = grid()


def long_axes(site: Site) -> int:
    return sum(size > 1 for size in site.kernel_shape[2:])


def can_split(site: Site) -> bool:
    return site.geometry is not None and not site.geometry.output_shape


# What each family can express. Everything else it has to refuse.
EXPRESSES: dict[str, Callable[[Site], bool]] = {
    "channel-svd": lambda _: True,
    "spatial-svd": lambda site: site.spatial_rank >= 2 and long_axes(site) >= 1 and can_split(site),
    "output-first-svd": lambda site: long_axes(site) >= 1,
    "tucker2": lambda site: long_axes(site) >= 1,
    "tensor-train": lambda site: long_axes(site) >= 2 and can_split(site),
    "cp3": lambda site: long_axes(site) >= 1,
    "cp4": lambda site: long_axes(site) >= 2 and can_split(site),
    "sparse-low-rank": lambda site: long_axes(site) >= 1,
}


def expressible(family: FactorizePass, site: Site) -> bool:
    """Tell whether a family expresses a site, and check that it says so itself."""
    refusal = family.applies(site)
    if family.name in EXPRESSES:
        assert (refusal is None) == EXPRESSES[family.name](site), refusal
    if refusal is not None:
        assert refusal.site == site.name
        assert refusal.reason == Reason.INEXPRESSIBLE
        assert family.name in refusal.detail
    return refusal is None


def check_full_rank(family: FactorizePass, model: Model, feeds: Mapping[str, Array]) -> None:
    site = only_site(model)
    if not expressible(family, site):
        return
    made = family.apply(site, family.full_ranks(site))
    # Two roundings to float32, of the kernel and of each factor.
    assert made.error < 1e-6
    assert made.kernel.shape == site.kernel_shape
    rewritten = splice(model, {site: (family.name, made.chain)})
    onnx.checker.check_model(rewritten.proto, full_check=True)
    (expected,), (result,) = run(model, feeds), run(rewritten, feeds)
    assert difference(result, expected) < FLOAT32


def check_any_factors(family: FactorizePass, model: Model, feeds: Mapping[str, Array]) -> None:
    site = only_site(model)
    if not expressible(family, site):
        return
    ranks = tuple(max(1, rank // 2) for rank in family.full_ranks(site))
    shapes = family.factor_shapes(site, ranks)
    factors = tuple(noise(*shape, seed=n) for n, shape in enumerate(shapes))
    rewritten = splice(model, {site: (family.name, family.lower(site, factors))})
    standing_for = replace_kernels(model, {site: family.kernel(site, factors)})
    (expected,), (result,) = run(standing_for, feeds), run(rewritten, feeds)
    assert difference(result, expected) < FLOAT32


def input_of(each: Case) -> dict[str, Array]:
    return {"x": noise(2, each.channels[0], *each.size, seed=99)}


each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def test_there_are_families() -> None:
    assert set(FAMILIES) >= set(EXPRESSES)


def decomposed(name: str, each: Case) -> set[Hashable]:
    """What a family meets in a case: its kernel, and each attribute as it is."""
    attributes = ((key, str(value)) for key, value in each.attributes.items())
    met = (each.op, each.kernel, each.group, each.channels, each.bias, *attributes)
    return {(name, one) for one in met}


class TestConvolution:
    @thinned("name,each", itertools.product(FAMILIES, CASES), shows=decomposed)
    def test_full_rank_is_the_original(self, name: str, each: Case) -> None:
        """Which depends on the kernel; what its chain makes of attributes, the other test shows."""
        check_full_rank(FAMILIES[name], load(each.model()), input_of(each))

    @each_family
    @pytest.mark.parametrize("each", CASES, ids=str)
    def test_any_factors_are_their_kernel(self, family: FactorizePass, each: Case) -> None:
        check_any_factors(family, load(each.model()), input_of(each))


@each_family
@given(each=cases())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_convolution_is_exact(family: FactorizePass, each: Case) -> None:
    model = load(each.model())
    check_full_rank(family, model, input_of(each))
    check_any_factors(family, model, input_of(each))


@each_family
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    ("op", "kernel"), [("Conv", (3, 3)), ("Conv", (2, 3, 2)), ("ConvTranspose", (3, 4))]
)
def test_a_decomposition_is_its_kernel(
    family: FactorizePass, op: str, kernel: tuple[int, ...], group: int
) -> None:
    """What `apply` says it found is what the network computes, and what its error is of."""
    each = Case(op, kernel, (6, 7, 6)[: len(kernel)], {}, (4, 6), group)
    model = load(each.model())
    site = only_site(model)
    ranks = tuple(max(1, rank // 2) for rank in family.full_ranks(site))
    made = family.apply(site, ranks)
    assert made.ranks == ranks
    original = site.kernel()
    error = np.linalg.norm(made.kernel - original) / np.linalg.norm(original)
    assert 0 < made.error < 1
    assert made.error == pytest.approx(error, rel=1e-6)
    rewritten = splice(model, {site: (family.name, made.chain)})
    standing_for = replace_kernels(model, {site: made.kernel})
    feeds = input_of(each)
    assert difference(run(rewritten, feeds)[0], run(standing_for, feeds)[0]) < FLOAT32


@pytest.mark.parametrize(("family", "ranks"), [("tucker2", (4, 1)), ("tensor-train", (4, 1, 6))])
def test_ranks_that_neighbours_cannot_feed_are_filled_up(
    family: str, ranks: tuple[int, ...]
) -> None:
    each = FAMILIES[family]
    site = only_site(Case("Conv", (1, 3) if family == "tucker2" else (2, 3), (6, 7)).model())
    made = each.apply(site, ranks)
    assert tuple(factor.shape for factor in made.factors) == each.factor_shapes(site, ranks)
    assert 0 < made.error < 1


@each_family
@pytest.mark.parametrize("each", CASES[::7], ids=str)
def test_factors_have_the_shapes_foretold(family: FactorizePass, each: Case) -> None:
    site = only_site(each.model())
    if not expressible(family, site):
        return
    for ranks in {tuple(1 for _ in family.full_ranks(site)), family.full_ranks(site)}:
        factors = family.factorize(site, ranks)
        assert tuple(factor.shape for factor in factors) == family.factor_shapes(site, ranks)
        assert family.sketch(site, ranks).parameters == sum(factor.size for factor in factors)


GEMMS = [
    pytest.param({}, None, 13, id="plain"),
    pytest.param({}, None, 11, id="no-C"),
    pytest.param({}, (6,), 9, id="C-of-a-row"),
    pytest.param({"transB": 1}, (6,), 9, id="transB"),
    pytest.param({"transA": 1}, (6,), 9, id="transA"),
    pytest.param({"transA": 1, "transB": 1}, (1, 6), 13, id="transA-transB"),
    pytest.param({"alpha": 0.5, "beta": -2.0}, (6,), 9, id="alpha-beta"),
    pytest.param({"alpha": 0.5, "beta": 3.0, "transB": 1}, (5, 1), 13, id="C-of-a-column"),
    pytest.param({"alpha": -1.5, "transA": 1}, (5, 6), 17, id="C-of-a-matrix"),
    pytest.param({"alpha": 2.0, "beta": 0.5}, (1,), 13, id="C-of-one"),
    pytest.param({"beta": 0.0}, (), 17, id="scalar-C-left-out-by-beta"),
]


def gemm(attributes: dict[str, Any], bias: tuple[int, ...] | None, opset: int) -> onnx.ModelProto:
    weights = {"w": noise(6, 8) if attributes.get("transB") else noise(8, 6)}
    if bias is not None:
        weights["c"] = noise(*bias, seed=2)
    node = helper.make_node("Gemm", ["x", *weights], ["y"], name="gemm", **attributes)
    shape = (8, 5) if attributes.get("transA") else (5, 8)
    return model_of([node], inputs={"x": shape}, weights=weights, opset=opset)


@each_family
@pytest.mark.parametrize(("attributes", "bias", "opset"), GEMMS)
def test_gemm(
    family: FactorizePass, attributes: dict[str, Any], bias: tuple[int, ...] | None, opset: int
) -> None:
    model = load(gemm(attributes, bias, opset))
    feeds = {"x": noise(8, 5) if attributes.get("transA") else noise(5, 8)}
    check_full_rank(family, model, feeds)
    check_any_factors(family, model, feeds)


MATMULS = [
    pytest.param(side, shape, id=f"{side}-{'x'.join(map(str, shape))}")
    for side, shapes in {
        "right": [(8,), (5, 8), (2, 5, 8), (2, 3, 5, 8)],
        "left": [(8,), (8, 5), (2, 8, 5), (2, 3, 8, 5)],
    }.items()
    for shape in shapes
]


@each_family
@pytest.mark.parametrize(("side", "shape"), MATMULS)
def test_matmul(family: FactorizePass, side: str, shape: tuple[int, ...]) -> None:
    operands = ["x", "w"] if side == "right" else ["w", "x"]
    weight = noise(8, 6) if side == "right" else noise(6, 8)
    node = helper.make_node("MatMul", operands, ["y"], name="matmul")
    model = load(model_of([node], inputs={"x": shape}, weights={"w": weight}))
    feeds = {"x": noise(*shape)}
    site = only_site(model)
    np.testing.assert_array_equal(site.kernel(), weight.T if side == "right" else weight)
    check_full_rank(family, model, feeds)
    check_any_factors(family, model, feeds)


@each_family
def test_half_precision_is_exact_to_its_own_rounding(family: FactorizePass) -> None:
    each = Case("Conv", (3, 3), (6, 7), {"strides": (1, 2), "pads": (1, 0, 1, 2)}, (4, 6))
    model = load(each.model(dtype=np.float16))
    site = only_site(model)
    made = family.apply(site, family.full_ranks(site))
    rewritten = splice(model, {site: (family.name, made.chain)})
    # Four roundings of numbers and of sums, each of half an epsilon.
    assert difference(run(rewritten)[0], run(model)[0]) < 4 * np.finfo(np.float16).eps


def test_double_precision_is_kept() -> None:
    """ONNX Runtime has no Conv of doubles on a CPU, but a MatMul."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")
    proto = model_of(
        [node],
        inputs={"x": (5, 8)},
        weights={"w": noise(8, 6, dtype=np.float64)},
        dtype=onnx.TensorProto.DOUBLE,
    )
    model = load(proto)
    site, family = only_site(model), FAMILIES["channel-svd"]
    made = family.apply(site, family.full_ranks(site))
    rewritten = splice(model, {site: (family.name, made.chain)})
    assert difference(run(rewritten)[0], run(model)[0]) < 1e-14


def sweep() -> list[Case]:
    """Return the full product of the grid, but for channels and bias."""
    free = {key: GRID[key] for key in GRID if key not in ("channels", "bias")}
    return [
        case(**dict(zip(free, values, strict=True)), channels=(6, 12), bias=index % 2 == 0)
        for index, values in enumerate(itertools.product(*free.values()))
    ]


@pytest.mark.nightly
@each_family
def test_the_whole_grid(family: FactorizePass) -> None:
    for each in sweep():
        model = load(each.model())
        check_full_rank(family, model, input_of(each))
        check_any_factors(family, model, input_of(each))


@pytest.mark.nightly
@each_family
@given(each=cases())
@settings(max_examples=1000, deadline=None)
def test_many_random_convolutions(family: FactorizePass, each: Case) -> None:
    model = load(each.model())
    check_full_rank(family, model, input_of(each))
    check_any_factors(family, model, input_of(each))


def test_a_refusal_reads_as_a_sentence() -> None:
    refusal = FAMILIES["cp4"].applies(only_site(Case("Conv", (3,), (9,)).model()))
    assert refusal == Refusal("conv", Reason.INEXPRESSIBLE, "cp4 needs 2 spatial axes, not 1")
    assert str(refusal) == "conv: cp4 needs 2 spatial axes, not 1"
