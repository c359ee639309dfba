"""Telling whether a rewrite broke a graph."""

from __future__ import annotations

import onnx

from onnxcp.errors import ModelError
from onnxcp.graph.model import Model
from onnxcp.graph.skeleton import skeleton
from onnxcp.graph.walk import all_nodes


class Checker:
    """Checks models that were made from a first one, which is the standard they are held to."""

    def __init__(self, first: Model) -> None:
        self._strict = _complaint(first) is None

    def check(self, model: Model) -> None:
        """Raise `ModelError` if a model is not valid although the first one was."""
        complaint = _complaint(model) if self._strict else None
        if complaint is not None:
            raise ModelError(f"the rewritten graph is not valid ONNX: {complaint}")


# Operators of very old models, which onnx's checker only comments on, and that on stdout, where
# our own machine-readable output goes.
_EXPERIMENTAL = {
    "ATen",
    "Affine",
    "ConstantFill",
    "Crop",
    "DynamicSlice",
    "GRUUnit",
    "GivenTensorFill",
    "ImageScaler",
    "ParametricSoftplus",
    "Scale",
    "ScaledTanh",
}


def _complaint(model: Model) -> str | None:
    """Return the first line of what onnx has against a model, or None."""
    if any(node.op_type in _EXPERIMENTAL for node in all_nodes(model.proto.graph.node)):
        return "it has experimental operators"
    try:
        onnx.checker.check_model(skeleton(model.proto))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return None
