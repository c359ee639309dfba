"""How a convolution moves over its input, axis by axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Geometry:
    """The spatial attributes of an ONNX Conv or ConvTranspose of any spatial rank n.

    Attributes
    ----------
    kernel, strides, dilations
        One entry per spatial axis.
    pads
        Begin and end of every axis: ``(begin_1, ..., begin_n, end_1, ..., end_n)``. All zero where
        `auto_pad` is given.
    auto_pad
        ``"NOTSET"``, ``"VALID"``, ``"SAME_UPPER"`` or ``"SAME_LOWER"``. SAME pads depend on the
        input's size, so the attribute itself is passed on, never pads computed from it.
    transposed
        Whether this is a ConvTranspose.
    output_padding
        Of a ConvTranspose: what is added to the end of each output axis.
    output_shape
        Of a ConvTranspose: the spatial output shape if it was asked for, which overrides `pads`.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    auto_pad: str = "NOTSET"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    @classmethod
    def from_attributes(
        cls, attributes: dict[str, Any], kernel: Sequence[int], *, transposed: bool = False
    ) -> Geometry:
        """Read the attributes of a node, with the defaults of the ONNX operator.

        Parameters
        ----------
        attributes
            The node's attributes by name. A `kernel_shape` among them is not needed.
        kernel
            Spatial shape of the weight.
        transposed
            Whether the node is a ConvTranspose.
        """
        n = len(kernel)
        auto_pad = attributes.get("auto_pad", b"NOTSET")
        auto_pad = auto_pad.decode() if isinstance(auto_pad, bytes) else auto_pad
        auto_pad = auto_pad or "NOTSET"  # to ONNX Runtime, an empty text is no text
        explicit = auto_pad == "NOTSET"
        return cls(
            kernel=tuple(kernel),
            strides=tuple(attributes.get("strides", (1,) * n)),
            pads=tuple(attributes.get("pads", (0,) * 2 * n)) if explicit else (0,) * 2 * n,
            dilations=tuple(attributes.get("dilations", (1,) * n)),
            auto_pad=auto_pad,
            transposed=transposed,
            output_padding=tuple(attributes.get("output_padding", ())),
            output_shape=tuple(attributes.get("output_shape", ())),
        )

    @classmethod
    def pointwise(cls, rank: int) -> Geometry:
        """Return the geometry of a 1x...x1 convolution with `rank` spatial axes."""
        ones = (1,) * rank
        return cls(ones, ones, (0,) * 2 * rank, ones)

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    def on_axes(self, axes: Sequence[int]) -> Geometry:
        """Return this geometry on some spatial axes; on all others that of a 1x1 convolution.

        Applying `on_axes` of disjoint sets of axes one after the other moves over every axis once,
        which is what makes a separable chain exact: SAME pads, too, are computed axis by axis.
        """
        kept = set(axes)
        keep = [axis in kept for axis in range(self.rank)]

        def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return tuple(v if k else neutral for v, k in zip(values, keep, strict=True))

        n = self.rank
        return replace(
            self,
            kernel=pick(self.kernel, 1),
            strides=pick(self.strides, 1),
            pads=pick(self.pads[:n], 0) + pick(self.pads[n:], 0),
            dilations=pick(self.dilations, 1),
            output_padding=pick(self.output_padding, 0) if self.output_padding else (),
        )

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial shape of the output for an input of spatial shape `size`."""
        n = self.rank
        if self.output_shape:
            return self.output_shape
        result = []
        for axis in range(n):
            extent = self.dilations[axis] * (self.kernel[axis] - 1) + 1
            stride = self.strides[axis]
            padding = self.pads[axis] + self.pads[axis + n]
            if self.transposed:
                extra = self.output_padding[axis] if self.output_padding else 0
                whole = (size[axis] - 1) * stride + extra + extent
                # SAME cuts to a multiple of the input; it adds nothing where that is not reached.
                same = self.auto_pad.startswith("SAME")
                result.append(min(size[axis] * stride, whole) if same else whole - padding)
            elif self.auto_pad.startswith("SAME"):
                result.append(math.ceil(size[axis] / stride))
            else:
                result.append((size[axis] + padding - extent) // stride + 1)
        return tuple(result)

    def pads_for(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the pads of a Conv on an input of spatial shape `size`, those of SAME worked out.

        ``(begin_1, ..., begin_n, end_1, ..., end_n)``, as in `pads`.
        """
        if not self.auto_pad.startswith("SAME"):
            return self.pads
        begins, ends = [], []
        for axis, out in enumerate(self.output_size(size)):
            extent = self.dilations[axis] * (self.kernel[axis] - 1) + 1
            total = max((out - 1) * self.strides[axis] + extent - size[axis], 0)
            smaller = total // 2
            upper = self.auto_pad == "SAME_UPPER"
            begins.append(smaller if upper else total - smaller)
            ends.append(total - smaller if upper else smaller)
        return (*begins, *ends)

    def attributes(self, group: int) -> dict[str, Any]:
        """Return the attributes of an ONNX node with this geometry."""
        result: dict[str, Any] = {
            "dilations": list(self.dilations),
            "group": group,
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
        }
        if self.auto_pad == "NOTSET":
            result["pads"] = list(self.pads)
        else:
            result["auto_pad"] = self.auto_pad
        if self.output_padding:
            result["output_padding"] = list(self.output_padding)
        if self.output_shape:
            result["output_shape"] = list(self.output_shape)
        return result
