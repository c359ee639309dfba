"""What options cost on this machine, measured in graphs of one site each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcp.factorize import Factorized
from onnxcp.graph.alone import INPUT, isolate
from onnxcp.graph.chain import Chain, ConvStep, MatrixStep, Step, step_weight
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site
from onnxcp.graph.splice import splice
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.session import Runner
from onnxcp.profiling.timing import Trial, paired
from onnxcp.verification import rounding_error

_ROUNDS = 16
_MIN_SECONDS = 0.1
_MAX_SECONDS = 2.0


class SiteBench:
    """Times chains against the one site that they may replace, each in a graph by itself.

    The site's session is opened once and serves all of its options. What reordering of memory
    costs at the borders of such a graph is paid by both sides, so a ratio is on the safe side of
    what a whole network, where borders vanish, will show.

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
        values = np.random.default_rng(0).standard_normal(input_shape, dtype=np.float32)
        self._feeds = {INPUT: values.astype(site.dtype)}
        self._dense = self._runner(self._alone)

    def trial(self, chain: Chain) -> Trial:
        """Time the site against a chain of this shape; the chain's own weights do not matter."""
        ordinary = Chain(tuple(_with_random_weight(step) for step in chain.steps))
        model = splice(self._alone, {self._site: ("chain", ordinary)})
        return paired(
            self._dense.run,
            self._runner(model).run,
            rounds=_ROUNDS,
            min_seconds=_MIN_SECONDS,
            max_seconds=_MAX_SECONDS,
        )

    def rounding_error(self, result: Factorized) -> float:
        """Return what a chain loses to rounding, as of `onnxcp.verification`."""
        return rounding_error(self._alone, self._site, result, self._feeds, self._machine)

    def _runner(self, model: Model) -> Runner:
        label = f"'{self._name}' alone"
        return Runner(self._machine.open(model, label=label), self._feeds, label=label)


def _with_random_weight(step: Step) -> Step:
    """Fill a sketch: zeros could be skipped or fall to denormal numbers, random weights cannot."""
    weight = step_weight(step)
    fan_in = int(np.prod(weight.shape[1:]))
    rng = np.random.default_rng(weight.size)
    values = rng.standard_normal(weight.shape, dtype=np.float32) / np.sqrt(np.float32(fan_in))
    if isinstance(step, ConvStep):
        return ConvStep(values, step.geometry, step.group)
    return MatrixStep(values)
