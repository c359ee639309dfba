"""Networks with several layers of one shape, and which of their weights several nodes read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from onnx import helper

from onnxcp.graph.model import Model, load
from tests.networks import model_of, noise


def repeated(
    widths: Sequence[int] = (6, 6, 6, 6),
    *,
    kernel: Sequence[int] = (3, 3),
    norm: bool = False,
    dtype: npt.DTypeLike = np.float32,
    batch: int | str = 2,
) -> Model:
    """Return convs in a row, ``c0`` to ``cN``, each followed by a ReLU; padded, with a bias."""
    nodes, weights, last = [], {}, "x"
    for n, (inputs, outputs) in enumerate(pairwise(widths)):
        scale = np.sqrt(1 / (inputs * np.prod(kernel)))
        weights[f"w{n}"] = (scale * noise(outputs, inputs, *kernel, seed=n)).astype(dtype)
        weights[f"b{n}"] = noise(outputs, seed=n + 20, dtype=dtype)
        pads = [size // 2 for size in kernel]
        conv = [last, f"w{n}", f"b{n}"]
        nodes.append(helper.make_node("Conv", conv, [f"y{n}"], f"c{n}", pads=[*pads, *pads]))
        last = f"y{n}"
        if norm:
            for m, part in enumerate(("scale", "shift", "mean", "variance")):
                weights[f"{part}{n}"] = np.abs(noise(outputs, seed=n + 9 * m + 40, dtype=dtype))
            parts = [last, *(f"{part}{n}" for part in ("scale", "shift", "mean", "variance"))]
            nodes.append(helper.make_node("BatchNormalization", parts, [f"n{n}"], f"norm{n}"))
            last = f"n{n}"
        end = "y" if n == len(widths) - 2 else f"r{n}"
        nodes.append(helper.make_node("Relu", [last], [end], f"relu{n}"))
        last = end
    size = [8] * len(kernel)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape: list[int | str] = [batch, widths[0], *size]
    return load(model_of(nodes, inputs={"x": shape}, weights=weights, dtype=kind))


def readers(model: Model) -> Counter[str]:
    """Return, for every initializer, how many nodes read it."""
    names = {tensor.name for tensor in model.proto.graph.initializer}
    return Counter(name for node in model.proto.graph.node for name in node.input if name in names)


def shared(model: Model) -> list[tuple[int, ...]]:
    """Return the shapes of the initializers that several nodes read."""
    counts = readers(model)
    tensors = model.proto.graph.initializer
    return [tuple(tensor.dims) for tensor in tensors if counts[tensor.name] > 1]
