"""Rounding to steps: quantised values stay of floating point, and gradients pass straight through.

The gradient of rounding, zero nearly everywhere, is taken to be one (Bengio et al., "Estimating or
propagating gradients through stochastic neurons" (2013), section 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnxcp.tuning.operators.registry import Call, operator, positive, together

_TYPES = (torch.int8, torch.int16, torch.uint8, torch.uint16)


def _whole_axes(call: Call) -> str | None:
    if call.get("block_size", 0):
        return "it has a scale for every block"
    return "it names the type of its output" if call.get("output_dtype", 0) else None


@operator("QuantizeLinear", check=_whole_axes)
def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Round to steps of a scale, within the range of the type."""
    kind = torch.uint8 if zero is None else zero.dtype
    if kind not in _TYPES:
        raise ValueError(f"Values cannot be quantised to {kind}.")
    limits = torch.iinfo(kind)
    scale, origin = _stretched(call, x, scale, zero)
    steps = x / scale
    whole = torch.clamp(torch.round(steps) + origin, limits.min, limits.max)
    straight = torch.clamp(steps + origin, limits.min, limits.max)
    return whole.detach() + (straight - straight.detach())


@operator("DequantizeLinear", check=_whole_axes)
def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Bring steps back to the values that they stand for."""
    x, scale = together(x, scale)
    scale, origin = _stretched(call, x, scale, zero)
    return (x.to(scale.dtype) - origin) * scale


def _stretched(
    call: Call, x: Tensor, scale: Tensor, zero: Tensor | None
) -> tuple[Tensor, Tensor | float]:
    """Shape a scale and a zero point for every entry of an axis so that they broadcast."""
    shape = [1] * x.ndim
    if scale.numel() > 1:
        shape[positive(call.get("axis", 1), x.ndim)] = -1
    origin = 0.0 if zero is None else zero.to(scale.device, scale.dtype).reshape(shape)
    return scale.reshape(shape), origin
