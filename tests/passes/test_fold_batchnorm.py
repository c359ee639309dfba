"""BatchNormalization folded into a convolution: the same numbers, one node fewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxcp_passes.fold_batchnorm import FoldBatchNorm

from onnxcp.graph.model import Model, load
from onnxcp.passes import Context, PassResult
from tests.networks import (
    FLOAT32,
    Array,
    difference,
    initializers,
    model_of,
    noise,
    onnx_type,
    operators,
    run,
)


def statistics(
    channels: int, dtype: npt.DTypeLike = np.float32, seed: int = 10
) -> dict[str, Array]:
    """Return what a normalisation of some channels has learnt, by its inputs' names."""
    made = {
        name: noise(channels, seed=seed + n) for n, name in enumerate(["scale", "shift", "mean"])
    }
    made["variance"] = np.abs(noise(channels, seed=seed + 3)) + 0.5
    return {name: value.astype(dtype) for name, value in made.items()}


def normalized(
    *,
    op: str = "Conv",
    kernel: Sequence[int] = (3, 3),
    group: int = 1,
    bias: bool = True,
    dtype: npt.DTypeLike = np.float32,
    extra: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[str] = ("y",),
    weights: dict[str, Array] | None = None,
    opset: int = 17,
    ir_version: int = 8,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return ``conv`` with 4 inputs and 6 outputs, ``norm``, and other nodes."""
    first, second = (4, 6) if op == "ConvTranspose" else (6, 4)
    constants = {"w": noise(first, second // group, *kernel, dtype=dtype)}
    if bias:
        constants["b"] = noise(6, seed=1, dtype=dtype)
    nodes = [
        helper.make_node(op, ["x", *constants], ["h"], name="conv", group=group),
        helper.make_node(
            "BatchNormalization",
            ["h", "scale", "shift", "mean", "variance"],
            ["y"],
            name="norm",
            **attributes,
        ),
    ]
    constants |= statistics(6, dtype) | (weights or {})
    return model_of(
        [*nodes, *extra],
        inputs={"x": (2, 4, 7, 8, 6)[: 2 + len(kernel)]},
        outputs=outputs,
        weights=constants,
        dtype=onnx_type(constants["w"]),
        opset=opset,
        ir_version=ir_version,
    )


def fold(proto: onnx.ModelProto) -> PassResult:
    return FoldBatchNorm().run(load(proto), Context())


def folded(proto: onnx.ModelProto) -> Model:
    """Fold the one normalisation of a model and check that nothing else has changed."""
    result = fold(proto)
    assert result.changed
    assert result.notes == ("1 BatchNormalization folded",)
    onnx.checker.check_model(result.model.proto)
    return result.model


def left_alone(proto: onnx.ModelProto) -> str:
    """Fold a model of which nothing can be folded; return what is said of it."""
    before = proto.SerializeToString()
    result = fold(proto)
    assert not result.changed
    assert result.model.proto is proto
    assert proto.SerializeToString() == before
    (note,) = result.notes
    assert note.startswith("norm: not folded, ")
    return note.removeprefix("norm: not folded, ")


def check_equal(result: Model, original: onnx.ModelProto, tolerance: float = FLOAT32) -> None:
    for one, other in zip(run(result), run(original), strict=True):
        assert difference(one, other) < tolerance


class TestEqual:
    @pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
    @pytest.mark.parametrize("kernel", [(3,), (2, 3), (2, 1, 3)])
    @pytest.mark.parametrize("group", [1, 2])
    @pytest.mark.parametrize("bias", [True, False])
    def test_whatever_the_convolution(
        self, op: str, kernel: tuple[int, ...], group: int, bias: bool
    ) -> None:
        proto = normalized(op=op, kernel=kernel, group=group, bias=bias)
        check_equal(folded(proto), proto)

    def test_depthwise(self) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["h"], name="conv", group=6),
            helper.make_node("BatchNormalization", ["h", *statistics(6)], ["y"], name="norm"),
        ]
        weights = {"w": noise(6, 1, 3, 3), **statistics(6)}
        proto = model_of(nodes, inputs={"x": (2, 6, 7, 8)}, weights=weights)
        check_equal(folded(proto), proto)

    @pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 0.5])
    def test_whatever_the_epsilon(self, epsilon: float) -> None:
        proto = normalized(epsilon=epsilon)
        check_equal(folded(proto), proto)

    @pytest.mark.parametrize(("opset", "ir_version"), [(7, 3), (9, 4), (14, 7), (15, 8)])
    def test_whatever_the_opset(self, opset: int, ir_version: int) -> None:
        proto = normalized(opset=opset, ir_version=ir_version)
        if ir_version == 3:
            for tensor in proto.graph.initializer:
                proto.graph.input.append(
                    helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                )
        check_equal(folded(proto), proto)

    def test_in_half_precision(self) -> None:
        proto = normalized(dtype=np.float16)
        result = folded(proto)
        assert {value.dtype for value in initializers(result.proto).values()} == {np.dtype("f2")}
        # A rounding of the weights, and one of the convolution's output that is gone now.
        check_equal(result, proto, 4 * float(np.finfo(np.float16).eps))

    def test_half_precision_weights_and_single_precision_statistics(self) -> None:
        single = statistics(6)
        proto = normalized(dtype=np.float16, weights=single)
        result = folded(proto)
        factor = single["scale"] / np.sqrt(single["variance"] + 1e-5)
        expected = (initializers(proto)["w"] * factor.reshape(6, 1, 1, 1)).astype(np.float16)
        np.testing.assert_array_equal(initializers(result.proto)["w"], expected)

    def test_in_double_precision(self) -> None:
        """Beyond what ONNX Runtime convolves on a CPU: against the formula."""
        proto = normalized(dtype=np.float64)
        was, now = initializers(proto), initializers(folded(proto).proto)
        factor = was["scale"] / np.sqrt(was["variance"] + np.float32(1e-5).astype(np.float64))
        np.testing.assert_allclose(now["w"], was["w"] * factor.reshape(6, 1, 1, 1), rtol=1e-11)
        bias = factor * (was["b"] - was["mean"]) + was["shift"]
        np.testing.assert_allclose(now["b"], bias, rtol=1e-9)

    def test_several_in_a_row(self) -> None:
        statistic = {f"{name}2": value for name, value in statistics(3, seed=20).items()}
        nodes = [
            helper.make_node("Conv", ["y", "w2"], ["h2"], name="conv2"),
            helper.make_node("BatchNormalization", ["h2", *statistic], ["z"], name="norm2"),
        ]
        proto = normalized(
            extra=nodes, outputs=["z"], weights={"w2": noise(3, 6, 2, 2), **statistic}
        )
        result = fold(proto)
        assert result.notes == ("2 BatchNormalization folded",)
        assert operators(result.model.proto) == ["Conv", "Conv"]
        check_equal(result.model, proto)

    def test_one_after_the_other_takes_two_runs(self) -> None:
        statistic = {f"{name}2": value for name, value in statistics(6, seed=20).items()}
        second = helper.make_node("BatchNormalization", ["y", *statistic], ["z"], name="norm2")
        proto = normalized(extra=[second], outputs=["z"], weights=statistic)
        once = fold(proto)
        assert once.notes == (
            "norm2: not folded, its input is not made by a convolution",
            "1 BatchNormalization folded",
        )
        twice = fold(once.model.proto)
        assert operators(twice.model.proto) == ["Conv"]
        check_equal(twice.model, proto)


class TestKept:
    def test_names_and_order(self) -> None:
        proto = normalized()
        proto.graph.node[0].doc_string = "of conv"
        proto.graph.node[0].metadata_props.add(key="a", value="b")
        graph = folded(proto).proto.graph
        (node,) = graph.node
        assert (node.name, node.doc_string) == ("conv", "of conv")
        assert node.metadata_props == proto.graph.node[0].metadata_props
        assert node.attribute == proto.graph.node[0].attribute
        assert list(node.input) == ["x", "w", "b"]
        assert list(node.output) == ["y"]
        assert [tensor.name for tensor in graph.initializer] == ["w", "b"]

    def test_a_bias_that_there_was_not_is_named_after_the_weight(self) -> None:
        graph = folded(normalized(bias=False)).proto.graph
        assert list(graph.node[0].input) == ["x", "w", "w/folded_bias"]

    def test_a_bias_left_out_by_an_empty_name(self) -> None:
        proto = normalized(bias=False)
        proto.graph.node[0].input.append("")
        result = folded(proto)
        assert list(result.proto.graph.node[0].input) == ["x", "w", "w/folded_bias"]
        check_equal(result, proto)

    def test_other_nodes_byte_by_byte(self) -> None:
        relu = helper.make_node("Relu", ["y"], ["z"], name="relu", doc_string="of relu")
        proto = normalized(extra=[relu], outputs=["z"])
        assert folded(proto).proto.graph.node[1] == relu

    def test_what_is_said_of_tensors_that_stay(self) -> None:
        proto = normalized()
        proto.graph.value_info.extend(onnx.shape_inference.infer_shapes(proto).graph.value_info)
        for name in ("h", "y", "mean"):
            proto.graph.quantization_annotation.add(tensor_name=name)
        graph = folded(proto).proto.graph
        assert [value.name for value in graph.value_info] == []
        assert [a.tensor_name for a in graph.quantization_annotation] == ["y"]
        assert graph.output == proto.graph.output


class TestShared:
    def test_a_weight_with_another_convolution(self) -> None:
        other = helper.make_node("Conv", ["x", "w"], ["z"], name="other")
        proto = normalized(extra=[other], outputs=["y", "z"])
        result = folded(proto)
        assert list(initializers(result.proto)) == ["w", "b", "w/folded"]
        check_equal(result, proto)

    def test_everything_between_two_that_are_folded(self) -> None:
        names = list(statistics(6))
        nodes = [
            helper.make_node("Conv", ["x", "w", "b"], ["h2"], name="conv2", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["h2", *names], ["z"], name="norm2"),
        ]
        proto = normalized(extra=nodes, outputs=["y", "z"])
        result = fold(proto)
        assert list(initializers(result.model.proto)) == [
            "w/folded", "w/folded_bias", "w/folded_2", "w/folded_bias_2",
        ]  # fmt: skip
        check_equal(result.model, proto)

    def test_statistics_with_one_that_is_not_folded(self) -> None:
        other = helper.make_node("BatchNormalization", ["x2", *statistics(6)], ["z"], name="other")
        relu = helper.make_node("Relu", ["y"], ["x2"])
        proto = normalized(extra=[relu, other], outputs=["z"])
        result = fold(proto)
        assert operators(result.model.proto) == ["Conv", "Relu", "BatchNormalization"]
        assert set(statistics(6)) <= set(initializers(result.model.proto))
        check_equal(result.model, proto)

    def test_a_weight_that_a_caller_can_override(self) -> None:
        proto = normalized()
        for name in ("w", "b"):
            value = initializers(proto)[name]
            proto.graph.input.append(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
            )
        result = folded(proto)
        assert [value.name for value in result.proto.graph.input] == ["x"]
        assert list(initializers(result.proto)) == ["w/folded", "w/folded_bias"]
        check_equal(result, proto)

    def test_a_weight_that_is_an_output_too(self) -> None:
        proto = normalized(outputs=["y", "w"])
        result = folded(proto)
        np.testing.assert_array_equal(initializers(result.proto)["w"], initializers(proto)["w"])
        check_equal(result, proto)

    def test_parameters_that_nodes_make_leave_nothing_behind(self) -> None:
        proto = normalized()
        constants = []
        for tensor in proto.graph.initializer:
            node = helper.make_node("Constant", [], [f"{tensor.name}_made"], value=tensor)
            again = helper.make_node("Identity", [f"{tensor.name}_made"], [tensor.name])
            constants += [node, again]
        nodes = [*constants, *proto.graph.node]
        proto.graph.ClearField("initializer")
        proto.graph.ClearField("node")
        proto.graph.node.extend(nodes)
        result = folded(proto)
        assert operators(result.proto) == ["Conv"]
        check_equal(result, proto)


class TestLeftAlone:
    def test_what_no_convolution_makes(self) -> None:
        proto = normalized()
        proto.graph.node[0].op_type = "Odd"
        assert left_alone(proto) == "its input is not made by a convolution"

    def test_a_convolution_of_somebody_else_s(self) -> None:
        proto = normalized()
        proto.graph.node[0].domain = "org.example"
        assert left_alone(proto) == "its input is not made by a convolution"

    def test_a_graph_input(self) -> None:
        node = helper.make_node("BatchNormalization", ["x", *statistics(4)], ["y"], name="norm")
        proto = model_of([node], inputs={"x": (1, 4, 5, 5)}, weights=statistics(4))
        assert left_alone(proto) == "its input is not made by a convolution"

    def test_a_convolution_that_others_read(self) -> None:
        neg = helper.make_node("Neg", ["h"], ["n"])
        said = "the output of 'conv' has other readers"
        assert left_alone(normalized(extra=[neg], outputs=["y", "n"])) == said
        assert left_alone(normalized(outputs=["y", "h"])) == said
        proto = normalized(outputs=["y", "h"])
        proto.graph.node[0].name = ""
        assert left_alone(proto) == "the output of 'h' has other readers"

    def test_a_convolution_that_a_nested_graph_reads(self) -> None:
        body = helper.make_graph(
            [helper.make_node("Neg", ["h"], ["inner"])],
            "body",
            [],
            [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
        )
        branch = helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body)
        proto = normalized(extra=[branch], outputs=["y", "z"], weights={"yes": np.array(True)})
        assert left_alone(proto) == "the output of 'conv' has other readers"

    @pytest.mark.parametrize("name", ["w", "scale", "variance"])
    def test_parameters_that_are_not_constant(self, name: str) -> None:
        proto = normalized()
        (tensor,) = (t for t in proto.graph.initializer if t.name == name)
        value = helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        proto.graph.input.append(value)
        proto.graph.initializer.remove(tensor)
        said = "its parameters or the convolution's weight are not constant"
        assert left_alone(proto) == said

    def test_a_bias_that_is_not_constant(self) -> None:
        proto = normalized()
        (tensor,) = (t for t in proto.graph.initializer if t.name == "b")
        proto.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [6]))
        proto.graph.initializer.remove(tensor)
        assert left_alone(proto) == "the convolution's bias is not constant"

    def test_training_mode(self) -> None:
        said = "it is in training mode or not per channel"
        proto = normalized(training_mode=1)
        proto.graph.node[1].output.extend(["running_mean", "running_variance"])
        assert left_alone(proto) == said
        assert left_alone(normalized(training_mode=1)) == said
        assert left_alone(normalized(opset=7, spatial=0)) == said
        proto = normalized(opset=7)
        proto.graph.node[1].output.extend(["running_mean"])
        assert left_alone(proto) == said

    @pytest.mark.parametrize(
        ("dtype", "name", "value"),
        [
            (np.float16, "scale", 6e4),
            (np.float16, "mean", 6e4),
            (np.float32, "variance", -1.0),
            (np.float32, "shift", np.inf),
        ],
    )
    def test_what_would_not_be_finite(self, dtype: Any, name: str, value: float) -> None:
        parameters = statistics(6, dtype)
        parameters[name][2] = value
        parameters["scale"][2] = max(parameters["scale"][2], 30)
        said = f"the folded parameters would not be finite in {np.dtype(dtype).name}"
        assert left_alone(normalized(dtype=dtype, weights=parameters)) == said

    def test_a_normalisation_without_a_name_is_named_by_its_output(self) -> None:
        proto = normalized(training_mode=1)
        proto.graph.node[1].name = ""
        assert fold(proto).notes[0].startswith("y: not folded, ")

    def test_somebody_else_s_normalisation_is_not_mentioned(self) -> None:
        proto = normalized()
        proto.graph.node[1].domain = "org.example"
        assert fold(proto).notes == ()


def test_weights_that_no_message_holds_are_read_all_the_same() -> None:
    """A model read from bytes, a weight behind a Cast from half precision."""
    proto = normalized()
    (tensor,) = (t for t in proto.graph.initializer if t.name == "w")
    half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), "v")
    tensor.CopyFrom(half)
    proto.graph.node.insert(0, helper.make_node("Cast", ["v"], ["w"], to=TensorProto.FLOAT))
    result = folded(proto)
    assert operators(result.proto) == ["Conv"]
    assert list(initializers(result.proto)) == ["b", "w/folded"]
    check_equal(result, proto)
