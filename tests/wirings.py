"""Networks written as lines of text, ``"y = Add a b"``, to try how what is wired together runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.networks import Array, model_of, noise

CHANNELS = 4
SHAPE = (2, CHANNELS, 6, 5)

_OPTIONS: Mapping[str, dict[str, Any]] = {
    "Conv": {"pads": [1, 1, 1, 1]},
    "MaxPool": {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]},
    "ReduceMean": {"axes": [2, 3]},
}


def wired(
    *lines: str,
    outputs: Sequence[str] = ("y",),
    inputs: Sequence[str] = ("x",),
    weights: Mapping[str, Array] | None = None,
    extra: Sequence[onnx.NodeProto] = (),
    **options: Any,
) -> onnx.ModelProto:
    """Return a network of tensors that all have the shape `SHAPE`.

    Nodes are named as what they make. A Conv that reads one tensor is given a 3x3 kernel and a
    bias, a MatMul a matrix for the last axis. `extra` nodes come last.
    """
    constants: dict[str, Array] = dict(weights or {})
    nodes = []
    for seed, line in enumerate(lines):
        made, (op, *read) = line.partition(" = ")[0], line.partition(" = ")[2].split()
        if op == "Conv" and len(read) == 1:
            read += [f"{made}_w", f"{made}_b"]
            kernel = noise(CHANNELS, CHANNELS, 3, 3, seed=seed) / np.float32(6)
            constants |= {f"{made}_w": kernel, f"{made}_b": noise(CHANNELS, seed=seed)}
        if op == "MatMul" and len(read) == 1:
            read.append(f"{made}_w")
            constants[f"{made}_w"] = noise(SHAPE[-1], SHAPE[-1], seed=seed) / np.float32(2)
        names = made.split(", ")
        nodes.append(helper.make_node(op, read, names, name=names[0], **_OPTIONS.get(op, {})))
    return model_of(
        [*nodes, *extra],
        inputs=dict.fromkeys(inputs, SHAPE),
        outputs=outputs,
        weights=constants,
        **options,
    )


#: Networks with sums, and the partners of their convolutions in the order in which they are fitted.
SUMS: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "identity shortcut": (
        ("a = Conv x", "r = Relu a", "b = Conv r", "y = Add b x"),
        {"a": (), "b": ("x",)},
    ),
    "conv shortcut": (
        ("a = Conv x", "r = Relu a", "b = Conv r", "c = Conv x", "y = Add b c"),
        {"a": (), "c": (), "b": ("c",)},
    ),
    "conv shortcut that comes first": (
        ("c = Conv x", "a = Conv x", "r = Relu a", "b = Conv r", "y = Add b c"),
        {"a": (), "b": (), "c": ("b",)},
    ),
    "pooled shortcut": (
        ("c = Conv x", "a = Conv c", "p = MaxPool c", "y = Add a p"),
        {"c": (), "a": ("p",)},
    ),
    "sum of three": (
        ("a = Conv x", "b = Conv x", "c = Conv x", "y = Sum a b c"),
        {"c": (), "b": ("c",), "a": ("b", "c")},
    ),
    "sums in a row": (
        ("a = Conv x", "b = Conv x", "s = Add a b", "i = Identity s", "c = Conv x", "y = Add c i"),
        {"c": (), "b": ("c",), "a": ("b", "c")},
    ),
    "pre-activation": (
        (
            "s = Conv x", "r0 = Relu s", "a = Conv r0", "t = Add a s",
            "r1 = Relu t", "b = Conv r1", "y = Add b t",
        ),
        {"s": (), "a": ("s",), "b": ("t",)},
    ),
    "chain of blocks": (
        (
            "a = Conv x", "s = Add x a", "r = Relu s",
            "b = Conv r", "t = Add b r", "u = Relu t",
            "c = Conv u", "v = Add c u", "y = Relu v",
        ),
        {"a": ("x",), "b": ("r",), "c": ("u",)},
    ),
    "global skip": (
        ("a = Conv x", "r = Relu a", "b = Conv r", "u = Relu b", "c = Conv u", "y = Add c x"),
        {"a": (), "b": (), "c": ("x",)},
    ),
    "bias added apart": (
        ("a = Conv x", "m = MatMul a", "i = Identity m", "n = Add i x_b", "y = Add n a"),
        {"a": (), "m": ("a",)},
    ),
    "output read twice": (
        ("a = Conv x", "b = Conv a", "y = Add a b"),
        {"a": (), "b": ("a",)},
    ),
    "added to itself": (("a = Conv x", "y = Add a a"), {"a": ()}),
    "partner added twice": (
        ("a = Conv x", "b = Conv x", "y = Sum a b b"),
        {"b": (), "a": ("b", "b")},
    ),
    "constant": (("a = Conv x", "y = Add a x_b"), {"a": ()}),
    "sum nobody needs": (
        ("a = Conv x", "b = Conv x", "s = Add a b", "y = Relu x"),
        {"a": (), "b": ()},
    ),
}  # fmt: skip


def summing(name: str) -> onnx.ModelProto:
    """Return one of `SUMS`."""
    return wired(*SUMS[name][0], weights={"x_b": noise(CHANNELS, 1, 1)})
