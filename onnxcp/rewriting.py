"""From a network to its rewrite: by passes that were asked for, or by choice site by site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxcp.calibration.data import Data
from onnxcp.errors import PassError
from onnxcp.factorize import Factorized, FactorizePass
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.passes import (
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
from onnxcp.planning.menu import Menu
from onnxcp.planning.option import Decision
from onnxcp.profiling.compare import OutputDifference
from onnxcp.refit import refit
from onnxcp.refit.inputs import input_grams
from onnxcp.settings import Settings
from onnxcp.verification import total_error, whole_error
from onnxcp.work import Work


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
    given_up
        Whether a refit was given up for good, since it missed the goal of a preset, or since the
        plan that is carried out says so: none is made any more.
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
    given_up: bool = False

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

    A refit that takes the outputs of the network no closer to the original's is given up; where
    it was given up for good, none is made.
    """
    rewrite = _spliced(work, rewrite)
    if rewrite.model is None:
        return replace(rewrite, differences=(), unfitted=(), held=())
    plain = replace(rewrite, differences=work.differences(rewrite.model), unfitted=(), held=())
    chosen = any(each.candidates for each in rewrite.decisions)
    if work.fits is None or rewrite.given_up or not chosen:
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
