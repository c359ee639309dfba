"""Walking through ONNX messages: nodes, nested graphs and the names they use."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import onnx


def attribute_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs held in a node's attributes (the bodies of If, Loop and Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the values of a node's attributes by name.

    Models from before IR version 2 need not say of which type an attribute is; there the field
    that is filled in tells.
    """
    return {attribute.name: _attribute_value(attribute) for attribute in node.attribute}


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    if attribute.type != onnx.AttributeProto.UNDEFINED:
        return onnx.helper.get_attribute_value(attribute)
    for name in ("ints", "floats", "strings", "i", "f", "s", "t"):
        if name in {descriptor.name for descriptor, _ in attribute.ListFields()}:
            value = getattr(attribute, name)
            return list(value) if name in ("ints", "floats", "strings") else value
    return None


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield `nodes` and every node of the graphs nested in them, depth first."""
    for node in nodes:
        yield node
        for graph in attribute_graphs(node):
            yield from all_nodes(graph.node)


def names_read(graph: onnx.GraphProto) -> set[str]:
    """Return every tensor name that a graph reads: node inputs, nested ones too, and its outputs.

    A name that only a nested graph defines is included too: callers ask whether something is
    still needed, and there the safe answer is yes.
    """
    names = {output.name for output in graph.output}
    for node in graph.node:
        names.update(node.input)
        for nested in attribute_graphs(node):
            names |= names_read(nested)
    names.discard("")
    return names


def names_defined(graph: onnx.GraphProto) -> set[str]:
    """Return every tensor name that a graph defines, nested graphs included."""
    names = {value.name for value in graph.input}
    names.update(tensor.name for tensor in graph.initializer)
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        names.update(node.output)
        for nested in attribute_graphs(node):
            names |= names_defined(nested)
    names.discard("")
    return names


def names_captured(node: onnx.NodeProto) -> set[str]:
    """Return the tensors from around a node that the graphs nested in it read."""
    return set().union(*(_names_free(nested) for nested in attribute_graphs(node)))


def _names_free(graph: onnx.GraphProto) -> set[str]:
    own = {value.name for value in graph.input}
    own.update(tensor.name for tensor in graph.initializer)
    own.update(tensor.values.name for tensor in graph.sparse_initializer)
    free: set[str] = set()
    for node in graph.node:
        free |= (set(node.input) | names_captured(node)) - own
        own.update(node.output)
    free |= {output.name for output in graph.output} - own
    free.discard("")
    return free


def copy_fields(source: Any, target: Any, *, but: Collection[str]) -> None:
    """Copy the fields of a message to an empty one of its kind, without those named in `but`."""
    for descriptor, value in source.ListFields():
        if descriptor.name in but:
            continue
        current = getattr(target, descriptor.name)
        if hasattr(current, "extend"):
            current.extend(value)
        elif hasattr(current, "CopyFrom"):
            current.CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)


class Namer:
    """Hands out names that no tensor and no node of a graph has, nested graphs included."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = names_defined(graph) | names_read(graph)
        self._taken.update(node.name for node in all_nodes(graph.node))
        # What is said of a tensor that there no longer is must not be taken for the new one's.
        self._taken.update(value.name for value in graph.value_info)

    def __call__(self, wanted: str) -> str:
        """Return `wanted`, or `wanted` with the smallest free suffix, and take it."""
        name, suffix = wanted, 1
        while name in self._taken:
            suffix += 1
            name = f"{wanted}_{suffix}"
        self._taken.add(name)
        return name
