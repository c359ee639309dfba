"""Editing a model with onnx-graphsurgeon and getting everything else back unchanged.

graphsurgeon rebuilds every message from its own objects. On the way it loses node and model
metadata, doc strings, quantization annotations, overload names, the order of initializers, inputs
that have a default value, and some attribute types. So what it exports is not used wholesale:
a node, tensor or field that the edit did not touch is taken from the original message.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from onnxcp.errors import ModelError
from onnxcp.graph.model import Model
from onnxcp.graph.walk import names_defined, names_read

_IR_WITH_FREE_INITIALIZERS = 4  # from IR version 4 on, initializers need not be graph inputs


def edit(model: Model, change: Callable[[gs.Graph], None]) -> Model:
    """Apply a change that is written against a graphsurgeon graph.

    Nodes of the graph stand in the order of the message, so ``graph.nodes[i]`` is node i of
    ``model.proto.graph`` when `change` begins. Functions of the model cannot be edited.

    An initializer that loses its last reader is dropped. If it also was a graph input (a default
    value that a caller could override), that input goes too: a caller who still passes it gets an
    error and not a silently ignored weight.

    Parameters
    ----------
    model
        The model to start from, left as it is.
    change
        Called once with the graph; edits it in place.

    Returns
    -------
    Model
        The edited model.

    Raises
    ------
    ModelError
        If graphsurgeon cannot represent the model.
    """
    with _quiet():
        try:
            graph = gs.import_onnx(model.proto)
        except (OnnxGraphSurgeonException, TypeError, ValueError, KeyError) as error:
            raise ModelError(f"{model.name} cannot be edited by graphsurgeon: {error}") from error
        before = _Snapshot(graph, model.proto.graph)
        change(graph)
        return model.with_proto(_merge(model.proto, before, graph))


class _Snapshot:
    """What a graph looked like before the edit, to tell afterwards what was touched."""

    def __init__(self, graph: gs.Graph, proto: onnx.GraphProto) -> None:
        # The nodes themselves are kept, so that an id cannot be reused for a new node.
        self.nodes = list(graph.nodes)
        self._messages = {
            id(node): message for node, message in zip(graph.nodes, proto.node, strict=True)
        }
        self._prints = {id(node): _node_print(node) for node in graph.nodes}
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


def _node_print(node: gs.Node) -> tuple[Any, ...]:
    """Return a value that changes whenever anything that graphsurgeon knows of a node does."""
    return (
        node.op,
        node.name,
        node.domain,
        tuple(tensor.name for tensor in node.inputs),
        tuple(tensor.name for tensor in node.outputs),
        tuple((key, _attribute_print(value)) for key, value in node.attrs.items()),
    )


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


def _merge(proto: onnx.ModelProto, before: _Snapshot, graph: gs.Graph) -> onnx.ModelProto:
    """Lay the edited nodes and tensors over a copy of the original message."""
    result = onnx.ModelProto()
    _copy_all_but(proto, result, {"graph", "opset_import"})
    _copy_all_but(proto.graph, result.graph, _MERGED_FIELDS)
    result.opset_import.extend(proto.opset_import)
    known = {opset.domain for opset in proto.opset_import}
    used = {node.domain for node in graph.nodes if node.domain}
    result.opset_import.extend(
        onnx.helper.make_opsetid(domain, 1) for domain in sorted(used - known - {"ai.onnx"})
    )

    _merge_nodes(result.graph, before, graph)
    read = names_read(result.graph)
    _merge_initializers(result.graph, proto.graph, before, graph, read)
    dropped = {t.name for t in proto.graph.initializer} - {t.name for t in result.graph.initializer}
    _merge_interface(result.graph, proto.graph, before, graph, dropped)
    if proto.ir_version < _IR_WITH_FREE_INITIALIZERS:
        _declare_initializers(result.graph)

    gone = names_defined(proto.graph) - names_defined(result.graph)
    result.graph.value_info.extend(v for v in proto.graph.value_info if v.name not in gone)
    result.graph.quantization_annotation.extend(
        a for a in proto.graph.quantization_annotation if a.tensor_name not in gone
    )
    return result


_MERGED_FIELDS = {
    "initializer",
    "input",
    "node",
    "output",
    "quantization_annotation",
    "sparse_initializer",
    "value_info",
}


def _merge_nodes(result: onnx.GraphProto, before: _Snapshot, graph: gs.Graph) -> None:
    for node in graph.nodes:
        message = before.message(node)
        if message is not None and before.untouched(node):
            result.node.append(message)
            continue
        exported = OnnxExporter.export_node(node)
        if message is not None:
            _restore_forgotten(exported, message)
        result.node.append(exported)


def _restore_forgotten(exported: onnx.NodeProto, original: onnx.NodeProto) -> None:
    """Give an edited node back what graphsurgeon does not know about."""
    exported.doc_string = original.doc_string
    exported.metadata_props.extend(original.metadata_props)
    if original.HasField("overload"):
        exported.overload = original.overload


def _merge_initializers(
    result: onnx.GraphProto,
    original: onnx.GraphProto,
    before: _Snapshot,
    graph: gs.Graph,
    read: set[str],
) -> None:
    """Keep originals in their order, without those that the edit left unread; then the new ones."""
    read_before = names_read(original)
    now = {
        name: tensor
        for name, tensor in graph.tensors().items()
        if isinstance(tensor, gs.Constant) and name in read
    }
    for tensor in original.initializer:
        if tensor.name in read_before and tensor.name not in read:
            continue
        constant = now.pop(tensor.name, None)
        if constant is None or _is_unchanged(constant, before, tensor):
            result.initializer.append(tensor)
        else:
            result.initializer.append(OnnxExporter.export_tensor_proto(constant))
    for sparse in original.sparse_initializer:
        name = sparse.values.name
        now.pop(name, None)
        if name not in read_before or name in read:
            result.sparse_initializer.append(sparse)
    result.initializer.extend(OnnxExporter.export_tensor_proto(t) for t in now.values())


def _is_unchanged(constant: gs.Constant, before: _Snapshot, original: onnx.TensorProto) -> bool:
    if constant._values is before.constants.get(original.name):
        return True
    # graphsurgeon loads values on access: the change may merely have looked at them.
    values, was = constant.values, onnx.numpy_helper.to_array(original)
    return bool(
        values.dtype == was.dtype
        and values.shape == was.shape
        and values.tobytes() == was.tobytes()
    )


def _merge_interface(
    result: onnx.GraphProto,
    original: onnx.GraphProto,
    before: _Snapshot,
    graph: gs.Graph,
    dropped: set[str],
) -> None:
    """Keep inputs and outputs that stayed, drop those that went, add those that came."""

    def merge(
        originals: Sequence[onnx.ValueInfoProto], was: list[str], tensors: Sequence[gs.Tensor]
    ) -> Iterator[onnx.ValueInfoProto]:
        names = [tensor.name for tensor in tensors]
        gone = (set(was) - set(names)) | dropped
        yield from (value for value in originals if value.name not in gone)
        for tensor in tensors:
            if tensor.name not in was:
                yield OnnxExporter.export_value_info_proto(tensor, do_type_check=True)

    result.input.extend(merge(original.input, before.inputs, graph.inputs))
    result.output.extend(merge(original.output, before.outputs, graph.outputs))


def _declare_initializers(graph: onnx.GraphProto) -> None:
    declared = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in declared:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )


def _copy_all_but(source: Any, target: Any, left_out: set[str]) -> None:
    """Copy every field of a message, those unknown to this version of onnx excepted."""
    for descriptor, value in source.ListFields():
        if descriptor.name in left_out:
            continue
        current = getattr(target, descriptor.name)
        if hasattr(current, "extend"):
            current.extend(value)
        elif hasattr(current, "CopyFrom"):
            current.CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep graphsurgeon from logging: what matters is raised, the rest is noise to our users."""
    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL
    try:
        yield
    finally:
        G_LOGGER.severity = severity
