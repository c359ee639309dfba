"""What ONNX Runtime's quantizer gets wrong, written otherwise: what is computed stays the same."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx

from onnxcp.graph.walk import attributes, names_captured, names_defined

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights that are quantized."""


def amend(graph: onnx.GraphProto) -> None:
    """Write otherwise what would be quantized wrongly, or not at all.

    - Biases of Gemm with a factor, or of another shape than (N,).
    - Weights that several nodes read along different axes, since they have scales along one.
    - Outputs of the network that nodes read, too: the range of a Relu behind them would be theirs.
    """
    _settle_biases(graph)
    _part_weights(graph)
    _part_outputs(graph)


def label_nodes(proto: onnx.ModelProto) -> None:
    """Name the nodes that have no name, by what they make: the quantizer knows nodes by theirs.

    Such a name stays the same when other nodes are replaced, and is that of a site.
    """
    used = {node.name for node in proto.graph.node}
    for node in proto.graph.node:
        if not node.name:
            node.name = _unused(next(filter(None, node.output), node.op_type), used)
            used.add(node.name)


def _unused(name: str, used: Collection[str]) -> str:
    while name in used:
        name += "_"
    return name


def _settle_biases(graph: onnx.GraphProto) -> None:
    """Give every Gemm a bias of shape (N,) that is added as it is."""
    weights = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3 or node.input[2] not in weights:
            continue
        beta = next((each for each in node.attribute if each.name == "beta"), None)
        factor = 1.0 if beta is None else beta.f
        bias = onnx.numpy_helper.to_array(weights[node.input[2]])
        matrix = weights.get(node.input[1])
        if matrix is None or bias.size not in (1, *bias.shape[-1:]):
            continue  # one for every row of the product
        wanted = (matrix.dims[output_axis(node, 2)],)
        if bias.shape == wanted and factor == 1.0:
            continue
        made = np.broadcast_to(bias.reshape(-1), wanted) * np.asarray(factor, bias.dtype)
        name = _unused(f"{node.input[2]}_settled", weights)
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(made), name)
        graph.initializer.append(tensor)
        weights[name] = graph.initializer[-1]
        node.input[2] = name
        if beta is not None:
            node.attribute.remove(beta)
    _drop_unread(graph)


def _part_weights(graph: onnx.GraphProto) -> None:
    """Give nodes that read one weight along different axes one each."""
    weights = {each.name: each for each in graph.initializer}
    axes: dict[str, dict[int, str]] = {}
    for node in graph.node:
        if node.op_type not in WEIGHTED or len(node.input) < 2 or node.input[1] not in weights:
            continue
        name = node.input[1]
        known = axes.setdefault(name, {})
        axis = output_axis(node, len(weights[name].dims))
        if known and axis not in known:
            copy = onnx.TensorProto()
            copy.CopyFrom(weights[name])
            copy.name = known[axis] = _unused(f"{name}_along_{axis}", weights)
            graph.initializer.append(copy)
            weights[copy.name] = graph.initializer[-1]
        node.input[1] = known.setdefault(axis, name)


def _part_outputs(graph: onnx.GraphProto) -> None:
    """Hand outputs of the network on by themselves where nodes read them, too."""
    read = {name for node in graph.node for name in node.input}
    # A nested graph that reads one keeps its name, which a node ahead of it has to make.
    read -= set().union(*(names_captured(node) for node in graph.node))
    used = set(names_defined(graph))
    for output in graph.output:
        maker = next((node for node in graph.node if output.name in node.output), None)
        if output.name not in read or maker is None:
            continue
        inner = _unused(f"{output.name}_within", used)
        used.add(inner)
        value = onnx.ValueInfoProto()
        value.CopyFrom(output)
        value.name = inner
        graph.value_info.append(value)
        for node in graph.node:
            node.input[:] = [inner if name == output.name else name for name in node.input]
        maker.output[:] = [inner if name == output.name else name for name in maker.output]
        graph.node.append(onnx.helper.make_node("Identity", [inner], [output.name], f"{inner}_out"))


def output_axis(node: onnx.NodeProto, ndim: int) -> int:
    """Return the axis of a node's weight that goes over its outputs."""
    match node.op_type:
        case "Conv":
            return 0
        case "Gemm":
            return 0 if attributes(node).get("transB") else 1
        case "ConvTranspose":
            return 1
        case _:
            return ndim - 1


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Take out the initializers that nothing reads any more."""
    read = {name for node in graph.node for name in (*node.input, *names_captured(node))}
    read |= {each.name for each in graph.output}
    for tensor in [each for each in graph.initializer if each.name not in read]:
        graph.initializer.remove(tensor)
