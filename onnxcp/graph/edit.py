"""Editing a model with onnx-graphsurgeon and getting everything else back unchanged.

graphsurgeon rebuilds every message from its own objects. On the way it loses node and model
metadata, doc strings, quantization annotations, overload names, the order of initializers, inputs
that have a default value, and some attribute types. So what it exports is not used wholesale:
a node, tensor or field that the edit did not touch is taken from the original message.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxcp.graph.model import Model
from onnxcp.graph.snapshot import Snapshot, import_graph
from onnxcp.graph.walk import copy_fields, names_defined, names_read

_IR_WITH_FREE_INITIALIZERS = 4  # from IR version 4 on, initializers need not be graph inputs


def edit(model: Model, change: Callable[[gs.Graph], None]) -> Model:
    """Apply a change that is written against a graphsurgeon graph.

    Nodes of the graph stand in the order of the message, so ``graph.nodes[i]`` is node i of
    ``model.proto.graph`` when `change` begins. Functions of the model are not in it.

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
        graph = import_graph(model)
        before = Snapshot(graph, model.proto.graph)
        change(graph)
        return model.with_proto(_merge(model.proto, before, graph))


def remove_dead_producers(graph: gs.Graph, tensor: gs.Tensor) -> None:
    """Remove the nodes that made a weight (Constant, Cast, ...) if nothing reads them any more.

    Parameters
    ----------
    graph
        The graph being edited.
    tensor
        What an edit has stopped reading.
    """
    if tensor.outputs or any(tensor is output for output in graph.outputs):
        return
    for producer in list(tensor.inputs):
        sources = list(producer.inputs)
        producer.inputs.clear()
        producer.outputs.clear()
        graph.nodes.remove(producer)
        for source in sources:
            remove_dead_producers(graph, source)


def _merge(proto: onnx.ModelProto, before: Snapshot, graph: gs.Graph) -> onnx.ModelProto:
    """Lay the edited nodes and tensors over a copy of the original message."""
    result = onnx.ModelProto()
    copy_fields(proto, result, but={"graph", "opset_import"})
    copy_fields(proto.graph, result.graph, but=_MERGED_FIELDS)
    result.opset_import.extend(proto.opset_import)
    known = {opset.domain for opset in proto.opset_import}
    used = {node.domain for node in graph.nodes if node.domain}
    result.opset_import.extend(
        onnx.helper.make_opsetid(domain, 1) for domain in sorted(used - known - {"ai.onnx"})
    )

    _merge_nodes(result.graph, before, graph)
    result.graph.output.extend(_merged(proto.graph.output, before.outputs, graph.outputs))
    read = names_read(result.graph)
    _merge_initializers(result.graph, proto.graph, before, graph, read)
    dropped = {t.name for t in proto.graph.initializer} - {t.name for t in result.graph.initializer}
    inputs = _merged(proto.graph.input, before.inputs, graph.inputs)
    result.graph.input.extend(value for value in inputs if value.name not in dropped)
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


def _merge_nodes(result: onnx.GraphProto, before: Snapshot, graph: gs.Graph) -> None:
    for node in graph.nodes:
        message = before.message(node)
        if message is not None and before.untouched(node):
            result.node.append(message)
        elif message is not None:
            result.node.append(_laid_over(message, node, before.untouched_attributes(node)))
        else:
            result.node.append(OnnxExporter.export_node(node))


def _laid_over(original: onnx.NodeProto, node: gs.Node, untouched: set[str]) -> onnx.NodeProto:
    """Return the message of an edited node, with all that the edit left alone as it was."""
    result = onnx.NodeProto()
    copy_fields(original, result, but={"input", "output", "attribute"})
    result.input.extend(tensor.name for tensor in node.inputs)
    result.output.extend(tensor.name for tensor in node.outputs)
    for field, value in {"op_type": node.op, "name": node.name, "domain": node.domain}.items():
        if getattr(result, field) != (value or ""):
            setattr(result, field, value or "")
    changed = {key: value for key, value in node.attrs.items() if key not in untouched}
    made = {attribute.name: attribute for attribute in OnnxExporter.export_attributes(changed)}
    for attribute in original.attribute:
        if attribute.name in untouched:
            result.attribute.append(attribute)
        elif attribute.name in made:
            result.attribute.append(made.pop(attribute.name))
    result.attribute.extend(made.values())
    return result


def _merge_initializers(
    result: onnx.GraphProto,
    original: onnx.GraphProto,
    before: Snapshot,
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
            result.initializer.append(_tensor_message(constant))
    for sparse in original.sparse_initializer:
        name = sparse.values.name
        now.pop(name, None)
        if name not in read_before or name in read:
            result.sparse_initializer.append(sparse)
    result.initializer.extend(_tensor_message(constant) for constant in now.values())


def _tensor_message(constant: gs.Constant) -> onnx.TensorProto:
    """Export a constant; one that was only renamed shares its message with the original model."""
    message = onnx.TensorProto()
    if isinstance(constant._values, LazyValues):
        message.CopyFrom(constant._values.tensor)
        message.name = constant.name
    else:
        message.MergeFrom(OnnxExporter.export_tensor_proto(constant))
    return message


def _is_unchanged(constant: gs.Constant, before: Snapshot, original: onnx.TensorProto) -> bool:
    if constant._values is before.constants.get(original.name):
        return True
    # graphsurgeon loads values on access: the change may merely have looked at them.
    values, was = constant.values, onnx.numpy_helper.to_array(original)
    return bool(
        values.dtype == was.dtype
        and values.shape == was.shape
        and values.tobytes() == was.tobytes()
    )


def _merged(
    originals: Sequence[onnx.ValueInfoProto], was: list[str], tensors: Sequence[gs.Tensor]
) -> Iterator[onnx.ValueInfoProto]:
    """Yield the inputs or outputs that stayed, as they were, and then those that came."""
    gone = set(was) - {tensor.name for tensor in tensors}
    yield from (value for value in originals if value.name not in gone)
    for tensor in tensors:
        if tensor.name not in was:
            yield OnnxExporter.export_value_info_proto(tensor, do_type_check=True)


def _declare_initializers(graph: onnx.GraphProto) -> None:
    declared = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in declared:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep graphsurgeon from logging: what matters is raised, the rest is noise to our users."""
    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL
    try:
        yield
    finally:
        G_LOGGER.severity = severity
