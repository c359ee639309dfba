"""Finding the weights that may be factorised.

A site is a Conv, ConvTranspose, Gemm or MatMul node of the main graph with a constant weight. Every
other node of these kinds, in the main graph, in the bodies of If, Loop and Scan and in model-local
functions, is a refusal with a reason.

A weight that several nodes share makes several sites: each gets a chain of its own, and equal
factors of two chains are stored once (`onnxcp.graph.splice`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxcp.graph.geometry import Geometry
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.view import Array, GraphView
from onnxcp.graph.walk import all_nodes, attribute_graphs
from onnxcp.graph.walk import attributes as read_attributes

Floats = npt.NDArray[np.floating[Any]]

_DEFAULT_DOMAIN = ("", "ai.onnx")
_OPERATORS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_FUSED = {"FusedConv", "FusedGemm", "FusedMatMul", "TransposeMatMul", "NhwcConv"}
_GIVE_FLOAT = "give the float model, and --precision int8"
_QUANTIZED = {
    "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm", "QAttention",
    "MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
}  # fmt: skip
_FLOAT_TYPES = {"float16", "bfloat16", "float32", "float64"}


@dataclass(frozen=True, eq=False)
class Site:
    """A node with a constant weight that may be factorised.

    Attributes
    ----------
    name
        The node's name; where it has none, or another node or its output is called so too, the
        name of its own output. No two sites of a model have one name.
    op
        ``"Conv"``, ``"ConvTranspose"``, ``"Gemm"`` or ``"MatMul"``.
    index
        Position of the node in the graph that it was found in.
    input, output, weight
        Names of tensors.
    bias
        Name of the bias tensor (constant or not), or None.
    kernel_shape
        ``(T, S / group, *kernel)``: the shape that `kernel` returns, whatever the operator's own
        layout is. T output channels, S input channels.
    group
        Number of groups; 1 for matrices.
    geometry
        Spatial attributes, or None for matrices.
    dtype
        Type of the weight as the node receives it.
    weight_on_left
        For MatMul and Gemm: whether the weight is the left operand, Y = W X.
    attributes
        The node's own attributes by name.
    """

    name: str
    op: str
    index: int
    input: str
    output: str
    weight: str
    bias: str | None
    kernel_shape: tuple[int, ...]
    group: int
    geometry: Geometry | None
    dtype: np.dtype[Any]
    weight_on_left: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)
    _load: Callable[[], Array] = field(repr=False, default=lambda: np.zeros(0))

    @property
    def outputs(self) -> int:
        """Number of output channels, T."""
        return self.kernel_shape[0]

    @property
    def inputs(self) -> int:
        """Number of input channels, S."""
        return self.kernel_shape[1] * self.group

    @property
    def spatial_rank(self) -> int:
        """Number of spatial axes; 0 for matrices."""
        return len(self.kernel_shape) - 2

    @property
    def parameters(self) -> int:
        """Number of entries of the weight, bias excluded."""
        return int(np.prod(self.kernel_shape))

    @property
    def gain(self) -> float:
        """What the product with the weight is multiplied by: `alpha` of a Gemm."""
        return float(self.attributes.get("alpha", 1.0))

    @property
    def bias_gain(self) -> float:
        """What the bias is multiplied by: `beta` of a Gemm; 0 where the operator has no bias."""
        if self.op == "MatMul":
            return 0.0
        return float(self.attributes.get("beta", 1.0))

    def kernel(self) -> Floats:
        """Return the weight as ``(T, S / group, *kernel)`` in float32, or float64 if it is so."""
        value = self._load()
        work = np.float64 if value.dtype == np.float64 else np.float32
        return canonical(self, value).astype(work)

    def group_kernels(self) -> list[Floats]:
        """Return the kernels ``(T / group, S / group, *kernel)`` of each group."""
        return np.split(self.kernel(), self.group)

    def holding(self, kernel: Floats) -> Site:
        """Return the same site with another kernel ``(T, S / group, *kernel)``, in no model."""
        return replace(self, _load=lambda: native(self, kernel))


def canonical(site: Site, weight: Array) -> Array:
    """Bring a weight from its operator's layout to ``(T, S / group, *kernel)``."""
    match site.op:
        case "Conv":
            return weight
        case "ConvTranspose":
            return swap_channels(weight, site.group)
        case _:
            return weight if _stored_outputs_first(site) else weight.T


def native(site: Site, kernel: Array) -> Array:
    """Undo `canonical`: bring a kernel to the layout of the site's operator."""
    match site.op:
        case "Conv":
            return kernel
        case "ConvTranspose":
            return swap_channels(kernel, site.group)
        case _:
            return kernel if _stored_outputs_first(site) else kernel.T


def swap_channels(kernel: Array, group: int) -> Array:
    """Swap the two channel axes of ``(G * A, B, *k)`` group by group: ``(G * B, A, *k)``."""
    a, b = kernel.shape[0] // group, kernel.shape[1]
    spatial = kernel.shape[2:]
    return kernel.reshape(group, a, b, *spatial).swapaxes(1, 2).reshape(group * b, a, *spatial)


def _stored_outputs_first(site: Site) -> bool:
    """Whether a matrix is stored as (T, S). On the left it is, unless transposed; right, not."""
    transposed = bool(site.attributes.get("transA" if site.weight_on_left else "transB", 0))
    return site.weight_on_left != transposed


def find_sites(model: Model) -> tuple[list[Site], list[Refusal]]:
    """Find the weights that may be factorised, in graph order, and the reasons for the others.

    Sites refer to nodes of this very model by position: after a rewrite, find them again.
    """
    graph = model.proto.graph
    view = GraphView(graph)
    names = Counter(node.name for node in graph.node)
    names.update(n.output[0] for n in graph.node if n.output and n.output[0] != n.name)
    sites: list[Site] = []
    refusals: list[Refusal] = []
    for index, node in enumerate(graph.node):
        refusals += _nested_refusals(node)
        if not _is_candidate(node):
            continue
        name = node.name if node.name and names[node.name] == 1 else node.output[0]
        found = _examine(name, index, node, view)
        if isinstance(found, Site):
            sites.append(found)
        else:
            refusals.append(found)
    for function in model.proto.functions:
        for node in all_nodes(function.node):
            if _is_candidate(node):
                where = f"{function.name}/{node.name or node.op_type}"
                detail = f"it is in the body of function '{function.name}'; inline it first"
                refusals.append(Refusal(where, Reason.IN_FUNCTION, detail))
    return sites, refusals


def _is_candidate(node: onnx.NodeProto) -> bool:
    return node.op_type in _OPERATORS | _FUSED | _QUANTIZED


def _nested_refusals(node: onnx.NodeProto) -> Iterator[Refusal]:
    for graph in attribute_graphs(node):
        for inner in all_nodes(graph.node):
            if _is_candidate(inner):
                name = inner.name or inner.output[0]
                owner = node.name or node.output[0]
                detail = f"it is in a subgraph of {node.op_type} node '{owner}'"
                yield Refusal(name, Reason.IN_SUBGRAPH, detail)


def _examine(name: str, index: int, node: onnx.NodeProto, view: GraphView) -> Site | Refusal:
    """Make a site of a candidate node, or say why not."""

    def refuse(reason: Reason, detail: str) -> Refusal:
        return Refusal(name, reason, detail)

    if node.op_type in _QUANTIZED:
        return refuse(Reason.QUANTIZED, f"{node.op_type} is quantized already; {_GIVE_FLOAT}")
    if node.domain not in _DEFAULT_DOMAIN or node.op_type in _FUSED:
        kind = f"{node.domain}.{node.op_type}"
        return refuse(Reason.UNKNOWN_DOMAIN, f"operator {kind} is not one of standard ONNX")

    attributes = read_attributes(node)
    if len(node.input) < 2:
        return refuse(Reason.UNSUPPORTED, f"it has {len(node.input)} inputs, not 2 or 3")
    weight_on_left = node.op_type in ("Gemm", "MatMul") and not view.is_constant(node.input[1])
    data, weight = (node.input[1], node.input[0]) if weight_on_left else tuple(node.input[:2])
    if not view.is_constant(weight):
        return _refuse_weight(name, node, view)
    if view.is_constant(data):
        return refuse(Reason.UNSUPPORTED, "both its operands are constant; fold it first")
    try:
        value = view.constant(weight)
    except ValueError as error:
        return refuse(Reason.WEIGHT_NOT_CONSTANT, f"its weight cannot be read: {error}".rstrip("."))
    assert value is not None
    if value.dtype.name not in _FLOAT_TYPES:
        return refuse(Reason.UNSUPPORTED, f"its weight is of type {value.dtype.name}, not float")
    if value.size == 0:
        return refuse(Reason.UNSUPPORTED, "its weight is empty")
    if not np.isfinite(value).all():
        return refuse(Reason.NOT_FINITE, "its weight holds NaN or infinity")

    group, geometry = 1, None
    if node.op_type in ("Conv", "ConvTranspose"):
        if value.ndim < 3:
            return refuse(Reason.UNSUPPORTED, f"its weight has {value.ndim} dimensions, not 3 to 5")
        transposed = node.op_type == "ConvTranspose"
        group = int(attributes.get("group", 1))
        geometry = Geometry.from_attributes(attributes, value.shape[2:], transposed=transposed)
        per_group = value.shape[0] // group if transposed else value.shape[1]
        if group > 1 and per_group == 1:
            return refuse(Reason.DEPTHWISE, "it is depthwise: each filter sees one channel already")
    elif value.ndim != 2:
        return refuse(Reason.UNSUPPORTED, f"its weight has {value.ndim} dimensions, not 2")
    elif node.op_type == "Gemm" and weight_on_left:
        return refuse(Reason.UNSUPPORTED, "its weight is the left operand of a Gemm")

    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    site = Site(
        name=name,
        op=node.op_type,
        index=index,
        input=data,
        output=node.output[0],
        weight=weight,
        bias=bias,
        kernel_shape=(),
        group=group,
        geometry=geometry,
        dtype=value.dtype,
        weight_on_left=weight_on_left,
        attributes=attributes,
        _load=lambda: view.constant(weight),  # type: ignore[arg-type,return-value]
    )
    object.__setattr__(site, "kernel_shape", canonical(site, value).shape)
    return site


def _refuse_weight(name: str, node: onnx.NodeProto, view: GraphView) -> Refusal:
    """Say why a node's weight is not a constant that can be factorised."""
    weight = node.input[1]
    producer = view.producer(weight)
    if producer is not None and producer.op_type == "DequantizeLinear":
        detail = f"its weight is quantized (DequantizeLinear); {_GIVE_FLOAT}"
        return Refusal(name, Reason.QUANTIZED, detail)
    if weight in view.sparse_initializers:
        detail = f"its weight '{weight}' is a sparse initializer"
        return Refusal(name, Reason.WEIGHT_NOT_CONSTANT, detail)
    made_by = f", made by {producer.op_type}" if producer is not None else ""
    detail = f"its weight '{weight}' is not constant{made_by}"
    return Refusal(name, Reason.WEIGHT_NOT_CONSTANT, detail)
