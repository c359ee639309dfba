"""Looking at a network layer by layer: what each costs, and whether it may be rewritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxcp.errors import DataError, ModelError
from onnxcp.factorize import FactorizePass
from onnxcp.graph.model import Model
from onnxcp.graph.origins import Origin, origins
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.summary import node_macs
from onnxcp.graph.view import GraphView
from onnxcp.passes import registered_passes
from onnxcp.profiling.breakdown import node_names, profile_named
from onnxcp.profiling.inputs import Shape, assume_extents, session_inputs
from onnxcp.profiling.machine import Machine, observe_shapes, runnable_feeds
from onnxcp.profiling.nodes import node_origins, sum_by
from onnxcp.profiling.session import Feeds
from onnxcp.progress import Progress, silent

_WITHIN = (Reason.IN_SUBGRAPH, Reason.IN_FUNCTION)  # no nodes of the main graph


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by a weight, or a node of that kind that is no site.

    Attributes
    ----------
    name, op
        The node.
    kernel_shape
        ``(T, S / group, *k)``, or None where the weight is not known.
    group
        Number of groups.
    input_shape
        Shape of what it reads, batch included, or None.
    macs
        Multiply-adds for one sample, or None.
    seconds
        Time of one run of the node, with what was fused into it, or None.
    families
        Names of the families that can express it; empty where it is refused.
    refusal
        Why it cannot be rewritten, or None.
    """

    name: str
    op: str
    kernel_shape: Shape | None
    group: int
    input_shape: Shape | None
    macs: int | None
    seconds: float | None
    families: tuple[str, ...]
    refusal: Refusal | None


@dataclass(frozen=True)
class Inspection:
    """A network layer by layer.

    Attributes
    ----------
    layers
        In graph order; those within bodies and functions last.
    seconds
        Sum of the times of all nodes, or None where they were not taken.
    untimed
        Why there are no times although they were asked for; "" otherwise.
    factorised
        The nodes whose places chains have taken already, as far as the model says it.
    """

    layers: tuple[Layer, ...]
    seconds: float | None
    untimed: str
    factorised: tuple[Origin, ...] = ()


def inspect_model(
    model: Model,
    machine: Machine,
    shapes: Mapping[str, Shape],
    *,
    time: bool = True,
    progress: Progress = silent,
) -> Inspection:
    """Look at every Conv, ConvTranspose, Gemm and MatMul of a network.

    Where ONNX Runtime cannot run the network, multiply-adds are counted as far as shape inference
    goes, and times are left out.

    Parameters
    ----------
    model
        The network.
    machine
        Where to time it.
    shapes
        Shapes of inputs.
    time
        Whether to time the nodes.
    progress
        Told how far the work is.

    Raises
    ------
    DataError
        If a shape does not fit the model.
    ProviderError
        If a provider is unknown, missing, or does not start.
    """
    sites, refusals = find_sites(model)
    seconds: dict[str, float] = {}
    progress("running", 0, 1)
    known, feeds, untimed = _prepare(model, machine, shapes)
    if feeds is not None:
        try:
            wanted = {tensor for site in sites for tensor in (site.input, site.output)}
            if missing := wanted - known.keys():
                known |= observe_shapes(model, missing, feeds, machine)
            if time:
                progress("timing nodes", 0, 1)
                seconds = time_nodes(model, feeds, machine)
        except ModelError as error:
            untimed = str(error)
    layers = _layers(model, sites, refusals, known, seconds)
    total = sum(seconds.values()) if seconds else None
    return Inspection(tuple(layers), total, untimed if time else "", origins(model.proto))


def time_nodes(model: Model, feeds: Feeds, machine: Machine) -> dict[str, float]:
    """Time the nodes of a model as ONNX Runtime runs them.

    Parameters
    ----------
    model, feeds, machine
        What to run, on what, and where.

    Returns
    -------
    dict of str to float
        Seconds of one run. Nodes have the names that sites would have; what stands for no node of
        the model (changes of layout) is under `""`.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot run the model on these feeds.
    """
    named, times = profile_named(model, feeds, machine)
    return sum_by(times, node_origins(named.proto.graph))


def installed_families() -> dict[str, FactorizePass]:
    """Return every installed family, without options, by name."""
    return {
        name: kind()
        for name, kind in registered_passes().items()
        if issubclass(kind, FactorizePass)
    }


def _prepare(
    model: Model, machine: Machine, shapes: Mapping[str, Shape]
) -> tuple[dict[str, Shape], Feeds | None, str]:
    """Return shapes of tensors, feeds to run with, and why there are none."""
    try:
        session = machine.open(model)
        specs = session_inputs(session)
    except (ModelError, DataError) as error:
        inputs = model.proto.graph.input
        if "" in shapes and len(inputs) == 1:
            shapes = {inputs[0].name: shapes[""]}
        return infer_shapes(model, shapes), None, str(error)
    try:
        feeds = runnable_feeds(session, shapes, model.name)
    except ModelError as error:
        return infer_shapes(model, assume_extents(specs, shapes)), None, str(error)
    return infer_shapes(model, {name: value.shape for name, value in feeds.items()}), feeds, ""


def _layers(
    model: Model,
    sites: Sequence[Site],
    refusals: Sequence[Refusal],
    known: Mapping[str, Shape],
    seconds: Mapping[str, float],
) -> list[Layer]:
    view = GraphView(model.proto.graph)
    families = installed_families()
    by_index = {site.index: site for site in sites}
    why = {refusal.site: refusal for refusal in refusals if refusal.reason not in _WITHIN}
    layers = []
    for index, (node, name) in enumerate(
        zip(model.proto.graph.node, node_names(model.proto.graph), strict=True)
    ):
        if site := by_index.get(index):
            unfit = {family: kind.applies(site) for family, kind in families.items()}
            fit = tuple(family for family, refusal in unfit.items() if refusal is None)
            refused = None if fit else _no_family(site, list(unfit.values()))
            layers.append(
                Layer(
                    name=site.name,
                    op=site.op,
                    kernel_shape=site.kernel_shape,
                    group=site.group,
                    input_shape=known.get(site.input),
                    macs=node_macs(node, view, known),
                    seconds=seconds.get(site.name),
                    families=fit,
                    refusal=refused,
                )
            )
        elif name in why:
            layers.append(_refused(node, why[name], view, known, seconds))
    # Those in bodies of If, Loop and Scan, and in functions, may share names, with others too.
    layers += [
        Layer(refusal.site, "", None, 1, None, None, None, (), refusal)
        for refusal in refusals
        if refusal.reason in _WITHIN
    ]
    return layers


def _refused(
    node: onnx.NodeProto,
    refusal: Refusal,
    view: GraphView,
    known: Mapping[str, Shape],
    seconds: Mapping[str, float],
) -> Layer:
    group = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    weight = None
    if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 1:
        weight = view.constant_shape(node.input[1])
    if weight is not None and node.op_type == "ConvTranspose":
        weight = (weight[1] * group, weight[0] // group, *weight[2:])
    return Layer(
        name=refusal.site,
        op=node.op_type,
        kernel_shape=weight,
        group=group,
        input_shape=known.get(node.input[0]) if node.input else None,
        macs=node_macs(node, view, known),
        seconds=seconds.get(refusal.site),
        families=(),
        refusal=refusal,
    )


def _no_family(site: Site, refusals: Sequence[Refusal | None]) -> Refusal:
    for refusal in refusals:
        if refusal is not None:
            return refusal
    return Refusal(site.name, Reason.INEXPRESSIBLE, "no family is installed")
