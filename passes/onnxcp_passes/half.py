"""float16 by the converter that comes with ONNX Runtime, as the last pass.

What the network reads and makes stays float32, cast at its borders.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcp.graph.model import Model
from onnxcp.passes import Context, LowerPass, PassResult
from onnxcp.precision.half import to_half


@dataclass(frozen=True)
class Half(LowerPass):
    """Converts a network to float16."""

    name = "half"
    summary = "float16 inside, float32 at inputs and outputs"
    precision = "fp16"

    def run(self, model: Model, context: Context) -> PassResult:  # noqa: ARG002
        """Convert."""
        return PassResult(to_half(model), changed=True, notes=("converted to float16",))
