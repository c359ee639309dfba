"""Counting what a network holds and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from onnxcp.graph.model import Model
from onnxcp.graph.view import GraphView
from onnxcp.graph.walk import all_nodes

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Summary:
    """What a network holds and costs.

    Attributes
    ----------
    nodes
        Number of nodes, those of nested graphs included.
    parameters
        Number of floating-point entries in initializers and Constant nodes of the main graph.
    macs
        Multiply-adds for one sample in Conv, ConvTranspose, Gemm and MatMul nodes of the main
        graph, or None if some of their shapes are not known.
    nbytes
        Size of the model as a file in bytes, external data included.
    """

    nodes: int
    parameters: int
    macs: int | None
    nbytes: int


def summarize(model: Model, shapes: Shapes) -> Summary:
    """Count nodes, parameters, multiply-adds and bytes of a model.

    Parameters
    ----------
    model
        The model.
    shapes
        Shapes of its tensors, batch included.
    """
    graph = model.proto.graph
    view = GraphView(graph)
    counts = [node_macs(node, view, shapes) for node in graph.node if node.op_type in _COUNTED]
    return Summary(
        nodes=sum(1 for _ in all_nodes(graph.node)),
        parameters=_parameters(graph),
        macs=None if None in counts else sum(count for count in counts if count is not None),
        nbytes=model.file_nbytes,
    )


def counted_tensors(model: Model) -> set[str]:
    """Return the names of the tensors whose shapes `summarize` needs: what counted nodes move."""
    return {
        name
        for node in model.proto.graph.node
        if node.op_type in _COUNTED
        for name in (*node.input[:1], *node.output)
    }


def node_macs(node: onnx.NodeProto, view: GraphView, shapes: Shapes) -> int | None:
    """Return the multiply-adds of a Conv, ConvTranspose, Gemm or MatMul node for one sample.

    The first axis of what the node reads is taken for the batch. None if a shape is not known, or
    if the node is of another kind.
    """
    if node.op_type not in _COUNTED or len(node.input) < 2:
        return None
    data, weight, output = (
        shapes.get(name) or view.constant_shape(name)
        for name in (node.input[0], node.input[1], node.output[0])
    )
    if data is None or weight is None or output is None:
        return None
    match node.op_type:
        case "Conv":
            return math.prod(weight[1:]) * math.prod(output[1:])
        case "ConvTranspose":
            return math.prod(weight[1:]) * math.prod(data[1:])
        case "Gemm":
            return math.prod(weight)  # of one row of the output, wherever rows are in the input
        case _:
            inner = data[-1]
            return inner * math.prod(output) // (data[0] if len(data) > 1 else 1)


_COUNTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}


def _parameters(graph: onnx.GraphProto) -> int:
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            tensors += [a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type in _FLOATS)
