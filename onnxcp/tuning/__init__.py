"""The bridge of an ONNX graph to PyTorch and back (extra `torch`)."""

from __future__ import annotations

from onnxcp.errors import OnnxcpError

try:
    import safetensors
    import torch
except ImportError as error:
    raise OnnxcpError(
        f"This needs the package {error.name}, which comes with the extra 'torch':"
        ' pip install "onnxcp[torch]".'
    ) from error

from onnxcp.tuning.finetune import finetune
from onnxcp.tuning.from_torch import from_torch
from onnxcp.tuning.to_torch import to_torch

del safetensors, torch

__all__ = ["finetune", "from_torch", "to_torch"]
