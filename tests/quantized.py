"""Networks to quantize, and what is left of their outputs."""

from __future__ import annotations

import numpy as np
import onnx

from models.builder import GraphBuilder
from onnxcp.graph.model import Model, load
from tests.networks import Array, run


def network() -> onnx.ModelProto:
    """Return two layers that are chains of two convolutions each."""
    g = GraphBuilder("chains")
    x = g.input("image", ["N", 3, 8, 8])
    x = g.conv(x, 3, 6, 3, name="one/0", pads=1)
    x = g.relu(g.conv(x, 6, 16, 1, name="one/1"), name="r")
    x = g.conv(x, 16, 5, (3, 1), name="two/0", pads=(1, 0))
    x = g.conv(x, 5, 8, (1, 3), name="two/1", pads=(0, 1))
    return g.model([g.relu(x, name="y")])


def samples(count: int = 32, batch: int = 8, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [
        {"image": rng.standard_normal((batch, 3, 8, 8)).astype(np.float32)}
        for _ in range(count // batch)
    ]


def outputs(model: Model | onnx.ModelProto, batches: list[dict[str, Array]]) -> Array:
    return np.concatenate([run(load(model), batch)[0] for batch in batches])


def error(model: Model, original: Model | onnx.ModelProto, seed: int = 7) -> float:
    """Relative error of the outputs on samples that nothing was fitted to."""
    batches = samples(seed=seed)
    exact = outputs(original, batches)
    return float(np.linalg.norm(outputs(model, batches) - exact) / np.linalg.norm(exact))


def branch(name: str, op: str) -> onnx.GraphProto:
    """Return a branch of an If that makes one tensor of ``a``, which is made around it."""
    out = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    return onnx.helper.make_graph([onnx.helper.make_node(op, ["a"], [name])], name, [], [out])
