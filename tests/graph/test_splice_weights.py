"""What becomes of weights where chains take the place of sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxcp_passes.channel_svd import ChannelSvd

from onnxcp.graph.chain import Chain, ConvStep
from onnxcp.graph.model import Model, load
from onnxcp.graph.site import find_sites
from onnxcp.graph.splice import replace_kernels, splice
from tests.networks import (
    FLOAT32,
    Array,
    conv_model,
    difference,
    initializers,
    model_of,
    noise,
    only_site,
    operators,
    run,
)
from tests.peculiar import overridable, plain
from tests.splices import FEEDS, check_equal, rewritten, two_convs


class TestSharedWeights:
    def test_each_site_gets_a_chain_and_equal_factors_are_stored_once(self) -> None:
        original = load(two_convs())
        result = rewritten(original)
        assert operators(result.proto) == ["Conv"] * 4
        assert list(initializers(result.proto)) == ["w/channel-svd/0", "w/channel-svd/1"]
        check_equal(result, original)

    def test_two_weights_of_equal_content_share_too(self) -> None:
        original = load(two_convs("v"))
        result = rewritten(original)
        assert len(result.proto.graph.initializer) == 2
        check_equal(result, original)

    def test_factors_of_other_ranks_are_stored_apart(self) -> None:
        model, family = load(two_convs()), ChannelSvd()
        first, second = find_sites(model)[0]
        chains = {
            first: ("channel-svd", family.apply(first, (6,)).chain),
            second: ("channel-svd", family.apply(second, (2,)).chain),
        }
        result = splice(model, chains)
        assert {name: value.shape for name, value in initializers(result.proto).items()} == {
            "w/channel-svd/0": (6, 4, 3, 3),
            "w/channel-svd/1": (6, 6, 1, 1),
            "w/channel-svd/0_2": (2, 4, 3, 3),
            "w/channel-svd/1_2": (6, 2, 1, 1),
        }
        assert difference(run(result, FEEDS)[0], run(model, FEEDS)[0]) < FLOAT32

    def test_the_weight_stays_for_the_site_that_is_left_alone(self) -> None:
        original = load(two_convs())
        result = rewritten(original, ["second"])
        assert operators(result.proto) == ["Conv"] * 3
        assert result.proto.graph.initializer[0] == original.proto.graph.initializer[0]
        check_equal(result, original)

    def test_replacing_a_kernel_concerns_only_the_sites_named(self) -> None:
        original = load(two_convs())
        _, second = find_sites(original)[0]
        result = replace_kernels(original, {second: 3 * second.kernel()})
        (a, b), (c, d) = run(result, FEEDS), run(original, FEEDS)
        np.testing.assert_array_equal(a, c)
        assert difference(b, 3 * d) < FLOAT32

    def test_the_weight_stays_for_other_readers(self) -> None:
        proto = plain(
            helper.make_node("Neg", ["w"], ["n"]),
            outputs=["y", "n"],
        )
        result = rewritten(load(proto))
        assert "w" in initializers(result.proto)
        check_equal(result, load(proto))

    def test_the_weight_stays_for_an_output_of_the_graph(self) -> None:
        proto = plain(outputs=["y", "w"])
        result = rewritten(load(proto))
        assert "w" in initializers(result.proto)
        check_equal(result, load(proto))

    def test_the_weight_stays_for_a_nested_graph(self) -> None:
        body = helper.make_graph(
            [helper.make_node("Neg", ["w"], ["inner"])],
            "body",
            [],
            [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
        )
        proto = plain(
            helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body),
            weights={"yes": np.array(True)},
            outputs=["y", "z"],
        )
        result = rewritten(load(proto))
        assert "w" in initializers(result.proto)
        check_equal(result, load(proto))


class TestOverridableWeights:
    @pytest.mark.parametrize("ir_version", [3, 4, 8])
    def test_their_input_goes_with_them(self, ir_version: int) -> None:
        original = load(overridable(ir_version))
        result = rewritten(original)
        onnx.checker.check_model(result.proto)
        inputs = [value.name for value in result.proto.graph.input]
        factors = ["w/channel-svd/0", "w/channel-svd/1"] if ir_version == 3 else []
        assert inputs == ["x", "b", *factors]
        check_equal(result, original)


WEIGHT = noise(6, 4, 3, 3, seed=3)


def constant(name: str, value: Array) -> onnx.NodeProto:
    node = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
    node.name = f"make_{name}"
    return node


PRODUCERS = {
    "Constant": ([constant("w", WEIGHT)], {}),
    "Identity": ([helper.make_node("Identity", ["v"], ["w"])], {"v": WEIGHT}),
    "Transpose": (
        [helper.make_node("Transpose", ["v"], ["w"])],
        {"v": np.ascontiguousarray(WEIGHT.T)},
    ),
    "Reshape": (
        [constant("s", np.array([6, 4, 3, 3])), helper.make_node("Reshape", ["v", "s"], ["w"])],
        {"v": WEIGHT.reshape(-1)},
    ),
    "Cast": (
        [
            constant("d", WEIGHT.astype(np.float64)),
            helper.make_node("Cast", ["d"], ["w"], to=TensorProto.FLOAT),
        ],
        {},
    ),
    "ConstantOfShape": (
        [
            helper.make_node(
                "ConstantOfShape", ["s"], ["w"], value=helper.make_tensor("", 1, [1], [0.5])
            )
        ],
        {"s": np.array([6, 4, 3, 3])},
    ),
}


class TestWeightsThatNodesMake:
    def model(self, kind: str, *extra: onnx.NodeProto, outputs: Sequence[str] = ("y",)) -> Model:
        producers, weights = PRODUCERS[kind]
        conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
        return load(
            model_of(
                [*producers, conv, *extra],
                inputs={"x": (1, 4, 7, 8)},
                outputs=outputs,
                weights=weights,
            )
        )

    @pytest.mark.parametrize("kind", PRODUCERS)
    def test_leave_nothing_behind(self, kind: str) -> None:
        original = self.model(kind)
        result = rewritten(original)
        assert operators(result.proto) == ["Conv", "Conv"]
        assert list(initializers(result.proto)) == ["w/channel-svd/0", "w/channel-svd/1"]
        check_equal(result, original)

    @pytest.mark.parametrize("kind", PRODUCERS)
    def test_leave_nothing_behind_when_replaced(self, kind: str) -> None:
        original = self.model(kind)
        site = only_site(original)
        result = replace_kernels(original, {site: site.kernel()})
        assert operators(result.proto) == ["Conv"]
        assert list(initializers(result.proto)) == ["w/replaced"]
        np.testing.assert_array_equal(run(result, FEEDS)[0], run(original, FEEDS)[0])

    @pytest.mark.parametrize("kind", PRODUCERS)
    def test_stay_where_something_else_reads_them(self, kind: str) -> None:
        original = self.model(kind, helper.make_node("Neg", ["w"], ["n"]), outputs=["y", "n"])
        result = rewritten(original)
        kept = operators(original.proto)
        kept.remove("Conv")
        rest = operators(result.proto)
        rest.remove("Conv")
        rest.remove("Conv")
        assert rest == kept
        check_equal(result, original)

    def test_go_when_the_last_of_several_sites_is_rewritten(self) -> None:
        second = helper.make_node("Conv", ["x", "w"], ["z"], name="second")
        original = self.model("Cast", second, outputs=["y", "z"])
        assert operators(rewritten(original).proto) == ["Conv"] * 4
        one = rewritten(original, ["conv"])
        assert operators(one.proto) == ["Constant", "Cast", "Conv", "Conv", "Conv"]
        check_equal(one, original)


class TestTypes:
    @pytest.mark.parametrize(
        "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=str
    )
    def test_factors_are_stored_in_the_type_of_the_weight(self, dtype: Any) -> None:
        original = load(conv_model(dtype=dtype, opset=22, ir_version=10))
        for result in (
            rewritten(original),
            replace_kernels(original, {only_site(original): only_site(original).kernel()}),
        ):
            values = initializers(result.proto)
            assert {value.dtype for value in values.values()} == {np.dtype(dtype)}
            onnx.checker.check_model(result.proto, full_check=True)

    @pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
    @pytest.mark.parametrize("group", [1, 2])
    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
    def test_a_kernel_replaced_by_itself_is_bit_by_bit_the_same(
        self, op: str, group: int, dtype: Any
    ) -> None:
        proto = conv_model((2, 3), op=op, group=group, dtype=dtype)
        site = only_site(proto)
        result = replace_kernels(load(proto), {site: site.kernel()})
        was, now = initializers(proto)["w"], initializers(result.proto)["w/replaced"]
        assert was.tobytes() == now.tobytes()

    def test_a_factor_is_stored_as_it_is_given(self) -> None:
        """Whatever its memory layout."""
        model = load(conv_model((1, 1)))
        site = only_site(model)
        assert site.geometry is not None
        kernel = noise(4, 6, 1, 1).transpose(1, 0, 2, 3)
        result = splice(model, {site: ("given", Chain((ConvStep(kernel, site.geometry),)))})
        np.testing.assert_array_equal(initializers(result.proto)["w/given"], kernel)
