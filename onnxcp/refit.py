"""Refitting what replaces sites to the user's data, in closed form.

Sites are settled from the first to the last. Each is fitted by least squares so that from what the
already rewritten prefix delivers it makes what the original made there (asymmetric reconstruction,
Zhang et al. 2016, section 3.3), and where its output is added to others', what makes good for their
errors as well. Labels are not looked at, and nothing is trained. What is fitted on one part of the
samples is judged on another, and given up where it is no better there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.calibration.data import Data
from onnxcp.calibration.statistics import (
    Observed,
    can_observe,
    observe,
    observe_outputs,
    sample,
)
from onnxcp.calibration.stream import Stop, Stream
from onnxcp.errors import OnnxcpError
from onnxcp.factorize import Factorized
from onnxcp.graph.chain import Chain, with_kernel
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site
from onnxcp.graph.splice import splice
from onnxcp.graph.view import GraphView
from onnxcp.linalg.moments import Accumulator, Moments, penalty, ridge
from onnxcp.linalg.rectified import PENALTIES, rectified_error, rectified_targets
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.session import infer
from onnxcp.progress import Progress, silent
from onnxcp.verification import rounding_error, tolerable

Array = npt.NDArray[Any]

SCOPES = ("all", "factorised", "none")
TARGETS = ("auto", "linear")

_BATCH = 32
_FEWEST_BATCHES = 8
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, from weak to strong
_PLENTY = 4  # rows for each unknown of an output, from which on the weakest ridge will do
_FEW = 4  # unknowns of an output for each row, from which on a dense site is left alone
_SINGLE = 1024  # Gram matrices larger than this are multiplied in float32
_CLOSE = 2.0  # squared error after the cheap fit beyond which a candidate is out of the running
_FINALISTS = 2
_GAIN = 0.98  # a site that stays dense is refitted if its squared error falls below this share


@dataclass(frozen=True)
class RefitSettings:
    """How to refit.

    Attributes
    ----------
    scope
        ``"all"``: also the sites that stay as they are, where errors of others reach them;
        ``"factorised"``; or ``"none"``.
    memory_limit
        Bytes of intermediate results to keep in memory; the rest goes to a temporary folder.
    seed
        Of the drawing of rows.
    target
        ``"auto"``: where nothing but a ReLU reads a site's output, what comes out of it is fitted
        too, and taken if it is closer there; ``"linear"``: never.
    """

    scope: str = "all"
    memory_limit: int = 2**31
    seed: int = 0
    target: str = "auto"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise OnnxcpError(f"There is no refit '{self.scope}'; there are: {', '.join(SCOPES)}.")
        if self.target not in TARGETS:
            raise OnnxcpError(
                f"There is no target '{self.target}' of refits; there are: {', '.join(TARGETS)}."
            )


@dataclass(frozen=True, eq=False)
class Refit:
    """What a refit did to one site.

    Attributes
    ----------
    before, after
        Error of the site's output in the network as it is rewritten before the site, relative to
        the norm of what it should be, on samples that were not fitted to: with factors made from
        the weights alone (or the site as it was), and with what is used now.
    result
        The factors to use; None where the site stays dense.
    dense
        The site itself with other weights; None where they stay as they are, or it is factorised.
    """

    before: float
    after: float
    result: Factorized | None = None
    dense: Chain | None = None

    @property
    def chain(self) -> tuple[str, Chain] | None:
        """What the site becomes and what to call it; None where it stays as it is."""
        if self.result is not None:
            return self.result.family.name, self.result.chain
        return None if self.dense is None else ("refit", self.dense)

    @property
    def improved(self) -> bool:
        """Whether the refit was any better."""
        return self.after < self.before


def refit(
    model: Model,
    choices: Mapping[Site, Sequence[Factorized]],
    data: Data,
    machine: Machine,
    settings: RefitSettings,
    *,
    dense: Iterable[Site] = (),
    progress: Progress = silent,
) -> dict[Site, Refit]:
    """Choose among the factorisations of every site on data, and refit what was chosen.

    Parameters
    ----------
    model
        The network in which the sites were found.
    choices
        What each site may become, from its weights alone, the closest first.
    data
        Samples.
    machine
        Where to run.
    settings
        How.
    dense
        Sites that stay as they are, but may have other weights where errors of others reach them,
        if the scope of the settings is all.
    progress
        Called with what is being done.

    Returns
    -------
    dict
        For every site of `choices`, and for those of `dense` that errors reach.
    """
    sites = [*choices, *(dense if settings.scope == "all" else ())]
    size = max(1, min(_BATCH, len(data) // _FEWEST_BATCHES))
    fitter = _Fitter(model, sites, data.batch_count(size), machine, settings)
    done: dict[Site, Refit] = {}
    with Stream(
        model, sites, data.batches(size), machine, memory_limit=settings.memory_limit
    ) as stream:
        for stop in stream:
            progress(f"{stop.site.name}: refitting", len(done), len(sites))
            found = fitter.fit(stop, choices.get(stop.site, ()))
            if found is not None:
                done[stop.site] = found
            chain = None if found is None else found.chain
            stop.settle(None if chain is None else splice(stop.alone, {stop.alone_site: chain}))
    return done


class _Fitter:
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
        self._rectified = _rectified(model, sites)

    def fit(self, stop: Stop, choices: Sequence[Factorized]) -> Refit | None:
        """Return what becomes of a stop; None where it is left alone."""
        site, bias = stop.site, _bias_of(stop)
        if bias is None or self._shared[site.weight] > 1:
            return _unfitted(choices)
        if choices:
            fit = self._fit_chain if can_observe(site) else self._fit_outputs
            return fit(stop, choices, bias) or _unfitted(choices)
        if stop.diverged and can_observe(site):
            return self._fit_dense(stop, bias)
        return None

    def _pairs(self, stop: Stop) -> Iterator[tuple[Array, Array]]:
        gain = np.float32(stop.site.gain)
        return ((x, t if gain == 1 else t / gain) for x, t in stop.pairs())

    def _observe(self, stop: Stop) -> Observed | None:
        return observe(
            stop.site,
            self._pairs(stop),
            self._batches,
            biased=stop.site.bias_gain != 0,
            seed=self._settings.seed,
        )

    def _fit_dense(self, stop: Stop, bias: Array) -> Refit | None:
        """Give a site that stays as it is other weights, if that helps."""
        site, seen = stop.site, self._observe(stop)
        # With far fewer rows than unknowns of an output there is little to learn, at great cost.
        if seen is None or seen.fit[0].count < len(seen.fit[0].xx) / _FEW:
            return None
        original = site.kernel().reshape(site.outputs, -1)
        before = seen.error(original, bias)
        kernel, after = _regression(seen, original)
        if not after < _GAIN * before:
            return Refit(before**0.5, before**0.5)
        shaped, shift = kernel.reshape(site.kernel_shape), seen.best_bias(kernel)
        chain = with_kernel(site, shaped, _stored_bias(site, shift))
        return Refit(before**0.5, after**0.5, dense=chain)

    def _fit_chain(self, stop: Stop, choices: Sequence[Factorized], bias: Array) -> Refit | None:
        """Fit chains to the moments of the site's input patches, and take the best."""
        site, seen = stop.site, self._observe(stop)
        if seen is None:
            return None
        original = site.kernel().reshape(site.outputs, -1)
        goal = _regression(seen, original)[0] if stop.diverged else original
        targets = [each.reshape(-1, *site.kernel_shape[1:]) for each in np.split(goal, site.group)]
        grams = [_metric(moments) for moments in seen.fit]

        def tried(choice: Factorized, sweeps: int | None) -> _Trial:
            factors = choice.family.refine(site, choice.factors, targets, grams, sweeps)
            kernel = choice.family.kernel(site, factors).reshape(site.outputs, -1)
            return _Trial(choice, factors, seen.best_bias(kernel), seen.error(kernel))

        quick = sorted((tried(each, 0) for each in choices), key=lambda trial: trial.error)
        close = [each.choice for each in quick if each.error <= _CLOSE * quick[0].error]
        best = min((tried(each, None) for each in close[:_FINALISTS]), key=lambda t: t.error)
        plain = choices[0].kernel.reshape(site.outputs, -1)
        if self._settings.target == "auto" and site in self._rectified:
            return self._fit_rectified(stop, choices, best, (goal, grams, plain, bias))
        return self._better(stop, choices, best, seen.error(plain, bias))

    def _fit_rectified(
        self,
        stop: Stop,
        choices: Sequence[Factorized],
        linear: _Trial,
        given: tuple[Array, Sequence[Array], Array, Array],
    ) -> Refit:
        """Go on to fit what comes out of the ReLU after the site; errors are those behind it."""
        site, (goal, grams, plain, bias) = stop.site, given
        rows = sample(site, self._pairs(stop), self._batches, seed=self._settings.seed)
        family = linear.choice.family

        def outputs(kernel: Array, shift: Array) -> Array:
            parts = zip(
                np.split(rows.x, site.group, axis=1),
                np.split(kernel.astype(rows.x.dtype), site.group),
                strict=True,
            )
            return np.concatenate([x @ part.T for x, part in parts], axis=1) + shift

        def error(made: Array) -> float:
            return rectified_error(rows.target[rows.held], made[rows.held])

        def kernel_of(factors: tuple[Array, ...]) -> Array:
            return family.kernel(site, factors).reshape(site.outputs, -1)

        fitted, use = outputs(goal, np.zeros(site.outputs)), ~rows.held
        made = outputs(kernel_of(linear.factors), linear.bias)
        best = trial = replace(linear, error=error(made))
        for strength in PENALTIES:
            aims = rectified_targets(rows.target, made, strength)
            # Regressed on what the full kernel makes, not on patches: as many unknowns per output
            # as there are outputs, which a sample of rows is enough for.
            mixed = []
            size = site.outputs // site.group
            for group in range(site.group):
                part = slice(group * size, (group + 1) * size)
                moments = Accumulator(site.bias_gain != 0)
                moments.add(fitted[use, part], aims[use, part])
                found = moments.moments()
                assert found is not None
                mix = ridge(found, np.eye(size), _STRENGTHS[0])
                mixed.append(mix @ goal[part])
            targets = [each.reshape(-1, *site.kernel_shape[1:]) for each in mixed]
            factors = family.refine(site, trial.factors, targets, grams, 1)
            kernel = kernel_of(factors)
            through = outputs(kernel, np.zeros(site.outputs))
            shift = np.zeros(site.outputs)
            if site.bias_gain:
                shift = (aims[use] - through[use]).mean(axis=0, dtype=np.float64)
            made = through + shift
            trial = _Trial(linear.choice, factors, shift, error(made))
            best = min(best, trial, key=lambda each: each.error)
        return self._better(stop, choices, best, error(outputs(plain, bias)))

    def _fit_outputs(self, stop: Stop, choices: Sequence[Factorized], bias: Array) -> Refit | None:
        """Mix what a chain puts out, where its input patches cannot be looked at.

        For a chain that ends in a 1x1 convolution of fewer channels than it puts out, that is the
        exact refit of its last factor.
        """
        site, choice = stop.site, choices[0]
        plain = splice(stop.alone, {stop.alone_site: ("plain", choice.chain)})
        session = self._machine.open(plain, label=f"'{site.name}'")
        work = np.float64 if site.dtype == np.float64 else np.float32
        outputs = (infer(session, feeds)[0].astype(work) for feeds in stop.feeds())
        pairs = ((y, target) for y, (_, target) in zip(outputs, stop.pairs(), strict=True))
        seen = observe_outputs(
            site, pairs, self._batches, biased=site.bias_gain != 0, seed=self._settings.seed
        )
        if seen is None:
            return None
        same = np.tile(np.eye(site.outputs // site.group), (site.group, 1))
        mixing, error = _regression(seen, same)
        mixes = np.split(mixing, site.group)
        *others, last = choice.factors
        lasts = zip(mixes, np.split(last, site.group), strict=True)
        mixed = np.concatenate([np.tensordot(mix, part, axes=1) for mix, part in lasts])
        # What was observed had the old bias, and the gain of the whole, in it.
        shifts = zip(mixes, np.split(bias, site.group), strict=True)
        shift = np.concatenate([mix @ part for mix, part in shifts])
        added = shift + seen.best_bias(mixing) / site.gain
        trial = _Trial(choice, (*others, mixed), added, error)
        return self._better(stop, choices, trial, seen.error(same, np.zeros(site.outputs)))

    def _better(
        self, stop: Stop, choices: Sequence[Factorized], trial: _Trial, before: float
    ) -> Refit:
        """Return a fitted chain, or the one from the weights alone where that is no worse."""
        site, choice = stop.site, trial.choice
        plain = Refit(before**0.5, before**0.5, choices[0])
        if not trial.error < before:
            return plain
        bias = _stored_bias(site, trial.bias)
        result = choice.family.measured(site, choice.ranks, trial.factors, bias)
        feeds = next(stop.feeds())
        rounding = rounding_error(stop.alone, stop.alone_site, result, feeds, self._machine)
        if not tolerable(site, rounding):
            return plain
        return Refit(before**0.5, trial.error**0.5, result)


def _rectified(model: Model, sites: Iterable[Site]) -> set[Site]:
    """Return the sites whose output nothing but a ReLU reads."""
    view = GraphView(model.proto.graph)
    relus = {
        node.input[0]
        for node in model.proto.graph.node
        if node.op_type == "Relu" and node.domain in ("", "ai.onnx")
    }
    return {
        site
        for site in sites
        if site.output in relus and view.readers[site.output] == 1 and site.gain > 0
    }


def _unfitted(choices: Sequence[Factorized]) -> Refit | None:
    """Return the choice from the weights alone, of which no error is known."""
    return Refit(math.nan, math.nan, choices[0]) if choices else None


@dataclass(frozen=True, eq=False)
class _Trial:
    """Factors that were fitted, the bias that goes with them, and their squared error."""

    choice: Factorized
    factors: tuple[Array, ...]
    bias: Array
    error: float


def _regression(seen: Observed, prior: Array) -> tuple[Array, float]:
    """Regress targets on inputs, group by group, with a ridge as strong as held-out data ask for.

    Returns the kernel ``(T, P)`` and its squared error.
    """
    best: tuple[Array, float] | None = None
    priors = np.split(prior, len(seen.fit))
    plenty = all(moments.count >= _PLENTY * len(moments.xx) for moments in seen.fit)
    for strength in _STRENGTHS[:1] if plenty else _STRENGTHS:
        groups = zip(seen.fit, priors, strict=True)
        kernel = np.concatenate([ridge(moments, each, strength) for moments, each in groups])
        error = seen.error(kernel)
        if best is not None and error >= best[1]:
            break
        best = kernel, error
    assert best is not None
    return best


def _metric(moments: Moments) -> Array:
    """Return the covariance of input patches, positive definite, in the type to work in."""
    size = len(moments.xx)
    gram = moments.xx + penalty(moments, _STRENGTHS[0]) * np.eye(size)
    return gram.astype(np.float32) if size > _SINGLE else gram


def _bias_of(stop: Stop) -> Array | None:
    """Return what a site adds to its product, over its gain: zeros where it adds nothing.

    None where that is not known beforehand, or no vector of one entry per output channel.
    """
    site, alone = stop.site, stop.alone_site
    if not site.gain:
        return None
    if alone.bias is None:
        return np.zeros(site.outputs)
    value = GraphView(stop.alone.proto.graph).constant(alone.bias)
    if value is None:
        return None
    row = np.asarray(value, np.float64) * (site.bias_gain / site.gain)
    if row.size == 1:
        return np.full(site.outputs, row.reshape(-1)[0])
    if row.ndim == 0 or row.shape[-1] != site.outputs or row.size != site.outputs:
        return None
    return row.reshape(-1)


def _stored_bias(site: Site, bias: Array) -> Array | None:
    """Return the tensor that makes a site's operator add `bias` times its gain."""
    if not site.bias_gain:
        return None
    return np.asarray(bias * (site.gain / site.bias_gain))
