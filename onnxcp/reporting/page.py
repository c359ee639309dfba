"""What the page on the main job tells, as plain values: a record keeps them, HTML shows them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from onnxcp import units
from onnxcp.factorize import FactorizePass, Ranks
from onnxcp.graph.digest import model_digest
from onnxcp.passes import LowerPass, PassRecord
from onnxcp.pipeline import parse_pipeline
from onnxcp.planning.plan import plan_text
from onnxcp.profiling.environment import Environment, describe
from onnxcp.reporting import answers, facts, picture, plans
from onnxcp.reporting.answers import Answer, Forecasted
from onnxcp.reporting.facts import Row, SiteLine, StepLine
from onnxcp.reporting.picture import Mark, Picture
from onnxcp.reporting.plans import RoundLine
from onnxcp.reporting.spectra import Spectrum, spectra
from onnxcp.reporting.wiring import Wiring, wirings

_APART = 1.5  # what a network gains over what its layers gain alone, from which on it is told

if TYPE_CHECKING:
    from onnxcp.calibration.data import Samples
    from onnxcp.optimizer import Optimized
    from onnxcp.reporting.job import Job


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes
    ----------
    model, output
        The files, as the user named them; `output` is None where none was written.
    date
        When it was measured.
    improved
        Whether the network that is handed out is a rewritten one.
    headline, verdict, advice
        The outcome in two words, in a sentence, and what to do about it.
    answers
        How much faster, at what cost, on what machine.
    times
        Median seconds of the whole network before and after; None where nothing was timed.
    rows
        What the network costs and does, before and after.
    steps
        What lies between the original and a network of lower precision.
    asked
        What was asked for, and how ranks were rounded.
    families
        Names of the families that layers were rewritten by, and of what ended the rewrite, and
        what each makes of a layer.
    sums
        What layers take alone, all together, beside what the whole network does.
    warned
        Whether the advice is not to use what was handed out.
    again
        Command lines that carry out the recipe and the plan; "" where there is none.
    notes
        What must be said so that nobody reads too much into the numbers.
    scored
        What is measured on labelled samples: ``"accuracy"``, or ``"score"`` by a user's function.
    goal, preset
        What was planned for, and how sites were chosen if not by time and error; "" if neither.
    rounds, frontier
        What was tried on the way to the plan, and for several speed-ups.
    pictures
        What networks lose over their speed-up.
    forecasts
        What was predicted of the whole network, and measured.
    refitted
        Whether layers were fitted to samples.
    sites
        What became of every site.
    wirings
        Rewritten sites within their neighbours.
    spectra
        Singular values of sites.
    refusals
        Nodes that are no sites, and why.
    passes
        What ran.
    machine
        Where it was measured.
    inputs
        Names and shapes of what was measured with.
    command
        The command line that does it again.
    recipe
        The same as a pipeline of passes; "" where there were none.
    plan
        The same as a plan; "" where there is none.
    given
        What else it was made from (data, digest of the model, seeds): names and values.
    """

    model: str
    output: str | None
    date: str
    improved: bool
    headline: str
    verdict: str
    advice: str
    answers: tuple[Answer, ...]
    times: tuple[float, float] | None
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    scored: str
    goal: str
    preset: str
    rounds: tuple[RoundLine, ...]
    frontier: tuple[RoundLine, ...]
    pictures: tuple[Picture, ...]
    forecasts: tuple[Forecasted, ...]
    refitted: bool
    sites: tuple[SiteLine, ...]
    wirings: tuple[Wiring, ...]
    spectra: tuple[Spectrum, ...]
    refusals: tuple[tuple[str, str], ...]
    passes: tuple[PassRecord, ...]
    machine: Environment
    inputs: tuple[tuple[str, str], ...]
    command: str
    recipe: str
    plan: str
    given: tuple[tuple[str, str], ...]
    # What follows came later: older records are without.
    steps: tuple[StepLine, ...] = ()
    asked: str = ""
    families: tuple[tuple[str, str], ...] = ()
    sums: str = ""
    again: tuple[str, str] = ("", "")
    warned: bool = False


def page_of(result: Optimized, job: Job, *, now: datetime | None = None) -> Page:
    """Return the page on an outcome of the main job.

    Parameters
    ----------
    result
        Of the main job.
    job
        What was asked for.
    now
        When it was measured; the present time by default.
    """
    custom = job.script is not None
    seen, planned = result.verification, result.planned
    machine, sites = describe(job.settings.machine), tuple(_sites(result))
    return Page(
        model=job.model,
        output=job.output,
        date=f"{now or datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        improved=result.improved,
        headline=answers.headline(result),
        verdict=result.verdict if result.verdict.endswith(".") else f"{result.verdict}.",
        advice=answers.advice(result, job),
        warned=answers.warned(result),
        answers=(
            answers.speed(result),
            answers.cost(result, job),
            answers.place(result, machine),
        ),
        times=None if seen is None else (seen.trial.a.median, seen.trial.b.median),
        rows=(*facts.measures(result, custom_score=custom), *facts.sizes(result)),
        steps=tuple(facts.step_lines(result, custom_score=custom)),
        notes=tuple(facts.notes(result, custom_score=custom, passes_refit=job.passes_refit)),
        scored="score" if custom else "accuracy",
        goal=_goal(result),
        preset="" if planned is None else planned.preset,
        rounds=() if planned is None else tuple(plans.round_lines(planned, custom_score=custom)),
        frontier=tuple(plans.frontier_lines(result.frontier, custom_score=custom)),
        pictures=tuple(_pictures(result, custom_score=custom)),
        forecasts=tuple(answers.forecasts(result)),
        refitted=facts.refitted(result),
        sites=sites,
        wirings=tuple(_wirings(result)) if result.improved else (),
        spectra=tuple(spectra(result.decisions)),
        refusals=tuple(facts.grouped(result.refusals)),
        passes=result.records,
        machine=machine,
        inputs=tuple((name, units.shape(shape)) for name, shape in result.shapes.items()),
        command=job.command,
        recipe=_recipe(result),
        plan="" if result.plan is None else plan_text(result.plan),
        given=tuple(_given(result, job)),
        asked=_asked(result, job),
        families=tuple(_families(result)),
        sums=_sums(result, sites),
        again=job.again,
    )


def _goal(result: Optimized) -> str:
    """Return what was planned for, in words; "" where nothing was planned."""
    if result.planned is None:
        return ""
    if result.planned.preset and result.plan is not None:
        return result.plan.goal
    return str(result.planned.goal)


def _sites(result: Optimized) -> Iterator[SiteLine]:
    """Yield what became of each site, those that stay with their time where a plan looked at it."""
    surveyed = () if result.planned is None else result.planned.sites
    timed = {each.site.name: each.options[0].timing.before for each in surveyed if each.options}
    for line in facts.site_lines(result):
        yield line if line.alone is not None else replace(line, seconds=timed.get(line.name))


def _asked(result: Optimized, job: Job) -> str:
    """Return what was asked for, and how ranks were rounded, in a sentence or two."""
    if result.plan is None:
        return ""
    block = job.settings.round_to
    if block is None and job.settings.preset is not None:
        block = 1
    ranks = "what was measured to pay here" if block is None else str(block)
    said = f"Asked for: {result.plan.goal}."
    if block == 1 or job.settings.plan is not None or not any(d.option for d in result.decisions):
        return said
    return f"{said} Ranks are multiples of {ranks}, where a layer has so many channels."


def _families(result: Optimized) -> list[tuple[str, str]]:
    """Return the families that layers were rewritten by, and what came last, in a line each."""
    chosen = [each.option.family for each in result.decisions if each.option is not None]
    ends = [parse_pipeline(each.text)[0] for each in result.endings if each.changed]
    said = sorted({family.name: family.summary for family in chosen}.items())
    return [*said, *((each.name, each.summary) for each in ends)]


def _sums(result: Optimized, sites: Sequence[SiteLine]) -> str:
    """Say what layers take alone together, and whether the whole network gains as much."""
    seen, alone = result.verification, [line.alone for line in sites if line.alone is not None]
    if seen is None or not alone or result.steps:  # layers may be timed in a lower precision
        return ""
    before, after = sum(each.before for each in alone), sum(each.after for each in alone)
    whole, left = seen.trial.a.median, seen.trial.b.median
    said = (
        f"Alone, the rewritten layers take {units.seconds(before)} together and their chains "
        f"{units.seconds(after)}; the whole network went from {units.seconds(whole)} to "
        f"{units.seconds(left)}."
    )
    saved = before - after
    if saved > 0 and not 1 / _APART <= (whole - left) / saved <= _APART:
        said += " The two do not add up here: go by the whole, and take the bars for a hint."
    return said


def _wirings(result: Optimized) -> list[Wiring]:
    """Return how layers were rewritten, before their precision was lowered."""
    models = (*(step.model for step in result.steps), result.model)
    drawn = (wirings(result.original, model) for model in models)
    return next(filter(None, drawn), [])


def _recipe(result: Optimized) -> str:
    """Return the passes that ran, with those that decisions stand for, as pipeline text."""
    ends = [each.text for each in result.endings if each.changed]
    changed = [each.text for each in result.records if each.changed and each.text not in ends]
    lowered = [text for text in changed if isinstance(parse_pipeline(text)[0], LowerPass)]
    chosen = [
        str(_at_ranks(decision.option.family, decision.result.ranks, decision.site.name))
        for decision in result.decisions
        if decision.option is not None and decision.result is not None
    ]
    first = [text for text in changed if text not in lowered]
    return ",\n".join([*first, *chosen, *ends, *lowered])


def _at_ranks(family: FactorizePass, ranks: Ranks, site: str) -> FactorizePass:
    """Return a family as the pass that does to one site what was decided."""
    rank = ranks[0] if len(ranks) == 1 else ranks
    sizes = dict.fromkeys(("energy", "cosine", "macs"))
    return replace(family, **sizes, rank=rank, evbmf=False, round_to=1, nodes=site, exclude="")


def _given(result: Optimized, job: Job) -> Iterator[tuple[str, str]]:
    """Yield what the outcome depends on besides the command and the versions."""
    yield "Model", f"{job.model}, {_digest(model_digest(result.original))}"
    if job.output is not None:
        made = f", {_digest(model_digest(result.model))}" if result.improved else ", the same"
        yield "Result", f"{job.output}{made}"
    if job.data is not None:
        yield "Calibration", f"{job.data}{_used(result.compared)}"
    if job.labelled is not None:
        yield "Evaluation", f"{job.labelled}{_used(result.scored)}"
    if job.script is not None:
        yield "Evaluation", job.script
    seeds = []
    if facts.refitted(result) or job.passes_refit:
        seeds.append(f"refit {job.settings.refit.seed}")
    if job.settings.training is not None:
        seeds.append(f"fine-tuning {job.settings.training.seed}")
    if result.data_is_random:
        seeds.append("random inputs 0")
    yield "Seeds", ", ".join(seeds) or "nothing was drawn"


def _used(samples: Samples | None) -> str:
    """Return how many samples were used, and which."""
    if samples is None:
        return ""
    return f": {units.samples(samples.count)}, {_digest(samples.digest)}"


def _digest(text: str) -> str:
    return f"digest {text[:16]}…"


def _pictures(result: Optimized, *, custom_score: bool) -> list[Picture]:
    """Draw what was planned for several speed-ups: what it loses, and what it scores."""
    if not result.frontier:
        return []
    errors = [Mark(1.0, 0.0, "original", "original")]
    scores = []
    seen = result.verification
    accuracy = None if seen is None else seen.accuracy
    if accuracy is not None:
        scores.append(Mark(1.0, accuracy[0], "original", "original"))
    for planned in result.frontier:
        kept, label = planned.kept, plans.goal_label(planned.goal)
        speedup = None if kept is None else plans.measured_speedup(kept)
        if kept is None or speedup is None:
            continue
        if kept.error is not None:
            errors.append(Mark(speedup, kept.error, label))
        if kept.score is not None:
            scores.append(Mark(speedup, kept.score, label))
    if result.improved and seen is not None:
        error = math.hypot(*(each.error for each in seen.differences))
        errors.append(Mark(seen.trial.ratio, error, "taken", "taken"))
        if accuracy is not None:
            scores.append(Mark(seen.trial.ratio, accuracy[1], "taken", "taken"))
    drawn = (
        picture.draw("error", "output error", errors, "{:.6g}".format, floor=0.0),
        picture.draw("score", "score", scores, "{:.6g}".format)
        if custom_score
        else picture.draw("score", "accuracy", scores, lambda share: f"{100 * share:.6g} %"),
    )
    return [each for each in drawn if each is not None]
