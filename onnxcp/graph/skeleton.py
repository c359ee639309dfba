"""A model without its large weights: what checks and shape inference need, at no size limit."""

from __future__ import annotations

import onnx

from onnxcp.graph.model import tensor_nbytes

_SMALL = 2048  # bytes; shapes, axes and other values that inference reads are smaller


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which large initializers have become inputs of the same type and shape.

    Onnx serialises a model to check it or to infer its shapes, which costs time and memory for
    weights that neither looks at, and fails above 2 GB.
    """
    result = onnx.ModelProto()
    result.ir_version = proto.ir_version
    result.opset_import.extend(proto.opset_import)
    result.functions.extend(proto.functions)
    source, graph = proto.graph, result.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.sparse_initializer.extend(source.sparse_initializer)
    inputs = {value.name for value in source.input}
    for tensor in source.initializer:
        if tensor_nbytes(tensor) <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return result
