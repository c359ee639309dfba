from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcp.graph.model import Model
from onnxcp.graph.segment import segment, take_out
from onnxcp.graph.site import find_sites
from tests.networks import FLOAT32, conv_model, difference, noise, only_site, onnx_type, run
from tests.peculiar import branching, sparse, with_functions
from tests.wirings import SHAPE, wired

X = noise(*SHAPE)
FLOAT = helper.make_tensor_type_proto(TensorProto.FLOAT, [None] * 4)


def cut(
    proto: onnx.ModelProto, nodes: list[int], inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    return segment(Model(proto), nodes, dict.fromkeys(inputs, FLOAT), outputs).proto


def test_is_a_model_of_its_nodes_and_their_weights() -> None:
    proto = wired("a = Conv x", "b = Relu a", "c = Conv b", "y = Add c a")
    part = cut(proto, [1, 2], ["a"], ["c"])
    assert [node.name for node in part.graph.node] == ["b", "c"]
    assert [tensor.name for tensor in part.graph.initializer] == ["c_w", "c_b"]
    assert part.opset_import == proto.opset_import
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    whole.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in "ac")
    _, a, c = run(whole, {"x": X})
    assert difference(run(part, {"a": a})[0], c) < FLOAT32


def test_may_have_several_inputs_and_outputs() -> None:
    proto = wired("a = Neg x", "b = Add a x", "y = Mul a b")
    part = cut(proto, [1, 2], ["a", "x"], ["b", "y"])
    b, y = run(part, {"a": X, "x": 2 * X})
    np.testing.assert_array_equal(b, 3 * X)
    np.testing.assert_array_equal(y, b * X)


def test_takes_along_what_computes_constants() -> None:
    proto = wired(
        "s = Shape w", "z = Concat s s", "a = Neg x", "y = Expand a z", weights={"w": noise(3)}
    )
    proto.graph.node[1].attribute.append(helper.make_attribute("axis", 0))
    part = cut(proto, [3], ["a"], ["y"])
    assert [node.name for node in part.graph.node] == ["s", "z", "y"]
    assert run(part, {"a": noise(1, 1, 1, 1)})[0].shape == (1, 1, 3, 3)


def test_hands_out_constants() -> None:
    proto = wired("k = Neg w", "y = Neg x", weights={"w": noise(3)}, outputs=["y", "k", "w"])
    part = cut(proto, [], [], ["k", "w"])
    k, w = run(part, {})
    np.testing.assert_array_equal(w, noise(3))
    np.testing.assert_array_equal(k, -w)


def test_an_overridable_initializer_is_a_constant_unless_it_is_handed_in() -> None:
    proto = wired("y = Mul x w", weights={"w": noise(1)}, ir_version=3)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    assert [v.name for v in cut(proto, [0], ["x"], ["y"]).graph.input] == ["x"]
    assert cut(proto, [0], ["x"], ["y"]).ir_version == 4
    part = segment(
        Model(proto), [0], {"x": FLOAT, "w": helper.make_tensor_type_proto(1, [1])}, ["y"]
    ).proto
    assert not part.graph.initializer
    np.testing.assert_array_equal(run(part, {"x": X, "w": np.full(1, 2, np.float32)})[0], 2 * X)


def test_carries_sparse_initializers() -> None:
    proto = sparse()
    part = cut(proto, [2], ["y"], ["z"])
    assert [tensor.values.name for tensor in part.graph.sparse_initializer] == ["s"]


def test_carries_functions() -> None:
    part = cut(with_functions(), [2], ["y"], ["z"])
    assert [function.name for function in part.functions] == ["Twice", "Conved"]
    np.testing.assert_array_equal(run(part, {"y": X})[0], 2 * X)


def test_carries_what_nested_graphs_capture() -> None:
    proto = branching()
    part = cut(proto, [2, 3], ["h"], ["z"])
    assert {tensor.name for tensor in part.graph.initializer} == {"yes", "three", "b4"}
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    whole.graph.output.append(helper.make_empty_tensor_value_info("h"))
    _, z, h = run(whole)
    assert difference(run(part, {"h": h})[0], z) < FLOAT32


def test_does_not_repeat_shapes_that_may_be_stale() -> None:
    proto = wired("a = Neg x", "b = Neg a", "y = Neg b")
    for _ in range(2):
        proto.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, (7,)))
    part = cut(proto, [1, 2], ["a"], ["y"])
    (value,) = part.graph.value_info
    assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert not value.type.tensor_type.HasField("shape")


def test_says_which_opset_it_means_where_the_network_does_not() -> None:
    proto = wired("y = Relu x", ir_version=2)
    del proto.opset_import[:]
    (opset,) = cut(proto, [0], ["x"], ["y"]).opset_import
    assert (opset.domain, opset.version) == ("", 1)


@pytest.mark.parametrize(
    "model",
    [
        conv_model(strides=[2, 1], dilations=[1, 2], pads=[1, 0, 2, 1]),
        conv_model(group=2, bias=False),
        conv_model(op="ConvTranspose", strides=[2, 2], output_padding=[1, 0]),
        conv_model((3,), dtype=np.float16),
        wired("y = MatMul x"),
        wired("y = MatMul w x", weights={"w": noise(3, 6)}),
    ],
)
def test_a_site_taken_out_does_what_it_does_in_the_network(model: onnx.ModelProto) -> None:
    site = only_site(model)
    alone, found = take_out(Model(model), site)
    assert (found.op, found.kernel_shape, found.geometry) == (
        site.op, site.kernel_shape, site.geometry,
    )  # fmt: skip
    np.testing.assert_array_equal(found.kernel(), site.kernel())
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = noise(*shape, dtype=site.dtype)
    (y,) = run(alone, {"x": x})
    np.testing.assert_array_equal(y, run(model, {"x": x})[0])


@pytest.mark.parametrize("names", [("w", "y"), ("y", "x"), ("x", "w")])
def test_names_of_a_network_do_not_get_into_the_way(names: tuple[str, str]) -> None:
    weight, bias = names
    values = {weight: noise(3, 4), bias: noise(3)}
    node = helper.make_node("Gemm", ["in", weight, bias], ["out"], name="fc", transB=1)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    alone, _ = take_out(Model(proto), only_site(proto))
    np.testing.assert_array_equal(run(alone, {"x": noise(2, 4)}), run(proto, {"in": noise(2, 4)}))


def test_weights_of_every_form_become_initializers() -> None:
    proto = wired("t = Transpose k", "y = MatMul x t")
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(noise(7, 5)))
    proto.graph.node.insert(0, constant)
    alone, found = take_out(Model(proto), only_site(proto))
    assert {tensor.name: tuple(tensor.dims) for tensor in alone.proto.graph.initializer} == {
        "w": (5, 7)
    }
    assert found.kernel_shape == (7, 5)


def test_a_bias_that_is_not_constant_is_an_input() -> None:
    node = helper.make_node("Gemm", ["x", "w", "x"], ["y"], name="fc")
    values = noise(4, 4)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(values, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    alone, found = take_out(Model(proto), only_site(proto))
    assert [value.name for value in alone.proto.graph.input] == ["x", "b"]
    assert found.bias == "b"
    assert {value.type.tensor_type.elem_type for value in alone.proto.graph.input} == {
        onnx_type(values)
    }
    x, b = noise(2, 4), noise(2, 4, seed=5)
    np.testing.assert_allclose(run(alone, {"x": x, "b": b})[0], x @ values + b, rtol=FLOAT32)


def test_a_bias_that_is_fed_is_an_input() -> None:
    model = conv_model()
    alone, _ = take_out(Model(model), only_site(model), {"b"})
    assert [value.name for value in alone.proto.graph.input] == ["x", "b"]


def test_leaves_the_network_as_it_is() -> None:
    proto = branching()
    before = proto.SerializeToString(deterministic=True)
    cut(proto, [1, 2, 3], ["h"], ["y", "z"])
    take_out(Model(proto), find_sites(Model(proto))[0][0])
    assert proto.SerializeToString(deterministic=True) == before
