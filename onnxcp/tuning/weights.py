"""Which tensors of a graph are trained, which move with it, and which stay numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxcp.graph.view import GraphView
from onnxcp.tuning.operators import SETTINGS

Array = npt.NDArray[Any]

_TRAINED = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Einsum": (0, 1),
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
}
_LINEAR = ("Conv", "ConvTranspose", "Einsum", "MatMul")  # what is added to them is their bias
_THROUGH = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
WHOLE = {
    onnx.TensorProto.BOOL,
    onnx.TensorProto.INT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.UINT16,
    onnx.TensorProto.UINT32,
    onnx.TensorProto.UINT64,
}


@dataclass(frozen=True)
class Weights:
    """The constant tensors of a graph, each under its name.

    Attributes
    ----------
    parameters
        Weights, biases, scales and slopes.
    buffers
        All other tensors of floating point, such as running statistics.
    constants
        Whole numbers, and what nodes read as settings.
    """

    parameters: dict[str, Array]
    buffers: dict[str, Array]
    constants: dict[str, Array]

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """In which type to compute: double if weights are, else single, whatever is stored."""
        double = any(value.dtype == np.float64 for value in self.parameters.values())
        return np.float64 if double else np.float32


def find_weights(view: GraphView) -> Weights:
    """Part the constant tensors of a graph by what they are for.

    Raises
    ------
    ValueError
        If the data of a tensor do not fit its shape.
    """
    names = [*view.initializers]
    names += [node.output[0] for node in view.graph.node if node.op_type == "Constant"]
    trained, settings = _trained(view), _settings(view)
    weights = Weights({}, {}, {})
    for name in names:
        value = np.asarray(view.constant(name))
        if onnx.helper.np_dtype_to_tensor_dtype(value.dtype) not in FLOATS:
            weights.constants[name] = value
        elif name in trained:
            weights.parameters[name] = value
        elif name in settings:
            weights.constants[name] = value
        else:
            weights.buffers[name] = value
    return weights


def has_own_statistics(view: GraphView, node: onnx.NodeProto) -> bool:
    """Tell whether a BatchNormalization may move its statistics: nothing else is made of them.

    Tools that store equal tensors once make one of, say, a scale and a variance that are all ones.
    """
    mean, variance = (source(view, name) for name in node.input[3:5])
    return mean != variance and not {mean, variance} & _trained(view)


def source(view: GraphView, name: str) -> str:
    """Follow a tensor back through nodes that only bring it into another form."""
    node = view.producer(name)
    while node is not None and node.op_type in _THROUGH:
        name = node.input[0]
        node = view.producer(name)
    return name


def _trained(view: GraphView) -> set[str]:
    found = set()
    for node in view.graph.node:
        places = _TRAINED.get(node.op_type, ())
        found |= {source(view, name) for name in _at(node, places)}
        if node.op_type == "Add":
            for name, other in (node.input, reversed(node.input)):
                maker = view.producer(other)
                if maker is not None and maker.op_type in _LINEAR:
                    found.add(source(view, name))
    return found


def _settings(view: GraphView) -> set[str]:
    return {name for node in view.graph.node for name in _at(node, SETTINGS.get(node.op_type, ()))}


def _at(node: onnx.NodeProto, positions: tuple[int, ...]) -> list[str]:
    return [node.input[each] for each in positions if each < len(node.input)]
