"""Chains of every kind in the place of a site: their bias, their rows, and those of one step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.cp import Cp4

from onnxcp.graph.chain import Chain, ConvStep, MatrixStep, PickStep, with_kernel
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.model import Model, load
from onnxcp.graph.site import find_sites
from onnxcp.graph.splice import replace_kernels, splice
from tests.networks import (
    FLOAT32,
    Array,
    conv_model,
    difference,
    feeds_for,
    initializers,
    model_of,
    noise,
    only_site,
    operators,
    run,
)
from tests.splices import FEEDS, two_convs

# Operator, attributes, whether it has a bias, opset.
BIASED: dict[str, tuple[str, dict[str, Any], bool, int]] = {
    "Conv": ("Conv", {"group": 2}, True, 17),
    "Conv without": ("Conv", {}, False, 17),
    "ConvTranspose": ("ConvTranspose", {"group": 2, "strides": [2, 2]}, True, 17),
    "ConvTranspose without": ("ConvTranspose", {}, False, 17),
    "Gemm": ("Gemm", {"alpha": 0.5, "beta": -2.0, "transB": 1}, True, 17),
    "Gemm without": ("Gemm", {"transA": 1}, False, 17),
    "Gemm of old": ("Gemm", {}, True, 9),
}


class TestBias:
    """That of a chain takes the place of the site's."""

    BIAS = noise(6, seed=8)

    def model(self, name: str, *extra: onnx.NodeProto) -> Model:
        op, attributes, biased, opset = BIASED[name]
        group = attributes.get("group", 1)
        if op == "Gemm":
            shape: tuple[int, ...] = (6, 4) if attributes.get("transB") else (4, 6)
            x: tuple[int, ...] = (4, 5) if attributes.get("transA") else (5, 4)
        else:
            shape = (4, 6 // group, 3, 3) if op == "ConvTranspose" else (6, 4 // group, 3, 3)
            x = (2, 4, 7, 8)
        weights = {"w": noise(*shape)} | ({"b": noise(6, seed=1)} if biased else {})
        node = helper.make_node(op, ["x", *weights], ["y"], name="site", **attributes)
        outputs = ["y", *(each.output[0] for each in extra)]
        return load(
            model_of([node, *extra], inputs={"x": x}, outputs=outputs, weights=weights, opset=opset)
        )

    def expected(self, model: Model) -> Array:
        """What the site puts out with the other bias."""
        site = only_site(model)
        (output, *_) = run(model)
        channels = (6, *(1,) * (output.ndim - 2))
        old = initializers(model.proto).get("b", np.zeros(6, np.float32))
        return output + np.float32(site.bias_gain) * (self.BIAS - old).reshape(channels)

    @pytest.mark.parametrize("name", BIASED)
    @pytest.mark.parametrize("steps", [1, 2])
    def test_is_added_by_the_last_step(self, name: str, steps: int) -> None:
        model = self.model(name)
        site = only_site(model)
        full = ChannelSvd().full_ranks(site)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, full).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", replace(chain, bias=self.BIAS))})
        onnx.checker.check_model(result.proto, full_check=True)
        assert len(result.proto.graph.node) == steps
        assert difference(run(result)[0], self.expected(model)) < FLOAT32
        values = initializers(result.proto)
        last = result.proto.graph.node[-1].input[2]
        assert last == ("b/refit/bias" if "b" in initializers(model.proto) else "w/refit/bias")
        np.testing.assert_array_equal(values[last], self.BIAS)
        assert "b" not in values
        assert "w" not in values

    @pytest.mark.parametrize("name", BIASED)
    @pytest.mark.parametrize("steps", [1, 2])
    def test_is_the_old_one_unless_given(self, name: str, steps: int) -> None:
        model = self.model(name)
        site = only_site(model)
        full = ChannelSvd().full_ranks(site)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, full).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", chain)})
        assert difference(run(result)[0], run(model)[0]) < FLOAT32
        inputs = list(result.proto.graph.node[-1].input[2:])
        assert inputs == (["b"] if "b" in initializers(model.proto) else [])

    @pytest.mark.parametrize("steps", [1, 2])
    def test_the_old_one_stays_where_something_else_reads_it(self, steps: int) -> None:
        model = self.model("Conv", helper.make_node("Neg", ["b"], ["n"]))
        site = only_site(model)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, (3,)).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", replace(chain, bias=self.BIAS))})
        assert {"b", "b/refit/bias"} <= initializers(result.proto).keys()
        np.testing.assert_array_equal(run(result)[1], run(model)[1])

    @pytest.mark.parametrize("steps", [1, 2])
    def test_what_computed_the_old_one_goes(self, steps: int) -> None:
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[0, 2, 3], keepdims=0),
            helper.make_node("Conv", ["x", "w", "m"], ["y"], name="conv"),
        ]
        model = load(
            model_of(nodes, inputs={"x": (1, 6, 7, 8)}, weights={"w": noise(6, 6, 3, 3)})
        )  # fmt: skip
        site = only_site(model)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, (6,)).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", replace(chain, bias=self.BIAS))})
        assert operators(result.proto) == ["Conv"] * steps

    @pytest.mark.parametrize("steps", [1, 2])
    def test_may_be_absent_by_an_empty_name(self, steps: int) -> None:
        model = self.model("Conv without")
        model.proto.graph.node[0].input.append("")
        site = only_site(model)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, (6,)).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", replace(chain, bias=self.BIAS))})
        assert result.proto.graph.node[-1].input[2] == "w/refit/bias"
        assert difference(run(result)[0], self.expected(model)) < FLOAT32

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
    @pytest.mark.parametrize("steps", [1, 2])
    def test_is_stored_in_the_type_of_the_weight(self, dtype: Any, steps: int) -> None:
        model = load(conv_model(dtype=dtype, opset=22, ir_version=10))
        site = only_site(model)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, (3,)).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", replace(chain, bias=self.BIAS))})
        assert {each.dtype for each in initializers(result.proto).values()} == {np.dtype(dtype)}
        onnx.checker.check_model(result.proto, full_check=True)


class TestOneStep:
    """Leaves a node where it is, with another weight."""

    @pytest.mark.parametrize("left", [False, True])
    def test_of_a_product_of_matrices(self, left: bool) -> None:
        weights = {"w": noise(6, 4) if left else noise(4, 6)}
        inputs, x = (["w", "x"], (4, 5)) if left else (["x", "w"], (5, 4))
        node = helper.make_node("MatMul", inputs, ["y"], name="product")
        model = load(model_of([node], inputs={"x": x}, weights=weights))
        site, kernel = only_site(model), noise(6, 4, seed=5)
        result = splice(model, {site: ("refit", with_kernel(site, kernel))})
        assert result.proto.graph.node[0].name == "product"
        stored = initializers(result.proto)["w/refit"]
        np.testing.assert_array_equal(stored, kernel if left else kernel.T)
        (output,), feeds = run(result), feeds_for(model.proto)
        expected = kernel @ feeds["x"] if left else feeds["x"] @ kernel.T
        assert difference(output, expected) < FLOAT32

    def test_keeps_all_attributes(self) -> None:
        model = load(conv_model(strides=[2, 1], dilations=[1, 2], auto_pad="VALID", group=2))
        site = only_site(model)
        result = splice(model, {site: ("refit", with_kernel(site, 2 * site.kernel()))})
        (before,), (after,) = model.proto.graph.node, result.proto.graph.node
        assert after.attribute == before.attribute
        assert (after.name, after.output) == (before.name, before.output)

    def test_of_one_weight_of_two_concerns_only_the_sites_named(self) -> None:
        model = load(two_convs())
        _, second = find_sites(model)[0]
        chain = with_kernel(second, 3 * second.kernel(), np.ones(6, np.float32))
        result = splice(model, {second: ("refit", chain)})
        (a, b), (c, d) = run(result, FEEDS), run(model, FEEDS)
        np.testing.assert_array_equal(a, c)
        assert difference(b, 3 * d + 1) < FLOAT32


def test_depthwise_steps_are_emitted_with_their_groups() -> None:
    model, family = load(conv_model((3, 3), group=2, channels=(4, 8))), Cp4()
    site = only_site(model)
    result = splice(model, {site: ("cp4", family.apply(site, (5,)).chain)})
    groups = [helper.get_node_attr_value(node, "group") for node in result.proto.graph.node]
    assert groups == [2, 10, 10, 2]


class TestRows:
    """Chains of several rows, which are summed."""

    @staticmethod
    def chain(pick: bool = False) -> Chain:
        kernel, small, mix = noise(2, 4, 3, 3), noise(6, 4, 1, 1, seed=1), noise(6, 2, 1, 1, seed=2)
        geometry = Geometry((3, 3), (1, 2), (1, 1, 1, 1), (1, 1))
        low = ConvStep(kernel, geometry), ConvStep(mix, Geometry.pointwise(2))
        beside = replace(geometry, kernel=(1, 1), pads=(0, 0, 0, 0))
        if pick:
            channels = PickStep(np.array([3, 1]))
            return Chain(low, beside=((channels, ConvStep(small[:, :2], beside)),))
        return Chain(low, beside=((ConvStep(small, beside),),))

    @staticmethod
    def model(**options: Any) -> Model:
        return load(conv_model(pads=(1, 1, 1, 1), strides=(1, 2), **options))

    @pytest.mark.parametrize("pick", [False, True])
    def test_are_added_and_the_bias_once(self, pick: bool) -> None:
        model, chain = self.model(), self.chain(pick)
        result = splice(model, {only_site(model): ("sum", chain)})
        onnx.checker.check_model(result.proto, full_check=True)
        low, beside = chain.rows
        first, last = (step.kernel for step in low if isinstance(step, ConvStep))
        kernel = np.einsum("trab,rsij->tsij", last, first)
        (small,) = (step.kernel for step in beside if isinstance(step, ConvStep))
        kernel[:, [3, 1] if pick else slice(None), 1:2, 1:2] += small
        whole = replace_kernels(model, {only_site(model): kernel})
        assert difference(run(result)[0], run(whole)[0]) < FLOAT32

    def test_stand_where_the_site_stood_and_end_in_the_sum(self) -> None:
        model = self.model()
        proto = splice(model, {only_site(model): ("sum", self.chain(pick=True))}).proto
        named = [(node.op_type, node.name) for node in proto.graph.node]
        assert named == [
            ("Conv", "conv/sum/0"),
            ("Conv", "conv/sum/1"),
            ("Gather", "conv/sum/2"),
            ("Conv", "conv/sum/3"),
            ("Add", "conv/sum/sum"),
        ]
        *_, total = proto.graph.node
        assert list(total.output) == list(model.proto.graph.node[0].output)
        assert [len(node.input) for node in proto.graph.node] == [2, 3, 2, 2, 2]
        np.testing.assert_array_equal(initializers(proto)["w/sum/2"], [3, 1])
        assert initializers(proto)["w/sum/2"].dtype == np.int64

    def test_of_three_are_added_one_by_one(self) -> None:
        model, chain = self.model(), self.chain()
        again = replace(chain, beside=chain.beside * 2)
        result = splice(model, {only_site(model): ("sum", again)})
        assert operators(result.proto) == ["Conv", "Conv", "Conv", "Add", "Conv", "Add"]
        once = splice(model, {only_site(model): ("sum", chain)})
        without = splice(model, {only_site(model): ("low", replace(chain, beside=()))})
        one, two, none = (run(each)[0] for each in (once, result, without))
        assert difference(two - one, one - none) < FLOAT32

    def test_of_one_step_each_are_no_site_with_another_weight(self) -> None:
        model = self.model()
        site = only_site(model)
        (twice,) = with_kernel(site, noise(6, 4, 3, 3)).steps
        chain = Chain((twice,), beside=((twice,),))
        result = splice(model, {site: ("sum", chain)})
        assert operators(result.proto) == ["Conv", "Conv", "Add"]
        whole = replace_kernels(model, {site: 2 * noise(6, 4, 3, 3)})
        assert difference(run(result)[0], run(whole)[0]) < FLOAT32

    @pytest.mark.parametrize("opset", [9, 13])
    def test_of_products_have_gains_of_their_own(self, opset: int) -> None:
        node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="g", alpha=0.5, beta=2.0)
        weights = {"w": noise(4, 6), "c": noise(6, seed=1)}
        model = load(model_of([node], inputs={"x": (3, 4)}, weights=weights, opset=opset))
        one, other = noise(6, 4, seed=2), noise(6, 4, seed=3)
        chain = Chain((MatrixStep(one),), beside=((MatrixStep(other),),))
        site = only_site(model)
        result = splice(model, {site: ("sum", chain)})
        whole = replace_kernels(model, {site: one + other})
        assert difference(run(result)[0], run(whole)[0]) < FLOAT32
