"""Deciding site by site: which family, at which rank, or none.

Every option is timed before anything is decomposed, alone in a small graph and paired with the
node that it would replace. An option that is not faster there is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcp.errors import ModelError, OnnxcpError
from onnxcp.factorize import Factorized, FactorizePass, Ranks, apply_all, selected
from onnxcp.graph.chain import site_macs
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.linalg.ranks import round_rank
from onnxcp.planning.latency import WORTHWHILE, SiteBench, timing_of
from onnxcp.planning.menu import Menu, Shapes
from onnxcp.planning.offer import Offer
from onnxcp.planning.option import Candidate, Decision, Option
from onnxcp.profiling.machine import Machine
from onnxcp.progress import Progress
from onnxcp.verification import tolerable


@dataclass(frozen=True)
class Target:
    """How far each site may be reduced: by one of three measures.

    Attributes
    ----------
    macs
        Share of a site's multiply-adds to keep; or several, by patterns of names as of a shell, of
        which the last that fits a site counts, and a site that none fits is left alone. Among the
        families that are faster at that, the one of the least error is taken.
    max_error
        Largest relative Frobenius error of a site's kernel. Among the families that keep within
        it, the fastest is taken.
    """

    macs: float | Mapping[str, float] | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        shares = self.macs.values() if isinstance(self.macs, Mapping) else [self.macs]
        if (self.macs is None) == (self.max_error is None):
            raise OnnxcpError("Give one of macs and max_error as a target.")
        for value in (*shares, self.max_error):
            if value is not None and not 0 < value <= 1:
                raise OnnxcpError(f"A target must lie in (0, 1]; {value:g} does not.")

    def share(self, name: str) -> float | None:
        """Return the share of multiply-adds that a site of a name is to keep, if one is given."""
        if not isinstance(self.macs, Mapping):
            return self.macs
        fitting = [value for pattern, value in self.macs.items() if selected(name, pattern)]
        return fitting[-1] if fitting else None

    def refusal(self, site: Site) -> Refusal | None:
        """Return why a site is not to be reduced."""
        if self.macs is None or self.share(site.name) is not None:
            return None
        return Refusal(site.name, Reason.EXCLUDED, "no share of its MACs is asked for")

    def ranks(
        self, family: FactorizePass, site: Site, round_to: int, shape: Sequence[int]
    ) -> Ranks | Refusal:
        """Return the ranks at which a family meets the target at a site, or why it cannot."""
        if self.macs is not None:
            share = self.share(site.name)
            assert share is not None, "sites without a share are not looked at"
            return family.ranks_for_macs(site, share, round_to, shape)
        assert self.max_error is not None
        wanted = family.ranks_for_energy(site, 1 - self.max_error**2)
        full = family.full_ranks(site)
        return tuple(
            round_rank(rank, round_to, limit, up=True)
            for rank, limit in zip(wanted, full, strict=True)
        )


def decide(
    model: Model,
    sites: Sequence[Site],
    menu: Menu,
    target: Target,
    shapes: Shapes,
    machine: Machine,
    progress: Progress,
) -> list[Decision]:
    """Decide for every site, in order.

    Parameters
    ----------
    model, sites
        The model, and the sites found in it.
    menu
        What may be chosen from.
    target
        How far each site may be reduced.
    shapes
        Shapes of tensors, by name; a site whose input is not among them is left alone.
    machine
        Where to time.
    progress
        Called with what is being done, how many sites are done, and of how many.
    """
    known = {site: shapes[site.input] for site in sites if site.input in shapes}
    macs = {site: site_macs(site, shape) for site, shape in known.items()}
    total = sum(macs.values())
    decisions = []
    for done, site in enumerate(sites):
        tell = functools.partial(_tell, progress, done, len(sites))
        tell(f"{site.name}: choosing ranks")
        refusal = menu.refusal(site, macs.get(site), total) or target.refusal(site)
        if refusal is not None:
            decisions.append(Decision(site, macs.get(site), reasons=(refusal,)))
            continue
        decisions.append(_decide(model, site, menu, target, known[site], macs[site], machine, tell))
    return decisions


def _decide(
    model: Model,
    site: Site,
    menu: Menu,
    target: Target,
    shape: tuple[int, ...],
    macs: int,
    machine: Machine,
    tell: Callable[[str], None],
) -> Decision:
    offers, refusals = _offers(site, menu, target, shape, macs)
    if not offers:
        return Decision(site, macs, reasons=tuple(refusals))
    try:
        tell(f"{site.name}: timing chains")
        bench = SiteBench(model, site, shape, machine)
        options, slow = _faster(site, offers, macs, bench)
        tell(f"{site.name}: decomposing")
        candidates, unfit = _fit(options, target, bench)
    except ModelError as error:
        alone = Refusal(site.name, Reason.UNSUPPORTED, f"it cannot be run alone: {error}")
        return Decision(site, macs, reasons=(*refusals, alone))
    return Decision(site, macs, tuple(candidates), (*refusals, *slow, *unfit))


def _tell(progress: Progress, done: int, total: int, what: str) -> None:
    progress(what, done, total)


def _offers(
    site: Site, menu: Menu, target: Target, shape: tuple[int, ...], macs: int
) -> tuple[list[Offer], list[Refusal]]:
    """Return what the families have to offer, and why the others have nothing."""
    offers: list[Offer] = []
    refusals: list[Refusal] = []
    for family in menu.families:
        refusal = family.applies(site)
        ranks = refusal or target.ranks(family, site, menu.round_to, shape)
        if isinstance(ranks, Refusal):
            refusals.append(ranks)
            continue
        offer = Offer.of(site, family, ranks, shape)
        if offer.macs < macs:
            offers.append(offer)
        else:
            detail = f"{offer} needs {offer.macs / macs:.2f} times its MACs"
            refusals.append(Refusal(site.name, Reason.NO_REDUCTION, detail))
    return offers, refusals


def _faster(
    site: Site, offers: Sequence[Offer], macs: int, bench: SiteBench
) -> tuple[list[Option], list[Refusal]]:
    """Time the offers against the site; return the faster ones and why not the others."""
    options: list[Option] = []
    refusals: list[Refusal] = []
    trials = bench.trials([offer.sketch for offer in offers])
    for offer, trial in zip(offers, trials, strict=True):
        if trial.faster and trial.ratio >= WORTHWHILE:
            option = Option(site, offer.family, offer.ranks, offer.macs, timing_of(trial))
            options.append(option)
        else:
            detail = f"{offer} is not faster, with {offer.macs / macs:.0%} of the MACs: {trial}"
            refusals.append(Refusal(site.name, Reason.NOT_FASTER, detail))
    return options, refusals


def _fit(
    options: list[Option], target: Target, bench: SiteBench
) -> tuple[list[Candidate], list[Refusal]]:
    """Decompose: all for a target of cost, the closest first; for one of error the fastest."""
    refusals: list[Refusal] = []
    candidates: list[Candidate] = []
    if target.macs is None:
        options = sorted(options, key=lambda option: -option.timing.ratio)
    jobs = [(each.family, each.site, each.ranks) for each in options]
    known = apply_all(jobs) if target.macs is not None else None
    for position, option in enumerate(options):
        result = known[position] if known else apply_all([jobs[position]])[0]
        problem = _unfit(option, result, target, bench)
        if problem is not None:
            refusals.append(problem)
            continue
        candidates.append(Candidate(option, result))
        if target.macs is None:
            break
    return sorted(candidates, key=lambda each: each.result.error), refusals


def _unfit(option: Option, result: Factorized, target: Target, bench: SiteBench) -> Refusal | None:
    """Say why a decomposition is not to be used, or None."""
    name = option.site.name
    if not np.isfinite(result.error):
        detail = f"{option.family.name} did not converge"
        return Refusal(name, Reason.NOT_FINITE, detail)
    if target.max_error is not None and result.error > target.max_error:
        detail = f"{option.family.name} has a weight error of {result.error:.3g}"
        return Refusal(name, Reason.INACCURATE, detail)
    rounding = bench.rounding_error(result)
    if not tolerable(option.site, rounding):
        detail = (
            f"{option.family.name} holds terms that cancel: rounding alone costs {rounding:.1e}"
        )
        return Refusal(name, Reason.INACCURATE, detail)
    return None
