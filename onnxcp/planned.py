"""From a goal for the whole network, or a plan that was made before, to a rewritten network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxcp.factorize import (
    Factorized,
    FactorizePass,
    Ranks,
    apply_all,
    nominal_input_shape,
)
from onnxcp.finishing import race, seconds_of_original
from onnxcp.graph.chain import chain_macs, site_macs
from onnxcp.graph.digest import model_digest
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Reason, Refusal, main_refusal
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.graph.summary import summarize
from onnxcp.planning.distortion import ErrorTable
from onnxcp.planning.goal import Goal
from onnxcp.planning.latency import LatencyTable, SiteBench, timing_of, with_random_weights
from onnxcp.planning.option import Candidate, Decision, Option
from onnxcp.planning.plan import Numbers, Plan, PlannedModel, Row, plan_choices
from onnxcp.planning.planner import Choice, Planner
from onnxcp.planning.search import Attempt, Round, outline, search
from onnxcp.planning.survey import Surveyed, survey
from onnxcp.profiling.compare import Batch, batch_size
from onnxcp.profiling.environment import describe
from onnxcp.profiling.timing import Trial
from onnxcp.rewriting import Rewrite, Work, families, fold, menu, settled
from onnxcp.verification import Verification, agreement, tolerable, whole_error

_RIVALS = 2  # options of other families to refit as well,
_NEAR = 2.0  # of which at most so many times the distortion is expected
_EQUAL = 1.02  # and at most so many times the seconds
_LESSON = math.log(4.0)  # the most that one refit teaches of the errors of a family
_SAMPLES = 64  # to find errors on at least, where there are so many
_RUNNING = 20.0  # seconds that all of them together may run
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Planned:
    """How a plan came about.

    Attributes
    ----------
    goal
        What was wanted.
    rounds
        What was tried on the way.
    shortfall
        A sentence, where the goal was out of reach; else empty.
    sites
        What was found out about each site.
    cache_problem
        Why measurements could not be kept, in a sentence; None if they could.
    preset
        How sites were chosen, in a sentence, where it was not by time and error; else empty.
    """

    goal: Goal
    rounds: tuple[Round, ...]
    shortfall: str
    sites: tuple[Surveyed, ...]
    cache_problem: str | None = None
    preset: str = ""

    @property
    def kept(self) -> Round | None:
        """The round whose network was taken."""
        return next((each for each in self.rounds if each.kept), None)

    def given_back(self, told: str = "") -> Planned:
        """Return the same where sites were given back: no round tells of what is left of it.

        Parameters
        ----------
        told
            What there is to say of it, in a sentence.
        """
        rounds = tuple(replace(each, kept=False) for each in self.rounds)
        short = f"{self.shortfall} {told}".strip()
        if not short and self.goal.error is None and not self.goal.scored:
            short = f"Sites were given back, so the goal is missed: {self.goal}."
        return replace(self, rounds=rounds, shortfall=short)


def by_goal(work: Work, goal: Goal) -> tuple[Rewrite, Planned]:
    """Plan for the whole network, build what was planned, measure, correct, and plan again."""
    bare, planner = _prepared(work)
    found = search(planner, goal, Builder(work, bare, goal, planner.seconds), work.baseline)
    problem = work.cache.problem
    planned = Planned(goal, found.rounds, found.shortfall, planner.sites, problem)
    if found.attempt is not None:
        return found.attempt.made, planned
    decisions = tuple(_decision(each) for each in planner.sites)
    return settled(work, replace(bare, decisions=decisions)), planned


def outlined(work: Work, goal: Goal) -> tuple[Plan, Planned]:
    """Plan for the whole network and time the plan, but build nothing."""
    bare, planner = _prepared(work)
    choice, rounds, shortfall = outline(planner, goal, Builder(work, bare, goal, planner.seconds))
    planned = Planned(goal, rounds, shortfall, planner.sites, work.cache.problem)
    rows = []
    for each in planner.sites:
        option = choice.options.get(each.site)
        refusals = () if option is not None else _decision(each).refusals
        rows.append(row_of(each.site, option, refusals))
    return Plan(**head_of(work, str(goal), planned.kept), sites=tuple(rows)), planned


def by_plan(work: Work, plan: Plan) -> Rewrite:
    """Do what a plan says; nothing is chosen."""
    prepared, records = fold(work.original)
    sites, refusals = find_sites(prepared)
    rows = {row.site: row for row in plan.sites}
    chosen = {
        site: (*choice, _known(rows[site.name].cosine))
        for site, choice in plan_choices(plan, sites, families(), "the plan").items()
    }
    kept = {site: (_kept(site, rows.get(site.name)),) for site in sites if site not in chosen}
    bare = Rewrite(prepared, None, (), tuple(refusals), records)
    return settled(work, replace(bare, decisions=decided(work, prepared, sites, chosen, kept)))


def decided(
    work: Work,
    prepared: Model,
    sites: Sequence[Site],
    chosen: Mapping[Site, tuple[FactorizePass, Ranks, float]],
    kept: Mapping[Site, tuple[Refusal, ...]],
) -> tuple[Decision, ...]:
    """Decompose what is chosen and time it, each site alone.

    Parameters
    ----------
    work
        The work.
    prepared, sites
        The network, and its sites.
    chosen
        For sites that change their family, ranks, and the cosine by which these were chosen (NaN
        where they were not).
    kept
        For the others why they stay.
    """

    def jobs() -> Iterator[tuple[FactorizePass, Site, Ranks]]:
        for done, (site, (family, ranks, _)) in enumerate(chosen.items()):
            work.progress(f"{site.name}: decomposing", done, len(chosen))
            yield family, site, ranks

    results = dict(zip(chosen, apply_all(jobs()), strict=True))
    decisions = []
    for done, site in enumerate(sites):
        shape = work.shapes.get(site.input)
        macs = None if shape is None else site_macs(site, shape)
        if site not in chosen:
            decisions.append(Decision(site, macs, reasons=kept[site]))
            continue
        work.progress(f"{site.name}: timing", done, len(sites))
        family, ranks, cosine = chosen[site]
        result = results[site]
        shape = shape or nominal_input_shape(site)
        bench = SiteBench(prepared, site, shape, work.settings.machine)
        timing = timing_of(*bench.trials([result.chain]))
        cost = chain_macs(site, result.chain, shape)
        option = Option(site, family, ranks, cost, timing, cosine=cosine)
        decisions.append(Decision(site, macs, (Candidate(option, result),)))
    return tuple(decisions)


def score_for(goal: Goal, work: Work, rewrite: Rewrite) -> float | None:
    """Return what a goal judges a rewritten network by: how far it agrees, or what it scores."""
    assert rewrite.model is not None
    if goal.min_agreement is None and work.score is None:
        return None  # deploying a network takes a while
    model, _ = work.deployed(rewrite.model)
    if goal.min_agreement is not None:
        return agreement(work.differences(model) if work.lower else rewrite.differences)
    return work.scored(model)


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _kept(site: Site, row: Row | None) -> Refusal:
    """Return why a plan leaves a site as it is."""
    if row is None:
        return Refusal(site.name, Reason.EXCLUDED, "the plan does not name it")
    reason = Reason.EXCLUDED if row.fixed else Reason.NOT_NEEDED
    return Refusal(site.name, reason, row.keep or "the plan keeps it")


def plan_of(
    work: Work,
    rewrite: Rewrite,
    planned: Planned | None,
    verification: Verification | None,
    goal: str,
) -> Plan:
    """Write down what every site became.

    Parameters
    ----------
    work, rewrite, planned
        What came of what; `planned` is None where sites were decided on one by one.
    verification
        The whole network before and after, if there is one.
    goal
        What was wanted, in words.
    """
    measured = Numbers()
    if verification is not None:
        measured = _numbers(verification.trial.a.median, verification.trial.b.median, rewrite.error)
    kept = None if planned is None else planned.kept
    rows = tuple(row_of(each.site, each.option, each.refusals) for each in rewrite.decisions)
    work = replace(work, lower=rewrite.lower or work.lower)
    return Plan(**head_of(work, goal, kept), measured=measured, sites=rows)


def head_of(work: Work, goal: str, kept: Round | None) -> dict[str, Any]:
    """Return what a plan says ahead of its rows."""
    place = describe(work.settings.machine)
    forecast = None if kept is None or math.isnan(kept.forecast.after) else kept.forecast
    return {
        "model": PlannedModel(name=work.original.name, digest=model_digest(work.original)),
        "made_on": {
            "cpu": place.cpu,
            "cores": str(place.cores),
            "threads": place.threads,
            "providers": ", ".join(place.providers),
            "system": place.system,
            **place.versions,
        },
        "goal": goal,
        "finish": ",".join(map(str, (*work.finish, *((work.lower,) if work.lower else ())))),
        "predicted": (
            Numbers()
            if forecast is None
            else _numbers(forecast.before, forecast.after, forecast.error)
        ),
    }


def _numbers(before: float, after: float, error: float) -> Numbers:
    known = error if math.isfinite(error) else None
    return Numbers(before_ms=1e3 * before, after_ms=1e3 * after, error=known)


def row_of(site: Site, option: Option | None, refusals: Sequence[Refusal]) -> Row:
    """Return the row of what a site becomes, or why it stays."""
    if option is None:
        refusal = main_refusal(refusals)
        keep = "no family was offered" if refusal is None else refusal.detail
        fixed = any(each.reason is Reason.EXCLUDED for each in refusals)
        return Row(site=site.name, keep=keep, fixed=fixed)
    return Row(
        site=site.name,
        family=option.family.name,
        ranks=option.ranks,
        before_ms=1e3 * option.timing.before,
        after_ms=1e3 * option.timing.after,
        error=option.error**0.5 if math.isfinite(option.error) else None,
        distortion=option.distortion if math.isfinite(option.distortion) else None,
        cosine=option.cosine if math.isfinite(option.cosine) else None,
    )


def _prepared(work: Work) -> tuple[Rewrite, Planner]:
    """Find out what there is to plan with."""
    prepared, records = fold(work.original)
    sites, refusals = find_sites(prepared)
    bare = Rewrite(prepared, None, (), tuple(refusals), records)
    if not sites:
        return bare, Planner((), 1.0)
    work.progress("timing the network", 0, 1)
    seconds = seconds_of_original(work)
    surveyed = _surveyed(work, bare, sites, seconds)
    macs = summarize(work.original, work.shapes).macs  # folding changes none, but names of tensors
    parameters = summarize(prepared, work.shapes).parameters
    return bare, Planner(surveyed, seconds, macs=macs, parameters=parameters, gained=work.gained)


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
        decisions = tuple(_decision(each, candidates.get(each.site, ())) for each in planner.sites)
        rewrite = settled(work, replace(self._bare, decisions=decisions))
        options = {each.site: each.option for each in rewrite.decisions if each.option is not None}
        built = Choice(options, choice.reached)
        score = None if rewrite.model is None else score_for(self._goal, work, rewrite)
        held = rewrite.judged if rewrite.held else None
        return Attempt(
            rewrite, built, self._error(rewrite), score, held, _lessons(rewrite.decisions)
        )

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
    return {family: math.exp(max(-_LESSON, min(_LESSON, each))) for family, each in means.items()}


def _key(option: Option) -> tuple[str, str, Ranks]:
    return option.site.name, option.family.name, option.ranks


def _decision(surveyed: Surveyed, candidates: tuple[Candidate, ...] = ()) -> Decision:
    if candidates:
        return Decision(surveyed.site, surveyed.macs, candidates, surveyed.reasons)
    reasons = surveyed.reasons
    if surveyed.options:
        best = max(surveyed.options, key=lambda option: option.saving)
        count = len(surveyed.options)
        detail = f"the goal needs none of its {count} option{'s' * (count > 1)} (fastest: {best})"
        reasons = (*reasons, Refusal(surveyed.site.name, Reason.NOT_NEEDED, detail))
    return Decision(surveyed.site, surveyed.macs, reasons=reasons)


def _surveyed(work: Work, bare: Rewrite, sites: Sequence[Site], seconds: float) -> list[Surveyed]:
    settings = work.settings
    latencies = LatencyTable(bare.prepared, work.shapes, settings.machine, work.cache)
    errors = ErrorTable(
        bare.prepared,
        settings.machine,
        work.cache,
        _samples(work, seconds),
        from_data=work.fits is not None,
        memory_limit=settings.refit.memory_limit,
        progress=work.progress,
    )
    offered = menu(settings, work.cache, searching=True)
    return survey(sites, offered, work.shapes, latencies, errors, work.progress)


def _samples(work: Work, seconds: float) -> list[Batch]:
    """Return batches of the data, as many as can be run in a while; random ones without data.

    What is there to score on is not looked at: the score would be that of a plan made for it.

    Parameters
    ----------
    work
        The work.
    seconds
        What a run of the network takes.
    """
    if work.calibration is None:
        return [work.feeds]
    size = batch_size(work.feeds)
    most = max(_SAMPLES, _RUNNING * size / seconds)
    found: list[Batch] = []
    count = 0
    for batch in work.calibration.batches(max(size, min(_BATCH, len(work.calibration) // 8))):
        found.append(batch)
        count += batch_size(batch)
        if count >= most:
            break
    return found
