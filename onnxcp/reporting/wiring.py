"""What stands around a layer: the nodes in its place before and after, and their neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx

from onnxcp.graph.model import Model
from onnxcp.graph.origins import Origin, origins
from onnxcp.graph.view import GraphView
from onnxcp.graph.walk import attributes

Kind = Literal["layer", "near"]

_NEIGHBOURS = 3  # on either side, at most
_CHARACTERS = 18  # of an operator, so that it fits its box
_LETTERS = 15  # of the name of a tensor, which may be of wide letters


@dataclass(frozen=True)
class Box:
    """A node: its operator and kernel, its channels, and whether it belongs to the layer."""

    text: str
    detail: str
    kind: Kind


@dataclass(frozen=True)
class Wires:
    """Some nodes of a graph, in its order, and the pairs of them that are connected."""

    boxes: tuple[Box, ...]
    edges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Wiring:
    """A layer with its neighbours, as it was and as it is."""

    site: str
    before: Wires
    after: Wires


def wirings(original: Model, rewritten: Model) -> list[Wiring]:
    """Return what became of every layer whose place a chain has taken.

    Parameters
    ----------
    original
        The network as it came in.
    rewritten
        What it became. Its metadata say which weights are factors of which layer.
    """
    old, new = GraphView(original.proto.graph), GraphView(rewritten.proto.graph)
    known = set(origins(original.proto))
    rows: dict[str, list[Origin]] = {}
    for origin in origins(rewritten.proto):
        if origin not in known:
            rows.setdefault(origin.site, []).append(origin)
    found = []
    for site, chains in rows.items():
        before, after = _layer(old, site), _chain(new, chains)
        if before and after:
            found.append(Wiring(site, _around(old, before), _around(new, after)))
    return found


def _layer(view: GraphView, site: str) -> list[int]:
    """Return a node and the BatchNormalization that was folded into it, by position."""
    nodes = view.graph.node
    index = next((i for i, node in enumerate(nodes) if node.name == site), None)
    index = view.producers.get(site) if index is None else index
    if index is None:
        return []
    made = nodes[index].output[0]
    found = [index]
    if view.readers[made] == 1:
        found += [
            behind
            for behind, node in enumerate(nodes)
            if node.op_type == "BatchNormalization" and node.input[0] == made
        ]
    return found


def _chain(view: GraphView, rows: Sequence[Origin]) -> list[int]:
    """Return the nodes that compute with some factors, and those that sum what they make."""
    factors = {name for row in rows for name in row.factors}
    prefixes = tuple({f"{row.site}/{row.family}/" for row in rows})
    return [
        index
        for index, node in enumerate(view.graph.node)
        if factors.intersection(node.input) or node.name.startswith(prefixes)
    ]


def _around(view: GraphView, layer: Sequence[int]) -> Wires:
    """Return nodes with those that they read from and those that read from them."""
    nodes = view.graph.node
    read = [name for index in layer for name in nodes[index].input if name]
    made = {name for index in layer for name in nodes[index].output}
    sources = {view.producers[name] for name in read if _flows(view, name)} - set(layer)
    readers = (i for i, node in enumerate(nodes) if made.intersection(node.input))
    behind = sorted(set(readers) - set(layer) - sources)[:_NEIGHBOURS]
    ahead = sorted(sources)[-_NEIGHBOURS:]
    shown = sorted({*layer, *ahead, *behind})
    boxes = [_box(view, nodes[i], "layer" if i in layer else "near") for i in shown]
    edges = [
        (number, other)
        for number, i in enumerate(shown)
        for other, j in enumerate(shown)
        if set(nodes[i].output).intersection(nodes[j].input)
    ]
    return _with_ends(view, shown, layer, boxes, edges)


def _with_ends(
    view: GraphView,
    shown: Sequence[int],
    layer: Sequence[int],
    boxes: Sequence[Box],
    edges: Sequence[tuple[int, int]],
) -> Wires:
    """Add the inputs and outputs of the network that the layer reads and makes."""
    nodes = view.graph.node
    ends = dict.fromkeys(
        name
        for i in layer
        for name in nodes[i].input
        if name in view.input_names and name not in view.initializers
    )
    inputs = [Box(_short(name), "input", "near") for name in ends]
    moved = [(a + len(inputs), b + len(inputs)) for a, b in edges]
    for number, name in enumerate(ends):
        moved += [(number, len(inputs) + k) for k, i in enumerate(shown) if name in nodes[i].input]
    outputs: list[Box] = []
    results = {each.name for each in view.graph.output}
    for k, i in enumerate(shown):
        for name in results.intersection(nodes[i].output) if i in layer else ():
            moved.append((len(inputs) + k, len(inputs) + len(boxes) + len(outputs)))
            outputs.append(Box(_short(name), "output", "near"))
    return Wires((*inputs, *boxes, *outputs), tuple(sorted(moved)))


def _flows(view: GraphView, name: str) -> bool:
    """Tell whether a tensor is made by a node, and not out of constants."""
    return name in view.producers and not view.is_constant(name)


def _box(view: GraphView, node: onnx.NodeProto, kind: Kind) -> Box:
    options = attributes(node)
    shape = _weight_shape(view, node)
    if shape is None:
        return Box(_operator(node), "", kind)
    group = int(options.get("group", 1))
    if node.op_type in ("Conv", "ConvTranspose"):
        outputs, inputs = shape[0], shape[1] * group
        if node.op_type == "ConvTranspose":
            outputs, inputs = shape[1] * group, shape[0]
        text = f"{node.op_type} {_by(shape[2:])}".strip()
        detail = f"{inputs} → {outputs}"
        if group > 1:
            detail += ", depthwise" if group == inputs else f", {group} groups"
        strides = options.get("strides") or [1]
        if max(strides) > 1:
            stride = strides[0] if len(set(strides)) == 1 else _by(strides)
            detail += f", stride {stride}"
        return Box(text, detail, kind)
    outputs_first = bool(options.get("transB", 0))
    inputs, outputs = reversed(shape[-2:]) if outputs_first else shape[-2:]
    return Box(node.op_type, f"{inputs} → {outputs}", kind)


def _weight_shape(view: GraphView, node: onnx.NodeProto) -> tuple[int, ...] | None:
    """Return the shape of what a node multiplies by; None where there is no such thing."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    shapes = (view.constant_shape(name) for name in node.input[:2])
    return next((tuple(each) for each in shapes if each is not None and len(each) >= 2), None)


def _by(extents: Iterable[int]) -> str:
    return "×".join(map(str, extents))


def _operator(node: onnx.NodeProto) -> str:
    name = node.op_type
    return name if len(name) <= _CHARACTERS else f"{name[: _CHARACTERS - 1]}…"


def _short(name: str) -> str:
    """Return the end of a name, which says most."""
    return name if len(name) <= _LETTERS else f"…{name[1 - _LETTERS :]}"
