"""From a goal for the whole network, or a plan that was made before, to a rewritten network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxcp.building import Builder, decision_on
from onnxcp.errors import OnnxcpError
from onnxcp.factorize import (
    FactorizePass,
    Ranks,
    apply_all,
    nominal_input_shape,
)
from onnxcp.finishing import seconds_of_original
from onnxcp.graph.chain import chain_macs, site_macs
from onnxcp.graph.digest import model_digest
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Reason, Refusal, main_refusal
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.summary import summarize
from onnxcp.planning.distortion import ErrorTable
from onnxcp.planning.goal import Goal
from onnxcp.planning.latency import LatencyTable, SiteBench, timing_of
from onnxcp.planning.option import Candidate, Decision, Option
from onnxcp.planning.plan import Numbers, Plan, PlannedModel, Row, plan_choices
from onnxcp.planning.planner import Planner
from onnxcp.planning.search import Round, outline, search
from onnxcp.planning.survey import Surveyed, survey
from onnxcp.profiling.compare import Batch, batch_size
from onnxcp.profiling.environment import describe
from onnxcp.rewriting import Rewrite, families, fold, menu, settled
from onnxcp.verification import Verification
from onnxcp.work import Work

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
    plan
        What every site became, of a point of a frontier; else None.
    """

    goal: Goal
    rounds: tuple[Round, ...]
    shortfall: str
    sites: tuple[Surveyed, ...]
    cache_problem: str | None = None
    preset: str = ""
    plan: Plan | None = None

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
    decisions = tuple(decision_on(each) for each in planner.sites)
    return settled(work, replace(bare, decisions=decisions)), planned


def point_of(work: Work, speedup: float) -> Planned:
    """Plan for another speed-up and build it, to see what it costs; what fails is a sentence.

    The job that it stands beside is done, and is not to be lost for it.
    """
    goal = Goal(speedup=speedup)
    try:
        rewrite, planned = by_goal(work, goal)
        return replace(planned, plan=plan_of(work, rewrite, planned, None, str(goal)))
    except OnnxcpError as problem:
        return Planned(goal, (), str(problem), ())


def outlined(work: Work, goal: Goal) -> tuple[Plan, Planned]:
    """Plan for the whole network and time the plan, but build nothing."""
    bare, planner = _prepared(work)
    choice, rounds, shortfall = outline(planner, goal, Builder(work, bare, goal, planner.seconds))
    planned = Planned(goal, rounds, shortfall, planner.sites, work.cache.problem)
    rows = []
    for each in planner.sites:
        option = choice.options.get(each.site)
        refusals = () if option is not None else decision_on(each).refusals
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
    decisions = decided(work, prepared, sites, chosen, kept)
    given_up = plan.refitted is False
    made = Rewrite(prepared, None, decisions, tuple(refusals), records, given_up=given_up)
    return settled(work, made)


def remarks(work: Work, plan: Plan) -> str:
    """Say where a plan that is carried out cannot give the network that it was saved from."""
    said = []
    if plan.model.digest and plan.model.digest != model_digest(work.original):
        said.append(
            f"The plan was made for another network, '{plan.model.name}': its layers were found by "
            "their names."
        )
    if plan.refitted and work.fits is None:
        said.append(
            "What the plan was saved from was refitted to samples; without them this is not."
        )
    if plan.refitted is False and work.fits is not None:
        said.append("No refit was tried: it was given up when the plan was made.")
    return " ".join(said)


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
        The whole network before and after, if there is one; else what planning measured counts.
    goal
        What was wanted, in words.
    """
    measured = Numbers()
    kept = None if planned is None else planned.kept
    if verification is not None:
        measured = _numbers(verification.trial.a.median, verification.trial.b.median, rewrite.error)
    elif kept is not None and kept.before is not None and kept.after is not None:
        measured = _numbers(kept.before, kept.after, rewrite.error)
    rows = tuple(row_of(each.site, each.option, each.refusals) for each in rewrite.decisions)
    work = replace(work, lower=rewrite.lower or work.lower)
    replaced = [each for each in rewrite.decisions if each.option is not None]
    refitted = None
    if replaced and work.fits is not None:
        refitted = any(each.refit is not None for each in replaced)
    return Plan(**head_of(work, goal, kept), refitted=refitted, measured=measured, sites=rows)


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
            "precision": place.precision,
            **({"device": place.device} if place.device else {}),
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
