"""Folding BatchNormalization into the convolution ahead of it.

In inference, ``y = gamma (Wx + b - mean) / sqrt(var + eps) + beta`` is a convolution too::

    a  = gamma / sqrt(var + eps)
    W' = a W   (output channel by output channel)
    b' = a (b - mean) + beta

Folding comes first: a factorisation ought to weigh output channels as the network does after the
normalisation, and a BatchNormalization behind a chain would only cost time.

1. The producer is a Conv or ConvTranspose of the same graph with a constant weight, and a constant
   bias or none; its output is read by the BatchNormalization alone.
2. The normalisation is in inference mode, per channel, with constant scale, bias, mean, variance.
3. A weight or bias that other nodes share is not changed: this node gets its own.
4. What comes out is finite in the type of the weight (a float16 has a range to leave).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxcp.graph.edit import edit, remove_dead_producers
from onnxcp.graph.model import Model
from onnxcp.graph.view import Array, GraphView
from onnxcp.graph.walk import Namer, attributes
from onnxcp.passes import Context, Pass, PassResult

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Folds every BatchNormalization that follows a Conv or ConvTranspose into it."""

    name = "fold-batchnorm"
    summary = "BatchNormalization after Conv or ConvTranspose becomes part of its weights"

    def run(self, model: Model, context: Context) -> PassResult:  # noqa: ARG002
        """Fold what can be folded; note what cannot."""
        view = GraphView(model.proto.graph)
        folds, notes = [], []
        for index, node in enumerate(model.proto.graph.node):
            if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
                continue
            found = _try_fold(index, node, view)
            if isinstance(found, _Fold):
                folds.append(found)
            else:
                notes.append(f"{node.name or node.output[0]}: not folded, {found}")
        if not folds:
            return PassResult(model, changed=False, notes=tuple(notes))

        def change(graph: gs.Graph) -> None:
            namer = Namer(model.proto.graph)
            pairs = [(graph.nodes[f.convolution], graph.nodes[f.normalization]) for f in folds]
            for fold, (convolution, normalization) in zip(folds, pairs, strict=True):
                _rewire(graph, fold, convolution, normalization, namer)

        notes.append(f"{len(folds)} BatchNormalization folded")
        return PassResult(edit(model, change), changed=True, notes=tuple(notes))


@dataclass(frozen=True)
class _Fold:
    """Two nodes, by position, and the weight and bias of the convolution that replaces both.

    The convolution owns a parameter if that is an initializer that nothing else reads and no
    caller can override.
    """

    convolution: int
    normalization: int
    weight: Array
    bias: Array
    owns_weight: bool
    owns_bias: bool


def _try_fold(index: int, node: onnx.NodeProto, view: GraphView) -> _Fold | str:
    """Compute a fold, or say why there is none (the numbers are those of the module's list)."""
    producer = view.producer(node.input[0])
    if producer is None or not _is_convolution(producer):
        return "its input is not made by a convolution"  # 1
    if view.readers[node.input[0]] > 1:
        return f"the output of '{producer.name or node.input[0]}' has other readers"  # 1
    if not view.is_constant(producer.input[1]) or not all(map(view.is_constant, node.input[1:5])):
        return "its parameters or the convolution's weight are not constant"  # 1, 2
    bias_name = producer.input[2] if len(producer.input) > 2 else ""
    if bias_name and not view.is_constant(bias_name):
        return "the convolution's bias is not constant"  # 1
    options = attributes(node)
    if options.get("training_mode", 0) or options.get("spatial", 1) == 0 or _extra_outputs(node):
        return "it is in training mode or not per channel"  # 2

    weight = view.constant(producer.input[1])
    parameters = [view.constant(name) for name in node.input[1:5]]
    assert weight is not None
    scale, shift, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale / np.sqrt(variance + options.get("epsilon", 1e-5))
    bias = view.constant(bias_name) if bias_name else None
    folded_bias = factor * ((0.0 if bias is None else bias.astype(np.float64)) - mean) + shift

    group = int(attributes(producer).get("group", 1))
    transposed = producer.op_type == "ConvTranspose"
    folded = _scale_outputs(weight.astype(np.float64), factor, group, transposed=transposed)
    with np.errstate(over="ignore", invalid="ignore"):
        folded, folded_bias = folded.astype(weight.dtype), folded_bias.astype(weight.dtype)
    if not (np.isfinite(folded).all() and np.isfinite(folded_bias).all()):
        return f"the folded parameters would not be finite in {weight.dtype.name}"  # 4
    return _Fold(
        convolution=view.producers[node.input[0]],
        normalization=index,
        weight=folded,
        bias=folded_bias,
        owns_weight=_owns(view, producer.input[1]),
        owns_bias=_owns(view, bias_name),
    )


def _is_convolution(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Conv", "ConvTranspose") and node.domain in ("", "ai.onnx")


def _owns(view: GraphView, name: str) -> bool:
    return name in view.initializers and name not in view.input_names and view.readers[name] == 1


def _extra_outputs(node: onnx.NodeProto) -> bool:
    return any(node.output[1:])


def _scale_outputs(weight: Doubles, factor: Doubles, group: int, *, transposed: bool) -> Doubles:
    """Scale output channels: axis 0 of (T, S / G, *k), but axis 1, by group, of (S, T / G, *k)."""
    spatial = (1,) * (weight.ndim - 2)
    if not transposed:
        return weight * factor.reshape(-1, 1, *spatial)
    inputs, outputs = weight.shape[:2]
    grouped = weight.reshape(group, inputs // group, outputs, *weight.shape[2:])
    return (grouped * factor.reshape(group, 1, outputs, *spatial)).reshape(weight.shape)


def _rewire(
    graph: gs.Graph, fold: _Fold, convolution: gs.Node, normalization: gs.Node, namer: Namer
) -> None:
    data, weight, *bias = convolution.inputs
    outputs = list(normalization.outputs[:1])
    replaced = [weight, *bias, *normalization.inputs[1:]]
    normalization.inputs.clear()
    normalization.outputs.clear()
    graph.nodes.remove(normalization)
    # A parameter of this convolution alone keeps its name and place; others get new ones.
    weight_name = weight.name if fold.owns_weight else namer(f"{weight.name}/folded")
    bias_name = bias[0].name if fold.owns_bias else namer(f"{weight.name}/folded_bias")
    convolution.inputs = [
        data,
        gs.Constant(weight_name, np.ascontiguousarray(fold.weight)),
        gs.Constant(bias_name, fold.bias),
    ]
    convolution.outputs = outputs
    for tensor in replaced:
        remove_dead_producers(graph, tensor)
