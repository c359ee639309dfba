"""One node at a time, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcp.tuning import to_torch
from tests.networks import Array, onnx_type, run

# Relative, by Frobenius norms: what is asked of the bridge. Rounding stays below by two orders.
TOLERANCE = 1e-4


def node_model(
    op: str,
    x: Array,
    *constants: Array | None,
    outputs: int = 1,
    opset: int = 17,
    ir_version: int = 8,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one node that reads `x`, and constants after it; None leaves one out."""
    names = [f"c{n}" if value is not None else "" for n, value in enumerate(constants)]
    results = [f"y{n}" for n in range(outputs)]
    node = helper.make_node(op, ["x", *names], results, name="node", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", onnx_type(x), [None] * x.ndim)],
        [onnx.ValueInfoProto(name=name) for name in results],
        [numpy_helper.from_array(v, f"c{n}") for n, v in enumerate(constants) if v is not None],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def evaluated(
    model: onnx.ModelProto, feeds: Mapping[str, Array], *, training: bool = False
) -> list[Array]:
    """Compute a model in PyTorch."""
    module = to_torch(model).train(training)
    with torch.no_grad():
        found = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]


def assert_close(found: Sequence[Array], expected: Sequence[Array]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if b.dtype.kind != "f":
            np.testing.assert_array_equal(a, b)
        elif b.size:
            np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
            where = np.isfinite(b)
            gap = np.linalg.norm((a - b)[where].astype(np.float64))
            assert gap <= TOLERANCE * np.linalg.norm(b[where].astype(np.float64))


def agree(op: str, x: Array, *constants: Array | None, reference: bool = False, **how: Any) -> None:
    """Compute one node in PyTorch and in ONNX Runtime, or in onnx's own reference."""
    model = node_model(op, x, *constants, **how)
    expected = ReferenceEvaluator(model).run(None, {"x": x}) if reference else run(model, {"x": x})
    assert_close(evaluated(model, {"x": x}), expected)
