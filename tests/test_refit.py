"""Refits to data: what they gain on samples that were not fitted to, and what they leave alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcp.calibration import statistics
from onnxcp.calibration.data import Data, load_data
from onnxcp.calibration.stream import Stop
from onnxcp.errors import OnnxcpError
from onnxcp.factorize import Factorized, FactorizePass
from onnxcp.graph.chain import step_weight
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.passes import registered_passes
from onnxcp.profiling.inputs import session_inputs
from onnxcp.profiling.machine import Machine
from onnxcp.refit import Refit, RefitSettings, refit
from onnxcp.refit.activation import activations_behind
from tests.networks import (
    FLOAT32,
    Array,
    conv_model,
    initializers,
    model_of,
    noise,
    only_site,
    onnx_type,
    run,
)
from tests.wirings import CHANNELS, summing, wired

FAMILIES: dict[str, FactorizePass] = {
    name: kind()
    for name, kind in registered_passes().items()
    if issubclass(kind, FactorizePass) and kind.__module__.startswith("onnxcp_passes.")
}
MACHINE = Machine(intra_op_num_threads=1)
SAMPLES = 64
Choices = Mapping[Site, Sequence[Factorized]]


def smooth(n: int, channels: int, *size: int, axis: int = 1, seed: int = 0) -> Array:
    """Samples like those in networks: few patterns, smooth over places, mixed to many channels."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n, 3, *size))
    for place in range(2, values.ndim):
        values = values + np.roll(values, 1, place) + np.roll(values, 2, place)
    # The mixing belongs to the data, not to the sample of them.
    mixing = np.random.default_rng(7).standard_normal((channels, 3))
    values = np.moveaxis(np.tensordot(mixing, values, (1, 1)), 0, 1) / 3 ** len(size)
    values += 0.3 + 0.05 * rng.standard_normal(values.shape)
    return np.moveaxis(values, 1, axis).astype(np.float32)


def matrix(
    op: str,
    bias: Array | None = None,
    *,
    left: bool = False,
    axes: int = 2,
    dtype: Any = np.float32,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one matrix product, of 10 inputs and 14 outputs."""
    shape = (14, 10) if left or attributes.get("transB") else (10, 14)
    weights = {"w": noise(*shape, dtype=dtype)} | ({} if bias is None else {"b": bias})
    inputs = ["w", "x"] if left else ["x", "w"]
    node = helper.make_node(op, [*inputs, *list(weights)[1:]], ["y"], name="m", **attributes)
    given: list[int | str | None] = ["n", 10, 5] if left else [*["n", 6, 4][: axes - 1], 10]
    return model_of([node], inputs={"x": given}, weights=weights, dtype=onnx_type(weights["w"]))


def conv(kernel: Sequence[int] = (3, 3), **options: Any) -> onnx.ModelProto:
    options = {"channels": (8, 12), "size": (6, 7, 5)[: len(kernel)], "batch": "n", **options}
    return conv_model(kernel, **options)


SITES: dict[str, onnx.ModelProto] = {
    "conv": conv(pads=[1, 1, 1, 1]),
    "no bias": conv(bias=False),
    "strided": conv(strides=[2, 1], dilations=[1, 2], pads=[1, 0, 2, 1]),
    "SAME": conv((4, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    "grouped": conv(group=2, pads=[1, 1, 1, 1]),
    "1x1": conv((1, 1)),
    "1-d": conv((3,), size=(20,)),
    "3-d": conv((3, 1, 2)),
    "transposed": conv(op="ConvTranspose", strides=[2, 2], output_padding=[1, 0]),
    "transposed, grouped, no bias": conv(op="ConvTranspose", group=2, bias=False),
    "transposed 1-d": conv((3,), op="ConvTranspose", size=(20,), pads=[1, 0]),
    "half": conv(dtype=np.float16),
    "Gemm": matrix("Gemm", noise(14, seed=2)),
    "Gemm, transB": matrix("Gemm", noise(14, seed=2), transB=1),
    "Gemm, alpha and beta": matrix("Gemm", noise(14, seed=2), transB=1, alpha=-0.3, beta=2.5),
    "Gemm without bias": matrix("Gemm", alpha=2.0),
    "Gemm, no beta": matrix("Gemm", noise(14, seed=2), beta=0.0),
    "Gemm, bias of one row": matrix("Gemm", noise(1, 14, seed=2), beta=0.5),
    "Gemm, bias of one number": matrix("Gemm", noise(1, seed=2)),
    "MatMul": matrix("MatMul"),
    "MatMul in double": matrix("MatMul", dtype=np.float64),
    "MatMul of 3 axes": matrix("MatMul", axes=3),
    "MatMul of 4 axes": matrix("MatMul", axes=4),
    "left": matrix("MatMul", left=True),
}


def samples_for(proto: onnx.ModelProto, n: int = SAMPLES, seed: int = 0) -> Array:
    """Smooth samples of the shape that a model wants."""
    (value,) = proto.graph.input
    kind = value.type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim][1:]
    matrix_op = proto.graph.node[0].op_type in ("Gemm", "MatMul")
    axis = len(shape) if matrix_op and shape[-1] == 10 else 1
    channels = shape.pop(axis - 1)
    values = smooth(n, channels, *shape, axis=axis, seed=seed)
    return values.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))


def data_for(proto: onnx.ModelProto, values: Array) -> Data:
    session = MACHINE.open(Model(proto))
    return load_data({"x": values}, session_inputs(session))


def low_ranks(family: FactorizePass, site: Site) -> tuple[int, ...]:
    return tuple(max(1, round(0.35 * full)) for full in family.full_ranks(site))


def choices_for(model: Model, *families: str) -> dict[Site, list[Factorized]]:
    """Factorise sites at low ranks; the closest comes first, as a plan has it."""
    choices = {}
    for site in find_sites(model)[0]:
        fitting = [FAMILIES[name] for name in families if FAMILIES[name].applies(site) is None]
        made = [family.apply(site, low_ranks(family, site)) for family in fitting]
        if made:
            choices[site] = sorted(made, key=lambda each: each.error)
    return choices


def fit(
    proto: onnx.ModelProto,
    choices: Choices,
    values: Array,
    *,
    model: Model | None = None,
    dense: Sequence[Site] = (),
    **options: Any,
) -> dict[Site, Refit]:
    data = data_for(proto, values)
    settings = RefitSettings(**options)
    return refit(model or Model(proto), choices, data, MACHINE, settings, dense=dense)


def plainly(model: Model, choices: Choices) -> Model:
    return splice(model, {s: (c[0].family.name, c[0].chain) for s, c in choices.items()})


def fitted(model: Model, done: Mapping[Site, Refit]) -> Model:
    return splice(model, {site: each.chain for site, each in done.items() if each.chain})


def error(model: Model, original: Model, values: Array) -> float:
    """Relative error of all that networks put out on some samples."""
    one, other = (np.asarray(run(each, {"x": values})[0], np.float64) for each in (model, original))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def weights_of(done: Mapping[Site, Refit]) -> list[bytes]:
    found = []
    for each in done.values():
        assert each.chain is not None
        chain = each.chain[1]
        found += [step_weight(step).tobytes() for step in chain.steps]
        found.append(b"" if chain.bias is None else chain.bias.tobytes())
    return found


@functools.cache
def one_site(name: str, family: str) -> tuple[dict[Site, list[Factorized]], dict[Site, Refit]]:
    """Return what a site became of its weights alone, and of data."""
    choices = choices_for(Model(SITES[name]), family)
    return choices, fit(SITES[name], choices, samples_for(SITES[name]))


EXPRESSIBLE = [
    (name, kind)
    for name, proto in SITES.items()
    for kind, family in FAMILIES.items()
    if family.applies(only_site(proto)) is None
]


@pytest.mark.parametrize(("name", "family"), EXPRESSIBLE)
class TestOneSite:
    def test_is_closer_than_by_its_weights_alone(self, name: str, family: str) -> None:
        model, (choices, done) = Model(SITES[name]), one_site(name, family)
        ((site, found),) = done.items()
        fresh = samples_for(SITES[name], seed=1)
        plain, better = (
            error(each, model, fresh) for each in (plainly(model, choices), fitted(model, done))
        )
        assert found.result is not None
        assert found.result.ranks == choices[site][0].ranks
        assert found.improved
        # Of a transposed convolution only the last factor is fitted.
        assert better < (0.95 if "transposed" in name else 0.9) * plain

    def test_errors_are_those_on_the_samples_held_out(self, name: str, family: str) -> None:
        model, (choices, done) = Model(SITES[name]), one_site(name, family)
        (found,) = done.values()
        held = samples_for(SITES[name])[7::8]
        # Half precision has a thousandth, and an output is rounded in every step.
        digits = {"rel": 0.02} if held.dtype == np.float16 else {"rel": 1e-3, "abs": 1e-5}
        plain, better = plainly(model, choices), fitted(model, done)
        assert found.before == pytest.approx(error(plain, model, held), **digits)
        assert found.after == pytest.approx(error(better, model, held), **digits)
        onnx.checker.check_model(better.proto, full_check=held.dtype != np.float16)


@pytest.mark.parametrize(
    "name", ["conv", "no bias", "grouped", "half", "Gemm, alpha and beta", "Gemm, no beta",
             "MatMul of 3 axes", "left"],
)  # fmt: skip
@pytest.mark.parametrize("family", ["channel-svd", "spatial-svd"])
def test_where_patches_are_too_large_outputs_are_looked_at(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcp.refit.site.can_observe", lambda _: False)
    proto, model = SITES[name], Model(SITES[name])
    choices = choices_for(model, family)
    if not choices:
        return
    values = samples_for(proto)
    (found,) = (done := fit(proto, choices, values)).values()
    digits = {"rel": 0.02} if values.dtype == np.float16 else {"rel": 1e-3, "abs": 1e-5}
    assert found.before == pytest.approx(
        error(plainly(model, choices), model, values[7::8]), **digits
    )
    assert found.after == pytest.approx(error(fitted(model, done), model, values[7::8]), **digits)
    assert found.after < 0.95 * found.before


@pytest.mark.parametrize(
    "name", ["conv", "no bias", "grouped", "Gemm, alpha and beta", "MatMul of 3 axes", "left"]
)
def test_a_cut_of_outputs_is_as_good_as_one_of_patches(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reduced-rank regression needs no more than the covariance of what the site puts out."""
    proto, model = SITES[name], Model(SITES[name])
    choices, values = choices_for(model, "channel-svd"), samples_for(proto)
    (patches,) = fit(proto, choices, values, target="linear").values()
    monkeypatch.setattr("onnxcp.refit.site.can_observe", lambda _: False)
    (outputs,) = fit(proto, choices, values, target="linear").values()
    assert outputs.after == pytest.approx(patches.after, rel=0.01)


class TestBias:
    def fit(self, proto: onnx.ModelProto) -> tuple[Model, Refit]:
        model = Model(proto)
        done = fit(proto, choices_for(model, "channel-svd"), samples_for(proto))
        (found,) = done.values()
        return fitted(model, done), found

    @pytest.mark.parametrize(
        "name", ["conv", "no bias", "grouped", "transposed", "Gemm, alpha and beta",
                 "Gemm, bias of one row", "Gemm, bias of one number", "Gemm without bias"],
    )  # fmt: skip
    def test_makes_the_means_right(self, name: str) -> None:
        """On the samples that are fitted to."""
        rewritten, found = self.fit(SITES[name])
        values = samples_for(SITES[name])
        values = values[np.arange(SAMPLES) % 8 != 7]
        one, other = (run(each, {"x": values})[0] for each in (rewritten, SITES[name]))
        axes = (0, *range(2, one.ndim))
        spread = np.std(other)
        np.testing.assert_allclose(one.mean(axes), other.mean(axes), atol=1e-4 * spread)
        assert found.result is not None
        assert found.result.bias is not None
        assert found.result.bias.shape == (one.shape[1],)
        assert len(rewritten.proto.graph.node[-1].input) == 3

    @pytest.mark.parametrize("name", ["MatMul", "MatMul of 3 axes", "left"])
    def test_is_none_where_the_operator_has_none(self, name: str) -> None:
        rewritten, found = self.fit(SITES[name])
        assert found.result is not None
        assert found.result.bias is None
        assert all(len(node.input) == 2 for node in rewritten.proto.graph.node)

    def test_is_as_it_was_where_it_does_not_count(self) -> None:
        rewritten, found = self.fit(SITES["Gemm, no beta"])
        assert found.result is not None
        assert found.result.bias is None
        assert found.improved
        assert rewritten.proto.graph.node[-1].input[2] == "b"

    @pytest.mark.parametrize("rows", [5, 16])
    def test_that_is_no_vector_leaves_the_weights_alone(self, rows: int) -> None:
        """One for every row of a batch of fixed size."""
        weights = {"w": noise(10, 14), "b": noise(rows, 14, seed=1)}
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="m")
        proto = model_of([node], inputs={"x": (rows, 10)}, weights=weights)
        model = Model(proto)
        choices = choices_for(model, "channel-svd")
        done = fit(proto, choices, samples_for(proto))
        ((site, found),) = done.items()
        assert found.result is choices[site][0]
        assert math.isnan(found.before)
        assert math.isnan(found.after)
        assert not found.improved

    def test_that_is_computed_leaves_the_weights_alone(self) -> None:
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["b"], axes=[0, 2, 3], keepdims=0),
            helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv"),
        ]
        proto = model_of(
            nodes, inputs={"x": ("n", 8, 6, 7)}, weights={"w": noise(8, 8, 3, 3)}
        )  # fmt: skip
        choices = choices_for(Model(proto), "channel-svd")
        ((site, found),) = fit(proto, choices, smooth(SAMPLES, 8, 6, 7)).items()
        assert found.result is choices[site][0]

    @pytest.mark.parametrize("bias", [None, noise(14)])
    def test_of_a_product_that_does_not_count(self, bias: Array | None) -> None:
        proto = matrix("Gemm", bias, alpha=0.0)
        choices = choices_for(Model(proto), "channel-svd")
        ((site, found),) = fit(proto, choices, samples_for(proto)).items()
        assert found.result is choices[site][0]


class TestLeftAlone:
    @pytest.mark.parametrize("name", ["conv", "grouped", "Gemm, alpha and beta", "MatMul"])
    @pytest.mark.parametrize("family", ["channel-svd", "spatial-svd", "tucker2"])
    def test_what_is_exact_already_stays_exact(self, name: str, family: str) -> None:
        proto, model = SITES[name], Model(SITES[name])
        choices = {
            site: [FAMILIES[family].apply(site, FAMILIES[family].full_ranks(site))]
            for site in find_sites(model)[0]
            if FAMILIES[family].applies(site) is None
        }
        done = fit(proto, choices, samples_for(proto))
        assert error(fitted(model, done), model, samples_for(proto, seed=1)) < FLOAT32

    def test_sites_of_one_weight(self) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["h"], name="a", pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["h", "w"], ["y"], name="b", pads=[1, 1, 1, 1]),
        ]
        proto = model_of(nodes, inputs={"x": ("n", 8, 6, 7)}, weights={"w": noise(8, 8, 3, 3) / 6})
        model, values = Model(proto), smooth(SAMPLES, 8, 6, 7)
        choices = choices_for(model, "channel-svd")
        done = fit(proto, choices, values)
        assert all(found.result is choices[site][0] for site, found in done.items())
        # Of one that is on its own only its own node changes.
        first = next(iter(choices))
        (found,) = (done := fit(proto, {first: choices[first]}, values)).values()
        assert found.improved
        rewritten = fitted(model, done)
        np.testing.assert_array_equal(
            initializers(rewritten.proto)["w"], initializers(proto)["w"]
        )  # fmt: skip

    def test_the_network_that_it_is_found_in(self) -> None:
        proto = conv()
        before = proto.SerializeToString()
        fit(proto, choices_for(Model(proto), "cp3"), samples_for(proto))
        assert proto.SerializeToString() == before

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_data_that_do_not_vary_teach_nothing(self, value: float) -> None:
        """But what they make is right."""
        proto = conv()
        model = Model(proto)
        values = np.full((SAMPLES, 8, 6, 7), value, np.float32)
        choices = choices_for(model, "cp3", "channel-svd")
        done = fit(proto, choices, values)
        (found,) = done.values()
        assert found.result is not None
        assert error(fitted(model, done), model, values) < FLOAT32
        # Elsewhere it is as good as the weights alone, but for a constant.
        fresh = samples_for(proto)
        assert error(fitted(model, done), model, fresh) < 1.5 * error(
            plainly(model, choices), model, fresh
        )


class TestFewSamples:
    @pytest.mark.parametrize("name", ["conv", "transposed", "Gemm", "MatMul of 3 axes"])
    def test_are_better_than_none(self, name: str) -> None:
        proto, model = SITES[name], Model(SITES[name])
        choices = choices_for(model, "channel-svd")
        done = fit(proto, choices, samples_for(proto, 16))
        assert all(found.improved for found in done.values())
        fresh = samples_for(proto, seed=1)
        plain, better = (
            error(each, model, fresh) for each in (plainly(model, choices), fitted(model, done))
        )
        assert better < 0.95 * plain

    @pytest.mark.parametrize("count", [5, 2, 1])
    @pytest.mark.parametrize("name", ["conv", "transposed", "Gemm", "MatMul of 3 axes"])
    def test_are_split_all_the_same(self, name: str, count: int) -> None:
        proto = SITES[name]
        choices = choices_for(Model(proto), "channel-svd")
        ((site, found),) = fit(proto, choices, samples_for(proto, count)).items()
        if name == "Gemm" and count == 1:  # a single row
            assert found.result is choices[site][0]
            assert math.isnan(found.before)
        else:
            assert found.after <= found.before < 1

    def test_in_batches_of_one(self) -> None:
        proto, open_batch = conv(batch=1), conv()
        model, values = Model(proto), samples_for(open_batch)
        choices = choices_for(model, "spatial-svd")
        (one,) = fit(proto, choices, values).values()
        (other,) = fit(open_batch, choices_for(Model(open_batch), "spatial-svd"), values).values()
        assert one.improved
        assert one.after == pytest.approx(other.after, rel=1e-3)

    def test_that_do_not_fill_a_batch_are_left_out(self) -> None:
        proto = conv(batch=3)
        (found,) = fit(
            proto, choices_for(Model(proto), "tucker2"), samples_for(conv(), 16)
        ).values()
        assert found.improved


class TestManyShapes:
    def test_samples_of_several_sizes_serve_as_they_come(self) -> None:
        proto = conv(pads=[1, 1, 1, 1])
        for axis in (2, 3):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
            proto.graph.output[0].type.tensor_type.shape.dim[axis].Clear()
        model = Model(proto)
        batches = [
            {"x": smooth(n, 8, *size, seed=n)}
            for n, size in [(20, (6, 7)), (9, (8, 5)), (1, (12, 12)), (16, (5, 5))]
        ]
        data = load_data(lambda: iter(batches), session_inputs(MACHINE.open(model)))
        assert len(data.parts) == 4
        choices = choices_for(model, "cp3")
        done = refit(model, choices, data, MACHINE, RefitSettings())
        fresh = smooth(SAMPLES, 8, 9, 9, seed=1)
        plain, better = (
            error(each, model, fresh) for each in (plainly(model, choices), fitted(model, done))
        )
        assert better < 0.9 * plain

    def test_samples_of_several_inputs(self) -> None:
        proto = opened(wired("s = Add x z", "a = Conv s", "y = Relu a", inputs=("x", "z")))
        model = Model(proto)
        values = {"x": VALUES, "z": smooth(SAMPLES, CHANNELS, 6, 5, seed=3)}
        data = load_data(values, session_inputs(MACHINE.open(model)))
        choices = at_rank(1, *named(model, "a"))
        done = refit(model, choices, data, MACHINE, RefitSettings())
        assert all(found.improved for found in done.values())


class TestChoice:
    def two(self, proto: onnx.ModelProto) -> tuple[Site, Factorized, Factorized]:
        """A family at rank 1, and one that is as good as exact."""
        (site,), _ = find_sites(Model(proto))
        return site, FAMILIES["cp3"].apply(site, (1,)), FAMILIES["tucker2"].apply(site, (8, 11))

    @pytest.mark.parametrize("swap", [False, True])
    def test_is_of_what_is_closest_on_the_data(self, swap: bool) -> None:
        proto = conv()
        site, bad, good = self.two(proto)
        order = [good, bad] if swap else [bad, good]
        found = fit(proto, {site: order}, samples_for(proto))[site]
        assert found.result is not None
        assert found.result.family is good.family
        # What it is held against is what would have been taken without data.
        alone = fit(proto, {site: order[:1]}, samples_for(proto))[site]
        assert found.before == alone.before

    def test_is_no_worse_than_of_any_one(self) -> None:
        proto = conv()
        model, values = Model(proto), samples_for(proto)
        choices = choices_for(model, *FAMILIES)
        ((site, candidates),) = choices.items()
        found = fit(proto, choices, values)[site]
        single = [fit(proto, {site: [each]}, values)[site].after for each in candidates]
        # Those that look far worse after the first, quick fit are not fitted to the end.
        assert found.after <= 1.1 * min(single)


def two_convs(relu: bool = True) -> onnx.ModelProto:
    """Two convolutions in a row."""
    between = "r = Relu a" if relu else "r = Identity a"
    proto = wired("a = Conv x", between, "b = Conv r", "y = Identity b")
    return opened(proto)


def opened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let a network of `wired` take batches of any size."""
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    return proto


def named(model: Model, *names: str) -> list[Site]:
    sites = {site.name: site for site in find_sites(model)[0]}
    return [sites[name] for name in names]


def at_rank(rank: int, *sites: Site) -> dict[Site, list[Factorized]]:
    return {site: [FAMILIES["channel-svd"].apply(site, (rank,))] for site in sites}


VALUES = smooth(SAMPLES, CHANNELS, 6, 5)
FRESH = smooth(SAMPLES, CHANNELS, 6, 5, seed=1)


class TestPrefix:
    def test_a_later_site_is_fitted_to_what_it_is_given(self) -> None:
        proto = two_convs()
        model = Model(proto)
        a, b = named(model, "a", "b")
        choices = at_rank(2, a, b)
        together = fit(proto, choices, VALUES)
        apart = {site: fit(proto, {site: choices[site]}, VALUES)[site] for site in (a, b)}
        assert weights_of({a: together[a]}) == weights_of({a: apart[a]})
        assert weights_of({b: together[b]}) != weights_of({b: apart[b]})
        plain, one, other = (
            error(each, model, FRESH)
            for each in (plainly(model, choices), fitted(model, apart), fitted(model, together))
        )
        assert other < 0.98 * one < plain

    @pytest.mark.parametrize("scope", ["all", "factorised"])
    def test_a_site_that_stays_makes_good_for_those_before_it(self, scope: str) -> None:
        proto = two_convs(relu=False)
        model = Model(proto)
        a, b = named(model, "a", "b")
        # In front of the second one, the first one's output is seen through a kernel.
        done = fit(proto, at_rank(2, a), VALUES, dense=[b], scope=scope)
        assert set(done) == ({a, b} if scope == "all" else {a})
        if scope == "factorised":
            return
        found = done[b]
        assert found.result is None
        assert found.dense is not None
        assert found.improved
        assert found.chain == ("refit", found.dense)
        rewritten = fitted(model, done)
        assert [node.name for node in rewritten.proto.graph.node if "b" in node.name[0]] == ["b"]
        before = error(fitted(model, {a: done[a]}), model, FRESH)
        assert error(rewritten, model, FRESH) < 0.98 * before
        assert found.before == pytest.approx(
            error(fitted(model, {a: done[a]}), model, VALUES[7::8]), rel=1e-3
        )
        assert found.after == pytest.approx(error(rewritten, model, VALUES[7::8]), rel=1e-3)

    def test_a_site_that_no_error_reaches_is_not_touched(self) -> None:
        proto = opened(wired("a = Conv x", "b = Conv x", "y = Mul a b"))
        a, b = named(Model(proto), "a", "b")
        assert set(fit(proto, at_rank(2, b), VALUES, dense=[a])) == {b}
        assert set(fit(proto, at_rank(2, a), VALUES, dense=[b])) == {a}
        assert fit(proto, {}, VALUES, dense=[a, b]) == {}

    def test_a_site_of_which_nothing_more_is_to_be_had_keeps_its_weights(self) -> None:
        """All that the second one is given is a multiple of what it was."""
        proto = two_convs(relu=False)
        model = Model(proto)
        a, b = named(model, "a", "b")
        exact = {a: [FAMILIES["channel-svd"].apply(a, (CHANNELS,))]}
        found = fit(proto, exact, VALUES, dense=[b]).get(b)
        assert found is None or (found.dense is None and found.before == found.after < FLOAT32)

    @pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
    def test_of_what_comes_before_a_transposed_convolution(self, op: str) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "u"], ["h"], name="a", pads=[1, 1, 1, 1]),
            helper.make_node(op, ["h", "v"], ["y"], name="b"),
        ]
        weights = {"u": noise(8, 8, 3, 3) / 6, "v": noise(8, 8, 3, 3, seed=1) / 6}
        proto = model_of(nodes, inputs={"x": ("n", 8, 6, 7)}, weights=weights)
        model, values = Model(proto), smooth(SAMPLES, 8, 6, 7)
        choices = at_rank(3, *named(model, "a", "b"))
        together = fit(proto, choices, values)
        apart = {site: fit(proto, {site: each}, values)[site] for site, each in choices.items()}
        fresh = smooth(SAMPLES, 8, 6, 7, seed=1)
        one, other = (error(fitted(model, each), model, fresh) for each in (apart, together))
        assert other < one


class TestSums:
    @pytest.mark.parametrize("wiring", ["conv shortcut", "conv shortcut that comes first"])
    def test_the_last_one_makes_good_for_the_others(
        self, wiring: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proto = opened(summing(wiring))
        model = Model(proto)
        choices = at_rank(2, *named(model, "a", "b", "c"))
        aware = error(fitted(model, fit(proto, choices, VALUES)), model, FRESH)

        def without_partners(self: Stop) -> Iterator[tuple[Array, Array]]:
            self.partners = ()
            yield from real(self)

        real = Stop.pairs
        monkeypatch.setattr(Stop, "pairs", without_partners)
        blind = error(fitted(model, fit(proto, choices, VALUES)), model, FRESH)
        assert aware < 0.97 * blind

    def test_also_one_that_stays(self) -> None:
        proto = opened(summing("conv shortcut"))
        model = Model(proto)
        a, b, c = named(model, "a", "b", "c")
        done = fit(proto, at_rank(2, c), VALUES, dense=[a, b])
        assert set(done) == {b, c}
        assert done[b].dense is not None
        before = error(fitted(model, {c: done[c]}), model, FRESH)
        assert error(fitted(model, done), model, FRESH) < 0.98 * before


def behind(op: str, *more: str, weights: Mapping[str, Any] | None = None, **options: Any) -> Model:
    """Return a convolution and a node that reads what it makes."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="a"),
        helper.make_node(op, ["a", *more], ["y"], name="y", **options),
    ]
    held = {"w": noise(6, 8, 3, 3), "b": noise(6, seed=1), **(weights or {})}
    return Model(model_of(nodes, inputs={"x": ("n", 8, 6, 7)}, weights=held))


SLOPES = np.array([0.1, 0.5, -0.2, 0.0, 1.0, 0.3], np.float32)
LOW, HIGH = np.array(-0.5, np.float32), np.array(1.5, np.float32)
ACTIVATIONS = {
    "relu": behind("Relu"),
    "leaky": behind("LeakyRelu", alpha=0.2),
    "leaky-by-default": behind("LeakyRelu"),
    "prelu": behind("PRelu", "s", weights={"s": SLOPES.reshape(6, 1, 1)}),
    "prelu-of-one": behind("PRelu", "s", weights={"s": SLOPES[:1]}),
    "clip": behind("Clip", "l", "h", weights={"l": LOW, "h": HIGH}),
    "clip-from-below": behind("Clip", "l", weights={"l": LOW}),
}


class TestActivations:
    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_are_what_the_node_computes(self, name: str) -> None:
        model = ACTIVATIONS[name]
        ((_, activation),) = activations_behind(model, find_sites(model)[0]).items()
        made = smooth(4, 6, 4, 5, seed=3)
        graph = onnx.helper.make_graph(
            [model.proto.graph.node[1]],
            "activation",
            [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, None)],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [t for t in model.proto.graph.initializer if t.name in "slh"],
        )
        node = onnx.ModelProto(ir_version=8, graph=graph, opset_import=model.proto.opset_import)
        (expected,) = run(Model(node), {"a": made})
        rows = np.moveaxis(made, 1, -1).reshape(-1, 6)
        wanted = np.moveaxis(expected, 1, -1).reshape(-1, 6)
        np.testing.assert_allclose(activation(rows), wanted, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        "model",
        [
            behind("Tanh"),
            behind("Clip"),
            behind("Clip", "l", "h", weights={"l": HIGH, "h": LOW}),
            behind("PRelu", "s", weights={"s": noise(6, 4, 5)}),
        ],
        ids=["smooth", "no-limit", "limits-crossed", "slopes-of-places"],
    )
    def test_of_others_nothing_is_known(self, model: Model) -> None:
        assert activations_behind(model, find_sites(model)[0]) == {}

    @pytest.mark.parametrize("name", ["relu", "leaky", "clip"])
    def test_the_fit_is_closer_behind_them(self, name: str) -> None:
        model = ACTIVATIONS[name]
        choices = choices_for(model, "channel-svd")
        linear, auto = (
            fitted(model, fit(model.proto, choices, smooth(SAMPLES, 8, 6, 7), target=target))
            for target in ("linear", "auto")
        )
        fresh = smooth(SAMPLES, 8, 6, 7, seed=1)
        assert error(auto, model, fresh) < error(linear, model, fresh)


class TestSameAgain:
    def test_for_the_same_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statistics, "_ROWS", 800)
        monkeypatch.setattr(statistics, "_PER_ENTRY", 1)
        proto = two_convs()
        choices = choices_for(Model(proto), "spatial-svd", "cp3")
        first, again, other = (
            weights_of(fit(proto, choices, VALUES, seed=seed)) for seed in (3, 3, 4)
        )
        assert first == again
        assert first != other

    def test_whatever_the_memory(self) -> None:
        proto = two_convs()
        choices = choices_for(Model(proto), "tucker2")
        plenty, none = (
            weights_of(fit(proto, choices, VALUES, memory_limit=limit)) for limit in (2**31, 0)
        )
        assert plenty == none

    def test_progress_is_told_of_every_site(self) -> None:
        proto = two_convs()
        heard: list[str] = []
        refit(
            Model(proto),
            choices_for(Model(proto), "channel-svd"),
            data_for(proto, VALUES),
            MACHINE,
            RefitSettings(),
            progress=lambda what, done, total: heard.append(f"{what} {done}/{total}"),
        )
        assert heard == ["a: refitting 0/2", "b: refitting 1/2"]


class TestSettings:
    def test_an_unknown_scope_is_a_sentence(self) -> None:
        with pytest.raises(OnnxcpError) as caught:
            RefitSettings(scope="some")
        assert str(caught.value) == (
            "There is no refit 'some'; there are: all, factorised, none."
        )  # fmt: skip


def test_values_that_are_not_finite_leave_the_weights_alone() -> None:
    nodes = [
        helper.make_node("Log", ["x"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["y"], name="conv"),
    ]
    proto = model_of(nodes, inputs={"x": ("n", 8, 6, 7)}, weights={"w": noise(8, 8, 3, 3)})
    choices = choices_for(Model(proto), "channel-svd")
    values = np.abs(smooth(SAMPLES, 8, 6, 7))
    values[3, 2, 1] = 0
    with np.errstate(all="ignore"):
        ((site, found),) = fit(proto, choices, values).items()
    assert found.result is choices[site][0]


@pytest.mark.parametrize("name", ["conv", "transposed"])
def test_factors_that_rounding_spoils_are_not_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcp.refit.site.tolerable", lambda *_: False)
    proto = SITES[name]
    choices = choices_for(Model(proto), "channel-svd")
    ((site, found),) = fit(proto, choices, samples_for(proto)).items()
    assert found.result is choices[site][0]
    assert found.before == found.after > 0
