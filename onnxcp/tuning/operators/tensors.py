"""Operators that move entries about, and those that work with shapes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxcp.tuning.operators.registry import Call, host, operator, positive, together


@operator("Reshape", settings=(1,))
def reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Give another shape; 0 keeps an extent, -1 takes what is left."""
    wanted = call.get("shape") if shape is None else call.numbers(1, shape)
    if not call.get("allowzero", 0):
        wanted = [x.shape[axis] if extent == 0 else extent for axis, extent in enumerate(wanted)]
    return x.reshape(tuple(wanted))


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Make a matrix of all axes before one, and of the others."""
    axis = positive(call.get("axis", 1), x.ndim)
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """Put axes in another order."""
    return x.permute(call.get("perm") or tuple(reversed(range(x.ndim))))


@operator("Squeeze", settings=(1,))
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop axes of extent one."""
    chosen = call.axes(1, axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


@operator("Unsqueeze", settings=(1,))
def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Insert axes of extent one."""
    chosen = call.axes(1, axes) or []
    rank = x.ndim + len(chosen)
    for axis in sorted(positive(axis, rank) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    """Return the extents."""
    return host(list(x.shape)[call.get("start", 0) : call.get("end", None)])


@operator("Size")
def size(_: Call, x: Tensor) -> Tensor:
    """Return the number of entries."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Concat")
def concat(call: Call, *values: Tensor) -> Tensor:
    """Join along an axis."""
    return torch.cat(together(*values), dim=call.get("axis", 1))


@operator("Split", settings=(1,))
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Cut along an axis; without sizes in equal parts, of which the last may be smaller."""
    axis = call.get("axis", 0)
    parts = call.get("split") if sizes is None else call.numbers(1, sizes)
    if parts is None:
        parts = -(-x.shape[axis] // (call.get("num_outputs") or len(call.outputs)))
    return torch.split(x, parts, dim=axis)


@operator("Slice", settings=(1, 2, 3, 4))
def slices(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Cut out of axes, also backwards."""
    begins = call.get("starts") if starts is None else call.numbers(1, starts)
    stops = call.get("ends") if ends is None else call.numbers(2, ends)
    where = call.axes(3, axes) or list(range(len(begins)))
    strides = [1] * len(begins) if steps is None else call.numbers(4, steps)
    for begin, stop, axis, stride in zip(begins, stops, where, strides, strict=True):
        places = range(x.shape[axis])[begin:stop:stride]
        if stride > 0:
            start = min(places.start, x.shape[axis])
            length = max(places.stop - start, 0)
            x = x.narrow(axis, start, length)
            x = x if stride == 1 else _strided(x, axis, stride)
        else:
            x = x.index_select(axis, torch.tensor(list(places), device=x.device, dtype=torch.int64))
    return x


def _strided(x: Tensor, axis: int, stride: int) -> Tensor:
    index: list[Any] = [slice(None)] * x.ndim
    index[axis] = slice(None, None, stride)
    return x[tuple(index)]


@operator("Gather")
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Take slices by their numbers along an axis."""
    axis = positive(call.get("axis", 0), x.ndim)
    indices = indices.to(x.device, torch.int64)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    taken = x.index_select(axis, indices.reshape(-1))
    return taken.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Take entries by their numbers along an axis."""
    axis = call.get("axis", 0)
    indices = indices.to(x.device, torch.int64)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@operator("GatherND", check=lambda c: "it has batch axes" if c.get("batch_dims", 0) else None)
def gather_nd(_: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Take slices by tuples of numbers."""
    return x[tuple(indices.to(x.device, torch.int64).unbind(-1))]


@operator("Expand", settings=(1,))
def expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast to a shape."""
    return torch.broadcast_to(x, _widest(x.shape, call.numbers(1, shape)))


def _widest(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the shape that two shapes are broadcast to."""
    pairs = zip_longest(reversed(one), reversed(other), fillvalue=1)
    return [b if a == 1 else a for a, b in pairs][::-1]


@operator("Tile", settings=(1,))
def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(tuple(call.numbers(1, repeats)))


@operator("ConstantOfShape", settings=(0,))
def constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    """Fill a shape with a value."""
    value = call.get("value")
    fill = torch.zeros(1) if value is None else value
    return fill.reshape(()).expand(tuple(call.numbers(0, shape)))


@operator("Range", settings=(0, 1, 2))
def arange(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Count from a number to another."""
    bounds = [call.number(*each) for each in enumerate((start, limit, delta))]
    return torch.arange(*bounds, dtype=start.dtype)


@operator("NonZero")
def non_zero(_: Call, x: Tensor) -> Tensor:
    """Return where entries are not zero."""
    return torch.nonzero(x).T


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Move channels into blocks of pixels."""
    n, channels, height, width = x.shape
    block = call.get("blocksize")
    rest = channels // block**2
    if call.get("mode", "DCR") == "DCR":
        parts = x.reshape(n, block, block, rest, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, rest, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, rest, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Move blocks of pixels into channels."""
    n, channels, height, width = x.shape
    block = call.get("blocksize")
    parts = x.reshape(n, channels, height // block, block, width // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(
        n, channels * block**2, height // block, width // block
    )


def _paddable(call: Call) -> str | None:
    mode = call.get("mode", "constant")
    return f"it pads by mode {mode}" if mode not in _FILLS else None


@operator("Pad", settings=(1, 2, 3), check=_paddable)
def pad(
    call: Call,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Add to both ends of axes, or cut off; with a constant, or with what is there."""
    amounts = (call.get("pads") or call.get("paddings")) if pads is None else call.numbers(1, pads)
    chosen = call.axes(3, axes) or list(range(x.ndim))
    sides = [(0, 0)] * x.ndim
    for number, axis in enumerate(chosen):
        sides[axis] = amounts[number], amounts[number + len(chosen)]
    mode = call.get("mode", "constant")
    if mode == "constant":
        fill = call.get("value", 0.0) if value is None else call.number(2, value)
        return F.pad(x, [side for pair in reversed(sides) for side in pair], value=fill)
    for axis, (begin, end) in enumerate(sides):
        if begin or end:
            places = _FILLS[mode](torch.arange(-begin, x.shape[axis] + end), x.shape[axis])
            x = x.index_select(axis, places.to(x.device))
    return x


def _reflected(places: Tensor, extent: int) -> Tensor:
    period = max(2 * (extent - 1), 1)
    folded = places.abs() % period
    return torch.minimum(folded, period - folded)


_FILLS: dict[str, Any] = {
    "constant": None,
    "edge": lambda places, extent: places.clamp(0, extent - 1),
    "reflect": _reflected,
    "wrap": lambda places, extent: places % extent,
}


@operator("Crop")
def crop(call: Call, x: Tensor) -> Tensor:
    """Cut off the borders of pictures; dropped by ONNX."""
    left, top, right, bottom = call.get("border")
    height, width = call.get("scale") or (x.shape[2] - top - bottom, x.shape[3] - left - right)
    return x[:, :, top : top + height, left : left + width]
