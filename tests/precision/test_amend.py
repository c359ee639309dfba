"""Networks that the quantizer gets wrong as they stand, and names of what it is to leave alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcp import load
from onnxcp.errors import ModelError
from onnxcp.graph.model import Model
from onnxcp.precision.amend import label_nodes
from onnxcp.precision.half import to_half
from onnxcp.precision.qdq import exactly, matches, prepare
from onnxcp.precision.recipe import Recipe, lower, tune
from onnxcp.profiling.machine import Machine
from tests.networks import Array, conv_model, difference, initializers, model_of, noise, run
from tests.quantized import branch

MACHINE = Machine(intra_op_num_threads=1)


def batches(*shape: int, name: str = "x") -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [{name: rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]


def errors(proto: onnx.ModelProto, samples: Sequence[dict[str, Array]]) -> list[float]:
    """Return how far every output is off in int8; balancing and corrections are left out."""
    made, _ = lower(load(proto), Recipe(balanced=False, corrected=False), samples, MACHINE)
    pairs = zip(run(made, samples[0]), run(proto, samples[0]), strict=True)
    return [difference(got, wanted) for got, wanted in pairs]


def gemm(bias: Array, **attributes: float) -> onnx.ModelProto:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="g", **attributes)
    weights = {"w": noise(6, 5), "b": bias}
    return model_of([node], inputs={"x": (8, 6)}, outputs=["y"], weights=weights)


class TestBiases:
    @pytest.mark.parametrize("shape", [(5,), (1, 5), (1,), ()])
    @pytest.mark.parametrize("beta", [1.0, 4.0])
    def test_of_any_shape_and_factor_count_as_they_do(
        self, shape: tuple[int, ...], beta: float
    ) -> None:
        bias = np.asarray(3 * noise(*shape) if shape else np.float32(2.0), np.float32)
        proto = gemm(bias, beta=beta)
        (error,) = errors(proto, batches(8, 6))
        assert error < 0.03
        amended = prepare(load(proto))
        assert difference(*(run(each, batches(8, 6)[0])[0] for each in (amended, proto))) < 1e-6

    def test_of_a_row_each_stay(self) -> None:
        proto = gemm(noise(8, 1), beta=2.0)
        amended = prepare(load(proto))
        assert difference(*(run(each, batches(8, 6)[0])[0] for each in (amended, proto))) < 1e-6


def test_a_weight_along_two_axes_becomes_two() -> None:
    weight = noise(6, 6) * np.logspace(-2, 0, 6, dtype=np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="one", transB=1),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="two"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="three"),
    ]
    proto = model_of(nodes, inputs={"x": (8, 6)}, outputs=["y"], weights={"w": weight})
    assert len(initializers(prepare(load(proto)).proto)) == 2, "and no more than two"
    (error,) = errors(proto, batches(8, 6))
    assert error < 0.05


def test_an_output_that_a_relu_reads_has_a_range_of_its_own() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"], name="two"),
    ]
    weights = {"w": noise(6, 4, 1, 1), "v": noise(5, 6, 1, 1)}
    proto = model_of(nodes, inputs={"x": (2, 4, 6, 6)}, outputs=["a", "y"], weights=weights)
    assert max(errors(proto, batches(2, 4, 6, 6))) < 0.03


def test_a_transposed_convolution_of_groups_stays_float() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one"),
        helper.make_node("ConvTranspose", ["a", "v", "b"], ["y"], name="two", group=2),
    ]
    weights = {"w": noise(4, 4, 1, 1), "v": noise(4, 4, 2, 2), "b": noise(8)}
    proto = model_of(nodes, inputs={"x": (2, 4, 6, 6)}, outputs=["y"], weights=weights)
    (error,) = errors(proto, batches(2, 4, 6, 6))
    assert 0 < error < 0.03


class TestNames:
    @pytest.mark.parametrize("name", ["layer two", "l[2]", "a*b", "a?", "tab\there", "plain"])
    def test_are_matched_as_they_are(self, name: str) -> None:
        pattern = exactly(name)
        assert len(pattern.split()) == 1
        assert matches(name, [pattern])
        assert not matches(f"{name}2", [pattern])
        assert not matches("axb", [pattern])

    def test_of_nodes_without_one_do_not_depend_on_where_they_are(self) -> None:
        proto = conv_model()
        for node in proto.graph.node:
            node.name = ""
        label_nodes(proto)
        (conv,) = (node for node in proto.graph.node if node.op_type == "Conv")
        assert conv.name == conv.output[0]

    def test_of_inputs_that_are_gone_are_told(self) -> None:
        proto = gemm(noise(5))
        proto.graph.input.append(helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, (5,)))
        _, notes = lower(load(proto), Recipe(), batches(8, 6), MACHINE)
        assert "no inputs any more, since they had a default: b" in notes


def test_what_has_no_outputs_of_numbers_is_not_tuned() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="one"),
        helper.make_node("ArgMax", ["a"], ["y"], axis=1),
    ]
    proto = model_of(nodes, inputs={"x": (8, 6)}, outputs=["y"], weights={"w": noise(6, 5)})
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    assert tune(load(proto), Recipe(), batches(8, 6), MACHINE) == Recipe()


def test_an_output_that_a_branch_reads_keeps_its_name() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["y"]),
        helper.make_node(
            "If", ["c"], ["z"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg")
        ),
    ]
    shapes = {"x": (2, 4, 3, 3)}
    proto = model_of(
        nodes, inputs=shapes, outputs=["a", "y", "z"], weights={"w": noise(6, 4, 1, 1)}
    )
    proto.graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, ()))
    feeds = {"x": noise(2, 4, 3, 3, seed=1), "c": np.array(True)}
    pairs = zip(run(prepare(load(proto)), feeds), run(proto, feeds), strict=True)
    assert max(difference(*pair) for pair in pairs) < 1e-6


def test_what_rules_scores_out_may_be_beyond_float16() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="g"),
        helper.make_node("Add", ["a", "m"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"], axis=1),
    ]
    mask = np.array([0, -1e9, 0, 0, 0], np.float32)
    weights = {"w": noise(6, 5), "m": mask}
    proto = model_of(nodes, inputs={"x": (8, 6)}, outputs=["y"], weights=weights)
    feeds = batches(8, 6)[0]
    assert difference(run(to_half(Model(proto)), feeds)[0], run(proto, feeds)[0]) < 0.01


def test_weights_beyond_float16_are_refused() -> None:
    proto = gemm(np.full(5, 1e5, np.float32))
    with pytest.raises(ModelError, match="'b' holds 1e\\+05, and 65504 is the largest there"):
        to_half(Model(proto))
