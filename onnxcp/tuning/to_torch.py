"""From an ONNX graph to PyTorch, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnxcp.errors import ModelError
from onnxcp.graph.model import Model, ModelSource, load
from onnxcp.graph.view import GraphView
from onnxcp.graph.walk import attribute_graphs, attributes
from onnxcp.tuning.module import OnnxModule, call_of
from onnxcp.tuning.operators import problem
from onnxcp.tuning.weights import FLOATS, WHOLE

_MOST_REFUSALS = 5
_CONSTANTS = {"value", "value_float", "value_floats", "value_int", "value_ints"}


def to_torch(source: ModelSource | Model) -> OnnxModule:
    """Return a network as a PyTorch module, ready to be trained.

    Weights, biases and scales are parameters; running statistics and other tensors of floating
    point are buffers; whole numbers, and what nodes only read as settings, are constants. Each has
    the name of its initializer, or of the output of the Constant node that holds it (see
    `onnxcp.tuning.module.escaped`), and is there once, however many nodes read it. What a file
    holds in half precision is computed in single, which loses nothing on the way back.

    Parameters
    ----------
    source
        A file, bytes, a ModelProto, a graphsurgeon Graph or a `Model`; it is not changed.

    Returns
    -------
    OnnxModule
        On the CPU and in training mode, as every new module is.

    Raises
    ------
    ModelError
        If the network has an operator that has no counterpart, control flow, functions of its own
        or sparse weights, all of which are named; or a tensor whose data do not fit its shape.
    """
    model = load(source)
    refusals = list(dict.fromkeys(_refusals(model)))
    if refusals:
        shown = "; ".join(refusals[:_MOST_REFUSALS])
        more = len(refusals) - _MOST_REFUSALS
        tail = f"; and {more} more" if more > 0 else ""
        raise ModelError(f"'{model.name}' cannot be computed in PyTorch: {shown}{tail}.")
    try:
        return OnnxModule(model)
    except ValueError as error:
        raise ModelError(f"'{model.name}' cannot be computed in PyTorch: {error}") from error


def _refusals(model: Model) -> Iterator[str]:
    """Say what of a network cannot be computed in PyTorch, for each reason of the first node."""
    graph = model.proto.graph
    for name in sorted(GraphView(graph).sparse_initializers):
        yield f"weight '{name}' is sparse"
    for tensor in graph.initializer:
        if tensor.data_type not in FLOATS | WHOLE:
            yield f"tensor '{tensor.name}' is of type {_type(tensor)}"
    functions = {(function.domain, function.name) for function in model.proto.functions}
    seen = set()
    for node in graph.node:
        reason = _refusal(node, model, functions)
        if reason is not None and reason not in seen:
            seen.add(reason)
            label = node.name or next(filter(None, node.output), "")
            yield f"node '{label}': {reason}"


def _refusal(node: onnx.NodeProto, model: Model, functions: set[tuple[str, str]]) -> str | None:
    if (node.domain, node.op_type) in functions:
        return f"{node.domain}::{node.op_type} is a function of the model's own"
    if node.domain not in ("", "ai.onnx"):
        return f"operator {node.domain}::{node.op_type} is not of ONNX itself"
    if any(True for _ in attribute_graphs(node)):
        return f"{node.op_type} is control flow"
    if node.op_type != "Constant":
        return problem(call_of(node, model.opset, {}))
    options = attributes(node)
    value = options.get("value")
    if value is not None and value.data_type not in FLOATS | WHOLE:
        return f"it is a constant of type {_type(value)}"
    return None if _CONSTANTS & options.keys() else "it is a constant that is no dense tensor"


def _type(tensor: onnx.TensorProto) -> str:
    return str(onnx.TensorProto.DataType.Name(tensor.data_type))
