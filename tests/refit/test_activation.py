"""Activations behind a site: which are known, and that a fit behind them is closer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcp.graph.model import Model
from onnxcp.graph.site import find_sites
from onnxcp.refit.activation import activations_behind
from tests.networks import model_of, noise, run
from tests.refits import SAMPLES, choices_for, error, fit, fitted, smooth


def behind(op: str, *more: str, weights: Mapping[str, Any] | None = None, **options: Any) -> Model:
    """Return a convolution and a node that reads what it makes."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="a"),
        helper.make_node(op, ["a", *more], ["y"], name="y", **options),
    ]
    held = {"w": noise(6, 8, 3, 3), "b": noise(6, seed=1), **(weights or {})}
    return Model(model_of(nodes, inputs={"x": ("n", 8, 6, 7)}, weights=held))


def maxout(*sizes: int, axis: int = 1, read: int | None = None, gemm: bool = False) -> Model:
    """Return a convolution (or a Gemm) of six channels, a Split of them, and a Max of the parts."""
    parts = [f"p{number}" for number in range(len(sizes))]
    made = {"op_type": "Gemm"} if gemm else {"op_type": "Conv"}
    nodes = [
        helper.make_node(inputs=["x", "w", "b"], outputs=["a"], name="a", **made),
        helper.make_node("Split", ["a", "sizes"], parts, axis=axis),
        helper.make_node("Max", parts[:read], ["y"]),
    ]
    shape, kernel = (("n", 8), (8, 6)) if gemm else (("n", 8, 6, 7), (6, 8, 3, 3))
    held = {"w": noise(*kernel), "b": noise(6, seed=1), "sizes": np.array(sizes, np.int64)}
    return Model(model_of(nodes, inputs={"x": shape}, weights=held))


SLOPES = np.array([0.1, 0.5, -0.2, 0.0, 1.0, 0.3], np.float32)
LOW, HIGH = np.array(-0.5, np.float32), np.array(1.5, np.float32)
ACTIVATIONS = {
    "relu": behind("Relu"),
    "leaky": behind("LeakyRelu", alpha=0.2),
    "leaky-by-default": behind("LeakyRelu"),
    "prelu": behind("PRelu", "s", weights={"s": SLOPES.reshape(6, 1, 1)}),
    "prelu-of-one": behind("PRelu", "s", weights={"s": SLOPES[:1]}),
    "clip": behind("Clip", "l", "h", weights={"l": LOW, "h": HIGH}),
    "clip-from-below": behind("Clip", "l", weights={"l": LOW}),
    "maxout": maxout(3, 3),
    "maxout-of-three": maxout(2, 2, 2, axis=-3),
}


class TestActivations:
    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_are_what_the_node_computes(self, name: str) -> None:
        model = ACTIVATIONS[name]
        ((_, activation),) = activations_behind(model, find_sites(model)[0]).items()
        made = smooth(4, 6, 4, 5, seed=3)
        graph = onnx.helper.make_graph(
            model.proto.graph.node[1:],
            "activation",
            [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, None)],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [t for t in model.proto.graph.initializer if t.name not in "wb"],
        )
        node = onnx.ModelProto(ir_version=8, graph=graph, opset_import=model.proto.opset_import)
        (expected,) = run(Model(node), {"a": made})
        rows = np.moveaxis(made, 1, -1).reshape(-1, 6)
        wanted = np.moveaxis(expected, 1, -1).reshape(len(rows), -1)
        np.testing.assert_allclose(activation(rows), wanted, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        "model",
        [
            behind("Tanh"),
            behind("Clip"),
            behind("Clip", "l", "h", weights={"l": HIGH, "h": LOW}),
            behind("PRelu", "s", weights={"s": noise(6, 4, 5)}),
            maxout(1, 5),
            maxout(2, 2, axis=2),
            maxout(3, 3, read=1),
        ],
        ids=[
            "smooth",
            "no-limit",
            "limits-crossed",
            "slopes-of-places",
            "parts-uneven",
            "parts-of-places",
            "a-part-not-read",
        ],
    )
    def test_of_others_nothing_is_known(self, model: Model) -> None:
        assert activations_behind(model, find_sites(model)[0]) == {}

    def test_of_a_matrix_is_split_by_the_last_axis(self) -> None:
        for axis in (1, -1):
            model = maxout(3, 3, axis=axis, gemm=True)
            ((_, activation),) = activations_behind(model, find_sites(model)[0]).items()
            rows = noise(5, 6)
            np.testing.assert_array_equal(activation(rows), np.maximum(rows[:, :3], rows[:, 3:]))

    @pytest.mark.parametrize("name", ["relu", "leaky", "clip", "maxout"])
    def test_the_fit_is_closer_behind_them(self, name: str) -> None:
        model = ACTIVATIONS[name]
        choices = choices_for(model, "channel-svd")
        linear, auto = (
            fitted(model, fit(model.proto, choices, smooth(SAMPLES, 8, 6, 7), target=target))
            for target in ("linear", "auto")
        )
        fresh = smooth(SAMPLES, 8, 6, 7, seed=1)
        assert error(auto, model, fresh) < error(linear, model, fresh)
