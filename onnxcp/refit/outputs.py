"""Fits from the covariances of outputs, where those of input patches are not to be had.

What the site itself makes of the inputs it now has, and what a chain makes of them, have as many
entries as the site has output channels, whatever its patches are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.calibration.statistics import Observed, observe_outputs
from onnxcp.calibration.stream import Stop
from onnxcp.factorize import Factorized
from onnxcp.graph.model import Model
from onnxcp.graph.splice import splice
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.session import infer
from onnxcp.refit.regression import Trial, regression

Array = npt.NDArray[Any]


class MixedOutputs:
    """Fits chains in a stop's place by what comes out of the site, or of them.

    Parameters
    ----------
    stop
        The stop.
    bias : (T,) ndarray
        What the site adds to its product, over its gain.
    batches
        How many batches there are.
    machine
        Where to run.
    seed
        Of the drawing of rows.
    """

    def __init__(
        self, stop: Stop, bias: Array, batches: int, machine: Machine, seed: int = 0
    ) -> None:
        self._stop = stop
        self._site = stop.site
        self._bias = bias
        self._batches = batches
        self._machine = machine
        self._seed = seed

    def fit(self, choices: Sequence[Factorized]) -> tuple[Trial, float] | None:
        """Return the best fit, and the squared error that its choice has as it is.

        None where there are too few samples, or values that are not finite.
        """
        site, choice = self._site, choices[0]
        plain = splice(self._stop.alone, {self._stop.alone_site: ("plain", choice.chain)})
        seen = self._observe(plain)
        if seen is None:
            return None
        same = np.tile(np.eye(site.outputs // site.group), (site.group, 1))
        before = seen.error(same, np.zeros(site.outputs))
        best = self._last_factor(choice, seen, same)
        whole = [each for each in choices if each.family.cuts_outputs]
        seen = self._observe(self._stop.alone) if whole else None
        if seen is not None:
            cuts = [self._cut(each, seen, same) for each in whole]
            best = min(best, *cuts, key=lambda trial: trial.error)
        # The winner comes out as if it had had no rivals.
        return (best, before) if best.choice is choice else self.fit([best.choice])

    def _last_factor(self, choice: Factorized, seen: Observed, same: Array) -> Trial:
        """Mix what the chain puts out.

        For a chain that ends in a 1x1 convolution of fewer channels than it puts out, that is the
        exact refit of its last factor.
        """
        mixing, error = regression(seen, same)
        factors = choice.family.mixed(self._site, choice.factors, mixing)
        return Trial(choice, factors, self._shift(mixing, seen), error)

    def _cut(self, choice: Factorized, seen: Observed, same: Array) -> Trial:
        """Regress the targets on what the site itself makes, at a reduced rank."""
        mixings = np.split(regression(seen, same)[0], self._site.group)
        covariances = [moments.xx for moments in seen.fit]
        factors, kept = choice.family.cut(self._site, choice.ranks, mixings, covariances)
        return Trial(choice, factors, self._shift(kept, seen), seen.error(kept))

    def _observe(self, model: Model) -> Observed | None:
        """Observe what a model in the stop's place makes of the rewritten network's tensors."""
        site = self._site
        session = self._machine.open(model, label=f"'{site.name}'")
        work = np.float64 if site.dtype == np.float64 else np.float32
        outputs = (infer(session, feeds)[0].astype(work) for feeds in self._stop.feeds())
        pairs = ((y, target) for y, (_, target) in zip(outputs, self._stop.pairs(), strict=True))
        return observe_outputs(
            site, pairs, self._batches, biased=site.bias_gain != 0, seed=self._seed
        )

    def _shift(self, mixing: Array, seen: Observed) -> Array:
        """Return the bias over the gain: what was observed had the old one, and the gain, in it."""
        groups = self._site.group
        shifts = zip(np.split(mixing, groups), np.split(self._bias, groups), strict=True)
        moved = np.concatenate([mix @ part for mix, part in shifts])
        return moved + seen.best_bias(mixing) / self._site.gain
