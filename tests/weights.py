"""Convolutions whose weight is made by any nodes."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper, numpy_helper

from onnxcp.graph.model import load
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.site import find_sites
from tests.networks import Array, model_of, noise

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
