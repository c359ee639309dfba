"""What a report says, as words: the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxcp import units
from onnxcp.graph.refusal import Refusal, main_refusal
from onnxcp.planning.latency import Timing
from onnxcp.profiling.breakdown import node_names
from onnxcp.profiling.compare import OutputDifference
from onnxcp.profiling.timing import Trial
from onnxcp.reporting import plans, tuned

if TYPE_CHECKING:
    from onnxcp.calibration.data import Samples
    from onnxcp.graph.site import Site
    from onnxcp.optimizer import Optimized
    from onnxcp.planned import Planned
    from onnxcp.planning.option import Decision

_SHORT = 0.95  # of the speed-up that was asked for, below which it is told
_NAMED = 3  # nodes of one refusal that are named; the others are counted


@dataclass(frozen=True)
class Row:
    """One line of the comparison of two networks, as text; `strong` ones matter most."""

    label: str
    before: str
    after: str
    change: str = ""
    strong: bool = False


@dataclass(frozen=True)
class SiteLine:
    """What became of one site.

    Attributes
    ----------
    name, kernel
        The site, and the shape of its kernel in words.
    decision
        Family and rank, or why it was not replaced.
    changed
        Whether anything was done to it: also a refit that leaves its shape.
    macs_kept
        Multiply-adds of the chain over those of the site; None where it was not replaced.
    weight_error
        Relative Frobenius error of the kernel, or None.
    alone
        The site against its chain, each alone in a graph, or None.
    seconds
        The site alone where it was not replaced, if it was timed.
    output_errors
        Error of what it puts out before and after a refit; None where none was tried, or where it
        is not known.
    """

    name: str
    kernel: str
    decision: str
    changed: bool = False
    macs_kept: float | None = None
    weight_error: float | None = None
    alone: Timing | None = None
    seconds: float | None = None
    output_errors: tuple[float, float] | None = None


@dataclass(frozen=True)
class StepLine:
    """A network on the way to a lower precision, as text: how fast it is, and what it loses."""

    name: str
    ratio: str
    interval: str
    error: str
    score: str


def sizes(result: Optimized) -> list[Row]:
    """Return what the network holds and needs, before and after."""
    before, after = result.before, result.after
    rows = []
    for label, key, show in (
        ("nodes", "nodes", "{:,}".format),
        ("parameters", "parameters", units.count),
        ("MACs per sample", "macs", units.count),
        ("file size", "nbytes", units.nbytes),
    ):
        old, new = getattr(before, key), getattr(after, key) if after else None
        first, second = (units.NONE if value is None else show(value) for value in (old, new))
        change = "" if key == "nodes" else units.change(old, new)
        rows.append(Row(label, first, second, change))
    return rows


def measures(result: Optimized, *, custom_score: bool = False) -> list[Row]:
    """Return time, error and accuracy, before and after; nothing where nothing was rewritten.

    Parameters
    ----------
    result
        Of the main job.
    custom_score
        Whether accuracy is what a user's function gave, in its own unit.
    """
    seen = result.verification
    if seen is None:
        return []
    trial = seen.trial
    slow = (units.seconds(trial.a.p90), units.seconds(trial.b.p90))
    rows = [
        _latency_row(f"median latency{_at_batch(result)}", trial, strong=True),
        Row("90th percentile", *slow),
        *(_latency_row(f"median on {each.machine}", each.trial) for each in seen.elsewhere),
        *_error_rows(seen.differences, result.unfitted if refitted(result) else ()),
        *(replace(row, label=f"held out: {row.label}") for row in held_rows(result)),
    ]
    if seen.accuracy is not None:
        rows.append(_score_row(*seen.accuracy, result.scored, custom=custom_score))
    return rows


def _latency_row(label: str, trial: Trial, *, strong: bool = False) -> Row:
    medians = (units.seconds(trial.a.median), units.seconds(trial.b.median))
    return Row(label, *medians, gain(trial), strong=strong)


def gain(trial: Trial) -> str:
    """Return how many times as fast, with its interval: ``6.78× (6.70 to 6.85)``."""
    return f"{units.ratio(trial.ratio)} ({units.interval(trial.low, trial.high)})"


def held_rows(result: Optimized) -> list[Row]:
    """Return error and agreement on the samples that refits held out; nothing without any."""
    return _error_rows(result.held, ())


def refitted(result: Optimized) -> bool:
    """Tell whether the layers are those that a refit to data settled on."""
    return any(decision.refit is not None for decision in result.decisions)


def site_lines(result: Optimized) -> list[SiteLine]:
    """Return what became of each site."""
    lines = [_site_line(decision) for decision in result.decisions]
    ends = ", ".join(each.text for each in result.endings if each.changed)
    if not (ends and result.improved):
        return lines
    # What ends a rewrite may take apart what no family was worth it for.
    models = (*(step.model for step in result.steps), result.model)
    left = {name for model in models for name in node_names(model.proto.graph)}
    return [
        line
        if line.alone is not None or line.name in left
        else replace(
            line,
            decision=f"{line.decision.replace('left alone', 'not factorised', 1)}; then {ends}, "
            "which is exact",
            changed=True,
        )
        for line in lines
    ]


def step_lines(result: Optimized, *, custom_score: bool = False) -> list[StepLine]:
    """Return the way to a network of lower precision, from the original on; empty without one."""
    if not result.steps:
        return []

    def shown(score: float | None) -> str:
        return "" if score is None else units.score(score, custom=custom_score)

    seen = result.verification
    before = None if seen is None or seen.accuracy is None else seen.accuracy[0]
    lines = [StepLine("as it came", units.ratio(1.0), "", units.NONE, shown(before))]
    for step in result.steps:
        trial = step.trial
        interval = units.interval(trial.low, trial.high)
        error, score = units.error(step.error), shown(step.score)
        lines.append(StepLine(step.name, units.ratio(trial.ratio), interval, error, score))
    return lines


def compared_on(result: Optimized, *, passes_refit: bool = False) -> str:
    """Return what outputs were compared on: ``on the 512 samples that layers were refitted to``."""
    if result.compared is None:
        batch = batch_of(result)
        return "on random inputs" if batch is None else f"on random inputs, one batch of {batch}"
    fitted = passes_refit or refitted(result) or bool(result.unfitted)
    count = units.samples(result.compared.count)
    if not result.judges:
        return f"on the {count} that layers were refitted to" if fitted else f"on {count}"
    return f"on all {count}, those fitted to among them"


def kernel_text(site: Site) -> str:
    """Return operator and kernel of a site: ``Conv 128×48×9×9``, with the groups if several."""
    group = f", {site.group} groups" if site.group > 1 else ""
    return f"{site.op} {units.shape(site.kernel_shape)}{group}"


def grouped(refusals: Iterable[Refusal]) -> list[tuple[str, str]]:
    """Bring refusals for the same reason together: who, in words, and why."""
    names: dict[str, list[str]] = defaultdict(list)
    for refusal in refusals:
        names[refusal.detail].append(refusal.site)
    return [(_listed(each), detail) for detail, each in names.items()]


def notes(
    result: Optimized, *, custom_score: bool = False, passes_refit: bool = False
) -> list[str]:
    """Return what must be said so that nobody reads too much into the numbers.

    Parameters
    ----------
    result
        Of the main job.
    custom_score
        Whether accuracy is what a user's function gave.
    passes_refit
        Whether what passes replaced was refitted to data.
    """
    seen, planned = result.verification, result.planned
    if seen is None:
        said = [result.told] if result.told else []
        return said if planned is None else [*said, *_shortfall(planned)]
    said = [] if planned is None else _planned_notes(planned, result)
    if result.data_is_random and (planned is None or planned.preset):
        said.append("Outputs were compared on random inputs, for want of data.")
    elif result.data_is_random:
        said.append(
            "For want of data, errors were expected from weights and random inputs alone, and "
            "outputs were compared on random inputs."
        )
    said += [
        f"Without changing what is computed, {each.text} came last: {each.notes[-1]}."
        for each in result.endings
        if each.changed
    ]
    if result.told:
        said.append(result.told)
    said += [
        f"For {plans.goal_label(each.goal)}: {each.shortfall}"
        for each in result.frontier
        if each.shortfall and each.kept is None
    ]
    said += _lowering_notes(result)
    said += _refit_notes(result, passes_refit)
    if result.finetuned is not None:
        said += tuned.sentences(result.finetuned)
        if result.finetuned.improved and any(each.chain for each in result.decisions):
            said.append("Errors of single layers are those before that.")
    if seen.accuracy is None:
        said.append("Accuracy unknown: no data to score on and no evaluation function were given.")
    elif custom_score:
        said.append("The score is what the given function returned for each network.")
    if not all(each.clean for each in (seen.trial, *(other.trial for other in seen.elsewhere))):
        said.append(
            "The machine was busy: other processes disturbed nearly every timing of the whole "
            "network, so repeat this when it is idle before you rely on the speed."
        )
    said += [difference.problem for difference in seen.differences if difference.problem]
    said += [
        f"Output '{difference.name}' holds infinite values or NaN where the original's does not."
        for difference in seen.differences
        if difference.finite_a and not difference.finite_b
    ]
    said += [
        f"Output '{difference.name}' of the original itself holds infinite values or NaN on these "
        "inputs; where both networks have the same, that counts as no difference."
        for difference in seen.differences
        if not difference.finite_a
    ]
    return said


def _lowering_notes(result: Optimized) -> list[str]:
    """Return what lowered the precision, in a sentence."""
    lowered = result.steps and result.steps[-1].model is result.model
    notes = result.steps[-1].notes if lowered else ()
    return [f"For {result.precision}: {'; '.join(notes)}."] if notes else []


def plan_notes(planned: Planned, *, from_data: bool) -> list[str]:
    """Return what must be said about a plan of which nothing was built.

    Parameters
    ----------
    planned
        How the plan came about.
    from_data
        Whether errors were looked at on the user's samples.
    """
    said = _planned_notes(planned)
    if planned.preset:
        said.append("What it does to the outputs and to accuracy is unknown before it is built.")
    elif not from_data:
        said.append(
            "Errors are expected from weights and random inputs alone, for want of data; what it "
            "does to accuracy is unknown."
        )
    return said


def batch_of(result: Optimized) -> int | None:
    """Return the batch that was measured with, or None if inputs do not agree on one."""
    firsts = {shape[0] for shape in result.shapes.values() if shape}
    return firsts.pop() if len(firsts) == 1 else None


def _at_batch(result: Optimized) -> str:
    batch = batch_of(result)
    return "" if batch is None else f", batch {batch}"


def _planned_notes(planned: Planned, result: Optimized | None = None) -> list[str]:
    """Return a shortfall and how far the forecast was off; `result` is what came of it, if any."""
    said, kept = _shortfall(planned), planned.kept
    if kept is None:
        return said
    seen = None if result is None else result.verification
    whole = (
        result is None or sum(each.option is not None for each in result.decisions) >= kept.sites
    )
    # One speed-up on a page: where the plan is what was verified, that is the one to tell.
    note = plans.forecast_note(kept, seen.trial.ratio if seen is not None and whole else None)
    said += [note] if note else []
    wanted = planned.goal.speedup
    missed = wanted is not None and seen is not None and seen.trial.ratio < _SHORT * wanted
    if wanted is not None and missed and whole and not planned.shortfall:
        said.append(
            f"That is less than the {units.digits(wanted)} times that were asked for, which the "
            "plan reached when it was timed before."
        )
    if note and not whole:
        said.append(
            "That was with all of the planned layers; those that gained the whole network nothing "
            "for certain were then given back."
        )
    return said


def _shortfall(planned: Planned) -> list[str]:
    return [each for each in (planned.shortfall, planned.preset, planned.cache_problem) if each]


def _refit_notes(result: Optimized, passes_refit: bool) -> list[str]:
    on = compared_on(result, passes_refit=passes_refit)
    part = f", and on the {result.judges:,} that were held out"
    part = part if result.judges else ", that part among them"
    if passes_refit:
        return [
            "What the passes replaced was refitted to the calibration data, without labels; the "
            f"outputs were compared {on}."
        ]
    if not refitted(result):
        given_up = (
            "Layers were refitted to the calibration data, but that took the outputs of the "
            "network further from the original's, so the refit was given up; the outputs were "
            f"compared {on}."
        )
        if result.unfitted:
            return [given_up]
        return [] if result.compared is None else [f"Outputs were compared {on}."]
    if not any(each.refit is not None and each.refit.improved for each in result.decisions):
        return [
            "A refit to the calibration data was tried, and no layer gained by it; the outputs "
            f"were compared {on}."
        ]
    return [
        "Layers were refitted to the calibration data, without labels. Their output errors are "
        "those on a part that was held out; the outputs of the network were compared "
        f"{on}{part}."
    ]


def _error_rows(
    differences: Sequence[OutputDifference], unfitted: Sequence[OutputDifference]
) -> list[Row]:
    """Return how far the outputs are off, and how far they were before a refit if there was one."""
    rows = []
    before = dict(_errors(unfitted))
    for label, text in _errors(differences):
        known = f"{before[label]} before the refit" if label in before else ""
        rows.append(Row(label, "", text, known))
    return rows


def _errors(differences: Sequence[OutputDifference]) -> Iterator[tuple[str, str]]:
    if not differences:
        return
    worst = max(differences, key=lambda each: each.error)
    several = f", worst of {len(differences)}" if len(differences) > 1 else ""
    if worst.problem:
        yield "output error", "not comparable"
    elif worst.equal is not None:
        yield f"equal outputs{several}", units.share(worst.equal, 2)
    else:
        yield f"relative output error{several}", units.error(worst.relative)
    agreement = [d.top1_agreement for d in differences if d.top1_agreement is not None]
    if agreement:
        yield "same top class", units.share(min(agreement), 2)


def _score_row(before: float, after: float, scored: Samples | None, *, custom: bool) -> Row:
    texts = (units.score(before, custom=custom), units.score(after, custom=custom))
    if custom:
        return Row("score", *texts, f"{after - before:+.4g}".replace("-", "−"), strong=True)
    count = "" if scored is None else f", {units.samples(scored.count)}"
    return Row(f"accuracy{count}", *texts, units.points(before, after), strong=True)


def _site_line(decision: Decision) -> SiteLine:
    site, option, result = decision.site, decision.option, decision.result
    errors = _output_errors(decision)
    if option is None or result is None:
        refusal = main_refusal(decision.refusals)
        why = refusal.detail if refusal is not None else "no family was offered"
        changed = decision.chain is not None
        return SiteLine(
            name=site.name,
            kernel=kernel_text(site),
            decision=f"{'refitted, not replaced' if changed else 'left alone'}: {why}",
            changed=changed,
            output_errors=errors,
        )
    ranks = units.shape(result.ranks)
    kept = option.macs / decision.macs if decision.macs else None
    return SiteLine(
        name=site.name,
        kernel=kernel_text(site),
        decision=f"{option.family.name}, rank {ranks}{plans.cosine_text(option.cosine)}",
        changed=True,
        macs_kept=kept,
        weight_error=result.error,
        alone=option.timing,
        output_errors=errors,
    )


def _output_errors(decision: Decision) -> tuple[float, float] | None:
    refit = decision.refit
    if refit is None or math.isnan(refit.before) or math.isnan(refit.after):
        return None
    return refit.before, refit.after


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
