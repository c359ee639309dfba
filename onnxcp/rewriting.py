"""From a network to its rewrite: by passes that were asked for, or by choice site by site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnxcp.calibration.data import Data
from onnxcp.errors import PassError
from onnxcp.factorize import Factorized, FactorizePass
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.passes import Context, PassManager, PassRecord, find_pass, registered_passes
from onnxcp.pipeline import parse_pipeline
from onnxcp.planning.blocks import rank_block
from onnxcp.planning.decide import Menu, Shapes, Target, decide
from onnxcp.planning.option import Decision
from onnxcp.profiling.machine import Machine
from onnxcp.progress import Progress
from onnxcp.refit import refit
from onnxcp.settings import Settings


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A network and what became of it.

    Attributes
    ----------
    prepared
        The network in which the sites of the decisions were found.
    model
        The rewritten network; None if there was nothing to rewrite.
    decisions
        What was decided for each site; empty where passes were given.
    refusals
        Nodes that are no sites, and why.
    records
        What each pass did.
    """

    prepared: Model
    model: Model | None
    decisions: tuple[Decision, ...]
    refusals: tuple[Refusal, ...]
    records: tuple[PassRecord, ...]


def by_passes(
    original: Model, settings: Settings, shapes: Shapes, data: Data | None, progress: Progress
) -> Rewrite:
    """Run the passes of the settings as they stand; factorisations are refitted to data."""

    def to_data(model: Model, results: Mapping[Site, Factorized]) -> Mapping[Site, Factorized]:
        assert data is not None
        choices = {site: (result,) for site, result in results.items()}
        done = refit(model, choices, data, settings.machine, settings.refit, progress=progress)
        return dict(results) | {site: each.result for site, each in done.items() if each.result}

    fits = data is not None and settings.refit.scope != "none"
    context = Context(
        shapes, progress=lambda what: progress(what, 0, 1), refit=to_data if fits else None
    )
    model, records = PassManager(parse_pipeline(settings.passes)).run(original, context)
    changed = any(record.changed for record in records)
    refusals = tuple(find_sites(original)[1])
    return Rewrite(original, model if changed else None, (), refusals, records)


def by_choice(original: Model, settings: Settings, shapes: Shapes, progress: Progress) -> Rewrite:
    """Fold BatchNormalization, and decide for every site from its weights and by the clock."""
    prepared, records = PassManager([find_pass("fold-batchnorm")()]).run(original)
    sites, refusals = find_sites(prepared)
    decisions: Sequence[Decision] = ()
    if sites:
        menu = _menu(settings, settings.target, settings.machine)
        decisions = decide(prepared, sites, menu, shapes, settings.machine, progress)
    model = _splice(prepared, decisions)
    return Rewrite(prepared, model, tuple(decisions), tuple(refusals), records)


def refitted(rewrite: Rewrite, settings: Settings, data: Data, progress: Progress) -> Rewrite:
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
        settings.machine,
        settings.refit,
        dense=dense,
        progress=progress,
    )
    decisions = tuple(
        each.refitted(done[each.site]) if each.site in done else each for each in rewrite.decisions
    )
    return replace(rewrite, model=_splice(rewrite.prepared, decisions), decisions=decisions)


def _menu(settings: Settings, target: Target, machine: Machine) -> Menu:
    """Return the families to choose from, and at which ranks."""
    installed = {
        name: kind for name, kind in registered_passes().items() if issubclass(kind, FactorizePass)
    }
    for name in settings.families:
        if name not in installed:
            raise PassError(f"There is no family '{name}'; there are: {', '.join(installed)}.")
    names = settings.families or tuple(
        name
        for name, kind in installed.items()
        if target.macs is not None or not kind.searches_ranks
    )
    families = tuple(installed[name]() for name in names)
    round_to = settings.round_to or rank_block(machine)
    return Menu(families, target, round_to, settings.nodes, settings.exclude)


def _splice(prepared: Model, decisions: Sequence[Decision]) -> Model | None:
    """Put the chosen chains in, or return None if none was chosen."""
    chains = {each.site: each.chain for each in decisions if each.chain is not None}
    return splice(prepared, chains) if chains else None
