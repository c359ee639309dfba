"""Which nodes are no sites, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcp.graph.model import load
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import find_sites
from tests.networks import Array, conv_model, model_of, noise, only_site, onnx_type
from tests.peculiar import branching, with_functions
from tests.weights import WEIGHT, conv_of, refusal_of


def in_place_of_w(tensor: Array, **options: Any) -> Callable[[], onnx.ModelProto]:
    return lambda: conv_of(weights={"w": tensor}, dtype=onnx_type(tensor), **options)


def with_value(value: float, dtype: npt.DTypeLike = np.float32) -> Array:
    weight = WEIGHT.astype(dtype)
    weight[1, 2, 0, 1] = value
    return weight


def operator(op: str, inputs: Sequence[str], domain: str = "") -> Callable[[], onnx.ModelProto]:
    """Return a node of some operator with constants of no meaning for all inputs but ``x``."""

    def build() -> onnx.ModelProto:
        node = helper.make_node(op, inputs, ["y"], name="conv", domain=domain)
        graph = helper.make_graph(
            [node],
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 7, 7))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(WEIGHT, name) for name in inputs if name != "x"],
        )
        return helper.make_model(graph)

    return build


def quantized_weight() -> onnx.ModelProto:
    return conv_of(
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        weights={"q": WEIGHT.astype(np.int8), "scale": np.array(0.1, np.float32)},
    )


def sparse_weight() -> onnx.ModelProto:
    proto = conv_of()
    values = numpy_helper.from_array(np.array([2.0], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1], np.int64), "i")
    sparse = helper.make_sparse_tensor(values, indices, [6, 4, 3, 3])
    proto.graph.sparse_initializer.append(sparse)
    return proto


def broken_weight() -> onnx.ModelProto:
    proto = conv_of(weights={"w": WEIGHT})
    proto.graph.initializer[0].raw_data = b"1234"
    return proto


def matmul_of(*operands: str, **weights: Array) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        inputs = {name: (2, 6, 6) for name in operands if name not in weights}
        node = helper.make_node("MatMul", operands, ["y"], name="conv")
        return model_of([node], inputs=inputs or {"x": (1,)}, weights=weights)

    return build


def gemm_on_the_left() -> onnx.ModelProto:
    node = helper.make_node("Gemm", ["w", "x"], ["y"], name="conv")
    return model_of([node], inputs={"x": (8, 5)}, weights={"w": noise(6, 8)})


def dynamic_weight(*producers: onnx.NodeProto) -> Callable[[], onnx.ModelProto]:
    return lambda: model_of(
        [*producers, helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        inputs={"x": (1, 4, 7, 7), **({} if producers else {"w": (6, 4, 3, 3)})},
        weights={"s": np.array([1, 4, 7, 7])},
    )


REFUSED = [
    pytest.param(
        lambda: conv_model(channels=(4, 4), group=4),
        Reason.DEPTHWISE,
        "it is depthwise: each filter sees one channel already",
        id="depthwise",
    ),
    pytest.param(
        lambda: conv_model(channels=(4, 8), group=4),
        Reason.DEPTHWISE,
        "it is depthwise: each filter sees one channel already",
        id="depthwise-with-a-multiplier",
    ),
    pytest.param(
        lambda: conv_model(op="ConvTranspose", channels=(4, 8), group=4),
        Reason.DEPTHWISE,
        "it is depthwise: each filter sees one channel already",
        id="depthwise-transposed",
    ),
    pytest.param(
        quantized_weight,
        Reason.QUANTIZED,
        "its weight is quantized (DequantizeLinear); give the float model, and --precision int8",
        id="QDQ",
    ),
    *(
        pytest.param(
            operator(op, inputs, domain),
            Reason.QUANTIZED,
            f"{op} is quantized already; give the float model, and --precision int8",
            id=op,
        )
        for op, inputs, domain in [
            ("QLinearConv", ["x", "a", "b", "w", "c", "d", "e", "f"], ""),
            ("ConvInteger", ["x", "w"], ""),
            ("MatMulInteger", ["x", "w"], ""),
            ("QLinearMatMul", ["x", "a", "b", "w", "c", "d", "e", "f"], ""),
            ("MatMulNBits", ["x", "w", "a"], "com.microsoft"),
            ("QGemm", ["x", "a", "b", "w", "c", "d"], "com.microsoft"),
        ]
    ),
    pytest.param(
        operator("FusedConv", ["x", "w"], "com.microsoft"),
        Reason.UNKNOWN_DOMAIN,
        "operator com.microsoft.FusedConv is not one of standard ONNX",
        id="FusedConv",
    ),
    pytest.param(
        operator("Conv", ["x", "w"], "org.example"),
        Reason.UNKNOWN_DOMAIN,
        "operator org.example.Conv is not one of standard ONNX",
        id="somebody-s-Conv",
    ),
    pytest.param(
        in_place_of_w(with_value(np.nan)),
        Reason.NOT_FINITE,
        "its weight holds NaN or infinity",
        id="NaN",
    ),
    pytest.param(
        in_place_of_w(with_value(-np.inf, np.float16)),
        Reason.NOT_FINITE,
        "its weight holds NaN or infinity",
        id="infinity",
    ),
    pytest.param(
        in_place_of_w(WEIGHT.astype(np.int32)),
        Reason.UNSUPPORTED,
        "its weight is of type int32, not float",
        id="integers",
    ),
    pytest.param(
        in_place_of_w(WEIGHT.astype(ml_dtypes.float8_e4m3fn)),
        Reason.UNSUPPORTED,
        "its weight is of type float8_e4m3fn, not float",
        id="float8",
    ),
    pytest.param(
        in_place_of_w(noise(0, 4, 3, 3)), Reason.UNSUPPORTED, "its weight is empty", id="empty"
    ),
    pytest.param(
        in_place_of_w(noise(6, 4)),
        Reason.UNSUPPORTED,
        "its weight has 2 dimensions, not 3 to 5",
        id="no-spatial-axes",
    ),
    pytest.param(
        matmul_of("x", "w", w=noise(2, 6, 6)),
        Reason.UNSUPPORTED,
        "its weight has 3 dimensions, not 2",
        id="a-batch-of-matrices",
    ),
    pytest.param(
        matmul_of("v", "w", v=noise(6, 6), w=noise(6, 6)),
        Reason.UNSUPPORTED,
        "both its operands are constant; fold it first",
        id="constant-all-through",
    ),
    pytest.param(
        gemm_on_the_left,
        Reason.UNSUPPORTED,
        "its weight is the left operand of a Gemm",
        id="Gemm-on-the-left",
    ),
    pytest.param(
        operator("Conv", ["x"]), Reason.UNSUPPORTED, "it has 1 inputs, not 2 or 3", id="no-weight"
    ),
    pytest.param(
        dynamic_weight(),
        Reason.WEIGHT_NOT_CONSTANT,
        "its weight 'w' is not constant",
        id="an-input",
    ),
    pytest.param(
        dynamic_weight(helper.make_node("Relu", ["x"], ["w"])),
        Reason.WEIGHT_NOT_CONSTANT,
        "its weight 'w' is not constant, made by Relu",
        id="computed",
    ),
    pytest.param(
        dynamic_weight(helper.make_node("Reshape", ["x", "s"], ["w"])),
        Reason.WEIGHT_NOT_CONSTANT,
        "its weight 'w' is not constant, made by Reshape",
        id="computed-and-reshaped",
    ),
    pytest.param(
        dynamic_weight(helper.make_node("Identity", ["s"], ["w"], domain="org.example")),
        Reason.WEIGHT_NOT_CONSTANT,
        "its weight 'w' is not constant, made by Identity",
        id="somebody-s-Identity",
    ),
    pytest.param(
        dynamic_weight(helper.make_node("Constant", [], ["w"], value_string="w")),
        Reason.WEIGHT_NOT_CONSTANT,
        "its weight 'w' is not constant, made by Constant",
        id="a-text",
    ),
    pytest.param(
        matmul_of("x", "z"),
        Reason.WEIGHT_NOT_CONSTANT,
        "its weight 'z' is not constant",
        id="two-activations",
    ),
    pytest.param(
        sparse_weight,
        Reason.WEIGHT_NOT_CONSTANT,
        "its weight 'w' is a sparse initializer",
        id="sparse",
    ),
    pytest.param(
        broken_weight,
        Reason.WEIGHT_NOT_CONSTANT,
        "its weight cannot be read: Tensor 'w' holds no data that fit its shape",
        id="broken",
    ),
]


@pytest.mark.parametrize(("build", "reason", "detail"), REFUSED)
def test_what_is_refused_and_why(
    build: Callable[[], onnx.ModelProto], reason: Reason, detail: str
) -> None:
    assert refusal_of(build()) == Refusal("conv", reason, detail)


def test_one_channel_in_one_group_is_not_depthwise() -> None:
    assert only_site(conv_model(channels=(1, 6))).inputs == 1


def test_large_doubles_are_finite() -> None:
    weight = with_value(1e300, np.float64)
    proto = conv_of(weights={"w": weight}, dtype=TensorProto.DOUBLE)
    np.testing.assert_array_equal(only_site(proto).kernel(), weight)


def test_a_weight_reshaped_as_before_opset_5_is_no_constant() -> None:
    """Its shape was an attribute then."""
    reshape = helper.make_node("Reshape", ["v"], ["w"], shape=[6, 4, 3, 3])
    refusal = refusal_of(conv_of(reshape, weights={"v": WEIGHT}, opset=1, ir_version=3))
    assert refusal.reason == Reason.WEIGHT_NOT_CONSTANT


def test_bodies_of_control_flow_are_refused_by_name() -> None:
    sites, refusals = find_sites(load(branching()))
    assert [site.name for site in sites] == ["conv"]
    assert refusals == [
        Refusal("conv_in_else", Reason.IN_SUBGRAPH, "it is in a subgraph of If node 'if'"),
        Refusal("conv_in_then", Reason.IN_SUBGRAPH, "it is in a subgraph of If node 'if'"),
    ]


def test_bodies_of_nodes_without_a_name_are_named_by_their_output() -> None:
    proto = branching()
    for node in proto.graph.node:
        node.name = ""
    _, refusals = find_sites(load(proto))
    assert refusals[0].detail == "it is in a subgraph of If node 'i0'"


def test_functions_are_refused_by_name() -> None:
    sites, refusals = find_sites(load(with_functions()))
    assert [site.name for site in sites] == ["conv"]
    detail = "it is in the body of function 'Conved'; inline it first"
    assert refusals == [Refusal("Conved/inner", Reason.IN_FUNCTION, detail)]


def test_other_operators_are_not_mentioned() -> None:
    proto = model_of([helper.make_node("Relu", ["x"], ["y"])], inputs={"x": (1,)})
    assert find_sites(load(proto)) == ([], [])
