"""Telling whether a rewrite broke a graph."""

from __future__ import annotations

import onnx

from onnxcp.errors import ModelError
from onnxcp.graph.model import Model
from onnxcp.graph.skeleton import skeleton


class Checker:
    """Checks models that were made from a first one, which is the standard they are held to."""

    def __init__(self, first: Model) -> None:
        self._strict = _complaint(first) is None

    def check(self, model: Model) -> None:
        """Raise `ModelError` if a model is not valid although the first one was."""
        complaint = _complaint(model) if self._strict else None
        if complaint is not None:
            raise ModelError(f"the rewritten graph is not valid ONNX: {complaint}")


def _complaint(model: Model) -> str | None:
    """Return the first line of what onnx has against a model, or None."""
    try:
        onnx.checker.check_model(skeleton(model.proto))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return None
