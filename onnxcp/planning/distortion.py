"""What options do to the outputs of a network, from a few probes.

An option's own error is that of its site's output: on the user's data where there are any, else
that of its weights. How much it matters is found by putting one chain into the network for each
site, and looking at what comes out; errors of several sites are taken to add up. That is a model:
the final network is compared with the original as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcp.calibration.statistics import Observed, can_observe
from onnxcp.calibration.stream import Stop, Stream
from onnxcp.factorize import Factorized
from onnxcp.graph.chain import Chain
from onnxcp.graph.digest import array_digest, model_digest
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site
from onnxcp.graph.splice import splice
from onnxcp.planning.cache import Cache
from onnxcp.planning.offer import Offer, anchors
from onnxcp.profiling.compare import Batch, compare, first_samples
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.session import infer
from onnxcp.progress import Progress, silent
from onnxcp.refit.regression import metric
from onnxcp.refit.stops import bias_of, observe_stop, stored_bias

_ROWS = 8_000  # rows to look at, where a fit would take many more
_PER_ENTRY = 3  # and for every entry of a patch
PROBES = 128  # samples to look at what comes out
_LARGE = 2000  # entries of a patch, beyond which fits take long; then only so many anchors,
_FITTED = 2  # the cheapest, are fitted, and the last is taken to gain as much as the one before
_SWEEPS = 1  # of refinement: what a refit gains, in the main
_MIDDLE = 0.03  # squared error of a probe: large enough to show, small enough to be one of many
_FLOOR = 1e-12  # of squared errors, whose logarithms are interpolated
_VERSION = 2  # of what is kept; another one forgets it


@dataclass(frozen=True)
class Effect:
    """What the outputs of a network lose.

    Attributes
    ----------
    relative
        Squared relative error, summed over the outputs.
    classes
        Kullback-Leibler divergence of the classes, in nats; None where no output is one of classes.
    """

    relative: float
    classes: float | None

    def of_unit(self, error: float) -> Effect:
        """Return what is lost for a unit of squared relative error at a site with so much of it."""
        classes = None if self.classes is None else self.classes / error
        return Effect(self.relative / error, classes)


@dataclass(frozen=True, eq=False)
class SiteErrors:
    """Errors of the options of one site.

    Attributes
    ----------
    squared
        Squared relative error of the site's output, by offer.
    effect
        What a unit of it does to the outputs of the network.
    """

    squared: Mapping[Offer, float]
    effect: Effect

    def error(self, offer: Offer) -> float:
        """Return the squared relative error of the network's outputs."""
        return self.squared[offer] * self.effect.relative

    def distortion(self, offer: Offer) -> float:
        """Return what plans are made to keep small: divergence of classes, or else the error."""
        effect = self.effect
        return self.squared[offer] * (effect.relative if effect.classes is None else effect.classes)


class Probe:
    """Puts one chain at a time into a network, and looks at what comes out.

    Parameters
    ----------
    model
        The network.
    machine
        Where to run it.
    batches
        Samples, of which the first are used.
    samples
        How many of them.
    """

    def __init__(
        self,
        model: Model,
        machine: Machine,
        batches: Iterable[Batch],
        samples: int = PROBES,
    ) -> None:
        self._model = model
        self._machine = machine
        self._batches = first_samples(batches, samples)
        self._outputs: list[list[Any]] = []

    def __call__(self, site: Site, chain: Chain) -> Effect:
        """Return what the outputs lose by a chain; infinite where it takes them out of bounds."""
        label = "the network with a probe"
        session = self._machine.open(splice(self._model, {site: ("probe", chain)}), label=label)
        names = [output.name for output in session.get_outputs()]
        originals = iter(self._original_outputs())
        differences = compare(
            lambda _: next(originals),
            lambda batch: infer(session, batch, label=label),
            self._batches,
            names,
        )
        broken = any(each.finite_a and not each.finite_b for each in differences)
        relative = sum(each.error**2 for each in differences)
        divergences = [each.kl for each in differences if each.kl is not None]
        classes = sum(divergences) if divergences else None
        if broken or not math.isfinite(relative):
            return Effect(math.inf, None if classes is None else math.inf)
        return Effect(relative, classes)

    def _original_outputs(self) -> list[list[Any]]:
        if not self._outputs:
            session = self._machine.open(self._model, label="the network")
            self._outputs = [infer(session, batch) for batch in self._batches]
        return self._outputs


class ErrorTable:
    """Errors of offers, measured at few ranks of each family and kept for the next time.

    Parameters
    ----------
    model
        The network.
    machine
        Where to run it.
    cache
        What was found before.
    batches
        Samples; random ones where there are no others.
    from_data
        Whether they are the user's: then errors are those on them, and not of weights.
    memory_limit
        Bytes of intermediate results to keep in memory.
    progress
        Called with what is being done.
    """

    def __init__(
        self,
        model: Model,
        machine: Machine,
        cache: Cache,
        batches: Sequence[Batch],
        *,
        from_data: bool,
        memory_limit: int = 2**31,
        progress: Progress = silent,
    ) -> None:
        self._model = model
        self._machine = machine
        self._cache = cache
        self._batches = batches
        self._from_data = from_data
        self._memory_limit = memory_limit
        self._progress = progress
        self._probe = Probe(model, machine, batches)
        samples = [(name, array_digest(b[name])) for b in batches for name in sorted(b)]
        self._work = {
            "version": _VERSION,
            "model": model_digest(model),
            "samples": samples,
            "from_data": from_data,
        }

    def errors(self, ladders: Mapping[Site, Sequence[Sequence[Offer]]]) -> dict[Site, SiteErrors]:
        """Return the errors of the offers of sites.

        Parameters
        ----------
        ladders
            For each site and each of its families, the offers from cheap to dear.
        """
        found = {}
        missing = []
        for site, each in ladders.items():
            kept = self._cache.get("errors", self._key(site, each))
            if kept is None:
                missing.append(site)
                continue
            squared, relative, classes = kept
            found[site] = _site_errors(each, squared, Effect(relative, classes))
        for done, (site, stop) in enumerate(self._walk(missing)):
            self._progress(f"{site.name}: errors of its options", done, len(missing))
            squared, effect = self._look(site, stop, ladders[site])
            key = self._key(site, ladders[site])
            # Infinite ones, of a probe that broke the outputs, have no place in JSON.
            if all(map(math.isfinite, (*squared, effect.relative, effect.classes or 0.0))):
                self._cache.put("errors", key, [squared, effect.relative, effect.classes])
            found[site] = _site_errors(ladders[site], squared, effect)
        return found

    def _key(self, site: Site, ladders: Sequence[Sequence[Offer]]) -> dict[str, Any]:
        measured = [str(offer) for offers in ladders for offer in anchors(offers)]
        return {**self._work, "site": site.name, "offers": measured}

    def _walk(self, sites: Sequence[Site]) -> Iterator[tuple[Site, Stop | None]]:
        """Come to sites one by one; with data, on the original's own tensors."""
        if not self._from_data or not sites:
            yield from ((site, None) for site in sites)
            return
        limit = self._memory_limit
        with Stream(self._model, sites, self._batches, self._machine, memory_limit=limit) as stream:
            for stop in stream:  # none is settled: the network stays what it is
                yield stop.site, stop

    def _look(
        self, site: Site, stop: Stop | None, ladders: Sequence[Sequence[Offer]]
    ) -> tuple[list[float], Effect]:
        """Return the squared errors of the anchors of ladders, and the effect of a probe."""
        seen = None
        if stop is not None and can_observe(site) and bias_of(stop) is not None:
            rows = max(_ROWS, _PER_ENTRY * math.prod(site.kernel_shape[1:]))
            seen = observe_stop(stop, len(self._batches), rows=rows)
        fit = None if seen is None else _Fit(site, seen)
        squared: list[float] = []
        probe: tuple[float, Factorized, float] | None = None
        for offers in ladders:
            gain = 1.0
            for position, result in enumerate(_decomposed(site, anchors(offers))):
                result, error = (result, result.error**2) if fit is None else fit.biased(result)
                expected = gain * error
                if fit is not None and (fit.is_quick or position < _FITTED):
                    fitted, after = fit(result)
                    gain = min(after / error, 1.0) if error else 1.0
                    expected = gain * error
                    if after < error:
                        result, error = fitted, after
                squared.append(expected)
                off = abs(math.log(max(error, _FLOOR) / _MIDDLE))
                if probe is None or off < probe[0]:
                    probe = off, result, error
        assert probe is not None, "there are offers"
        _, result, error = probe
        return squared, self._probe(site, result.chain).of_unit(max(error, _FLOOR))


def _decomposed(site: Site, offers: Sequence[Offer]) -> Iterator[Factorized]:
    """Decompose a site at several ranks of one family."""
    family, path = offers[0].family.quick(), [offer.ranks for offer in offers]
    for ranks, factors in zip(path, family.factorize_all(site, path), strict=True):
        yield family.measured(site, ranks, factors)


class _Fit:
    """Fits factors to what was seen at a site."""

    def __init__(self, site: Site, seen: Observed) -> None:
        self._site = site
        self._seen = seen
        self._grams = [metric(moments) for moments in seen.fit]

    @property
    def is_quick(self) -> bool:
        """Whether every fit is cheap."""
        return math.prod(self._site.kernel_shape[1:]) <= _LARGE

    def __call__(self, result: Factorized) -> tuple[Factorized, float]:
        """Return factors that are closer on the samples fitted to, as `biased` does."""
        site, family = self._site, result.family
        kernels = site.group_kernels()
        factors = family.refine(site, result.factors, kernels, self._grams, _SWEEPS)
        return self.biased(replace(result, factors=factors))

    def biased(self, result: Factorized) -> tuple[Factorized, float]:
        """Return factors with the best bias, and their squared error on samples held out."""
        kernel = self._kernel(result)
        bias = stored_bias(self._site, self._seen.best_bias(kernel))
        return replace(result, bias=bias), self._seen.error(kernel)

    def _kernel(self, result: Factorized) -> Any:
        kernel = result.family.kernel(self._site, result.factors)
        return kernel.reshape(self._site.outputs, -1)


def _site_errors(
    ladders: Sequence[Sequence[Offer]], squared: Sequence[float], effect: Effect
) -> SiteErrors:
    """Fill ladders from what was found at their anchors."""
    values = iter(squared)
    errors: dict[Offer, float] = {}
    for offers in ladders:
        measured = anchors(offers)
        logs = [math.log(max(next(values), _FLOOR)) for _ in measured]
        macs = [math.log(each.macs) for each in measured]
        errors |= {each: math.exp(np.interp(math.log(each.macs), macs, logs)) for each in offers}
    return SiteErrors(errors, effect)
