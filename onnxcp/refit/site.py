"""The fit of one site after the other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.calibration.statistics import Observed, can_observe, sample
from onnxcp.calibration.stream import Stop
from onnxcp.factorize import Factorized, Factors
from onnxcp.graph.chain import with_kernel
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site
from onnxcp.profiling.machine import Machine
from onnxcp.refit.activation import BehindActivation, activations_behind
from onnxcp.refit.outputs import MixedOutputs
from onnxcp.refit.regression import Trial, metric, regression
from onnxcp.refit.result import Refit, RefitSettings
from onnxcp.refit.stops import bias_of, observe_stop, pairs_of, stored_bias
from onnxcp.verification import rounding_error, tolerable

Array = npt.NDArray[Any]

_FEW = 4  # unknowns of an output for each row, from which on a dense site is left alone
_CLOSE = 2.0  # squared error after the cheap fit beyond which a candidate is out of the running
_FINALISTS = 2
_HEAT = 1  # sweeps after which the best of the finalists goes on alone
_GAIN = 0.98  # a site that stays dense is refitted if its squared error falls below this share


class Fitter:
    """Fits what replaces a stop, one after the other."""

    def __init__(
        self,
        model: Model,
        sites: Sequence[Site],
        batches: int,
        machine: Machine,
        settings: RefitSettings,
    ) -> None:
        self._machine = machine
        self._batches = batches
        self._settings = settings
        self._shared = Counter(site.weight for site in sites)
        linear = settings.target == "linear"
        self._activations = {} if linear else activations_behind(model, sites)

    def fit(self, stop: Stop, choices: Sequence[Factorized]) -> Refit | None:
        """Return what becomes of a stop; None where it is left alone."""
        site, bias = stop.site, bias_of(stop)
        if bias is None or self._shared[site.weight] > 1:
            return _unfitted(choices)
        if choices:
            if can_observe(site):
                return self._fit_chain(stop, choices, bias) or _unfitted(choices)
            choices = [each for each in choices if each.family.mixes_outputs] or choices
            if not choices[0].family.mixes_outputs:
                return _unfitted(choices)
            return self._fit_outputs(stop, choices, bias) or _unfitted(choices)
        if stop.diverged and can_observe(site):
            return self._fit_dense(stop, bias)
        return None

    def _observe(self, stop: Stop) -> Observed | None:
        return observe_stop(stop, self._batches, seed=self._settings.seed)

    def _fit_dense(self, stop: Stop, bias: Array) -> Refit | None:
        """Give a site that stays as it is other weights, if that helps."""
        site, seen = stop.site, self._observe(stop)
        # With far fewer rows than unknowns of an output there is little to learn, at great cost.
        if seen is None or seen.fit[0].count < len(seen.fit[0].xx) / _FEW:
            return None
        original = site.kernel().reshape(site.outputs, -1)
        before = seen.error(original, bias)
        kernel, after = regression(seen, original)
        if not after < _GAIN * before:
            return Refit(before**0.5, before**0.5)
        shaped, shift = kernel.reshape(site.kernel_shape), seen.best_bias(kernel)
        chain = with_kernel(site, shaped, stored_bias(site, shift))
        return Refit(before**0.5, after**0.5, dense=chain)

    def _fit_chain(self, stop: Stop, choices: Sequence[Factorized], bias: Array) -> Refit | None:
        """Fit chains to the moments of the site's input patches, and take the best."""
        site, seen = stop.site, self._observe(stop)
        if seen is None:
            return None
        original = site.kernel().reshape(site.outputs, -1)
        goal = regression(seen, original)[0] if stop.diverged else original
        targets = [each.reshape(-1, *site.kernel_shape[1:]) for each in np.split(goal, site.group)]
        grams = [metric(moments) for moments in seen.fit]

        def fitted(choice: Factorized, factors: Factors, sweeps: int | None) -> Trial:
            factors = choice.family.refine(site, factors, targets, grams, sweeps)
            kernel = choice.family.kernel(site, factors).reshape(site.outputs, -1)
            return Trial(choice, factors, seen.best_bias(kernel), seen.error(kernel))

        def best(trials: Iterable[Trial]) -> list[Trial]:
            return sorted(trials, key=lambda trial: trial.error)

        begun = [fitted(choice, choice.factors, 0) for choice in choices]
        running = best(begun)
        running = [each for each in running if each.error <= _CLOSE * running[0].error]
        if len(running) > 1:
            finalists = running[:_FINALISTS]
            running = best(fitted(each.choice, each.factors, _HEAT) for each in finalists)
        # From the start, so that the winner comes out as if it had had no rivals.
        winner = next(each for each in begun if each.choice is running[0].choice)
        choice = winner.choice
        white = choice.family.whitened(site, choice.ranks, targets, grams)
        if white is not None:
            winner = best([winner, fitted(choice, white, 0)])[0]
        winner = best([winner, fitted(choice, winner.factors, None)])[0]
        judge: Callable[[Array, Array], float] = seen.error
        if site in self._activations:
            rows = sample(site, pairs_of(stop), self._batches, seed=self._settings.seed)
            if rows is not None:
                behind = BehindActivation(site, self._activations[site], rows)
                winner, judge = behind.fit(winner, goal, grams), behind.error
        own, before = (
            judge(choice.kernel.reshape(site.outputs, -1), bias)
            for choice in (winner.choice, choices[0])
        )
        if winner.choice is not choices[0] and min(winner.error, own) >= before:
            return self._fit_chain(stop, choices[:1], bias)
        tried = {each.choice.family: each.error for each in begun}
        return replace(self._better(stop, winner, own), before=before**0.5, tried=tried)

    def _fit_outputs(self, stop: Stop, choices: Sequence[Factorized], bias: Array) -> Refit | None:
        """Fit chains to what comes out, where the site's input patches cannot be looked at."""
        seed = self._settings.seed
        mixed = MixedOutputs(stop, bias, self._batches, self._machine, seed).fit(choices)
        return None if mixed is None else self._better(stop, *mixed)

    def _better(self, stop: Stop, trial: Trial, before: float) -> Refit:
        """Return a fitted chain, or what it came from where that is no worse."""
        site, choice = stop.site, trial.choice
        plain = Refit(before**0.5, before**0.5, choice)
        if not trial.error < before:
            return plain
        bias = stored_bias(site, trial.bias)
        result = choice.family.measured(site, choice.ranks, trial.factors, bias)
        feeds = next(stop.feeds())
        rounding = rounding_error(stop.alone, stop.alone_site, result, feeds, self._machine)
        if not tolerable(site, rounding):
            return plain
        return Refit(before**0.5, trial.error**0.5, result)


def _unfitted(choices: Sequence[Factorized]) -> Refit | None:
    """Return the choice from the weights alone, of which no error is known."""
    return Refit(math.nan, math.nan, choices[0]) if choices else None
