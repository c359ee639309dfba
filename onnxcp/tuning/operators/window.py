"""Where a kernel moves over its input: padding as ONNX has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from onnxcp.tuning.operators.registry import Call


@dataclass(frozen=True)
class Window:
    """Where a kernel moves over an input.

    Attributes
    ----------
    kernel, strides, dilations
        For every spatial axis.
    begins, ends
        Padding on both sides.
    more
        What only rounding up adds, beyond `ends`.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begins: list[int]
    ends: list[int]
    more: list[int]

    @classmethod
    def of(cls, call: Call, x: Tensor, kernel: Sequence[int], ceil: bool = False) -> Window:
        """Work out the padding for an input."""
        rank, extents = len(kernel), x.shape[2:]
        strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        begins, ends = _padding(call, extents, strides, reach)
        more = [0] * rank
        if ceil:
            for axis in range(rank):
                whole = extents[axis] + begins[axis] + ends[axis]
                count = -(-(whole - reach[axis]) // strides[axis]) + 1
                # A window that would begin beyond the input is none.
                count -= (count - 1) * strides[axis] >= extents[axis] + begins[axis]
                more[axis] = max((count - 1) * strides[axis] + reach[axis] - whole, 0)
        return cls(list(kernel), strides, dilations, begins, ends, more)

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    @property
    def one_sided(self) -> bool:
        """Whether padding differs between the sides; PyTorch's kernels pad both alike."""
        return self.begins != self.ends

    def padded(self, x: Tensor, value: Any) -> Tensor:
        """Return the input with all of the padding."""
        ends = [e + m for e, m in zip(self.ends, self.more, strict=True)]
        return F.pad(x, from_last(self.begins, ends), value=value)


def per_axis(call: Call, key: str, rank: int) -> list[int]:
    """Return an attribute that has a number for every spatial axis, 1 by default."""
    return list(call.get(key) or [1] * rank)


def three_axes(call: Call) -> str | None:
    """Tell of more spatial axes than there are kernels for, as far as attributes say."""
    rank = len(call.get("kernel_shape") or call.get("strides") or [0])
    return f"it has {rank} spatial axes" if rank > 3 else None


def from_last(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Order padding as PyTorch has it: the last axis first."""
    pairs = zip(reversed(begins), reversed(ends), strict=True)
    return [side for pair in pairs for side in pair]


def _padding(
    call: Call, extents: Sequence[int], strides: Sequence[int], reach: Sequence[int]
) -> tuple[list[int], list[int]]:
    rank, mode = len(reach), call.get("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        axes = zip(extents, strides, reach, strict=True)
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in axes]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        return (small, large) if mode == "SAME_UPPER" else (large, small)
    pads = list(call.get("pads") or []) if mode == "NOTSET" else []
    pads = pads or [0] * (2 * rank)
    return pads[:rank], pads[rank:]
