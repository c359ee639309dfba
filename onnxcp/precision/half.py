"""Networks in float16, by the converter that comes with ONNX Runtime."""

from __future__ import annotations

import logging

import onnx

from onnxcp.errors import ModelError
from onnxcp.graph.model import Model


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
        If the converter cannot convert it.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of values that are rounded to the least that there is
    try:
        converted = convert_float_to_float16(proto, keep_io_types=keep_interface)
    except Exception as error:  # what a converter raises where it does not know its way
        detail = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(f"'{model.name}' cannot be converted to float16: {detail}.") from error
    finally:
        logging.disable(before)
    sorted_ = ONNXModel(converted)  # casts come last, where they are not allowed to be
    sorted_.topological_sort()
    return model.with_proto(sorted_.model)
