"""A maxout of two without a Split and a Max: a convolution, a ReLU of another one, and an Add.

A maxout (Goodfellow et al. 2013) takes the larger of two halves a and b of the channels of a
convolution, as Split and Max. These know no layout but the plain one: ONNX Runtime, whose
convolutions work on blocks of channels, reorders all that they read and all that they make. But

    max(a, b) = b + max(a - b, 0)

holds whatever a and b are, and a - b of two linear maps is a linear map too::

    S --(Conv W, c)--> T --(Split)--> a, b --(Max)--> T / 2

    S --(Conv W_b, c_b)--------------> T / 2 ---------+
    S --(Conv W_a - W_b, c_a - c_b)--> T / 2 --(Relu)-(Add)--> T / 2

There are as many weights and multiply-adds as before; the ReLU becomes part of its convolution, the
Add of the other. Where a chain ends in a maxout, both convolutions read its last but one step.

1. The Max has two inputs, the two equal parts of a Split by channels, and nothing else reads them.
2. The Split reads a Conv of one group with a constant weight, and a constant bias or none; nothing
   else reads that.
3. Weights are float32, and finite when subtracted. A float16 would lose digits where a is close
   to b; ONNX Runtime's kernels for other types know no blocks of channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxcp.graph.edit import edit, remove_dead_producers
from onnxcp.graph.model import Model
from onnxcp.graph.origins import note
from onnxcp.graph.view import Array, GraphView
from onnxcp.graph.walk import Namer, attributes
from onnxcp.passes import Context, Pass, PassResult


@dataclass(frozen=True)
class SplitMaxout(Pass):
    """Writes every maxout of two that follows a Conv as two convolutions, a ReLU and an Add."""

    name = "split-maxout"
    summary = "Max of the halves of a Conv becomes b + Relu(a - b): no change of layout in between"
    finishes = True

    def run(self, model: Model, context: Context) -> PassResult:  # noqa: ARG002
        """Rewrite what can be; note what cannot."""
        view = GraphView(model.proto.graph)
        maxouts, notes = [], []
        for index, node in enumerate(model.proto.graph.node):
            if node.op_type != "Max" or node.domain not in ("", "ai.onnx"):
                continue
            found = _maxout(index, node, view)
            if isinstance(found, _Maxout):
                maxouts.append(found)
            else:
                notes.append(f"{node.name or node.output[0]}: left as it is, {found}")
        if not maxouts:
            return PassResult(model, changed=False, notes=tuple(notes))
        renamed: dict[str, list[str]] = {}

        def change(graph: gs.Graph) -> None:
            namer = Namer(model.proto.graph)
            for maxout, nodes in [(each, each.nodes(graph)) for each in maxouts]:
                old, new = _rewire(graph, maxout, *nodes, namer)
                renamed.setdefault(old, []).extend(new)

        result = edit(model, change)
        note(result.proto, (), renamed)
        notes.append(f"{len(maxouts)} maxout{'s' * (len(maxouts) > 1)} split")
        return PassResult(result, changed=True, notes=tuple(notes))


@dataclass(frozen=True)
class _Maxout:
    """Three nodes, by position, and weights and biases of both halves: of b, and of a - b."""

    convolution: int
    split: int
    largest: int
    rest: tuple[Array, Array]
    over: tuple[Array, Array]

    def nodes(self, graph: gs.Graph) -> tuple[gs.Node, gs.Node, gs.Node]:
        """Return the nodes."""
        return graph.nodes[self.convolution], graph.nodes[self.split], graph.nodes[self.largest]


def _maxout(index: int, node: onnx.NodeProto, view: GraphView) -> _Maxout | str:
    """Look at a Max, or say why it is none (the numbers are those of the module's list)."""
    splits = {view.producers.get(name, -1) for name in node.input}
    split = view.graph.node[min(splits)] if len(splits) == 1 and min(splits) >= 0 else None
    if split is None or split.op_type != "Split" or sorted(split.output) != sorted(node.input):
        return "it does not read the parts of a Split"  # 1
    if len(node.input) != 2:
        return f"it takes the largest of {len(node.input)}, not of two"  # 1
    if any(view.readers[name] > 1 for name in split.output):
        return "its inputs have other readers"  # 1
    conv = view.producer(split.input[0])
    if conv is None or conv.op_type != "Conv" or conv.domain not in ("", "ai.onnx"):
        return "what is split is not made by a Conv"  # 2
    if view.readers[split.input[0]] > 1:
        return f"the output of '{conv.name or split.input[0]}' has other readers"  # 2
    weight = view.constant(conv.input[1])
    bias_name = conv.input[2] if len(conv.input) > 2 else ""
    bias = view.constant(bias_name) if bias_name else None
    if weight is None or (bias_name and bias is None):
        return "the weight or the bias of the convolution is not constant"  # 2
    if attributes(conv).get("group", 1) != 1:
        return "the convolution has groups"  # 2
    if not _halves(split, view, weight.shape):
        return "the Split does not halve the channels"  # 1
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype.name}"  # 3
    halves: npt.NDArray[Any] = weight
    shifts: npt.NDArray[Any] = np.zeros(len(weight), weight.dtype) if bias is None else bias
    (a, b), (of_a, of_b) = np.split(halves, 2), np.split(shifts, 2)
    with np.errstate(over="ignore", invalid="ignore"):
        over = a - b, of_a - of_b
    if not all(np.isfinite(each).all() for each in over):
        return "its weights would not be finite"  # 3
    positions = view.producers[split.input[0]], min(splits), index
    return _Maxout(*positions, rest=(b, of_b), over=over)


def _halves(split: onnx.NodeProto, view: GraphView, kernel: tuple[int, ...]) -> bool:
    """Tell whether a Split cuts the channels that a kernel ``(T, S, *k)`` makes in two halves."""
    if attributes(split).get("axis", 0) % len(kernel) != 1:
        return False
    return len(split.output) == 2 and view.splits_evenly(split, kernel[0])


def _rewire(
    graph: gs.Graph,
    maxout: _Maxout,
    convolution: gs.Node,
    split: gs.Node,
    largest: gs.Node,
    namer: Namer,
) -> tuple[str, list[str]]:
    """Put the new nodes in; return the name of the weight, and those of what takes its place."""
    data, weight, *bias = convolution.inputs
    whole = bias[0].name if bias else f"{weight.name}/bias"
    called = largest.name or largest.outputs[0].name
    made, names = [], []
    for label, values in (("rest", maxout.rest), ("over", maxout.over)):
        constants = [
            gs.Constant(namer(f"{name}/{label}"), np.ascontiguousarray(value))
            for name, value in zip((weight.name, whole), values, strict=True)
        ]
        made.append(
            _node("Conv", f"{convolution.name or weight.name}/{label}", [data, *constants], namer)
        )
        made[-1].attrs.update(convolution.attrs)
        names.append(constants[0].name)
    rest, over = made
    made.append(_node("Relu", f"{called}/relu", over.outputs, namer))
    made.append(_node("Add", f"{called}/add", [*rest.outputs, *made[-1].outputs], namer))
    made[-1].outputs = list(largest.outputs)
    replaced = [weight, *bias, *list(split.inputs)[1:]]
    for node in (convolution, split, largest):
        node.inputs.clear()
        node.outputs.clear()
    # The Add stands where the Max did, and all that it needs ahead of it.
    at = graph.nodes.index(largest)
    graph.nodes[at : at + 1] = made
    graph.nodes.remove(convolution)
    graph.nodes.remove(split)
    for tensor in replaced:
        remove_dead_producers(graph, tensor)
    return weight.name, names


def _node(op: str, name: str, inputs: list[gs.Tensor], namer: Namer) -> gs.Node:
    name = namer(name)
    return gs.Node(op, name, {}, list(inputs), [gs.Variable(namer(f"{name}/out"))])
