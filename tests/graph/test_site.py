"""Which nodes are sites, and what is known of them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcp.graph.model import load
from onnxcp.graph.site import canonical, find_sites, native
from tests.networks import Array, conv_model, model_of, noise, only_site
from tests.peculiar import badly_named, overridable
from tests.weights import WEIGHT, constant, conv_of


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


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_site_can_hold_another_kernel(op: str) -> None:
    site = only_site(conv_model((3, 2), op=op, channels=(4, 6), group=2))
    kernel = noise(*site.kernel_shape, seed=9)
    np.testing.assert_array_equal(site.holding(kernel).kernel(), kernel)
    assert not np.array_equal(site.kernel(), kernel)
