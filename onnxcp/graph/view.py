"""A read-only look at one ONNX graph: who makes a tensor, who reads it, which are constant."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx

from onnxcp.graph.walk import attribute_graphs, attributes, names_read

Array = npt.NDArray[np.generic]


class GraphView:
    """Indexes over a graph that is not changed while the view lives.

    Attributes
    ----------
    graph
        The message looked at.
    initializers
        Dense initializers by name.
    producers
        Index into `graph.node` of the node that makes a tensor, by tensor name.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.sparse_initializers = {tensor.values.name for tensor in graph.sparse_initializer}
        self.producers = {
            name: index for index, node in enumerate(graph.node) for name in node.output if name
        }

    @cached_property
    def readers(self) -> Counter[str]:
        """How often each tensor is read: by nodes, nested graphs and as a graph output."""
        counts = Counter(output.name for output in self.graph.output)
        for node in self.graph.node:
            counts.update(name for name in node.input if name)
            for nested in attribute_graphs(node):
                counts.update(names_read(nested))
        return counts

    @cached_property
    def input_names(self) -> frozenset[str]:
        """Names of the graph's inputs, initializers that may be overridden among them."""
        return frozenset(value.name for value in self.graph.input)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor, or None for inputs, initializers and unknowns."""
        index = self.producers.get(name)
        return None if index is None else self.graph.node[index]

    def is_constant(self, name: str) -> bool:
        """Tell whether `constant` would return a value, without computing it."""
        if name in self.initializers:
            return True
        node = self.producer(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return False
        match node.op_type:
            case "Constant":
                return any(a.name in _CONSTANT_FORMS for a in node.attribute)
            case "ConstantOfShape" | "Identity" | "Transpose":
                return self.is_constant(node.input[0])
            case "Cast":
                return self.is_constant(node.input[0]) and attributes(node).get("to") in _CASTS
            case "Reshape":
                # Before opset 5 the shape was an attribute.
                return len(node.input) == 2 and all(map(self.is_constant, node.input))
            case _:
                return False

    def constant(self, name: str) -> Array | None:
        """Return the value of a tensor that does not depend on the graph's inputs.

        Followed are initializers (also those that are graph inputs: their default value), Constant
        and ConstantOfShape nodes, and Identity, Transpose, Reshape and Cast behind any of these.

        Returns
        -------
        Array or None
            The value in the tensor's own type, or None if the tensor is not constant.

        Raises
        ------
        ValueError
            If the tensor is constant, but its data do not fit its shape.
        """
        if not self.is_constant(name):
            return None
        if name in self.initializers:
            return _to_array(self.initializers[name])
        node = self.graph.node[self.producers[name]]
        options = attributes(node)
        if node.op_type == "Constant":
            return _constant_value(node)
        source = self.constant(node.input[0])
        assert source is not None, "is_constant has followed the same path"
        match node.op_type:
            case "ConstantOfShape":
                fill = options.get("value")
                value = np.zeros(1, np.float32) if fill is None else _to_array(fill)
                return np.full(source.astype(int), value.reshape(-1)[0], value.dtype)
            case "Cast":
                return source.astype(onnx.helper.tensor_dtype_to_np_dtype(options["to"]))
            case "Transpose":
                return source.transpose(options.get("perm"))
            case "Reshape":
                shape = self.constant(node.input[1])
                assert shape is not None
                keeps_zero = bool(options.get("allowzero", 0))
                return source.reshape(
                    [
                        n if n or keeps_zero else source.shape[i]
                        for i, n in enumerate(shape.astype(int))
                    ]
                )
            case _:
                return source

    def splits_evenly(self, split: onnx.NodeProto, extent: int) -> bool:
        """Tell whether a Split is known to cut an axis of an extent into equal parts."""
        sizes = attributes(split).get("split")
        if len(split.input) > 1 and split.input[1]:
            given = self.constant(split.input[1])
            sizes = () if given is None else given.tolist()
        count = len(split.output)
        even = [extent // count] * count
        return extent % count == 0 and (sizes is None or list(sizes) == even)

    def constant_shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a constant tensor, or None if it is not constant."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        value = self.constant(name)
        return None if value is None else value.shape


_CONSTANT_FORMS = {"value", "value_float", "value_floats", "value_int", "value_ints"}
_CASTS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}


def _constant_value(node: onnx.NodeProto) -> Array:
    name, value = next(item for item in attributes(node).items() if item[0] in _CONSTANT_FORMS)
    if name == "value":
        return _to_array(value)
    return np.asarray(value, np.float32 if "float" in name else np.int64)


def _to_array(tensor: onnx.TensorProto) -> Array:
    try:
        array: Array = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Tensor '{tensor.name}' holds no data that fit its shape.") from error
    return array
