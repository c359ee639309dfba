"""In which order to run a network that is stopped at some of its nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx

from onnxcp.graph.model import Model
from onnxcp.graph.segment import ancestors_first, reads
from onnxcp.graph.view import GraphView
from onnxcp.graph.walk import all_nodes

_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
_DEFAULT_DOMAIN = ("", "ai.onnx")


@dataclass(frozen=True)
class Step:
    """One stop, or the nodes that run between two stops.

    Attributes
    ----------
    nodes
        Positions in the graph, in the order to run them; of a stop one.
    stop
        Whether this is a stop.
    reads
        Tensors from before that it needs, those that depend on nothing but constants left out.
    makes
        Those of its tensors that later steps or the graph's outputs need, and a stop's output.
    dies
        Tensors that nothing needs any more after it.
    partners
        Of a stop: the tensors that its output is summed with, which have all been made. One that
        is added twice is there twice.
    """

    nodes: tuple[int, ...]
    stop: bool
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    dies: frozenset[str]
    partners: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """The steps that make all stops and all outputs of a graph.

    Attributes
    ----------
    steps
        In their order.
    inputs
        Tensors that must be there before the first step, graph outputs among them.
    reads
        Of every node in a step the tensors that it reads, without those that depend on nothing
        but constants.
    random
        Nodes that draw random numbers.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    reads: dict[int, tuple[str, ...]]
    random: frozenset[int]


def schedule(
    model: Model,
    stops: Collection[int],
    fed: Collection[str] | None = None,
    *,
    view: GraphView | None = None,
) -> Schedule:
    """Order the nodes of a graph and cut the order at stops.

    The order is that of the graph, as far as that is sorted, but for one thing. If the output of a
    stop goes into a sum (Add, Sum, several of them in a row, Identity in between) and nowhere else,
    then whatever it is summed with is its partner, and made before it. Of two stops that meet in a
    sum the first one in the graph waits for the other, and only it has a partner: the last to be
    fitted makes good for both.

    Nodes that no stop and no output needs are left out. So are those that depend on constants only:
    a segment takes along what it needs of them.

    Parameters
    ----------
    model
        The network.
    stops
        Positions of nodes in its main graph.
    fed
        Names of the inputs that are given values. By default all that are not initializers.
    view
        A view of the main graph, if there is one already.
    """
    graph = model.proto.graph
    view = view or GraphView(graph)
    if fed is None:
        fed = view.input_names - view.initializers.keys() - view.sparse_initializers
    wired = _Wiring(model, view, stops, fed)
    finals = [value.name for value in graph.output]
    roots = [*stops, *(wired.made[name] for name in finals if name in wired.made)]
    needed = sorted(ancestors_first(roots, wired.before))
    partners = wired.add_partners(sorted(stops), set(needed))
    order = ancestors_first(needed, wired.before)
    read = {index: wired.reads[index] for index in order}
    used = {name for names in read.values() for name in names}.union(finals)
    return Schedule(
        steps=tuple(_steps(graph, _cut(order, stops), read, partners, set(finals))),
        inputs=tuple(name for name in dict.fromkeys(fed) if name in used),
        reads=read,
        random=wired.random.intersection(order),
    )


class _Wiring:
    """Which node must come before which, constants and what depends on them alone left out."""

    def __init__(
        self, model: Model, view: GraphView, stops: Collection[int], fed: Collection[str]
    ) -> None:
        self._view = view
        nodes = model.proto.graph.node
        everything = [reads(node) for node in nodes]
        drawing = _random_functions(model)
        self.random = frozenset(
            index for index, node in enumerate(nodes) if _is_random(node, drawing)
        )
        constants = (view.initializers.keys() | view.sparse_initializers) - set(fed)
        for index in ancestors_first(
            range(len(nodes)),
            lambda i: [view.producers[name] for name in everything[i] if name in view.producers],
        ):
            lively = index in stops or index in self.random
            if not lively and constants.issuperset(everything[index]):
                constants.update(nodes[index].output)
        self.reads = {
            index: tuple(name for name in names if name not in constants)
            for index, names in enumerate(everything)
        }
        self.made = {name: index for name, index in view.producers.items() if name not in constants}
        self._readers: dict[str, list[int]] = defaultdict(list)
        for index, names in self.reads.items():
            for name in names:
                self._readers[name].append(index)
        self._awaited: dict[int, list[int]] = defaultdict(list)

    def before(self, index: int) -> Iterator[int]:
        """Yield the nodes that must come before one."""
        yield from (self.made[name] for name in self.reads[index] if name in self.made)
        yield from self._awaited.get(index, ())

    def add_partners(self, stops: Sequence[int], needed: set[int]) -> dict[int, tuple[str, ...]]:
        """Return the partners of every stop, and let the stops wait for them."""
        result = {}
        for stop in stops:
            found = []
            for name in self._summed_with(stop, needed):
                producer = self.made.get(name)
                if producer is None:
                    found.append(name)
                elif stop not in ancestors_first([producer], self.before):
                    found.append(name)
                    self._awaited[stop].append(producer)
            result[stop] = tuple(found)
        return result

    def _summed_with(self, stop: int, needed: set[int]) -> Iterator[str]:
        """Yield what is added to the output of a stop before anything else reads it."""
        graph, tensor = self._view.graph, self._view.graph.node[stop].output[0]
        while self._view.readers[tensor] == 1 and len(self._readers[tensor]) == 1:
            (reader,) = self._readers[tensor]
            node = graph.node[reader]
            linear = node.op_type in ("Add", "Sum", "Identity") and node.domain in _DEFAULT_DOMAIN
            if not linear or reader not in needed:
                return
            for name in node.input:
                if name != tensor and name in self.reads[reader]:
                    yield name
            tensor = node.output[0]


def _random_functions(model: Model) -> set[tuple[str, str]]:
    """Return the functions of a model if any of them draws random numbers; they call each other."""
    functions = model.proto.functions
    if any(node.op_type in _RANDOM for each in functions for node in all_nodes(each.node)):
        return {(function.domain, function.name) for function in functions}
    return set()


def _is_random(node: onnx.NodeProto, functions: set[tuple[str, str]]) -> bool:
    return any(
        (each.domain, each.op_type) in functions
        or each.op_type in _RANDOM
        or (each.op_type == "Dropout" and len(each.input) > 2)  # it may be in training mode
        for each in all_nodes([node])
    )


def _cut(order: Sequence[int], stops: Collection[int]) -> Iterator[tuple[bool, list[int]]]:
    """Yield stops and the runs between them."""
    run: list[int] = []
    for index in order:
        if index not in stops:
            run.append(index)
            continue
        if run:
            yield False, run
        yield True, [index]
        run = []
    if run:
        yield False, run


def _steps(
    graph: onnx.GraphProto,
    parts: Iterator[tuple[bool, list[int]]],
    read: dict[int, tuple[str, ...]],
    partners: dict[int, tuple[str, ...]],
    finals: set[str],
) -> Iterator[Step]:
    """Yield the steps with what they read, make and leave behind."""
    pieces = []
    last: dict[str, int] = {}  # the last step to read a tensor
    for number, (stop, nodes) in enumerate(parts):
        made = dict.fromkeys(name for index in nodes for name in graph.node[index].output if name)
        needs = dict.fromkeys(name for index in nodes for name in read[index] if name not in made)
        if stop:
            needs |= dict.fromkeys(partners[nodes[0]])
        last |= dict.fromkeys(needs, number)
        pieces.append((stop, nodes, tuple(needs), tuple(made)))
    for number, (stop, nodes, needed, made_here) in enumerate(pieces):
        makes = tuple(
            name for name in made_here if stop or name in finals or last.get(name, -1) > number
        )
        dies = {
            name
            for name in (*needed, *makes)
            if last.get(name, -1) <= number and name not in finals
        }
        yield Step(
            nodes=tuple(nodes),
            stop=stop,
            reads=needed,
            makes=makes,
            dies=frozenset(dies),
            partners=partners[nodes[0]] if stop else (),
        )
