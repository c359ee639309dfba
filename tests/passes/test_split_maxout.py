"""A maxout written without a Split and a Max: the same numbers, and no other layout in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.split_maxout import SplitMaxout

from onnxcp.graph.model import Model, load
from onnxcp.graph.origins import origins
from onnxcp.graph.site import find_sites
from onnxcp.graph.splice import splice
from onnxcp.passes import Context, PassResult
from tests.networks import (
    FLOAT32,
    difference,
    initializers,
    model_of,
    noise,
    onnx_type,
    operators,
    run,
)

SPLIT = ["a", "b"]


def maxout(
    *,
    kernel: Sequence[int] = (3, 3),
    bias: bool = True,
    group: int = 1,
    op: str = "Conv",
    dtype: npt.DTypeLike = np.float32,
    split: onnx.NodeProto | None = None,
    largest: Sequence[str] = SPLIT,
    extra: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[str] = ("y",),
    weights: dict[str, Any] | None = None,
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return ``conv`` with 4 inputs and 6 outputs, ``split`` in two, ``max``, and other nodes."""
    first, second = (4, 6) if op == "ConvTranspose" else (6, 4)
    constants = {"w": noise(first, second // group, *kernel, dtype=dtype)}
    if bias:
        constants["c"] = noise(6, seed=1, dtype=dtype)
    nodes = [
        helper.make_node(op, ["x", *constants], ["h"], name="conv", group=group, **attributes),
        split or helper.make_node("Split", ["h"], SPLIT, name="split", axis=1),
        helper.make_node("Max", list(largest), ["y"], name="max"),
    ]
    return model_of(
        [*nodes, *extra],
        inputs={"x": (2, 4, 7, 8, 6)[: 2 + len(kernel)]},
        outputs=outputs,
        weights=constants | (weights or {}),
        dtype=onnx_type(constants["w"]),
        opset=opset,
    )


def rewrite(proto: onnx.ModelProto) -> PassResult:
    return SplitMaxout().run(load(proto), Context())


def rewritten(proto: onnx.ModelProto) -> Model:
    """Rewrite the one maxout of a model and check that nothing else has changed."""
    result = rewrite(proto)
    assert result.changed
    assert result.notes == ("1 maxout split",)
    onnx.checker.check_model(result.model.proto)
    assert not {"Split", "Max"} & set(operators(result.model.proto))
    return result.model


def changed(result: onnx.ModelProto, proto: onnx.ModelProto) -> float:
    """Return how far the outputs of two models are apart."""
    return max(difference(made, was) for made, was in zip(run(result), run(proto), strict=True))


def left_alone(proto: onnx.ModelProto) -> str:
    """Rewrite a model in which there is nothing to rewrite; return what is said of it."""
    before = proto.SerializeToString()
    result = rewrite(proto)
    assert not result.changed
    assert result.model.proto is proto
    assert proto.SerializeToString() == before
    (note,) = result.notes
    return note


class TestTheSameNumbers:
    @pytest.mark.parametrize("kernel", [(3,), (3, 3), (1, 1), (2, 3, 2)], ids=str)
    @pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
    def test_of_any_kernel(self, kernel: tuple[int, ...], bias: bool) -> None:
        proto = maxout(kernel=kernel, bias=bias)
        assert changed(rewritten(proto).proto, proto) < FLOAT32

    @pytest.mark.parametrize(
        "attributes",
        [
            {"strides": [2, 1]},
            {"pads": [1, 0, 2, 1]},
            {"dilations": [2, 2]},
            {"auto_pad": "SAME_UPPER"},
        ],
        ids=str,
    )
    def test_of_any_geometry(self, attributes: dict[str, Any]) -> None:
        proto = maxout(**attributes)
        assert changed(rewritten(proto).proto, proto) < FLOAT32

    @pytest.mark.parametrize("largest", [["a", "b"], ["b", "a"]], ids=str)
    def test_in_whatever_order(self, largest: list[str]) -> None:
        proto = maxout(largest=largest)
        assert changed(rewritten(proto).proto, proto) < FLOAT32

    @pytest.mark.parametrize(
        ("split", "opset", "weights"),
        [
            (helper.make_node("Split", ["h"], SPLIT, axis=1, split=[3, 3]), 11, {}),
            (helper.make_node("Split", ["h"], SPLIT, axis=-3), 11, {}),
            (helper.make_node("Split", ["h", "s"], SPLIT, axis=1), 13, {"s": np.array([3, 3])}),
            (helper.make_node("Split", ["h"], SPLIT, axis=1, num_outputs=2), 18, {}),
        ],
        ids=["attribute", "axis from the end", "input", "number"],
    )
    def test_of_splits_of_every_opset(
        self, split: onnx.NodeProto, opset: int, weights: dict[str, Any]
    ) -> None:
        proto = maxout(split=split, opset=opset, weights=weights)
        result = rewritten(proto)
        assert changed(result.proto, proto) < FLOAT32
        assert "s" not in initializers(result.proto)

    def test_where_others_share_the_weight(self) -> None:
        other = helper.make_node("Conv", ["x", "w", "c"], ["z"], name="other")
        proto = maxout(extra=[other], outputs=("y", "z"))
        result = rewritten(proto).proto
        assert changed(result, proto) < FLOAT32
        assert {"w", "c"} <= set(initializers(result))

    def test_of_two_in_a_row(self) -> None:
        again = [
            helper.make_node("Conv", ["y", "v"], ["k"], name="next"),
            helper.make_node("Split", ["k"], ["d", "e"], axis=1),
            helper.make_node("Max", ["d", "e"], ["z"], name="last"),
        ]
        proto = maxout(extra=again, outputs=["z"], weights={"v": noise(4, 3, 3, 3, seed=5)})
        result = rewrite(proto)
        assert result.notes == ("2 maxouts split",)
        assert changed(result.model.proto, proto) < FLOAT32


class TestAChain:
    def test_is_read_by_both_halves_at_its_last_step(self) -> None:
        model = load(maxout())
        (site,) = find_sites(model)[0]
        chained = splice(model, {site: ("channel-svd", ChannelSvd().apply(site, (3,)).chain)})
        result = rewritten(chained.proto)
        assert changed(result.proto, chained.proto) < FLOAT32
        assert operators(result.proto) == ["Conv", "Conv", "Conv", "Relu", "Add"]
        first, rest, over, *_ = result.proto.graph.node
        assert rest.input[0] == over.input[0] == first.output[0]
        (origin,) = origins(result.proto)
        assert origin.site == "conv"
        assert set(origin.factors) == {first.input[1], rest.input[1], over.input[1]}


class TestIsLeftAsItIs:
    def test_of_more_than_two(self) -> None:
        split = helper.make_node("Split", ["h"], ["a", "b", "d"], axis=1)
        proto = maxout(split=split, largest=["a", "b", "d"])
        assert left_alone(proto) == "max: left as it is, it takes the largest of 3, not of two"

    def test_of_parts_of_other_sizes(self) -> None:
        split = helper.make_node("Split", ["h"], ["a", "b"], axis=3, split=[3, 3])
        assert "does not halve the channels" in left_alone(maxout(split=split, opset=11))

    @pytest.mark.parametrize("largest", [["a", "h"], ["a", "a"], ["x", "x"]], ids=str)
    def test_of_other_tensors(self, largest: list[str]) -> None:
        assert "does not read the parts of a Split" in left_alone(maxout(largest=largest))

    @pytest.mark.parametrize("name", ["a", "h"])
    def test_if_others_read_what_would_be_gone(self, name: str) -> None:
        assert "other readers" in left_alone(maxout(outputs=["y", name]))

    def test_behind_a_transposed_convolution(self) -> None:
        assert "not made by a Conv" in left_alone(maxout(op="ConvTranspose"))

    def test_behind_a_convolution_of_groups(self) -> None:
        assert "has groups" in left_alone(maxout(group=2))

    def test_where_the_weight_is_made_by_others(self) -> None:
        proto = maxout(weights={"v": noise(6, 4, 3, 3)})
        proto.graph.node.insert(0, helper.make_node("Relu", ["v"], ["r"]))
        proto.graph.node[1].input[1] = "r"
        assert "not constant" in left_alone(proto)

    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    def test_in_other_precision(self, dtype: npt.DTypeLike) -> None:
        assert f"its weights are {np.dtype(dtype).name}" in left_alone(maxout(dtype=dtype))

    def test_where_a_difference_would_overflow(self) -> None:
        weight = np.full((6, 4, 3, 3), 3e38, np.float32)
        weight[:3] *= -1
        assert "not be finite" in left_alone(maxout(weights={"w": weight}))
