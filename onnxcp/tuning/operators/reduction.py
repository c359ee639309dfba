"""Operators that reduce axes, and those that compare along one."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxcp.tuning.operators.registry import Call, operator, positive


@operator("Softmax", "LogSoftmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Softmax along an axis; before version 13 over that axis and all behind it together."""
    function = F.softmax if call.op == "Softmax" else F.log_softmax
    if call.version >= 13:
        return function(x, dim=call.get("axis", -1))
    axis = positive(call.get("axis", 1), x.ndim)
    return function(x.flatten(axis), dim=-1).reshape(x.shape)


_REDUCTIONS: dict[str, Any] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "ReduceProd": lambda x, axes, keep: functools.reduce(
        lambda part, axis: part.prod(axis, keepdim=keep), sorted(axes, reverse=True), x
    ),
}


@operator(*_REDUCTIONS, settings=(1,))
def reduction(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Reduce over axes; over all if none are named, unless the node says otherwise."""
    chosen = call.axes(1, axes)
    if not chosen:
        if call.get("noop_with_empty_axes", 0):
            return x
        chosen = list(range(x.ndim))
    dims = tuple(positive(axis, x.ndim) for axis in chosen)
    result: Tensor = _REDUCTIONS[call.op](x, dims, bool(call.get("keepdims", 1)))
    return result if x.is_floating_point() else result.to(x.dtype)


@operator(
    "ArgMax",
    "ArgMin",
    check=lambda c: "it takes the last of equals" if c.get("select_last_index", 0) else None,
)
def arg_extreme(call: Call, x: Tensor) -> Tensor:
    """Return where the largest or smallest entries of an axis are."""
    function = torch.argmax if call.op == "ArgMax" else torch.argmin
    return function(x, call.get("axis", 0), bool(call.get("keepdims", 1)))


@operator("CumSum", settings=(1,))
def cumulative_sum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Sum up along an axis, from either side, with or without the entry itself."""
    at = call.number(1, axis)
    turned = x.flip(at) if call.get("reverse", 0) else x
    total = turned.cumsum(at)
    total = total - turned if call.get("exclusive", 0) else total
    return total.flip(at) if call.get("reverse", 0) else total


@operator("TopK", settings=(1,))
def top_k(call: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the largest or smallest along an axis, and where they are."""
    count = call.get("k") if k is None else call.number(1, k)
    axis, largest = call.get("axis", -1), bool(call.get("largest", 1))
    values, places = torch.topk(x, count, axis, largest, bool(call.get("sorted", 1)))
    return values, places
