"""Tiny models to try the package on, and ONNX Runtime to run them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from onnxcp.graph.model import Model, load
from onnxcp.graph.site import Site, find_sites

Array = npt.NDArray[Any]

# The Frobenius norm of a difference of two float32 results over that of the result. A sum of n
# products is rounded by about sqrt(n) 6e-8; those here have at most a few hundred terms, and a
# chain sums four times in a row.
FLOAT32 = 1e-5


def noise(*shape: int, seed: int = 0, dtype: npt.DTypeLike = np.float32) -> Array:
    """Return standard normal numbers, the same for the same arguments."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def onnx_type(array: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def model_of(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, Array] | None = None,
    dtype: int = TensorProto.FLOAT,
    opset: int = 17,
    ir_version: int = 8,
    domains: Mapping[str, int] | None = None,
    **model_fields: Any,
) -> onnx.ModelProto:
    """Assemble a model of one graph; inputs and outputs are of one type, outputs as inferred."""
    shapes = {name: value.shape for name, value in (weights or {}).items()}
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, shapes.get(name)) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, **model_fields)
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        probe.ir_version = max(ir_version, 8)  # before 4, it wants all weights to be inputs
        inferred = onnx.shape_inference.infer_shapes(probe)
        for output, known in zip(model.graph.output, inferred.graph.output, strict=True):
            output.CopyFrom(known)
    return model


def conv_model(
    kernel: Sequence[int] = (3, 3),
    *,
    op: str = "Conv",
    channels: tuple[int, int] = (4, 6),
    group: int = 1,
    bias: bool = True,
    size: Sequence[int] | None = None,
    batch: int = 2,
    dtype: npt.DTypeLike = np.float32,
    opset: int = 17,
    ir_version: int = 8,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one convolution, ``conv``, with weight ``w`` and bias ``b``.

    `channels` are those of its input and output. `size` is the input's; each axis has another.
    """
    inputs, outputs = channels
    first, second = (inputs, outputs) if op == "ConvTranspose" else (outputs, inputs)
    weights = {"w": noise(first, second // group, *kernel, seed=1, dtype=dtype)}
    if bias:
        weights["b"] = noise(outputs, seed=2, dtype=dtype)
    size = (9, 10, 8)[: len(kernel)] if size is None else size
    node = helper.make_node(op, ["x", *weights], ["y"], name="conv", group=group, **attributes)
    return model_of(
        [node],
        inputs={"x": (batch, inputs, *size)},
        weights=weights,
        dtype=onnx_type(weights["w"]),
        opset=opset,
        ir_version=ir_version,
    )


def only_site(model: Model | onnx.ModelProto) -> Site:
    """Return the one site of a model that has just one."""
    (site,), _ = find_sites(load(model))
    return site


def feeds_for(proto: onnx.ModelProto) -> dict[str, Array]:
    """Return noise for every input that is not an initializer and has a fixed shape."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return {
        value.name: noise(
            *(dim.dim_value for dim in value.type.tensor_type.shape.dim),
            seed=99,
            dtype=helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in proto.graph.input
        if value.name not in constants
    }


def run(
    model: Model | onnx.ModelProto | bytes | str, feeds: Mapping[str, Array] | None = None
) -> list[Array]:
    """Run a model in ONNX Runtime as it is written, without graph optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    proto = model.proto if isinstance(model, Model) else model
    if feeds is None:
        assert isinstance(proto, onnx.ModelProto), "what a file takes must be given"
        feeds = feeds_for(proto)
    source = proto.SerializeToString() if isinstance(proto, onnx.ModelProto) else proto
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def difference(result: Array, expected: Array) -> float:
    """Return the Frobenius norm of the difference over that of what was expected."""
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    result, expected = result.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def initializers(proto: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def pairwise(parameters: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """Return combinations in which every two values of different parameters meet.

    A covering array of strength 2, made greedily: the full product is far larger, and what breaks
    a rewrite is rarely more than two attributes together.
    """
    names = list(parameters)
    values = {name: list(choices) for name, choices in parameters.items()}
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(values[a]))
        for j in range(len(values[b]))
    }
    rows = []
    while missing:
        row = dict(min(missing))
        for name in names:
            if name in row:
                continue
            row[name] = max(
                range(len(values[name])),
                key=lambda i: sum(
                    _pair(names, (name, i), other) in missing for other in row.items()
                ),
            )
        missing -= {_pair(names, a, b) for a, b in itertools.combinations(row.items(), 2)}
        rows.append({name: values[name][row[name]] for name in names})
    return rows


def _pair(names: list[str], one: tuple[str, int], two: tuple[str, int]) -> tuple[Any, Any]:
    first, second = sorted((one, two), key=lambda item: names.index(item[0]))
    return first, second
