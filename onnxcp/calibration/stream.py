"""Walking through a network and its rewrite together, once, stopping at sites.

All samples pass a node before any passes the next stop. So at a stop it is known what the site is
given in the network that is rewritten up to here, and what it ought to put out: that of the
original, and where its output is summed with others, also what makes good for their errors. That is
asymmetric reconstruction (Zhang et al., "Accelerating very deep convolutional networks", 2016,
section 3.3) extended over the sums of residual networks. Every node runs once per sample and
network, and once for both as long as nothing before it was replaced.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Set
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnxcp.calibration.store import Store
from onnxcp.calibration.tensors import ORIGINAL, REWRITTEN, Tensors
from onnxcp.calibration.values import Shape, run_session, value_type, with_extents
from onnxcp.errors import DataError, ModelError
from onnxcp.graph.alone import INPUT
from onnxcp.graph.model import Model
from onnxcp.graph.schedule import Step, schedule
from onnxcp.graph.segment import BIAS, segment, take_out
from onnxcp.graph.site import Site
from onnxcp.graph.view import GraphView
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.session import Feeds
from onnxcp.progress import Progress, silent

Array = npt.NDArray[Any]


class Stream:
    """A walk through a network and its rewrite: iterate over its stops, and settle each.

    A context manager; when it ends, what it kept on disk is gone.

    Parameters
    ----------
    model
        The original network.
    stops
        Sites of it, in any order.
    batches
        Feeds of the network. A batch goes through it as it is: none is split or joined.
    machine
        Where to run.
    memory_limit
        How many bytes of intermediate results to keep in memory; the rest goes to disk. What one
        batch takes in the part of the network between two stops comes on top.
    progress
        Told of every stop.
    """

    def __init__(
        self,
        model: Model,
        stops: Sequence[Site],
        batches: Iterable[Feeds],
        machine: Machine,
        *,
        memory_limit: int = 2**31,
        progress: Progress = silent,
    ) -> None:
        self._model = model
        self._sites = {site.index: site for site in stops}
        self._batches = batches
        self._machine = machine
        self._progress = progress
        self._view = GraphView(model.proto.graph)
        self._label = f"'{model.name}'"
        self._store = Store(memory_limit)
        self._tensors = Tensors(self._store)
        self._fed: frozenset[str] = frozenset()
        self._reads: dict[int, tuple[str, ...]] = {}
        self._random: frozenset[int] = frozenset()
        self._types: dict[str, onnx.TypeProto] = {}
        self._constants: dict[str, Any] = {}
        self._walk = self._steps()

    def __enter__(self) -> Stream:
        self._store.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._walk.close()
        self._tensors.clear()
        self._store.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[Stop]:
        """Go on to the next stop. One that was not settled keeps its site.

        Raises
        ------
        DataError
            If the batches do not have the inputs of the network, or there are none.
        ModelError
            If ONNX Runtime cannot run the network.
        OutputError
            If there is no room on disk for what exceeds the memory limit.
        """
        return self._walk

    def outputs(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield, for every batch, the outputs of the original and of the rewritten network.

        Stops that are still ahead are passed, and keep their sites.
        """
        for _ in self._walk:
            pass
        names = [output.name for output in self._model.proto.graph.output]
        for batch in range(len(self._tensors)):
            original, rewritten = (
                {name: self._value(batch, name, network) for name in names}
                for network in (ORIGINAL, REWRITTEN)
            )
            yield original, rewritten

    def _steps(self) -> Generator[Stop, None, None]:
        steps = self._begin()
        for done, step in enumerate(steps):
            if not step.stop:
                self._run(step)
                continue
            site = self._sites[step.nodes[0]]
            self._progress(f"running up to {site.name}", done, len(steps))
            stop = Stop(self, site, step.partners)
            yield stop
            if not stop.settled:
                stop.settle(None)
            self._tensors.free(step.dies)

    def _begin(self) -> tuple[Step, ...]:
        """Take all batches in, and plan the walk for the inputs that they have."""
        inputs = {value.name: value.type for value in self._model.proto.graph.input}
        plan = None
        for batch in self._batches:
            if plan is None:
                self._fed = frozenset(batch)
                plan = schedule(self._model, self._sites.keys(), self._fed, view=self._view)
            _check_names(self._label, batch.keys(), self._fed, self._view)
            self._tensors.add_batch({name: batch[name] for name in plan.inputs})
        if plan is None:
            raise DataError(f"There are no samples to run {self._label} on.")
        for index, site in self._sites.items():
            if site.weight in plan.reads[index]:
                raise DataError(f"The data feed '{site.weight}', the weight of '{site.name}'.")
        self._types |= {name: inputs[name] for name in plan.inputs}
        self._reads, self._random = plan.reads, plan.random
        return plan.steps

    def _run(self, step: Step) -> None:
        """Run the nodes of a step: those that no replacement reaches once for both networks."""
        shared: list[int] = []
        apart: list[int] = []
        for index in step.nodes:
            reached = not self._tensors.diverged.isdisjoint(self._reads[index])
            (apart if reached else shared).append(index)
            if reached:
                self._tensors.diverged.update(self._made_by([index]))
        needed = {name for index in apart for name in self._reads[index]}
        if shared:
            self._run_nodes(shared, needed.union(step.makes), step.dies - needed)
        if apart:
            passed = needed.intersection(self._made_by(shared)).difference(step.makes)
            self._run_nodes(apart, set(step.makes), (step.dies & needed) | passed)

    def _run_nodes(self, nodes: Sequence[int], wanted: Set[str], dying: Set[str]) -> None:
        """Run nodes that are all reached by replacements, or none of them."""
        made = self._made_by(nodes)
        outputs = [name for name in made if name in wanted]
        inputs = dict.fromkeys(
            name for index in nodes for name in self._reads[index] if name not in made
        )
        try:
            shapes = {name: self._tensors.shapes(name) for name in inputs}
            part = self._part(nodes, shapes, outputs)
            session = self._open(part)
        except ModelError:
            # The branch of an If that is never taken need not fit the shapes that were seen.
            part = self._part(nodes, dict.fromkeys(inputs, ()), outputs)
            session = self._open(part)
        self._types |= {value.name: value_type(value.type) for value in session.get_outputs()}
        sessions = [session]
        if not self._tensors.diverged.isdisjoint(outputs):
            # Sessions of one model draw the same random numbers, each from the first one on.
            draws = not self._random.isdisjoint(nodes)
            sessions.append(self._open(part) if draws else session)
        for batch in range(len(self._tensors)):
            for network, each in enumerate(sessions):
                feeds = {name: self._tensors.get(batch, name, network) for name in inputs}
                results = run_session(each, feeds, self._label)
                self._tensors.put(batch, dict(zip(outputs, results, strict=True)), network)
            self._tensors.free(dying, batch)

    def _part(
        self, nodes: Sequence[int], inputs: Mapping[str, Iterable[Shape]], outputs: Sequence[str]
    ) -> Model:
        types = {name: with_extents(self._types[name], seen) for name, seen in inputs.items()}
        return segment(self._model, nodes, types, outputs, view=self._view)

    def _made_by(self, nodes: Iterable[int]) -> dict[str, None]:
        graph = self._model.proto.graph
        return dict.fromkeys(name for index in nodes for name in graph.node[index].output if name)

    def _open(self, model: Model) -> ort.InferenceSession:
        return self._machine.open(model, label=self._label)

    def _value(self, batch: int, name: str, network: int) -> Any:
        if name in self._types:
            return self._tensors.get(batch, name, network)
        if name not in self._constants:
            session = self._open(segment(self._model, [], {}, [name], view=self._view))
            (self._constants[name],) = run_session(session, {}, self._label)
        return self._constants[name]


class Stop:
    """A site that the walk has come to.

    Attributes
    ----------
    site
        The site, of the original network.
    alone, alone_site
        A model of the site's node by itself, which makes ``y`` of ``x`` with the site's weight and
        bias, and the site found in it. If the bias is not constant it is another input, ``b``.
    partners
        Tensors that are added to what the site puts out, whose errors are part of its target.
    diverged
        Whether at the site's inputs or at a partner the rewritten network differs from the
        original.
    settled
        Whether it was told what becomes of the site.
    """

    def __init__(self, stream: Stream, site: Site, partners: Sequence[str]) -> None:
        self.site = site
        self.alone, self.alone_site = take_out(stream._model, site, stream._fed, view=stream._view)
        self.settled = False
        self._dtype = np.float64 if site.dtype == np.float64 else np.float32
        self._stream, self._tensors = stream, stream._tensors
        names = [INPUT, BIAS] if len(self.alone.proto.graph.input) == 2 else [INPUT]
        self._inputs = dict(zip(names, (site.input, site.bias or ""), strict=False))
        self._session = stream._open(self.alone)
        kind = self._session.get_outputs()[0].type
        stream._types[site.output] = value_type(kind)
        self._run(self._session, ORIGINAL)
        self.partners = tuple(name for name in partners if self._fits(name))
        self.diverged = not self._tensors.diverged.isdisjoint(
            (*self._inputs.values(), *self.partners)
        )

    def feeds(self) -> Iterator[dict[str, Array]]:
        """Yield, for every batch, what `alone` is given in the rewritten network."""
        return (self._feeds(batch, REWRITTEN) for batch in range(len(self._tensors)))

    def pairs(self) -> Iterator[tuple[Array, Array]]:
        """Yield, for every batch, what the site is given and what it ought to make of that.

        The first is its input in the rewritten network; the second its output in the original,
        plus what its partners lack in the rewritten one. Both in float32, or float64 where the site
        is so; do not write to them. Where the two networks put so different shapes here that one
        does not belong to the other, the first is the input in the original.
        """
        for batch, target in enumerate(self.originals()):
            x, now = (self._feeds(batch, network)[INPUT] for network in (ORIGINAL, REWRITTEN))
            if x.shape == now.shape:
                x = now
            for name in self.partners:
                if name in self._tensors.diverged:
                    right, wrong = (
                        self._work(self._tensors.get(batch, name, network))
                        for network in (ORIGINAL, REWRITTEN)
                    )
                    target = target + (right - wrong)
            yield self._work(x), target

    def originals(self) -> Iterator[Array]:
        """Yield, for every batch, the output of the site in the original network."""
        for batch in range(len(self._tensors)):
            yield self._work(self._tensors.get(batch, self.site.output, ORIGINAL))

    def settle(self, replacement: Model | None) -> None:
        """Say what becomes of the site; the walk goes on from there.

        Parameters
        ----------
        replacement
            A model with the inputs and outputs of `alone`. None keeps the site as it is.

        Raises
        ------
        ModelError
            If ONNX Runtime cannot run the replacement.
        """
        assert not self.settled, f"'{self.site.name}' is settled already"
        self.settled = True
        session = self._session if replacement is None else self._stream._open(replacement)
        if replacement is not None or not self._tensors.diverged.isdisjoint(self._inputs.values()):
            self._run(session, REWRITTEN)
            self._tensors.diverged.add(self.site.output)
        del self._session  # which holds the weight

    def _run(self, session: ort.InferenceSession, network: int) -> None:
        for batch in range(len(self._tensors)):
            feeds = self._feeds(batch, network)
            (result,) = run_session(session, feeds, f"'{self.site.name}'")
            self._tensors.put(batch, {self.site.output: result}, network)

    def _feeds(self, batch: int, network: int) -> dict[str, Array]:
        value = self._stream._value
        return {key: value(batch, name, network) for key, name in self._inputs.items()}

    def _fits(self, partner: str) -> bool:
        """Tell whether a partner is added element by element, in every batch."""
        return all(
            self._tensors.shape(batch, partner, network)
            == self._tensors.shape(batch, self.site.output, ORIGINAL)
            for batch in range(len(self._tensors))
            for network in (ORIGINAL, REWRITTEN)
        )

    def _work(self, values: Array) -> Array:
        return values.astype(self._dtype, copy=False)


def _check_names(label: str, given: Set[str], first: Set[str], view: GraphView) -> None:
    """Check that a batch has the inputs of a network, and those of the first batch."""
    wanted = view.input_names - view.initializers.keys() - view.sparse_initializers
    missing = sorted((wanted | first) - given)
    unknown = sorted(given - (view.input_names & first))
    if missing or unknown:
        what = f"lacks '{missing[0]}'" if missing else f"has '{unknown[0]}' too many"
        raise DataError(f"A batch of samples for {label} {what}.")
