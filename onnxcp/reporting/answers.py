"""What a person wants to know first: how much faster, at what cost, on what machine, so what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxcp import units
from onnxcp.profiling.environment import Environment
from onnxcp.reporting import facts

if TYPE_CHECKING:
    from onnxcp.optimizer import Optimized
    from onnxcp.planned import Planned
    from onnxcp.profiling.timing import Trial
    from onnxcp.reporting.job import Job
    from onnxcp.verification import Verification


_FAR = 0.3  # relative error of the outputs from which on nobody would call them close,
_AGREED = 0.9  # and share of the same top classes up to which


@dataclass(frozen=True)
class Answer:
    """An answer: what was asked, a figure in a word or two, and what goes with it."""

    question: str
    figure: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forecasted:
    """What was predicted and what was measured.

    Attributes
    ----------
    row
        Both as text, as `before` and `after`, and by how much the prediction was missed.
    predicted, measured
        Lengths of bars, in percent of the longer one.
    """

    row: facts.Row
    predicted: float
    measured: float


def headline(result: Optimized) -> str:
    """Return the outcome in two words."""
    seen = result.verification
    if result.improved and seen is not None:
        if seen.trial.faster or result.after is None:
            return units.faster(seen.trial.ratio)
        return f"{units.ratio(result.before.nbytes / result.after.nbytes)} smaller"
    return "Left as it was"


def speed(result: Optimized) -> Answer:
    """Say how much faster the network became."""
    question = "How much faster?"
    if result.verification is None:
        return Answer(question, "Left as it was", ("nothing was rewritten, so nothing was timed",))
    trial = result.verification.trial
    said = [_interval(trial, facts.batch_of(result))]
    if not result.improved:
        said.insert(0, f"rewritten, it was {units.ratio(trial.ratio)} as fast")
    elif not trial.faster:
        said.insert(0, f"{units.ratio(trial.ratio)} as fast")
    said.append(_undisturbed(trial))
    elsewhere = result.verification.elsewhere
    said += [f"on {each.machine}: {facts.gain(each.trial)}" for each in elsewhere]
    return Answer(question, headline(result), tuple(said))


def cost(result: Optimized, job: Job) -> Answer:
    """Say what it costs: in accuracy where that is known, else in the error of the outputs."""
    question, seen = "At what cost?", result.verification
    if seen is None:
        return Answer(question, "None", ("the network is the one that came in",))
    custom = job.script is not None
    rows = facts.measures(result, custom_score=custom)
    # Errors and agreements are of the new network alone: there is no such thing before.
    # What was fitted to flatters: what was held out is told instead, where there is enough.
    held = facts.held_rows(result)
    shown = held or [row for row in rows if not row.before]
    on = facts.compared_on(result, passes_refit=job.passes_refit)
    if held:
        on = f"on {units.samples(result.judges)} that no layer was fitted to"
    said = [", ".join(f"{row.label} {row.after}" for row in shown) + f", {on}"]
    if seen.accuracy is None:
        figure = f"error {shown[0].after}"
        said.append("an error of 0 is none, and one of 1 is as large as the outputs themselves")
        said.append("accuracy unknown: nothing was given to score on")
    else:
        row, figure = rows[-1], rows[-1].change
        said.insert(0, f"{row.label}: {row.before} → {row.after}")
    if not result.improved:
        tried = f"rewritten: {', '.join(said)}"
        return Answer(question, "None", ("the original is handed back", tried))
    return Answer(question, figure, tuple(said))


def place(result: Optimized, machine: Environment) -> Answer:
    """Say where this was measured."""
    cores = f"{machine.cores} logical core{'' if machine.cores == 1 else 's'}"
    threads = "" if machine.threads == "chosen by ONNX Runtime" else f", threads: {machine.threads}"
    runtime = machine.versions.get("onnxruntime", "")
    inputs = [f"{name} {units.shape(shape)}" for name, shape in result.shapes.items()]
    return Answer(
        "On what machine?",
        machine.device or machine.cpu,
        (
            *([machine.cpu] if machine.device else []),
            f"{cores}{threads}, {machine.system}",
            f"ONNX Runtime {runtime}, provider {', '.join(machine.providers)}, {result.precision}",
            f"inputs: {', '.join(inputs)}",
        ),
    )


def advice(result: Optimized, job: Job) -> str:
    """Say what follows for somebody who has the network in use."""
    seen = result.verification
    if not result.improved or seen is None:
        return "Keep the network that you have: it is what was handed back."
    name = Path(job.output).name if job.output else "The new network"
    if (against := _against(result, seen)) is not None:
        return f"Do not deploy {name} as it is: {against}."
    said = f"{name} can take its place: inputs and outputs have the same names and shapes"
    if seen.trial.faster:
        said += f", and it is {units.faster(seen.trial.ratio)} on this machine"
    return f"{said}. {_judged(result, seen, custom=job.script is not None)}."


def warned(result: Optimized) -> bool:
    """Tell whether the network that is handed out should not be used as it is."""
    seen = result.verification
    return result.improved and seen is not None and _against(result, seen) is not None


def _against(result: Optimized, seen: Verification) -> str | None:
    """Say what speaks against using it where nothing scored it; None if nothing is known to."""
    if seen.accuracy is not None:
        return None
    differences = result.held or seen.differences
    if not all(each.finite_a for each in seen.differences):
        return (
            "what the original puts out holds infinite values or NaN on these inputs, so that the "
            "two have to be compared on others first"
        )
    agreed = [each.top1_agreement for each in differences if each.top1_agreement is not None]
    error, least = max(each.error for each in differences), min(agreed, default=1.0)
    if error <= _FAR and least >= _AGREED:
        return None
    more = "samples to refit it to (--calibration-data)"
    if not result.data_is_random:
        more = "fine-tuning (--finetune)"
    return (
        "what it puts out is far from what the original does; a milder goal or "
        f"{more} may bring it closer"
    )


def _judged(result: Optimized, seen: Verification, *, custom: bool) -> str:
    """Say whether it can be used, as far as that was looked at."""
    if seen.accuracy is not None:
        what, one = ("score", "a score") if custom else ("accuracy", "an accuracy")
        old, new = (units.score(each, custom=custom) for each in seen.accuracy)
        if seen.accuracy[1] < seen.accuracy[0]:
            return f"Deploy it if {one} of {new} in place of {old} is good enough for you"
        return f"Its {what} is no lower, {new} after {old}: nothing speaks against deploying it"
    where = " on random inputs" if result.data_is_random else ""
    return (
        f"Its outputs are close to the original's{where}, but what that does to accuracy is not "
        "known: score it on labelled data (--eval-data) before you deploy it"
    )


def forecasts(result: Optimized) -> list[Forecasted]:
    """Return what was predicted of the whole network beside what was then measured.

    Where nothing was planned for the whole, its time is reckoned from those that its layers save
    alone; not where these were timed in a lower precision than the original.
    """
    seen = result.verification
    if seen is None:
        return []
    before, after = seen.trial.a.median, seen.trial.b.median
    planned = _whole(result)
    if planned is None or planned.kept is None:
        savings = [each.option.saving for each in result.decisions if each.option is not None]
        left = before - sum(savings)
        if not savings or left <= 0 or result.steps:
            return []
        what = "time, if layers saved in the network what they save alone"
        return [_forecasted(what, units.seconds, left, after)]
    kept, found = planned.kept, []
    if kept.forecast.speedup > 0:  # it may be NaN, and so may the error
        found.append(_forecasted("time", units.seconds, before / kept.forecast.speedup, after))
    if kept.error is not None and kept.forecast.error > 0:
        found.append(_forecasted("output error", units.error, kept.forecast.error, kept.error))
    return found


def _forecasted(
    label: str, show: Callable[[float], str], predicted: float, measured: float
) -> Forecasted:
    row = facts.Row(label, show(predicted), show(measured), units.change(predicted, measured))
    longest = max(predicted, measured)
    return Forecasted(row, round(100 * predicted / longest, 2), round(100 * measured / longest, 2))


def _whole(result: Optimized) -> Planned | None:
    """Return the plan if what was verified is all of it."""
    planned = result.planned
    if planned is None or planned.kept is None:
        return None
    replaced = sum(each.option is not None for each in result.decisions)
    return planned if replaced >= planned.kept.sites else None


def _interval(trial: Trial, batch: int | None) -> str:
    at = "" if batch is None else f" at batch {batch}"
    low_high = units.interval(trial.low, trial.high)
    return f"95 % interval {low_high}{at}, from {trial.pairs} runs of each in turns"


def _undisturbed(trial: Trial) -> str:
    """Say how many runs other processes disturbed: what there is to know of the machine's noise."""
    if not trial.clean:
        return "the machine was busy: nearly every run was disturbed by other processes"
    if not trial.discarded:
        return "none was disturbed so much by other processes that it was left out"
    return f"{trial.discarded} more were disturbed by other processes, and left out"
