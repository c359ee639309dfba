"""The operators of ONNX as functions of PyTorch, in rooms by what they do."""

from __future__ import annotations

from onnxcp.tuning.operators import (
    convolution,
    elementwise,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    tensors,
)
from onnxcp.tuning.operators.registry import SETTINGS, Call, compute, problem

__all__ = [
    "SETTINGS",
    "Call",
    "compute",
    "convolution",
    "elementwise",
    "normalization",
    "pooling",
    "problem",
    "quantization",
    "recurrent",
    "reduction",
    "resize",
    "tensors",
]
