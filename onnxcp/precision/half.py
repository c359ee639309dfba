"""Networks in float16, by the converter that comes with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx

from onnxcp.errors import ModelError
from onnxcp.graph.model import Model
from onnxcp.precision.amend import WEIGHTED
from onnxcp.precision.foreign import foreign


def to_half(model: Model, *, keep_interface: bool = True) -> Model:
    """Return a network that computes in float16.

    Parameters
    ----------
    model
        The network.
    keep_interface
        Whether inputs and outputs stay float32, cast at the border.

    Raises
    ------
    ModelError
        If the converter cannot convert it, or a weight is too large.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    # What is added to scores to rule them out may be -1e9: the converter's least number will do.
    weights = {name for node in proto.graph.node if node.op_type in WEIGHTED for name in node.input}
    for tensor in proto.graph.initializer:
        if tensor.name in weights and tensor.data_type == onnx.TensorProto.FLOAT:
            most = np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0)
            if most > np.finfo(np.float16).max:
                raise ModelError(
                    f"'{model.name}' cannot be converted to float16: '{tensor.name}' holds "
                    f"{most:.3g}, and {np.finfo(np.float16).max:g} is the largest there."
                )
    with foreign(f"'{model.name}' cannot be converted to float16"):
        converted = convert_float_to_float16(proto, keep_io_types=keep_interface)
    sorted_ = ONNXModel(converted)  # casts come last, where they are not allowed to be
    sorted_.topological_sort()
    return model.with_proto(sorted_.model)
