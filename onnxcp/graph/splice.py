"""Putting chains into a graph in the place of their sites."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcp.graph.chain import (
    Chain,
    ConvStep,
    MatrixStep,
    PickStep,
    Row,
    step_weight,
    with_kernel,
)
from onnxcp.graph.edit import edit, remove_dead_producers
from onnxcp.graph.model import Model
from onnxcp.graph.origins import Origin, note
from onnxcp.graph.site import Site, native, swap_channels
from onnxcp.graph.walk import Namer

_OPSET_OPTIONAL_GEMM_BIAS = 11


def splice(model: Model, chains: Mapping[Site, tuple[str, Chain]]) -> Model:
    """Replace sites by chains.

    The last node of a chain writes the site's output tensor. The last step takes over the site's
    bias unless the chain has one of its own; what rows beside it make is added up after that. All
    other nodes of the graph stay as they are, in their order.
    Factors are stored in the type of the site's weight, equal ones only once. A chain of one step
    leaves the site's node in place, with another weight; a weight that is shared is replaced for
    that site only. Which weights are factors of what is noted in the model's metadata (see
    `onnxcp.graph.origins`) where chains come from a decomposition.

    Parameters
    ----------
    model
        The model in which the sites were found.
    chains
        For every site to replace, a label that goes into the names of its nodes and weights
        (``"conv2/cp4/0"``), and its chain.
    """
    added: list[Origin] = []
    renamed: dict[str, list[str]] = {}

    def change(graph: gs.Graph) -> None:
        namer = Namer(model.proto.graph)
        emitter = _Emitter(model.opset, namer, _FactorStore(namer))
        nodes = {site: graph.nodes[site.index] for site in chains}
        for site, (label, chain) in chains.items():
            if len(chain.steps) == 1 and not chain.beside:
                name = emitter.reweigh(graph, nodes[site], site, label, chain)
                renamed.setdefault(site.weight, []).append(name)
                continue
            made, rows = emitter.emit(nodes[site], site, label, chain)
            _replace(graph, nodes[site], site, made)
            if chain.ranks:
                added.extend(
                    Origin(site.name, label, chain.ranks, factors, factors[1:-1])
                    for factors in rows
                )

    result = edit(model, change)
    note(result.proto, added, renamed)
    return result


def replace_kernels(model: Model, kernels: Mapping[Site, npt.NDArray[Any]]) -> Model:
    """Give sites other weights of the same shape ``(T, S / group, *k)``, and change nothing else.

    A shared weight is replaced only for the sites that are named.
    """
    return splice(
        model, {site: ("replaced", with_kernel(site, kernel)) for site, kernel in kernels.items()}
    )


class _FactorStore:
    """Makes constants, one for each distinct content: chains of one shared weight share theirs."""

    def __init__(self, namer: Namer) -> None:
        self._namer = namer
        self._made: dict[tuple[str, tuple[int, ...], bytes], gs.Constant] = {}

    def __call__(self, name: str, values: npt.NDArray[Any]) -> gs.Constant:
        values = np.ascontiguousarray(values)
        digest = hashlib.blake2b(values.tobytes()).digest()
        key = (values.dtype.name, values.shape, digest)
        if key not in self._made:
            self._made[key] = gs.Constant(self._namer(name), values)
        return self._made[key]


class _Emitter:
    """Turns chains into graphsurgeon nodes."""

    def __init__(self, opset: int, namer: Namer, store: _FactorStore) -> None:
        self._opset = opset
        self._namer = namer
        self._store = store

    def emit(
        self, node: gs.Node, site: Site, label: str, chain: Chain
    ) -> tuple[list[gs.Node], list[tuple[str, ...]]]:
        """Return the nodes of a chain, and for each of its rows the names of its factors.

        They read what `node` reads; outputs of the last one are not wired yet.
        """
        made: list[gs.Node] = []
        rows = []
        total: gs.Variable | None = None
        for index, row in enumerate(chain.rows):
            bias = [] if index else self._bias(node, site, label, chain)
            nodes, factors = self._row(node, site, label, row, bias, len(made))
            made += nodes
            rows.append(factors)
            if index:
                terms = [total, self._output(made[-1], node)]
                made.append(gs.Node("Add", self._namer(f"{site.name}/{label}/sum"), {}, terms))
            if index < len(chain.beside):
                total = self._output(made[-1], node)
        return made, rows

    def _row(
        self,
        node: gs.Node,
        site: Site,
        label: str,
        row: Row,
        bias: list[gs.Tensor],
        first: int,
    ) -> tuple[list[gs.Node], tuple[str, ...]]:
        """Return the nodes of a row of steps and the names of its factors, numbered from `first`.

        The last node has no output yet.
        """
        current = node.inputs[1 if site.weight_on_left else 0]
        made: list[gs.Node] = []
        factors = []
        for position, step in enumerate(row):
            last = position == len(row) - 1
            stored = f"{site.weight}/{label}/{first + position}"
            name = self._namer(f"{site.name}/{label}/{first + position}")
            if isinstance(step, PickStep):
                numbers = self._store(stored, step.channels.astype(np.int64))
                made.append(gs.Node("Gather", name, {"axis": 1}, [current, numbers]))
            else:
                op, attributes, values = self._operator(site, step, first=position == 0, last=last)
                factor = self._store(stored, values.astype(site.dtype))
                inputs = [factor, current] if site.weight_on_left else [current, factor]
                if last:
                    inputs += bias
                if op == "Gemm" and len(inputs) == 2 and self._opset < _OPSET_OPTIONAL_GEMM_BIAS:
                    zeros = np.zeros(len(step_weight(step)), site.dtype)
                    inputs.append(self._store(f"{site.weight}/{label}/zeros", zeros))
                made.append(gs.Node(op, name, attributes, inputs))
                factors.append(factor.name)
            if not last:
                current = self._output(made[-1], node)
        return made, tuple(factors)

    def _output(self, made: gs.Node, like: gs.Node) -> gs.Variable:
        """Give a node an output within the chain."""
        output = gs.Variable(self._namer(f"{made.name}/out"), dtype=like.outputs[0].dtype)
        made.outputs.append(output)
        return output

    def reweigh(self, graph: gs.Graph, node: gs.Node, site: Site, label: str, chain: Chain) -> str:
        """Give a node the weight and the bias of a chain of one step; return the weight's name."""
        position = 0 if site.weight_on_left else 1
        old = [node.inputs[position], *list(node.inputs)[2:]]
        values = native(site, step_weight(chain.steps[0])).astype(site.dtype)
        node.inputs[position] = self._store(f"{site.weight}/{label}", values)
        for bias in self._bias(node, site, label, chain):
            if len(node.inputs) > 2:
                node.inputs[2] = bias
            else:
                node.inputs.append(bias)
        for tensor in old:
            remove_dead_producers(graph, tensor)
        return str(node.inputs[position].name)

    def _bias(self, node: gs.Node, site: Site, label: str, chain: Chain) -> list[gs.Tensor]:
        """Return what the last node of a chain adds: nothing, or one tensor."""
        if chain.bias is None:
            return list(node.inputs)[2:]
        name = f"{site.bias or site.weight}/{label}/bias"
        return [self._store(name, chain.bias.astype(site.dtype))]

    @staticmethod
    def _operator(
        site: Site, step: ConvStep | MatrixStep, *, first: bool, last: bool
    ) -> tuple[str, dict[str, Any], npt.NDArray[Any]]:
        """Return operator, attributes and weight, in the operator's own layout, of one step."""
        if isinstance(step, ConvStep):
            attributes = step.geometry.attributes(step.group)
            if step.geometry.transposed:
                return "ConvTranspose", attributes, swap_channels(step.kernel, step.group)
            return "Conv", attributes, step.kernel
        if site.op == "MatMul":
            return "MatMul", {}, step.matrix if site.weight_on_left else step.matrix.T
        # Of a Gemm, alpha and beta belong to the last product, a transposed input to the first.
        kept = (
            {"transB"} | ({"alpha", "beta"} if last else set()) | ({"transA"} if first else set())
        )
        attributes = {key: value for key, value in site.attributes.items() if key in kept}
        return "Gemm", attributes, step.matrix if attributes.get("transB") else step.matrix.T


def _replace(graph: gs.Graph, node: gs.Node, site: Site, chain: list[gs.Node]) -> None:
    """Wire the nodes of a chain to the outputs of the node that they replace."""
    constants = [node.inputs[0 if site.weight_on_left else 1], *list(node.inputs)[2:]]
    outputs = list(node.outputs)
    node.inputs.clear()
    node.outputs.clear()
    chain[-1].outputs.extend(outputs)
    at = graph.nodes.index(node)
    graph.nodes[at : at + 1] = chain
    for tensor in constants:
        remove_dead_producers(graph, tensor)
