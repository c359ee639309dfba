"""From a network to its rewrite: by passes that were asked for, or by choice site by site."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnxruntime as ort

from onnxcp.calibration.data import Data
from onnxcp.calibration.statistics import held_out
from onnxcp.errors import OnnxcpError, PassError
from onnxcp.factorize import Factorized, FactorizePass
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.passes import (
    Context,
    LowerPass,
    Pass,
    PassManager,
    PassRecord,
    ShrinkPass,
    find_pass,
    registered_passes,
)
from onnxcp.pipeline import parse_pipeline
from onnxcp.planning.blocks import rank_block
from onnxcp.planning.cache import Cache
from onnxcp.planning.decide import Target, decide
from onnxcp.planning.menu import Menu, Shapes
from onnxcp.planning.option import Decision
from onnxcp.profiling.compare import Batch, OutputDifference, batch_size, first_samples
from onnxcp.profiling.session import Feeds
from onnxcp.progress import Progress
from onnxcp.refit import AsDeployed, refit
from onnxcp.refit.inputs import input_grams
from onnxcp.settings import Settings
from onnxcp.verification import Score, Step, output_differences, total_error, whole_error

_BATCH = 32  # at most, of samples for passes


@dataclass(frozen=True, eq=False)
class Work:
    """What a rewrite starts from.

    Attributes
    ----------
    original
        The network.
    settings
        What to do.
    shapes
        Shapes of what its sites read, by name of tensor.
    feeds
        What it is timed with.
    calibration
        Samples to refit to, or None.
    samples
        Samples to compare outputs on; None for `feeds`.
    score, baseline
        What scores a session, and what it gave for the original; None where nothing does.
    labelled
        The samples that scores are shares of; None where nothing, or a user's function, scores.
    cache
        What was measured before.
    progress
        Called with what is being done, how much of it is done, and of how much.
    finish
        Passes that every rewritten network goes through in the end (`onnxcp.finishing`).
    gained
        Share of its time that they, and the lower precision, spare the original.
    lower
        What writes a network in the precision that it is deployed in, after all of them; None where
        it stays as it is.
    lowered, lowerings
        The original so written, to be beaten, and what did it; None where it stays.
    told
        What there is to say of the precision, in a sentence; else empty.
    """

    original: Model
    settings: Settings
    shapes: Shapes
    feeds: Feeds
    calibration: Data | None
    samples: Data | None
    score: Score | None
    baseline: float | None
    cache: Cache
    progress: Progress
    labelled: Data | None = None
    finish: tuple[Pass, ...] = ()
    gained: float = 0.0
    lower: LowerPass | None = None
    lowered: Step | None = None
    lowerings: tuple[PassRecord, ...] = ()
    told: str = ""

    @functools.cached_property
    def judges(self) -> Data | None:
        """The samples that refits hold out, to judge networks by; None if there are too few.

        None as well where a site reads something else than a row for each sample (tokens, windows,
        sequences first): of these refits hold out some of every sample.
        """
        if self.fits is None:
            return None
        batch = (batch_size(self.feeds),)
        read = (self.shapes.get(site.input, batch) for site in find_sites(self.original)[0])
        return held_out(self.fits) if all(shape[:1] == batch for shape in read) else None

    @property
    def fits(self) -> Data | None:
        """The samples to refit to, if that is to be done."""
        return None if self.settings.refit.scope == "none" else self.calibration

    @property
    def context(self) -> Context:
        """What passes may know."""
        data = self.calibration
        return Context(
            self.shapes,
            progress=lambda what: self.progress(what, 0, 1),
            samples=None if data is None else functools.partial(some_batches, data),
            machine=self.settings.machine,
        )

    def deployed(self, model: Model) -> tuple[Model, tuple[PassRecord, ...]]:
        """Return a finished network in the precision that it is deployed in."""
        if self.lower is None:
            return model, ()
        return PassManager([self.lower]).run(model, self.context)

    @property
    def layers_deployed(self) -> AsDeployed | None:
        """What a refit puts in the place of layers that it is done with; None for themselves."""
        if self.lower is None or self.settings.refit.prefix == "full":
            return None
        lower = self.lower

        def deployed(model: Model, name: str, feeds: Iterator[Batch]) -> Model:
            data = Context(
                samples=lambda count: first_samples(feeds, count),
                machine=self.settings.machine,
            )
            try:
                return lower.part(model, name, data)
            except OnnxcpError:  # what cannot be lowered by itself counts as it is
                return model

        return deployed

    def timed_as(self, model: Model) -> Model:
        """Return what takes as long as that."""
        return model if self.lower is None else self.lower.stand_in(model)

    def finished(self, model: Model) -> tuple[Model, tuple[PassRecord, ...]]:
        """Return what the last passes make of a network, and what they did."""
        return PassManager(self.finish).run(model)

    def differences(self, rewritten: Model) -> tuple[OutputDifference, ...]:
        """Compare the outputs of a rewritten network with those of the original."""
        return self._compared(rewritten, self.samples)

    def held(self, rewritten: Model) -> tuple[OutputDifference, ...]:
        """Compare them on the samples that refits hold out; nothing where there are too few."""
        return () if self.judges is None else self._compared(rewritten, self.judges)

    def _compared(self, rewritten: Model, samples: Data | None) -> tuple[OutputDifference, ...]:
        self.progress("comparing outputs", 0, 1)
        return output_differences(
            self.original,
            rewritten,
            machine=self.settings.machine,
            feeds=self.feeds,
            samples=samples,
        )

    def scored(self, model: Model) -> float | None:
        """Score a rewritten network, if anything scores."""
        if self.score is None:
            return None
        self.progress("scoring", 0, 1)
        session: ort.InferenceSession = self.settings.machine.open(
            model, label="the rewritten network"
        )
        return self.score(session)


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A network and what became of it.

    Attributes
    ----------
    prepared
        The network in which the sites of the decisions were found.
    model
        The rewritten network; None if there was nothing to rewrite.
    plain
        The same ahead of the last passes, which is what can be trained best.
    decisions
        What was decided for each site; empty where passes were given.
    refusals
        Nodes that are no sites, and why.
    records
        What each pass did.
    endings
        The same of the last passes.
    differences
        How the outputs differ from those of the original.
    unfitted
        How they differed before chains were refitted; empty if none were.
    held
        How they differ on the samples that no refit was fitted to; empty if nothing was refitted,
        or there are too few.
    full
        The rewritten network ahead of the pass that lowers its precision; None where none does.
    lower
        That pass, as it suits this network; None where none does.
    lowerings
        What it did.
    """

    prepared: Model
    model: Model | None
    decisions: tuple[Decision, ...]
    refusals: tuple[Refusal, ...]
    records: tuple[PassRecord, ...]
    plain: Model | None = None
    endings: tuple[PassRecord, ...] = ()
    differences: tuple[OutputDifference, ...] = ()
    unfitted: tuple[OutputDifference, ...] = ()
    held: tuple[OutputDifference, ...] = ()
    full: Model | None = None
    lower: LowerPass | None = None
    lowerings: tuple[PassRecord, ...] = ()

    @property
    def error(self) -> float:
        """Relative error of the outputs, all together."""
        return whole_error(self.differences)

    @property
    def judged(self) -> float:
        """The same on the samples that were held out, where there are enough."""
        return whole_error(self.held or self.differences)


def by_passes(work: Work, passes: Sequence[Pass] | None = None) -> Rewrite:
    """Run passes as they stand, by default those of the settings; refit to data what they make."""
    settings, data, progress = work.settings, work.fits, work.progress
    if passes is None:
        passes = parse_pipeline(settings.passes)

    def to_data(model: Model, results: Mapping[Site, Factorized]) -> Mapping[Site, Factorized]:
        assert data is not None
        choices = {site: (result,) for site, result in results.items()}
        done = refit(model, choices, data, settings.machine, settings.refit, progress=progress)
        return dict(results) | {site: each.result for site, each in done.items() if each.result}

    def grams(model: Model, sites: Sequence[Site]) -> Mapping[Site, Any]:
        samples, machine = work.calibration, settings.machine
        assert samples is not None
        return input_grams(model, sites, samples, machine, settings.refit, progress=progress)

    context = replace(
        work.context,
        refit=None if data is None else to_data,
        grams=None if work.calibration is None else grams,
    )
    model, records = PassManager(passes).run(work.original, context)
    changed = any(record.changed for record in records)
    refusals = tuple(find_sites(work.original)[1])
    differences = work.differences(model) if changed else ()
    made = model if changed else None
    return Rewrite(work.original, made, (), refusals, records, plain=made, differences=differences)


def by_choice(work: Work, target: Target) -> Rewrite:
    """Decide for every site by itself, from its weights and by the clock; then refit."""
    prepared, records = fold(work.original)
    sites, refusals = find_sites(prepared)
    decisions: Sequence[Decision] = ()
    if sites:
        offered = menu(work.settings, work.cache, searching=target.macs is not None)
        machine, progress = work.settings.machine, work.progress
        decisions = decide(prepared, sites, offered, target, work.shapes, machine, progress)
    return settled(work, Rewrite(prepared, None, tuple(decisions), tuple(refusals), records))


def settled(work: Work, rewrite: Rewrite) -> Rewrite:
    """Put what was decided into the network, refit it, and compare outputs.

    A refit that takes the outputs of the network no closer to the original's is given up.
    """
    rewrite = _spliced(work, rewrite)
    if rewrite.model is None:
        return replace(rewrite, differences=(), unfitted=(), held=())
    plain = replace(rewrite, differences=work.differences(rewrite.model), unfitted=(), held=())
    if work.fits is None or not any(each.candidates for each in rewrite.decisions):
        return plain
    fitted = _refitted(work, plain, work.fits)
    assert fitted.model is not None
    fitted = replace(
        fitted,
        differences=work.differences(fitted.model),
        unfitted=plain.differences,
        held=work.held(fitted.model),
    )
    assert plain.model is not None
    before = work.held(plain.model) or plain.differences
    if total_error(fitted.held or fitted.differences) <= total_error(before):
        return fitted
    return replace(plain, unfitted=plain.differences)


def given_back(work: Work, rewrite: Rewrite, sites: Sequence[Site], why: str) -> Rewrite:
    """Leave some sites as they were after all."""
    decisions = tuple(
        each.given_back(Refusal(each.site.name, Reason.NOT_FASTER, why))
        if each.site in sites
        else each.unfitted()
        for each in rewrite.decisions
    )
    return settled(work, replace(rewrite, decisions=decisions))


def fold(original: Model) -> tuple[Model, tuple[PassRecord, ...]]:
    """Fold BatchNormalization, so that sites have all of their weights."""
    return PassManager([find_pass("fold-batchnorm")()]).run(original)


def menu(settings: Settings, cache: Cache, *, searching: bool) -> Menu:
    """Return the families to choose from, and at which ranks.

    Parameters
    ----------
    settings
        What to do.
    cache
        What was measured before.
    searching
        Whether families take part, without being named, that find a rank for an error only by
        trial.
    """
    installed = families()
    for name in settings.families:
        if name in registered_passes() and issubclass(find_pass(name), ShrinkPass):
            raise PassError(
                f"Family '{name}' makes files smaller, not networks faster, and decides for "
                "several layers at once: it is no option of a plan."
            )
        if name not in installed:
            raise PassError(f"There is no family '{name}'; there are: {', '.join(installed)}.")
    names = settings.families or tuple(
        name
        for name, each in installed.items()
        if not each.named_only and (searching or not each.searches_ranks)
    )
    round_to = settings.round_to or rank_block(settings.machine, cache)
    chosen = tuple(form for name in names for form in installed[name].forms())
    return Menu(chosen, round_to, settings.nodes, settings.exclude)


def families() -> dict[str, FactorizePass]:
    """Return all families that are installed, by name."""
    kinds = registered_passes().items()
    return {name: kind() for name, kind in kinds if issubclass(kind, FactorizePass)}


def _refitted(work: Work, rewrite: Rewrite, data: Data) -> Rewrite:
    """Choose among the candidates of every site on data, and refit what is chosen."""
    choices = {
        each.site: [candidate.result for candidate in each.candidates]
        for each in rewrite.decisions
        if each.candidates
    }
    dense = [each.site for each in rewrite.decisions if not each.candidates and not each.excluded]
    done = refit(
        rewrite.prepared,
        choices,
        data,
        work.settings.machine,
        work.settings.refit,
        dense=dense,
        deployed=work.layers_deployed,
        progress=work.progress,
    )
    decisions = tuple(
        each.refitted(done[each.site]) if each.site in done else each for each in rewrite.decisions
    )
    return _spliced(work, replace(rewrite, decisions=decisions))


def _spliced(work: Work, rewrite: Rewrite) -> Rewrite:
    """Put the chosen chains in, and finish; without chains only if there is something to finish."""
    chains = {each.site: each.chain for each in rewrite.decisions if each.chain is not None}
    plain = splice(rewrite.prepared, chains) if chains else rewrite.prepared
    model, endings = work.finished(plain)
    if not chains and not any(each.changed for each in endings):
        return replace(rewrite, model=None, plain=None, endings=())
    return replace(rewrite, model=model, plain=plain, endings=endings)


def some_batches(data: Data, count: int) -> list[Batch]:
    """Return the first samples, in eight batches at least where there are so many."""
    size = max(1, min(_BATCH, min(count, len(data)) // 8))
    return first_samples(data.batches(size), count)
