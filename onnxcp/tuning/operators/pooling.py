"""The largest and the mean of windows."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxcp.tuning.operators.registry import Call, operator
from onnxcp.tuning.operators.window import Window, from_last, three_axes

_MAX: list[Callable[..., Tensor]] = [F.max_pool1d, F.max_pool2d, F.max_pool3d]
_AVERAGE: list[Callable[..., Tensor]] = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d]


def _pooled(call: Call) -> str | None:
    if len(call.outputs) > 1 and call.outputs[1]:
        return "it puts out where the largest values are"
    if call.op == "AveragePool" and any(n != 1 for n in call.get("dilations") or ()):
        return "it averages over a dilated window"
    return three_axes(call)


@operator("MaxPool", check=_pooled)
def max_pool(call: Call, x: Tensor) -> Tensor:
    """Take the largest of every window; padding is never the largest."""
    window = Window.of(call, x, call.get("kernel_shape"), bool(call.get("ceil_mode", 0)))
    least = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    function = _MAX[window.rank - 1]
    return function(window.padded(x, least), window.kernel, window.strides, 0, window.dilations)


@operator("AveragePool", check=_pooled)
def average_pool(call: Call, x: Tensor) -> Tensor:
    """Average over every window; padding counts if the node says so."""
    window = Window.of(call, x, call.get("kernel_shape"), bool(call.get("ceil_mode", 0)))
    pool = _AVERAGE[window.rank - 1]
    means = pool(window.padded(x, 0.0), window.kernel, window.strides)
    counts_padding = bool(call.get("count_include_pad", 0))
    if not any((*window.begins, *window.ends, *window.more)):
        return means
    if counts_padding and not any(window.more):
        return means
    # The share of every window that counts; what rounding up adds counts in no case.
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    beside = from_last(window.begins, window.ends)
    counted = F.pad(counted, beside, value=float(counts_padding))
    counted = F.pad(counted, from_last([0] * window.rank, window.more))
    return means / pool(counted, window.kernel, window.strides)


@operator("GlobalAveragePool")
def global_average_pool(_: Call, x: Tensor) -> Tensor:
    """Average over all spatial axes."""
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_: Call, x: Tensor) -> Tensor:
    """Take the largest over all spatial axes."""
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)
