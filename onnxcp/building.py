"""Networks of plans: timed with random weights, and built, refitted and judged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property

from onnxcp.factorize import Factorized, FactorizePass, Ranks, apply_all
from onnxcp.finishing import race
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.graph.splice import splice
from onnxcp.planning.distortion import PROBES, Probe
from onnxcp.planning.goal import Goal
from onnxcp.planning.latency import SiteBench, with_random_weights
from onnxcp.planning.option import Candidate, Decision, Option
from onnxcp.planning.planner import Choice, Planner
from onnxcp.planning.search import Attempt
from onnxcp.planning.survey import Surveyed
from onnxcp.profiling.compare import batch_size
from onnxcp.profiling.timing import Trial
from onnxcp.rewriting import Rewrite, settled
from onnxcp.verification import agreement, tolerable, whole_error
from onnxcp.work import Work

_RIVALS = 2  # options of other families to refit as well,
_NEAR = 2.0  # of which at most so many times the distortion is expected
_EQUAL = 1.02  # and at most so many times the seconds
_RUNNING = 2.0  # seconds that samples may run, to look at what a single site adds,
_LEAST = 16  # but so many of them at least
_BATCH = 32
_LESSON = math.log(4.0)  # the most that one network teaches of the errors of a family, or a site


class Builder:
    """Times choices with random weights, since time does not depend on them, and builds them."""

    def __init__(self, work: Work, bare: Rewrite, goal: Goal, seconds: float) -> None:
        self._work = work
        self._goal = goal
        self._seconds = seconds
        self._bare = bare
        self._results: dict[tuple[str, str, Ranks], Factorized] = {}
        self._machine = work.settings.machine

    def time(self, choice: Choice) -> Trial:
        """Time the original (a) against the network of a choice (b)."""
        work = self._work
        work.progress("timing the planned network", 0, 1)
        chains = {
            site: (option.family.name, with_random_weights(option.sketch, seed))
            for seed, (site, option) in enumerate(choice.options.items())
        }
        network, _ = work.finished(splice(self._bare.prepared, chains))
        return race(work, work.timed_as(network), self._seconds)

    def build(self, choice: Choice, planner: Planner, *, compete: bool = True) -> Attempt[Rewrite]:
        """Decompose, refit and compare; options whose factors cancel are taken off the list."""
        work = self._work
        candidates: dict[Site, tuple[Candidate, ...]] = {}
        rivals = {
            option: self._rivals(option, planner) if compete else []
            for option in choice.options.values()
        }
        self._decompose(each for option, others in rivals.items() for each in (option, *others))
        for done, (site, option) in enumerate(choice.options.items()):
            work.progress(f"{site.name}: checking its rounding", done, len(choice.options))
            chosen = self._candidate(option, planner)
            if chosen is not None:
                others = [self._candidate(each, planner) for each in rivals[option]]
                candidates[site] = (chosen, *(each for each in others if each is not None))
        decisions = tuple(
            decision_on(each, candidates.get(each.site, ())) for each in planner.sites
        )
        rewrite = settled(work, replace(self._bare, decisions=decisions))
        options = {each.site: each.option for each in rewrite.decisions if each.option is not None}
        built = Choice(options, choice.reached)
        score = None if rewrite.model is None else score_for(self._goal, work, rewrite)
        held = rewrite.judged if rewrite.held else None
        return Attempt(
            rewrite, built, self._error(rewrite), score, held, _lessons(rewrite.decisions)
        )

    def site_lessons(self, attempt: Attempt[Rewrite]) -> dict[Site, float]:
        """Return how many times what is expected each site adds to the error of the network.

        Each refitted chain is put into the original by itself. What all of them have in common is
        taken off: it is in the error of the whole network.
        """
        if self._probe is None:
            return {}
        logs: dict[Site, float] = {}
        decisions = attempt.made.decisions
        for done, each in enumerate(decisions):
            chain, option = each.chain, each.option
            if chain is None or option is None or each.refit is None:
                continue
            self._work.progress(f"{each.site.name}: what it adds", done, len(decisions))
            added = self._probe(each.site, chain[1]).relative
            expected = attempt.lessons.get(option.family, 1.0) * option.error
            if math.isfinite(added) and added > 0 and expected > 0:
                logs[each.site] = math.log(added / expected)
        if len(logs) < 2:
            return {}
        middle = statistics.median(logs.values())
        return {site: _bounded(value - middle) for site, value in logs.items()}

    @cached_property
    def _probe(self) -> Probe | None:
        """What puts chains into the original; None where nothing is refitted."""
        work = self._work
        data = work.judges or work.fits
        if data is None:
            return None
        quick = round(_RUNNING * batch_size(work.feeds) / self._seconds)
        count = max(_LEAST, min(PROBES, quick))
        batches = data.batches(min(_BATCH, count))
        return Probe(self._bare.prepared, self._machine, batches, count)

    def _error(self, rewrite: Rewrite) -> float:
        """Return the error of a network, as it is deployed where that is what the goal limits."""
        work = self._work
        if work.lower is None or self._goal.error is None or rewrite.model is None:
            return rewrite.error
        return whole_error(work.differences(work.deployed(rewrite.model)[0]))

    def _candidate(self, option: Option, planner: Planner) -> Candidate | None:
        """Decompose for an option; of one that is unfit the planner is told, and there is none."""
        result = self._results[_key(option)]
        problem = self._unfit(option, result)
        if problem is None:
            return Candidate(option, result)
        planner.forget(option, Refusal(option.site.name, Reason.INACCURATE, problem))
        return None

    def _rivals(self, option: Option, planner: Planner) -> list[Option]:
        """Return what other families offer at the cost of an option.

        Errors of options are estimates, and where there are samples, a refit finds out which
        family is the closest.
        """
        if self._work.fits is None:
            return []
        found: dict[FactorizePass, Option] = {}
        for each in planner.rivals(option.site):
            if each.family is not option.family and self._costs_no_more(each, option):
                found[each.family] = each
        near = [each for each in found.values() if each.distortion <= _NEAR * option.distortion]
        return sorted(near, key=lambda each: each.distortion)[:_RIVALS]

    def _costs_no_more(self, rival: Option, option: Option) -> bool:
        if self._goal.macs is not None:
            return rival.macs <= option.macs
        if self._goal.parameters is not None:
            return rival.parameters <= option.parameters
        return rival.timing.after <= _EQUAL * option.timing.after

    def _decompose(self, options: Iterable[Option]) -> None:
        """Decompose for options, those apart that were before."""
        missing = {_key(each): each for each in options if _key(each) not in self._results}

        def jobs() -> Iterator[tuple[FactorizePass, Site, Ranks]]:
            for done, each in enumerate(missing.values()):
                self._work.progress(f"{each.site.name}: decomposing", done, len(missing))
                yield each.family, each.site, each.ranks

        self._results.update(zip(missing, apply_all(jobs()), strict=True))

    def _unfit(self, option: Option, result: Factorized) -> str | None:
        if not math.isfinite(result.error):
            return f"{option} did not converge"
        shape = self._work.shapes[option.site.input]
        bench = SiteBench(self._bare.prepared, option.site, shape, self._machine)
        rounding = bench.rounding_error(result)
        if tolerable(option.site, rounding):
            return None
        return f"{option} holds terms that cancel: rounding alone costs {rounding:.1e}"


def score_for(goal: Goal, work: Work, rewrite: Rewrite) -> float | None:
    """Return what a goal judges a rewritten network by: how far it agrees, or what it scores."""
    assert rewrite.model is not None
    if goal.min_agreement is None and work.score is None:
        return None  # deploying a network takes a while
    model, _ = work.deployed(rewrite.model)
    if goal.min_agreement is not None:
        return agreement(work.differences(model) if work.lower else rewrite.differences)
    return work.scored(model)


def decision_on(surveyed: Surveyed, candidates: tuple[Candidate, ...] = ()) -> Decision:
    """Return what became of a site: what may take its place, or why it stays."""
    if candidates:
        return Decision(surveyed.site, surveyed.macs, candidates, surveyed.reasons)
    reasons = surveyed.reasons
    if surveyed.options:
        best = max(surveyed.options, key=lambda option: option.saving)
        count = len(surveyed.options)
        detail = f"the goal needs none of its {count} option{'s' * (count > 1)} (fastest: {best})"
        reasons = (*reasons, Refusal(surveyed.site.name, Reason.NOT_NEEDED, detail))
    return Decision(surveyed.site, surveyed.macs, reasons=reasons)


def _lessons(decisions: Iterable[Decision]) -> dict[FactorizePass, float]:
    """Return how many times the expected squared errors of families really are.

    Those of a layer are known up to what the layer matters to the network, which is the same for
    all families; so at each the mean of the logarithms is taken off.
    """
    found: dict[FactorizePass, list[float]] = {}
    for decision in decisions:
        tried = {} if decision.refit is None else decision.refit.tried
        expected = {each.option.family: each.option.error for each in decision.candidates}
        logs = {
            family: math.log(error / expected[family])
            for family, error in tried.items()
            if error > 0 and expected.get(family, 0.0) > 0
        }
        for family, value in logs.items():
            if len(logs) > 1:
                found.setdefault(family, []).append(value - sum(logs.values()) / len(logs))
    means = {family: sum(values) / len(values) for family, values in found.items()}
    return {family: _bounded(each) for family, each in means.items()}


def _bounded(log: float) -> float:
    """Return the factor of a logarithm, as far as it is believed."""
    return math.exp(max(-_LESSON, min(_LESSON, log)))


def _key(option: Option) -> tuple[str, str, Ranks]:
    return option.site.name, option.family.name, option.ranks
