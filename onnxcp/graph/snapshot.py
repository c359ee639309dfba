"""What graphsurgeon makes of a graph, and how that looked before it was edited."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from onnxcp.errors import ModelError
from onnxcp.graph.model import Model
from onnxcp.graph.walk import all_nodes


def import_graph(model: Model) -> gs.Graph:
    """Make a graphsurgeon graph of the main graph of a model.

    Functions are left out: they are not edited, and some of them graphsurgeon cannot import.

    Raises
    ------
    ModelError
        If graphsurgeon cannot represent the graph.
    """

    def of(graph: onnx.GraphProto) -> gs.Graph:
        return OnnxImporter.import_graph(
            graph,
            opset=model.opset,
            import_domains=model.proto.opset_import,
            ir_version=model.proto.ir_version,
        )

    try:
        try:
            return of(model.proto.graph)
        except UnicodeDecodeError:
            return of(_without_binary_strings(model.proto.graph))
    except (OnnxGraphSurgeonException, TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{model.name} cannot be edited by graphsurgeon: {error}") from error


def _without_binary_strings(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Copy a graph without string attributes that are not text (whole models, at times).

    graphsurgeon decodes all of them. They come back with the nodes that have them.
    """
    result = onnx.GraphProto()
    result.CopyFrom(graph)
    for node in all_nodes(result.node):
        for position in reversed(range(len(node.attribute))):
            attribute = node.attribute[position]
            try:
                b"\n".join((attribute.s, *attribute.strings)).decode()
            except UnicodeDecodeError:
                del node.attribute[position]
    return result


class Snapshot:
    """What a graph looked like before an edit, to tell afterwards what was touched.

    Attributes
    ----------
    nodes
        The nodes; kept, so that an id cannot be reused for a new node.
    inputs, outputs
        Names of the graph's inputs that are no initializers, and of its outputs.
    constants
        The values, or what will load them, of every constant by name.
    """

    def __init__(self, graph: gs.Graph, proto: onnx.GraphProto) -> None:
        self.nodes = list(graph.nodes)
        self._messages = {
            id(node): message for node, message in zip(graph.nodes, proto.node, strict=True)
        }
        self._prints = {id(node): _node_print(node) for node in graph.nodes}
        self._attributes = {id(node): _attribute_prints(node) for node in graph.nodes}
        self.inputs = [tensor.name for tensor in graph.inputs]
        self.outputs = [tensor.name for tensor in graph.outputs]
        self.constants = {
            name: tensor._values
            for name, tensor in graph.tensors().items()
            if isinstance(tensor, gs.Constant)
        }

    def message(self, node: gs.Node) -> onnx.NodeProto | None:
        """Return the message that a node was imported from, or None for a new node."""
        return self._messages.get(id(node))

    def untouched(self, node: gs.Node) -> bool:
        """Tell whether a node, its attributes and nested graphs are as they were imported."""
        return self._prints.get(id(node)) == _node_print(node)

    def untouched_attributes(self, node: gs.Node) -> set[str]:
        """Return which attributes of a node's message the edit left alone.

        Those that graphsurgeon did not import, because it does not know their type, are among them.
        """
        now, was = _attribute_prints(node), self._attributes[id(node)]
        names = {attribute.name for attribute in self._messages[id(node)].attribute}
        return {name for name in names if name not in was or now.get(name) == was[name]}


def _node_print(node: gs.Node) -> tuple[Any, ...]:
    """Return a value that changes whenever anything that graphsurgeon knows of a node does."""
    return (
        node.op,
        node.name,
        node.domain,
        tuple(tensor.name for tensor in node.inputs),
        tuple(tensor.name for tensor in node.outputs),
        tuple(_attribute_prints(node).items()),
    )


def _attribute_prints(node: gs.Node) -> dict[str, Any]:
    return {key: _attribute_print(value) for key, value in node.attrs.items()}


def _attribute_print(value: object) -> Any:
    if isinstance(value, gs.Graph):
        return (
            tuple(_node_print(node) for node in value.nodes),
            tuple(tensor.name for tensor in value.inputs),
            tuple(tensor.name for tensor in value.outputs),
            tuple(
                (name, id(tensor._values))
                for name, tensor in value.tensors().items()
                if isinstance(tensor, gs.Constant)
            ),
        )
    if isinstance(value, gs.Constant):
        return id(value._values)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list):
        return tuple(_attribute_print(item) for item in value)
    return repr(value)
