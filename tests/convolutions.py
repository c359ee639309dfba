"""Convolutions of every kind that ONNX Runtime runs: a grid of them, and random ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx
from hypothesis import strategies as st

from onnxcp.graph.geometry import Geometry
from tests.networks import conv_model, pairwise


@dataclass(frozen=True)
class Case:
    """One convolution: operator, kernel, channels (in, out), attributes, and the input's size."""

    op: str
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    channels: tuple[int, int] = (6, 12)
    group: int = 1
    bias: bool = True

    def __str__(self) -> str:
        """Return a name for the list of tests."""
        parts = [self.op, "x".join(map(str, self.kernel)), f"g{self.group}"]
        parts += ["x".join(map(str, self.channels)), "bias" if self.bias else "nobias"]
        for key, value in self.attributes.items():
            parts.append(f"{key}={value}".replace(" ", ""))
        return "-".join(parts)

    @property
    def geometry(self) -> Geometry:
        transposed = self.op == "ConvTranspose"
        return Geometry.from_attributes(self.attributes, self.kernel, transposed=transposed)

    def model(self, **options: Any) -> onnx.ModelProto:
        return conv_model(
            self.kernel,
            op=self.op,
            channels=self.channels,
            group=self.group,
            bias=self.bias,
            size=self.size,
            **self.attributes,
            **options,
        )


KERNELS = [
    (1,), (3,), (4,),
    (1, 1), (3, 3), (5, 5), (1, 7), (5, 1), (2, 4),
    (1, 1, 1), (3, 3, 3), (1, 2, 3), (3, 1, 1),
]  # fmt: skip
SIZE = (9, 10, 8)
STRIDES = {"1": (1, 1, 1), "2": (2, 2, 2), "unequal": (1, 2, 3)}
DILATIONS = {"1": (1, 1, 1), "2": (2, 2, 2), "unequal": (2, 1, 2)}
PADDING: dict[str, dict[str, Any]] = {
    "none": {},
    "symmetric": {"pads": ((1, 1, 1), (1, 1, 1))},
    "asymmetric": {"pads": ((0, 2, 1), (1, 0, 2))},
    "SAME_UPPER": {"auto_pad": "SAME_UPPER"},
    "SAME_LOWER": {"auto_pad": "SAME_LOWER"},
    "VALID": {"auto_pad": "VALID"},
    "NOTSET": {"auto_pad": "NOTSET", "pads": ((1, 0, 1), (2, 1, 0))},
}
GRID: dict[str, Any] = {
    "op": ["Conv", "ConvTranspose"],
    "kernel": KERNELS,
    "strides": list(STRIDES),
    "dilations": list(DILATIONS),
    "padding": list(PADDING),
    "group": [1, 2, 3],
    "channels": [(6, 12), (12, 6)],
    "bias": [True, False],
}


def case(
    op: str,
    kernel: tuple[int, ...],
    strides: str,
    dilations: str,
    padding: str,
    group: int,
    channels: tuple[int, int],
    bias: bool,
) -> Case:
    """Make a case of a point of `GRID`."""
    n = len(kernel)
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    if strides != "1":
        attributes["strides"] = STRIDES[strides][:n]
    # ONNX Runtime does not run SAME padding of a dilated Conv.
    dilated = dilations != "1" and not padding.startswith("SAME")
    if dilated:
        attributes["dilations"] = DILATIONS[dilations][:n]
    attributes |= PADDING[padding]
    if "pads" in attributes:
        begins, ends = attributes["pads"]
        attributes["pads"] = begins[:n] + ends[:n]
    size = tuple(s + (4 if dilated and k > 3 else 0) for s, k in zip(SIZE, kernel, strict=False))
    return Case(op, kernel, size, attributes, channels, group, bias)


def grid() -> list[Case]:
    """Return cases in which every two values of different attributes in `GRID` meet."""
    cases = [case(**row) for row in pairwise(GRID)]
    return [*cases, *OUTPUTS]


def _transposed(kernel: tuple[int, ...], group: int, **attributes: Any) -> Case:
    return Case("ConvTranspose", kernel, SIZE[: len(kernel)], attributes, group=group)


# What only a ConvTranspose has: ways to say how large its output is.
OUTPUTS = [
    _transposed((3,), 1, strides=(2,), output_padding=(1,)),
    _transposed((3, 3), 2, strides=(2, 2), pads=(1, 1, 1, 1), output_padding=(1, 1)),
    _transposed((2, 4), 1, strides=(2, 3), pads=(0, 1, 1, 0), output_padding=(1, 2)),
    _transposed((3, 3, 3), 3, strides=(1, 2, 3), output_padding=(0, 1, 2)),
    _transposed((3, 3), 1, strides=(2, 2), auto_pad="SAME_UPPER", output_padding=(1, 0)),
    _transposed((1, 3), 1, strides=(3, 2), auto_pad="SAME_LOWER", output_padding=(1, 0)),
    _transposed((3,), 2, strides=(2,), output_shape=(20,)),
    _transposed((3, 3), 1, strides=(2, 2), output_shape=(18, 21)),
    _transposed((3, 3), 3, strides=(2, 3), output_shape=(17, 28), auto_pad="SAME_UPPER"),
    _transposed((5, 2), 1, strides=(2, 2), output_shape=(18, 19), auto_pad="SAME_LOWER"),
    _transposed((1, 2, 3), 1, strides=(1, 2, 2), output_shape=(9, 20, 17)),
]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw any convolution that ONNX Runtime runs."""
    op = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    n = draw(st.integers(1, 3))

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * n))

    kernel, strides = per_axis(1, 4), per_axis(1, 3)
    attributes: dict[str, Any] = {"strides": strides}
    auto_pad = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER", ""]))
    if not auto_pad.startswith("SAME"):
        attributes["dilations"] = per_axis(1, 3)
    if auto_pad == "NOTSET":
        attributes["pads"] = per_axis(0, 2) + per_axis(0, 2)
    if auto_pad:
        attributes["auto_pad"] = auto_pad
    if op == "ConvTranspose":
        attributes["output_padding"] = tuple(draw(st.integers(0, stride - 1)) for stride in strides)
    # Large enough for one output at least, whatever is dilated or cut away.
    dilations = attributes.get("dilations", (1,) * n)
    extents = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    least = [max(extent, 5) for extent in extents]
    size = tuple(low + draw(st.integers(0, 3)) for low in least)
    group = draw(st.integers(1, 3))
    channels = (group * draw(st.integers(2, 3)), group * draw(st.integers(1, 3)))
    return Case(op, kernel, size, attributes, channels, group, draw(st.booleans()))
