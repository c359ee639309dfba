"""A network's structure alone: shapes can be inferred and checked without copying its weights."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def weightless(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with its weights, float tensors of at least one axis, made inputs.

    Integers and scalars stay: shapes, axes and bounds, which shape inference reads.

    Parameters
    ----------
    model
        The model. It is not changed.

    Returns
    -------
    onnx.ModelProto
        As valid as `model`, and a few kilobytes large.
    """
    inputs, constants = list(model.graph.input), []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.dims:
            inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            constants.append(tensor)
    graph = helper.make_graph(
        model.graph.node, model.graph.name, inputs, model.graph.output, constants
    )
    return helper.make_model(graph, ir_version=model.ir_version, opset_imports=model.opset_import)
