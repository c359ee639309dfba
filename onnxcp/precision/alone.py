"""Small graphs in the precision of the network that they stand for a part of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxcp.graph.model import Model
from onnxcp.precision.amend import label_nodes
from onnxcp.precision.half import to_half
from onnxcp.precision.qdq import quantize, raise_opset
from onnxcp.precision.ranges import assumed


def at_precision(model: Model, precision: str) -> Model:
    """Return a graph of one layer as it will run within a network of a precision.

    What it reads and makes has the type that it has there: uint8 between layers of a network of
    int8. Ranges are made up, since time does not depend on them.

    Parameters
    ----------
    model
        A graph with one input that is no constant, and one output.
    precision
        ``fp32``: as it is, ``fp16`` or ``int8``. A graph that is not of float32 stays.

    Raises
    ------
    ModelError
        If it cannot be converted.
    """
    if precision == "fp32" or _type(model) != onnx.TensorProto.FLOAT:
        return model
    if precision == "fp16":
        return to_half(model, keep_interface=False)
    proto = raise_opset(model)
    label_nodes(proto)
    named = model.with_proto(onnx.shape_inference.infer_shapes(proto))
    lowered = quantize(named, assumed(named))
    _cut_borders(lowered.proto.graph)
    return lowered


def open_end(model: Model) -> Model:
    """Return a quantized graph of one layer that hands on what it makes as it is, unrounded.

    In a network a Relu may be merged with it, and what is rounded is what that makes.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    makers = {name: node for node in graph.node for name in node.output}
    (made,) = graph.output
    restored = makers[made.name]
    rounded = makers.get(restored.input[0])
    if restored.op_type != "DequantizeLinear" or rounded is None:
        return model
    if rounded.op_type != "QuantizeLinear":
        return model
    exact = rounded.input[0]
    graph.node.remove(restored)
    graph.node.remove(rounded)
    for node in graph.node:
        node.output[:] = [made.name if name == exact else name for name in node.output]
    del graph.value_info[:]
    return model.with_proto(proto)


def random_input(model: Model, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return values for the input of such a graph: standard normal, or any whole number."""
    rng = np.random.default_rng(0)
    kind = onnx.helper.tensor_dtype_to_np_dtype(_type(model))
    if np.issubdtype(kind, np.integer):
        return rng.integers(0, 256, shape).astype(kind)
    return rng.standard_normal(shape, dtype=np.float32).astype(kind)


def _type(model: Model) -> int:
    return int(_input(model.proto.graph).type.tensor_type.elem_type)


def _input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    constants = {each.name for each in graph.initializer}
    return next(each for each in graph.input if each.name not in constants)


def _cut_borders(graph: onnx.GraphProto) -> None:
    """Take off the QuantizeLinear at the input and the DequantizeLinear at the output.

    Within a network the neighbours are quantized, too, and hand over what these would make.
    """
    given, made = _input(graph), graph.output[0]
    readers = [node for node in graph.node if given.name in node.input]
    if len(readers) == 1 and readers[0].op_type == "QuantizeLinear":
        (first,) = readers
        for node in graph.node:
            node.input[:] = [given.name if n == first.output[0] else n for n in node.input]
        graph.node.remove(first)
        given.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    (last,) = (node for node in graph.node if made.name in node.output)
    if last.op_type == "DequantizeLinear":
        quantized = last.input[0]
        graph.node.remove(last)
        for node in graph.node:
            node.output[:] = [made.name if n == quantized else n for n in node.output]
        made.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    del graph.value_info[:]
