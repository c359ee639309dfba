"""Convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxcp.tuning.operators.registry import Call, operator, together
from onnxcp.tuning.operators.window import Window, from_last, per_axis, three_axes

_CONV: list[Callable[..., Tensor]] = [F.conv1d, F.conv2d, F.conv3d]
_TRANSPOSED: list[Callable[..., Tensor]] = [
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
]


@operator("Conv", check=three_axes)
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve; padding may differ between the sides."""
    window = Window.of(call, x, weight.shape[2:])
    shared = window.begins
    if window.one_sided:
        x, shared = window.padded(x, 0.0), [0] * window.rank
    function, group = _CONV[window.rank - 1], call.get("group", 1)
    return function(x, weight, bias, window.strides, shared, window.dilations, group)


@operator("ConvTranspose", check=three_axes)
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with the transpose, then cut off the padding, or add what is to be added."""
    rank, kernel = x.ndim - 2, weight.shape[2:]
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    more = call.get("output_padding") or [0] * rank
    pads = call.get("pads") or [0] * (2 * rank)
    begins, ends = list(pads[:rank]), list(pads[rank:])
    mode, shape = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if shape is None and mode.startswith("SAME"):
        shape = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if shape is not None:
        axes = zip(x.shape[2:], strides, dilations, kernel, more, shape[-rank:], strict=True)
        total = [s * (n - 1) + d * (k - 1) + 1 + m - o for n, s, d, k, m, o in axes]
        first = [max(t, 0) // 2 if mode == "SAME_UPPER" else -(-max(t, 0) // 2) for t in total]
        # What is missing of the shape is added at the end.
        begins, ends = first, [t - b for t, b in zip(total, first, strict=True)]
    group = call.get("group", 1)
    whole = _TRANSPOSED[rank - 1](x, weight, None, strides, 0, 0, group, dilations)
    cut = from_last([-b for b in begins], [m - e for m, e in zip(more, ends, strict=True)])
    result = F.pad(whole, cut) if any(cut) else whole
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


@operator("Gemm", check=lambda c: "it broadcasts as before version 7" if c.version < 7 else None)
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Compute ``alpha A B + beta C``."""
    a = a.T if call.get("transA", 0) else a
    b = b.T if call.get("transB", 0) else b
    alpha: float = call.get("alpha", 1.0)
    if c is None:
        return a @ b if alpha == 1 else alpha * (a @ b)
    return torch.addmm(c, a, b, alpha=alpha, beta=call.get("beta", 1.0))


@operator("MatMul")
def matmul(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices, or stacks of them."""
    return torch.matmul(*together(a, b))


@operator("Einsum")
def einsum(call: Call, *values: Tensor) -> Tensor:
    """Sum products over indices."""
    return torch.einsum(call.get("equation"), *together(*values))
