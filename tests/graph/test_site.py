"""Which nodes are sites, what is known of them, and why the others are refused."""

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
from onnxcp.graph.site import canonical, find_sites, native
from tests.networks import Array, conv_model, model_of, noise, only_site
from tests.peculiar import badly_named, branching, overridable, with_functions

WEIGHT = noise(6, 4, 3, 3, seed=3)


def conv_of(
    *producers: onnx.NodeProto, weights: dict[str, Array] | None = None, **options: Any
) -> onnx.ModelProto:
    """Return a Conv whose weight ``w`` is made by some nodes of some weights."""
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    return model_of([*producers, conv], inputs={"x": (1, 4, 7, 8)}, weights=weights, **options)


def constant(name: str, value: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def refusal_of(proto: onnx.ModelProto) -> Refusal:
    sites, refusals = find_sites(load(proto))
    assert sites == []
    (refusal,) = refusals
    assert str(refusal) == f"{refusal.site}: {refusal.detail}"
    assert not refusal.detail.endswith(".")
    return refusal


class TestWhatIsKnown:
    def test_of_a_conv(self) -> None:
        site = only_site(conv_model((3, 5), group=2, strides=[1, 2], pads=[0, 1, 2, 3]))
        assert (site.name, site.op, site.index) == ("conv", "Conv", 0)
        assert (site.input, site.weight, site.bias, site.output) == ("x", "w", "b", "y")
        assert (site.kernel_shape, site.group) == ((6, 2, 3, 5), 2)
        assert (site.inputs, site.outputs, site.spatial_rank) == (4, 6, 2)
        assert site.parameters == 6 * 2 * 3 * 5
        assert site.geometry is not None
        assert site.geometry.strides == (1, 2)
        assert site.geometry.pads == (0, 1, 2, 3)
        assert site.dtype == np.float32

    def test_of_a_transposed_conv(self) -> None:
        proto = conv_model((3, 5), op="ConvTranspose", group=2, bias=False)
        site = only_site(proto)
        stored = numpy_helper.to_array(proto.graph.initializer[0])
        assert stored.shape == (4, 3, 3, 5)
        assert (site.kernel_shape, site.inputs, site.outputs) == ((6, 2, 3, 5), 4, 6)
        assert site.bias is None
        assert site.geometry is not None
        assert site.geometry.transposed
        # Output channel 3 * g + t, input channel s of group g: stored at [2 * g + s, t].
        for group, t, s in [(0, 2, 1), (1, 0, 0), (1, 2, 1)]:
            kernel = site.kernel()[3 * group + t, s]
            np.testing.assert_array_equal(kernel, stored[2 * group + s, t])

    @pytest.mark.parametrize("transposed", [0, 1])
    def test_of_a_gemm(self, transposed: int) -> None:
        weight = noise(6, 8) if transposed else noise(8, 6)
        node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], transB=transposed, name="fc")
        weights = {"w": weight, "c": noise(6)}
        site = only_site(model_of([node], inputs={"x": (5, 8)}, weights=weights))
        assert (site.name, site.op, site.bias, site.geometry) == ("fc", "Gemm", "c", None)
        assert (site.kernel_shape, site.group, site.spatial_rank) == ((6, 8), 1, 0)
        np.testing.assert_array_equal(site.kernel(), weight if transposed else weight.T)

    def test_of_a_matmul_on_either_side(self) -> None:
        right = helper.make_node("MatMul", ["x", "w"], ["h"], name="right")
        left = helper.make_node("MatMul", ["v", "h"], ["y"], name="left")
        weights = {"w": noise(8, 6), "v": noise(3, 5)}
        sites, _ = find_sites(load(model_of([right, left], inputs={"x": (5, 8)}, weights=weights)))
        assert [site.weight_on_left for site in sites] == [False, True]
        assert [site.kernel_shape for site in sites] == [(6, 8), (3, 5)]
        assert [(site.input, site.weight) for site in sites] == [("x", "w"), ("h", "v")]

    @pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
    @pytest.mark.parametrize("group", [1, 2, 3])
    def test_group_kernels_stand_for_one_group_each(self, op: str, group: int) -> None:
        site = only_site(conv_model((2, 3), op=op, channels=(6, 12), group=group))
        kernels = site.group_kernels()
        assert [kernel.shape for kernel in kernels] == [(12 // group, 6 // group, 2, 3)] * group
        np.testing.assert_array_equal(np.concatenate(kernels), site.kernel())

    @pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
    @pytest.mark.parametrize("group", [1, 2, 3])
    def test_native_undoes_canonical(self, op: str, group: int) -> None:
        proto = conv_model((2, 3), op=op, channels=(6, 12), group=group)
        site, stored = only_site(proto), numpy_helper.to_array(proto.graph.initializer[0])
        np.testing.assert_array_equal(native(site, canonical(site, stored)), stored)
        np.testing.assert_array_equal(native(site, site.kernel()), stored)

    @pytest.mark.parametrize(
        ("dtype", "work"),
        [
            (np.float16, np.float32),
            (ml_dtypes.bfloat16, np.float32),
            (np.float32, np.float32),
            (np.float64, np.float64),
        ],
    )
    def test_kernels_are_worked_on_in_float32_at_least(self, dtype: Any, work: type) -> None:
        weight = WEIGHT.astype(dtype)
        site = only_site(conv_of(weights={"w": weight}, dtype=_type(dtype)))
        assert site.dtype == dtype
        assert site.kernel().dtype == work
        np.testing.assert_array_equal(site.kernel(), weight.astype(work))

    def test_sites_stand_in_graph_order(self) -> None:
        names = ["c", "a", "b"]
        nodes = [
            helper.make_node("Conv", [f"x{n}", "w"], [f"x{n + 1}"], name=name)
            for n, name in enumerate(names)
        ]
        weights = {"w": noise(4, 4, 1, 1)}
        proto = model_of(nodes, inputs={"x0": (1, 4, 5, 5)}, outputs=["x3"], weights=weights)
        sites, _ = find_sites(load(proto))
        assert [(site.name, site.index) for site in sites] == [("c", 0), ("a", 1), ("b", 2)]
        assert {site.weight for site in sites} == {"w"}, "a shared weight makes several sites"


def _type(dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


class TestNames:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["a", "b"], ["a", "b"]),
            (["", ""], ["y0", "y1"]),
            (["a", "a"], ["y0", "y1"]),
            (["", "b"], ["y0", "b"]),
            # One is called as the output of another, or of itself.
            (["", "y0"], ["y0", "y1"]),
            (["y1", "y0"], ["y0", "y1"]),
            (["y0", "y1"], ["y0", "y1"]),
        ],
    )
    def test_are_the_node_s_or_else_its_output_s_and_never_twice(
        self, names: list[str], expected: list[str]
    ) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "w"], [f"y{n}"], name=name)
            for n, name in enumerate(names)
        ]
        proto = model_of(
            nodes, inputs={"x": (1, 4, 7, 8)}, outputs=["y0", "y1"], weights={"w": WEIGHT}
        )
        sites, _ = find_sites(load(proto))
        assert [site.name for site in sites] == expected

    def test_of_other_nodes_do_not_matter_otherwise(self) -> None:
        assert only_site(badly_named()).name == "conv"


SHAPE = np.array([6, 4, 3, 3], np.int64)


class TestConstantWeights:
    """A weight is what does not depend on an input, however it is written down."""

    @pytest.mark.parametrize(
        ("producers", "weights"),
        [
            pytest.param([], {"w": WEIGHT}, id="initializer"),
            pytest.param([constant("w", WEIGHT)], {}, id="Constant"),
            pytest.param(
                [helper.make_node("Identity", ["v"], ["w"])], {"v": WEIGHT}, id="Identity"
            ),
            pytest.param(
                [helper.make_node("Transpose", ["v"], ["w"], perm=[3, 2, 0, 1])],
                {"v": WEIGHT.transpose(2, 3, 1, 0)},
                id="Transpose",
            ),
            pytest.param(
                [helper.make_node("Transpose", ["v"], ["w"])],
                {"v": WEIGHT.transpose()},
                id="Transpose-reversed",
            ),
            pytest.param(
                [helper.make_node("Reshape", ["v", "s"], ["w"])],
                {"v": WEIGHT.reshape(-1), "s": SHAPE},
                id="Reshape",
            ),
            pytest.param(
                [helper.make_node("Reshape", ["v", "s"], ["w"])],
                {"v": WEIGHT.reshape(6, 2, 18), "s": np.array([0, 4, -1, 3])},
                id="Reshape-0-and-minus-1",
            ),
            pytest.param(
                [constant("s", SHAPE), helper.make_node("Reshape", ["v", "s"], ["w"])],
                {"v": WEIGHT.reshape(-1)},
                id="Reshape-to-a-Constant",
            ),
            pytest.param(
                [helper.make_node("Cast", ["v"], ["w"], to=TensorProto.FLOAT)],
                {"v": WEIGHT.astype(np.float64)},
                id="Cast",
            ),
            pytest.param(
                [
                    constant("a", WEIGHT.astype(np.float64)),
                    helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
                    helper.make_node("Identity", ["b"], ["c"]),
                    helper.make_node("Transpose", ["c"], ["d"]),
                    helper.make_node("Transpose", ["d"], ["w"]),
                ],
                {},
                id="a-row-of-them",
            ),
        ],
    )
    def test_are_read(self, producers: list[onnx.NodeProto], weights: dict[str, Array]) -> None:
        site = only_site(conv_of(*producers, weights=weights))
        np.testing.assert_array_equal(site.kernel(), WEIGHT)
        assert site.dtype == np.float32
        assert site.weight == "w"

    def test_are_cast_to_halves_as_onnx_runtime_casts(self) -> None:
        cast = helper.make_node("Cast", ["v"], ["w"], to=TensorProto.FLOAT16)
        site = only_site(conv_of(cast, weights={"v": WEIGHT}, dtype=TensorProto.FLOAT16))
        assert site.dtype == np.float16
        np.testing.assert_array_equal(site.kernel(), WEIGHT.astype(np.float16).astype(np.float32))

    @pytest.mark.parametrize("value", [None, 0.5])
    def test_may_be_filled(self, value: float | None) -> None:
        attributes: dict[str, Any] = (
            {} if value is None else {"value": helper.make_tensor("", 1, [1], [value])}
        )
        fill = helper.make_node("ConstantOfShape", ["s"], ["w"], **attributes)
        site = only_site(conv_of(fill, weights={"s": SHAPE}))
        assert site.kernel().shape == (6, 4, 3, 3)
        assert (site.kernel() == (value or 0.0)).all()

    @pytest.mark.parametrize(
        ("key", "value", "dtype"),
        [("value_floats", [0.1, 0.2], np.float32), ("value_ints", [1, 2], np.int64)],
    )
    def test_may_be_lists_in_an_attribute(self, key: str, value: Any, dtype: Any) -> None:
        proto = conv_of(
            helper.make_node("Constant", [], ["v"], **{key: value}),
            helper.make_node("Reshape", ["v", "s"], ["u"]),
            helper.make_node("Cast", ["u"], ["w"], to=TensorProto.FLOAT),
            weights={"s": np.array([1, 2, 1, 1])},
        )
        expected = np.asarray(value, dtype).astype(np.float32).reshape(1, 2, 1, 1)
        np.testing.assert_array_equal(only_site(proto).kernel(), expected)

    @pytest.mark.parametrize("ir_version", [3, 8])
    def test_may_be_defaults_that_a_caller_can_override(self, ir_version: int) -> None:
        assert only_site(overridable(ir_version)).name == "conv"

    def test_may_leave_it_open_of_which_type_their_attribute_is(self) -> None:
        node = constant("w", WEIGHT)
        node.attribute[0].ClearField("type")
        np.testing.assert_array_equal(only_site(conv_of(node)).kernel(), WEIGHT)


def in_place_of_w(tensor: Array, **options: Any) -> Callable[[], onnx.ModelProto]:
    return lambda: conv_of(weights={"w": tensor}, dtype=_type(tensor.dtype), **options)


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
        "its weight is quantized (DequantizeLinear); give the float model",
        id="QDQ",
    ),
    *(
        pytest.param(
            operator(op, inputs, domain),
            Reason.QUANTIZED,
            f"{op} is quantized already; give the float model",
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


@pytest.mark.parametrize(
    ("op", "attributes", "gains"),
    [
        ("Gemm", {}, (1, 1)),
        ("Gemm", {"alpha": 0.5}, (0.5, 1)),
        ("Gemm", {"beta": -2.0}, (1, -2)),
        ("Gemm", {"alpha": 0.0, "beta": 0.0}, (0, 0)),
        ("MatMul", {}, (1, 0)),
    ],
)
def test_gains_of_a_matrix(op: str, attributes: dict[str, Any], gains: tuple[float, float]) -> None:
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    site = only_site(model_of([node], inputs={"x": (5, 4)}, weights={"w": noise(4, 6)}))
    assert (site.gain, site.bias_gain) == gains


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_gains_of_a_convolution(op: str) -> None:
    for bias in (True, False):
        site = only_site(conv_model(op=op, bias=bias))
        assert (site.gain, site.bias_gain) == (1, 1)


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


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_site_can_hold_another_kernel(op: str) -> None:
    site = only_site(conv_model((3, 2), op=op, channels=(4, 6), group=2))
    kernel = noise(*site.kernel_shape, seed=9)
    np.testing.assert_array_equal(site.holding(kernel).kernel(), kernel)
    assert not np.array_equal(site.kernel(), kernel)
