"""What options cost on this machine, measured in graphs of one site each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxcp.factorize import Factorized
from onnxcp.graph.alone import INPUT, isolate
from onnxcp.graph.chain import Chain, ConvStep, MatrixStep, PickStep, Step, step_weight
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site
from onnxcp.graph.splice import splice
from onnxcp.planning.cache import Cache
from onnxcp.planning.offer import Offer, anchors
from onnxcp.precision.alone import at_precision, random_input
from onnxcp.profiling.environment import describe
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.session import Runner
from onnxcp.profiling.timing import Trial, in_turns
from onnxcp.verification import rounding_error

WORTHWHILE = 1.05
"""An option must beat its site by this factor; less is lost again in a network."""

_ROUNDS = 16
_MIN_SECONDS = 0.1
_MAX_SECONDS = 2.0
_TABLE_SECONDS = 0.6  # where many are timed, and the whole network corrects them


@dataclass(frozen=True)
class Timing:
    """A site against a chain in its place, each alone in a graph.

    Attributes
    ----------
    before, after
        Seconds of the site and of the chain: medians.
    low, high
        95 % interval of how many times faster the chain is.
    measured
        Whether this very chain was timed; the time of others is interpolated between chains of the
        same family that cost less and more, and so is the interval.
    """

    before: float
    after: float
    low: float
    high: float
    measured: bool = True

    @property
    def ratio(self) -> float:
        """How many times faster the chain is."""
        return self.before / self.after

    @property
    def saving(self) -> float:
        """Seconds that the chain saves; what borders of such a graph cost is on both sides."""
        return self.before - self.after

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x ({self.low:.2f} to {self.high:.2f})"


class SiteBench:
    """Times chains against the one site that they may replace, each in a graph by itself.

    The site's session is opened once and serves all of its options. What reordering of memory
    costs at the borders of such a graph is paid by both sides, so a ratio is on the safe side of
    what a whole network, where borders vanish, will show. All of them run in the precision of the
    machine.

    Parameters
    ----------
    model, site
        The model and a site found in it.
    input_shape
        Shape of what the site reads, batch included.
    machine
        Where to run.
    """

    def __init__(
        self, model: Model, site: Site, input_shape: Sequence[int], machine: Machine
    ) -> None:
        self._machine = machine
        self._name = site.name
        self._alone, self._site = isolate(model, site, input_shape)
        self._shape = tuple(input_shape)
        self._dense = self._runner(self._alone)

    def trials(self, chains: Sequence[Chain], max_seconds: float = _MAX_SECONDS) -> list[Trial]:
        """Time the site against chains of such shapes; their own weights do not matter.

        On a busy machine it takes up to `max_seconds` for each.
        """
        runners = [
            self._runner(splice(self._alone, {self._site: ("chain", with_random_weights(chain))}))
            for chain in chains
        ]
        return in_turns(
            [self._dense.run, *(runner.run for runner in runners)],
            rounds=_ROUNDS,
            min_seconds=_MIN_SECONDS,
            max_seconds=max_seconds * len(chains),
        )

    def rounding_error(self, result: Factorized) -> float:
        """Return what a chain loses to rounding, as of `onnxcp.verification`."""
        feeds = {INPUT: random_input(self._alone, self._shape)}
        return rounding_error(self._alone, self._site, result, feeds, self._machine)

    def _runner(self, model: Model) -> Runner:
        label = f"'{self._name}' alone"
        model = at_precision(model, self._machine.precision)
        feeds = {INPUT: random_input(model, self._shape)}
        return Runner(self._machine.open(model, label=label), feeds, label=label)


class LatencyTable:
    """What offers cost, measured at few ranks of each family and kept for the next time.

    Parameters
    ----------
    model
        The network.
    shapes
        Shapes of tensors, by name; batch included.
    machine
        Where to time.
    cache
        What was measured before on such a machine.
    """

    def __init__(
        self, model: Model, shapes: Mapping[str, Sequence[int]], machine: Machine, cache: Cache
    ) -> None:
        self._model = model
        self._shapes = shapes
        self._machine = machine
        self._cache = cache
        self._place = asdict(describe(machine))

    def timings(self, site: Site, ladders: Sequence[Sequence[Offer]]) -> dict[Offer, Timing]:
        """Time the ladders of several families at a site.

        A family whose cheapest chain is no faster is not looked at any further.

        Parameters
        ----------
        site
            The site.
        ladders
            For each family, its offers from cheap to dear.

        Returns
        -------
        dict
            For the offers of the families that are faster at all, and for the cheapest of others.

        Raises
        ------
        ModelError
            If the site cannot be run alone.
        """
        found = self._measure(site, [each[0] for each in ladders])
        going_on = [each for each in ladders if found[each[0]].ratio >= WORTHWHILE]
        found |= self._measure(site, [a for each in going_on for a in anchors(each)[1:]])
        for offers in going_on:
            for offer in offers:
                found.setdefault(offer, _between(offer, [(a, found[a]) for a in anchors(offers)]))
        return found

    def _measure(self, site: Site, offers: Sequence[Offer]) -> dict[Offer, Timing]:
        found: dict[Offer, Timing] = {}
        for offer in offers:
            kept = self._cache.get("latency", self._key(site, offer))
            if kept is not None:
                found[offer] = Timing(*kept)
        missing = [offer for offer in offers if offer not in found]
        if missing:
            bench = SiteBench(self._model, site, self._shapes[site.input], self._machine)
            trials = bench.trials([offer.sketch for offer in missing], _TABLE_SECONDS)
            for offer, trial in zip(missing, trials, strict=True):
                found[offer] = timing = timing_of(trial)
                values = [timing.before, timing.after, timing.low, timing.high]
                # On disk a machine that was busy once would be so for ever.
                self._cache.put("latency", self._key(site, offer), values, lasting=trial.clean)
        return found

    def _key(self, site: Site, offer: Offer) -> dict[str, Any]:
        """Return all that a latency depends on."""
        return {
            "place": self._place,
            "opset": max((each.version for each in self._model.proto.opset_import), default=0),
            "op": site.op,
            "kernel": site.kernel_shape,
            "geometry": _geometry_key(site.geometry),
            "attributes": {name: str(value) for name, value in site.attributes.items()},
            "left": site.weight_on_left,
            "bias": site.bias is not None,
            "group": site.group,
            "type": str(site.dtype),
            "input": self._shapes[site.input],
            "chain": [[_step_key(step) for step in row] for row in offer.sketch.rows],
        }


def timing_of(trial: Trial) -> Timing:
    """Return what a trial of a site (a) against a chain (b) says."""
    return Timing(trial.a.median, trial.b.median, trial.low, trial.high)


def with_random_weights(chain: Chain, seed: int = 0) -> Chain:
    """Fill a sketch: zeros could be skipped or fall to denormal numbers, random weights cannot.

    Chains of one network need seeds of their own: ONNX Runtime makes one of equal weights, and in
    half precision leaves nodes that share a weight in a slower layout.
    """
    rng = np.random.default_rng(seed)
    steps, *beside = (tuple(_with_random_weight(step, rng) for step in row) for row in chain.rows)
    return Chain(steps, beside=tuple(beside))


def _between(offer: Offer, measured: Sequence[tuple[Offer, Timing]]) -> Timing:
    """Interpolate over multiply-adds: chains of one family differ in the width of their steps."""
    macs = [each.macs for each, _ in measured]

    def at(values: Sequence[float]) -> float:
        return float(np.interp(offer.macs, macs, values))

    before = float(np.median([timing.before for _, timing in measured]))
    # Intervals are of ratios, whose inverse it is that grows with the multiply-adds.
    shares = [timing.after / timing.before for _, timing in measured]
    low, high = (1 / at([1 / side for side in sides]) for sides in _intervals(measured))
    return Timing(before, before * at(shares), low, high, measured=False)


def _intervals(
    measured: Sequence[tuple[Offer, Timing]],
) -> tuple[list[float], list[float]]:
    return [timing.low for _, timing in measured], [timing.high for _, timing in measured]


def _geometry_key(geometry: Geometry | None) -> Any:
    return None if geometry is None else {k: str(v) for k, v in asdict(geometry).items()}


def _step_key(step: Step) -> Any:
    if isinstance(step, ConvStep):
        return step.kernel.shape, step.group, _geometry_key(step.geometry)
    return step_weight(step).shape


def _with_random_weight(step: Step, rng: np.random.Generator) -> Step:
    if isinstance(step, PickStep):
        return step
    weight = step_weight(step)
    fan_in = int(np.prod(weight.shape[1:]))
    values = rng.standard_normal(weight.shape, dtype=np.float32) / np.sqrt(np.float32(fan_in))
    if isinstance(step, ConvStep):
        return ConvStep(values, step.geometry, step.group)
    return MatrixStep(values)
