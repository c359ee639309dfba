"""Where the time of a network goes: by site, by operator, and against what the machine could do."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx

from onnxcp.graph.model import Model
from onnxcp.graph.origins import origins
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.summary import counted_tensors, node_macs
from onnxcp.graph.view import GraphView
from onnxcp.profiling.inputs import Shape
from onnxcp.profiling.machine import Machine, as_source, observe_shapes
from onnxcp.profiling.nodes import NodeTime, node_origins, profile_nodes
from onnxcp.profiling.providers import CPU, full_name
from onnxcp.profiling.session import Feeds

_WARMUP, _ITERATIONS = 3, 10

Owner = Callable[[str], str]


@dataclass(frozen=True)
class Part:
    """Some of a network's time.

    Attributes
    ----------
    name
        A site or another node of the model; or an operator as ONNX Runtime calls it. "" stands for
        what belongs to no node of the model: changes of layout, copies between devices.
    seconds
        Of one run.
    flops
        Floating-point operations of one run, two for each multiply-add of a Conv, ConvTranspose,
        Gemm or MatMul; None where there are none of these, or their shapes are not known.
    nodes
        How many nodes of the optimised graph it is.
    """

    name: str
    seconds: float
    flops: float | None = None
    nodes: int = 1

    @property
    def speed(self) -> float | None:
        """Floating-point operations per second."""
        return self.flops / self.seconds if self.flops and self.seconds else None


@dataclass(frozen=True)
class Breakdown:
    """Where the time of a network goes, from ONNX Runtime's own profile.

    Attributes
    ----------
    sites
        By node of the model, in order of execution; a chain under the site that it came from.
    operators
        By operator of the optimised graph, the longest first.
    fallen_back
        Names of the nodes that run on the CPU although another provider was preferred.
    fallen_seconds
        What these take.
    """

    sites: tuple[Part, ...]
    operators: tuple[Part, ...]
    fallen_back: tuple[str, ...] = ()
    fallen_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(part.seconds for part in self.sites)


def break_down(
    model: Model,
    feeds: Feeds,
    machine: Machine,
    *,
    families: Iterable[str] = (),
    ancestors: Collection[str] = (),
    iterations: int = _ITERATIONS,
) -> Breakdown:
    """Profile a network and sum up where its time goes.

    Parameters
    ----------
    model, feeds, machine
        What to run, on what, and where.
    families
        Names of families, by which nodes of chains are known.
    ancestors
        Names of the nodes that the model was rewritten from, where these are known.
    iterations
        Runs that count.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot run the model on these feeds.
    """
    named, times = profile_named(model, feeds, machine, iterations=iterations)
    fallen = [each for each in times if _fell_back(each, machine)]
    origin = node_origins(named.proto.graph)
    owner = chain_owner(named, families, ancestors)
    return Breakdown(
        sites=_sites(times, origin, owner, _flops(named, feeds, machine)),
        operators=_operators(times),
        fallen_back=tuple(dict.fromkeys(origin(each.name) or each.name for each in fallen)),
        fallen_seconds=sum(each.seconds_per_run for each in fallen),
    )


def profile_named(
    model: Model, feeds: Feeds, machine: Machine, *, iterations: int = _ITERATIONS
) -> tuple[Model, tuple[NodeTime, ...]]:
    """Time the nodes of a model, each of which has a name of its own first.

    Returns
    -------
    named : Model
        The model in which the nodes of the main graph have the names that sites would have.
    times : tuple of NodeTime
        What the nodes of the optimised graph take.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot run the model on these feeds.
    """
    named = with_names(model)
    with as_source(named) as source:
        times = profile_nodes(
            source,
            feeds,
            providers=machine.providers,
            intra_op_num_threads=machine.intra_op_num_threads,
            warmup=_WARMUP,
            iterations=iterations,
            label=f"'{model.name}'",
        )
    return named, times


def with_names(model: Model) -> Model:
    """Name the nodes of the main graph as sites are: a profile knows nodes by name only."""
    names = node_names(model.proto.graph)
    if names == [node.name for node in model.proto.graph.node]:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for node, name in zip(proto.graph.node, names, strict=True):
        node.name = name
    return model.with_proto(proto)


def node_names(graph: onnx.GraphProto) -> list[str]:
    """Return what `find_sites` calls the nodes of a graph, or would."""
    counts = Counter(node.name for node in graph.node)
    counts.update(n.output[0] for n in graph.node if n.output and n.output[0] != n.name)
    return [
        node.name if (node.name and counts[node.name] == 1) or not node.output else node.output[0]
        for node in graph.node
    ]


def chain_owner(model: Model, families: Iterable[str], ancestors: Collection[str] = ()) -> Owner:
    """Return a function from the name of a node to that of the site whose chain it belongs to.

    Nodes of chains are called ``<site>/<family>/<position>``, with more behind that where a later
    pass rewrote them; what reads a factor that the model notes belongs to the site of that note,
    whatever it is called. A node called ``<ancestor>/<anything>`` belongs to that ancestor. Any
    other node is its own owner.
    """
    either = "|".join(map(re.escape, families)) or r"(?!)"
    pattern = re.compile(rf"(?P<site>.+?)/(?:{either})/\d+(?:/.+)?")
    sites = {factor: each.site for each in origins(model.proto) for factor in each.factors}
    noted = {
        node.name: sites[name]
        for node in model.proto.graph.node
        for name in node.input
        if name in sites
    }

    def owner(name: str) -> str:
        if name in noted:
            return noted[name]
        if match := pattern.fullmatch(name):
            return match["site"]
        above = name
        while above and above not in ancestors:
            above = above.rpartition("/")[0]
        return above or name

    return owner


def _sites(
    times: Iterable[NodeTime],
    origin: Callable[[str], str | None],
    owner: Owner,
    flops: Mapping[str, float],
) -> tuple[Part, ...]:
    seconds: dict[str, float] = defaultdict(float)
    nodes: Counter[str] = Counter()
    counted: dict[str, dict[str, float]] = defaultdict(dict)
    for each in times:
        name = origin(each.name)
        site = "" if name is None else owner(name)
        seconds[site] += each.seconds_per_run
        nodes[site] += 1
        if name is not None and name in flops:
            counted[site][name] = flops[name]
    return tuple(
        Part(site, taken, sum(counted[site].values()) or None, nodes[site])
        for site, taken in seconds.items()
    )


def _operators(times: Iterable[NodeTime]) -> tuple[Part, ...]:
    seconds: dict[str, float] = defaultdict(float)
    nodes: Counter[str] = Counter()
    for each in times:
        seconds[each.op_type] += each.seconds_per_run
        nodes[each.op_type] += 1
    parts = (Part(name, taken, nodes=nodes[name]) for name, taken in seconds.items())
    return tuple(sorted(parts, key=lambda part: -part.seconds))


def _fell_back(time: NodeTime, machine: Machine) -> bool:
    preferred = full_name(machine.providers[0]) if machine.providers else CPU
    return preferred != CPU and time.provider == CPU


def _flops(model: Model, feeds: Feeds, machine: Machine) -> dict[str, float]:
    """Return the floating-point operations of one run of each node that multiplies and adds."""
    graph = model.proto.graph
    shapes: dict[str, Shape] = infer_shapes(model, {name: v.shape for name, v in feeds.items()})
    if missing := counted_tensors(model) - shapes.keys():
        shapes |= observe_shapes(model, missing, feeds, machine)
    view = GraphView(graph)
    found: dict[str, float] = {}
    for node in graph.node:
        macs = node_macs(node, view, shapes)
        if macs is not None:
            # Of a sample: the first axis, which of a Gemm's output alone is that of its rows.
            counted = node.output[0] if node.op_type == "Gemm" else node.input[0]
            data = shapes.get(counted, ())
            found[node.name] = 2.0 * macs * (data[0] if len(data) > 1 else 1)
    return found
