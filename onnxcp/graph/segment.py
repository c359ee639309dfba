"""Some nodes of a network as a model of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import onnx

from onnxcp.graph.alone import INPUT, OUTPUT
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.view import GraphView
from onnxcp.graph.walk import copy_fields, names_captured

WEIGHT = "w"
BIAS = "b"

# From this IR version on, an initializer that is no input is a constant to the optimiser.
_IR_WITH_CONSTANTS = 4


def segment(
    model: Model,
    nodes: Sequence[int],
    inputs: Mapping[str, onnx.TypeProto],
    outputs: Sequence[str],
    *,
    view: GraphView | None = None,
) -> Model:
    """Return a model of some nodes of the main graph.

    What the nodes read and `inputs` does not name comes along: initializers, dense and sparse, and
    the nodes that compute it, with all that those read. So a constant stays a constant in every
    segment that reads it. Functions, opset imports and properties are kept.

    Parameters
    ----------
    model
        The network.
    nodes
        Positions of the nodes in its main graph. There may be none, if outputs are constants.
    inputs
        Types of the tensors that are handed to the segment. An initializer among them is an input
        here, and any other is a constant, also where the network lets callers override it.
    outputs
        Tensors to hand out: made by the nodes, or constants.
    view
        A view of the main graph, if there is one already.
    """
    source = model.proto.graph
    view = view or GraphView(source)

    def producers(index: int) -> Iterable[int]:
        return (
            view.producers[name]
            for name in reads(source.node[index])
            if name in view.producers and name not in inputs
        )

    made = (view.producers[name] for name in outputs if name in view.producers)
    order = ancestors_first([*nodes, *made], producers)
    own = {name for index in order for name in source.node[index].output}
    wanted = {name for index in order for name in reads(source.node[index])} | set(outputs)
    wanted -= own | inputs.keys()

    proto = _frame(model)
    graph = proto.graph
    graph.name = source.name or "segment"
    graph.node.extend(source.node[index] for index in order)
    graph.input.extend(onnx.helper.make_value_info(*each) for each in inputs.items())
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
    graph.initializer.extend(t for t in source.initializer if t.name in wanted)
    graph.sparse_initializer.extend(
        tensor for tensor in source.sparse_initializer if tensor.values.name in wanted
    )
    graph.value_info.extend(_types(source, own - set(outputs)))
    return model.with_proto(proto)


def reads(node: onnx.NodeProto) -> list[str]:
    """Return the tensors that a node reads, those that its nested graphs capture among them."""
    return [name for name in dict.fromkeys((*node.input, *sorted(names_captured(node)))) if name]


def ancestors_first(nodes: Iterable[int], ancestors: Callable[[int], Iterable[int]]) -> list[int]:
    """Return nodes in their order, each preceded by those of its ancestors not yet returned.

    Parameters
    ----------
    nodes
        The nodes.
    ancestors
        Gives the nodes that must come before one. A ring of them is cut where it closes.
    """
    order: list[int] = []
    seen: set[int] = set()
    for start in nodes:
        if start in seen:
            continue
        seen.add(start)
        trail = [(start, iter(ancestors(start)))]
        while trail:  # no recursion: networks are deep
            node, rest = trail[-1]
            ancestor = next((each for each in rest if each not in seen), None)
            if ancestor is None:
                order.append(node)
                trail.pop()
            else:
                seen.add(ancestor)
                trail.append((ancestor, iter(ancestors(ancestor))))
    return order


def _types(graph: onnx.GraphProto, names: set[str]) -> list[onnx.ValueInfoProto]:
    """Return what is declared of tensors, without shapes: those may be another input's."""
    found: dict[str, onnx.ValueInfoProto] = {}
    for value in graph.value_info:
        if value.name in names and value.type.tensor_type.elem_type:
            kind = onnx.helper.make_tensor_type_proto(value.type.tensor_type.elem_type, None)
            found[value.name] = onnx.helper.make_value_info(value.name, kind)
    return list(found.values())


def take_out(
    model: Model, site: Site, fed: Collection[str] = (), *, view: GraphView | None = None
) -> tuple[Model, Site]:
    """Return a model of one site's node with its own weight and bias, and the site found in it.

    It reads ``x`` and makes ``y``. A bias that is not constant is a second input, ``b``.

    Parameters
    ----------
    model
        The network in which the site was found.
    site
        The site.
    fed
        Initializers that are no constants, since they are given other values.
    view
        A view of the main graph, if there is one already.
    """
    source = model.proto.graph
    view = view or GraphView(source)
    node = onnx.NodeProto()
    node.CopyFrom(source.node[site.index])
    weights = [_constant(view, site.weight, WEIGHT)]
    data = onnx.helper.make_tensor_value_info(INPUT, weights[0].data_type, None)
    inputs, names = [data], [WEIGHT, INPUT] if site.weight_on_left else [INPUT, WEIGHT]
    if site.bias is not None:
        names.append(BIAS)
        if view.is_constant(site.bias) and site.bias not in fed:
            weights.append(_constant(view, site.bias, BIAS))
        else:
            kind = weights[0].data_type
            inputs.append(onnx.helper.make_tensor_value_info(BIAS, kind, None))
    del node.input[:], node.output[:]
    node.name = "site"
    node.input.extend(names)
    node.output.append(OUTPUT)

    output = onnx.helper.make_empty_tensor_value_info(OUTPUT)
    proto = _frame(model)
    proto.graph.CopyFrom(onnx.helper.make_graph([node], "alone", inputs, [output], weights))
    alone = model.with_proto(proto)
    (found,), _ = find_sites(alone)
    return alone, found


def _constant(view: GraphView, name: str, new: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto()
    if name in view.initializers:
        tensor.CopyFrom(view.initializers[name])
    else:
        value = view.constant(name)
        assert value is not None
        tensor.CopyFrom(onnx.numpy_helper.from_array(value))
    tensor.name = new
    return tensor


def _frame(model: Model) -> onnx.ModelProto:
    """Return a model without a graph, in which the nodes of another mean the same."""
    proto = onnx.ModelProto()
    copy_fields(model.proto, proto, but={"graph", "training_info"})
    proto.ir_version = max(proto.ir_version, _IR_WITH_CONSTANTS)
    if not proto.opset_import:  # Up to IR version 2 nobody had to say.
        proto.opset_import.append(onnx.helper.make_opsetid("", model.opset))
    return proto
