"""What is known of shapes and of a graph's validity, at any size of its weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcp.errors import DataError, ModelError
from onnxcp.graph.check import Checker
from onnxcp.graph.model import Model, load
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.skeleton import skeleton
from tests.networks import conv_model, initializers, model_of, noise
from tests.peculiar import branching, documented, overridable, plain, stale, with_functions


def with_free_batch() -> Model:
    """Return a network of a free batch: Conv, Flatten by a shape computed on the way, MatMul."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv"),
        helper.make_node("Shape", ["h"], ["s"], start=0, end=1),
        helper.make_node("Concat", ["s", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["h", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    weights = {"w": noise(6, 4, 3, 3), "rest": np.array([6 * 36]), "v": noise(216, 5)}
    return load(model_of(nodes, inputs={"x": ("n", 4, 8, 8)}, weights=weights))


class TestShapes:
    def test_that_are_fully_known_are_returned(self) -> None:
        shapes = infer_shapes(load(conv_model(pads=(1, 1, 1, 1))))
        assert shapes["x"] == (2, 4, 9, 10)
        assert shapes["y"] == (2, 6, 9, 10)

    def test_that_depend_on_a_free_dimension_are_not(self) -> None:
        assert set(infer_shapes(with_free_batch())) & {"x", "h", "f", "y"} == set()

    def test_follow_from_the_shape_of_an_input(self) -> None:
        shapes = infer_shapes(with_free_batch(), {"x": (3, 4, 8, 8)})
        assert (shapes["x"], shapes["h"]) == ((3, 4, 8, 8), (3, 6, 6, 6))
        assert (shapes["f"], shapes["y"]) == ((3, 216), (3, 5))

    def test_that_were_declared_for_another_batch_do_not_stand_in_the_way(self) -> None:
        model = with_free_batch()
        declared = onnx.shape_inference.infer_shapes(model.proto)
        shapes = infer_shapes(load(declared), {"x": (3, 4, 8, 8)})
        assert shapes["h"] == (3, 6, 6, 6)

    def test_are_what_is_declared_where_inference_gives_up(self) -> None:
        proto = conv_model()
        proto.graph.node.append(helper.make_node("Unheard", ["y"], ["z"]))
        assert infer_shapes(load(proto))["y"] == (2, 6, 7, 8)

    @pytest.mark.parametrize("build", [branching, with_functions, stale, lambda: overridable(3)])
    def test_of_peculiar_models_do_no_harm(self, build: object) -> None:
        proto = build()  # type: ignore[operator]
        before = proto.SerializeToString()
        assert infer_shapes(load(proto))["x"] == (1, 4, 7, 8)
        assert proto.SerializeToString() == before

    @pytest.mark.parametrize(
        ("shapes", "sentence"),
        [
            ({"z": (1,)}, "tiny has no input 'z'; it has: x."),
            ({"x": (1, 4, 9)}, "Input 'x' has 4 dimensions, not 3."),
            ({"x": (2, 4, 9, 11)}, "Input 'x' is fixed at [2, 4, 9, 10]; [2, 4, 9, 11] was given."),
        ],
    )
    def test_that_contradict_the_model_are_refused(
        self, shapes: dict[str, tuple[int, ...]], sentence: str
    ) -> None:
        with pytest.raises(DataError) as caught:
            infer_shapes(load(conv_model()), shapes)
        assert str(caught.value) == sentence

    @pytest.mark.parametrize("size", [4, 16])
    def test_of_weights_cannot_be_given(self, size: int) -> None:
        """Whether they can be overridden or not; large ones are inputs while this is found out."""
        for ir_version in (3, 8):
            proto = conv_model((3, 3), channels=(size, 16))
            if ir_version == 3:
                for tensor in proto.graph.initializer:
                    proto.graph.input.append(
                        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                    )
            with pytest.raises(DataError, match=r"^tiny has no input 'w'; it has: x\.$"):
                infer_shapes(load(proto), {"w": (16, size, 3, 3)})


class TestSkeleton:
    def test_has_all_but_large_weights(self) -> None:
        proto = model_of(
            [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", "hb", ["y"])],
            inputs={"x": (1, 64)},
            weights={"w": noise(64, 64), "b": noise(64)},
        )
        bare = skeleton(proto)
        assert list(initializers(bare)) == ["b"]
        assert [value.name for value in bare.graph.input] == ["x", "w"]
        onnx.checker.check_model(bare, full_check=True)
        assert set(initializers(proto)) == {"w", "b"}

    def test_does_not_declare_a_weight_twice(self) -> None:
        proto = conv_model((3, 3), channels=(16, 32))
        for tensor in proto.graph.initializer:
            proto.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        assert [value.name for value in skeleton(proto).graph.input] == ["x", "w", "b"]


class TestChecker:
    def broken(self) -> Model:
        proto = plain()
        proto.graph.node[0].input[0] = "nowhere"
        return load(proto)

    def test_finds_what_a_rewrite_broke(self) -> None:
        with pytest.raises(ModelError) as caught:
            Checker(load(plain())).check(self.broken())
        message = str(caught.value)
        assert message.startswith("the rewritten graph is not valid ONNX: ")
        assert "nowhere" in message
        assert "\n" not in message

    def test_asks_no_more_than_the_first_model_gave(self) -> None:
        Checker(self.broken()).check(self.broken())

    def test_says_nothing_of_a_valid_model(self) -> None:
        checker = Checker(load(plain()))
        checker.check(load(plain()))
        checker.check(load(documented()))

    def test_does_not_look_at_weights(self) -> None:
        """Which may be too large for it to take."""
        proto = conv_model((3, 3), channels=(16, 32))
        proto.graph.initializer[0].ClearField("raw_data")
        proto.graph.initializer[0].raw_data = bytes(16 * 32 * 9 * 4 - 4)
        Checker(load(conv_model())).check(load(proto))


def test_an_input_of_unknown_rank_takes_any_shape() -> None:
    proto = conv_model()
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    assert "x" not in infer_shapes(load(proto))
    assert infer_shapes(load(proto), {"x": (1, 4, 5, 5)})["y"] == (1, 6, 3, 3)
