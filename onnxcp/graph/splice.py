"""Putting chains into a graph in the place of their sites."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcp.graph.chain import Chain, ConvStep, Step, step_weight
from onnxcp.graph.edit import edit, remove_dead_producers
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site, native, swap_channels
from onnxcp.graph.walk import Namer

_OPSET_OPTIONAL_GEMM_BIAS = 11


def splice(model: Model, chains: Mapping[Site, tuple[str, Chain]]) -> Model:
    """Replace sites by chains.

    The last node of a chain writes the site's output tensor and takes over the site's bias; all
    other nodes of the graph stay as they are, in their order. Factors are stored in the type of
    the site's weight, equal ones only once.

    Parameters
    ----------
    model
        The model in which the sites were found.
    chains
        For every site to replace, a label that goes into the names of its nodes and weights
        (``"conv2/cp4/0"``), and its chain.
    """

    def change(graph: gs.Graph) -> None:
        namer = Namer(model.proto.graph)
        emitter = _Emitter(model.opset, namer, _FactorStore(namer))
        nodes = {site: graph.nodes[site.index] for site in chains}
        for site, (label, chain) in chains.items():
            _replace(graph, nodes[site], site, emitter.emit(nodes[site], site, label, chain))

    return edit(model, change)


def replace_kernels(model: Model, kernels: Mapping[Site, npt.NDArray[Any]]) -> Model:
    """Give sites other weights of the same shape ``(T, S / group, *k)``, and change nothing else.

    A shared weight is replaced only for the sites that are named.
    """

    def change(graph: gs.Graph) -> None:
        namer = Namer(model.proto.graph)
        for site, kernel in kernels.items():
            node = graph.nodes[site.index]
            values = np.ascontiguousarray(native(site, kernel).astype(site.dtype))
            position = 0 if site.weight_on_left else 1
            old = node.inputs[position]
            node.inputs[position] = gs.Constant(namer(f"{site.weight}/replaced"), values)
            remove_dead_producers(graph, old)

    return edit(model, change)


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

    def emit(self, node: gs.Node, site: Site, label: str, chain: Chain) -> list[gs.Node]:
        """Return the nodes of a chain, which read what `node` reads; outputs are not wired yet."""
        current = node.inputs[1 if site.weight_on_left else 0]
        bias = list(node.inputs)[2:]
        made = []
        for position, step in enumerate(chain.steps):
            last = position == len(chain.steps) - 1
            op, attributes, values = self._operator(site, step, first=position == 0, last=last)
            factor = self._store(f"{site.weight}/{label}/{position}", values.astype(site.dtype))
            inputs = [factor, current] if site.weight_on_left else [current, factor]
            if last:
                inputs += bias
            elif op == "Gemm" and self._opset < _OPSET_OPTIONAL_GEMM_BIAS:
                zeros = np.zeros(len(step_weight(step)), site.dtype)
                inputs.append(self._store(f"{site.weight}/{label}/zeros", zeros))
            name = self._namer(f"{site.name}/{label}/{position}")
            new = gs.Node(op, name, attributes, inputs)
            if not last:
                current = gs.Variable(self._namer(f"{name}/out"), dtype=node.outputs[0].dtype)
                new.outputs.append(current)
            made.append(new)
        return made

    @staticmethod
    def _operator(
        site: Site, step: Step, *, first: bool, last: bool
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
    weight = node.inputs[0 if site.weight_on_left else 1]
    outputs = list(node.outputs)
    node.inputs.clear()
    node.outputs.clear()
    chain[-1].outputs.extend(outputs)
    at = graph.nodes.index(node)
    graph.nodes[at : at + 1] = chain
    remove_dead_producers(graph, weight)
