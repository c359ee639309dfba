"""Results as plain dictionaries, for `--json`: the one place that fixes their keys.

Times are in seconds, sizes in bytes, multiply-adds for one sample, shares between 0 and 1; a plan
is what it is in a file, with milliseconds. What is not known, and what is infinite or not a number,
is null. Keys are only ever added; whatever else changes raises `SCHEMA`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from onnxcp.graph.refusal import Refusal
from onnxcp.profiling.compare import OutputDifference
from onnxcp.profiling.timing import Latency, Trial
from onnxcp.reporting.page import Page, page_of

if TYPE_CHECKING:
    from onnxcp.optimizer import Optimized
    from onnxcp.planned import Planned
    from onnxcp.planning.goal import Goal
    from onnxcp.planning.option import Decision
    from onnxcp.planning.plan import Plan
    from onnxcp.profiling.environment import Environment
    from onnxcp.refit import Refit
    from onnxcp.reporting.job import Job
    from onnxcp.settings import Settings
    from onnxcp.training import Finetuned
    from onnxcp.verification import Elsewhere, Step

SCHEMA = 3

Record = dict[str, Any]


def to_json(record: Mapping[str, Any]) -> str:
    """Return a record as strict JSON, with the number of the schema ahead of it."""
    return json.dumps(_strict({"schema": SCHEMA, **record}), indent=2, allow_nan=False)


def optimized_record(
    result: Optimized, job: Job, environment: Environment, page: Page | None = None
) -> Record:
    """Describe an outcome of the main job.

    Parameters
    ----------
    result, job, environment
        What came of what, and where.
    page
        The page on it, if there is one already. It is kept in words and lines, so that
        `onnxcp report` can show it without the networks.
    """
    seen = result.verification
    return {
        "model": job.model,
        "output": job.output,
        "improved": result.improved,
        "verdict": result.verdict,
        "before": asdict(result.before),
        "after": None if result.after is None else asdict(result.after),
        "latency": None if seen is None else trial_record(seen.trial),
        "latency_elsewhere": None if seen is None else [_elsewhere(e) for e in seen.elsewhere],
        "outputs": None if seen is None else [difference_record(d) for d in seen.differences],
        "unfitted": [difference_record(d) for d in result.unfitted] or None,
        "held_out": [difference_record(d) for d in result.held] or None,
        "data_is_random": result.data_is_random,
        "accuracy": (
            None
            if seen is None or seen.accuracy is None
            else dict(zip(("before", "after"), seen.accuracy, strict=True))
        ),
        "precision": {
            "kept": result.precision,
            "told": result.told or None,
            "steps": [_step(each) for each in result.steps],
        },
        "sites": [_decision(decision) for decision in result.decisions],
        "refusals": _refusals(result.refusals),
        "passes": [asdict(record) for record in result.records],
        "plan": None if result.plan is None else result.plan.model_dump(),
        "planning": None if result.planned is None else _planning(result.planned),
        "finetuned": None if result.finetuned is None else finetuned_record(result.finetuned),
        "frontier": [_at_goal(each) for each in result.frontier],
        "settings": _settings(job.settings),
        "calibration_data": job.data,
        "eval_data": job.labelled,
        "eval_script": job.script,
        "shapes": dict(result.shapes),
        "environment": asdict(environment),
        "command": job.command,
        "report": asdict(page_of(result, job)) if page is None else asdict(page),
    }


def _elsewhere(there: Elsewhere) -> Record:
    machine = there.machine
    return {
        "providers": machine.providers,
        "threads": machine.intra_op_num_threads,
        "latency": trial_record(there.trial),
    }


def _step(step: Step) -> Record:
    return {
        "name": step.name,
        "latency": trial_record(step.trial),
        "error": step.error,
        "score": step.score,
        "notes": list(step.notes),
    }


def planned_record(plan: Plan, planned: Planned, environment: Environment) -> Record:
    """Describe a plan of which nothing was built, and how it came about."""
    return {
        "plan": plan.model_dump(),
        "planning": _planning(planned),
        "environment": asdict(environment),
    }


def finetuned_record(result: Finetuned) -> Record:
    """Describe a fine-tuning."""
    return {
        "improved": result.improved,
        "before": asdict(result.before),
        "after": asdict(result.after),
        "epochs": [asdict(each) for each in result.epochs],
        "grouped": result.grouped,
        "stopped": result.stopped or None,
        "interrupted": result.interrupted,
    }


def latency_record(latency: Latency) -> Record:
    """Describe a latency by its statistics, without its samples."""
    return {
        "median": latency.median,
        "mean": latency.mean,
        "p90": latency.p90,
        "p95": latency.quantile(0.95),
        "p99": latency.quantile(0.99),
        "minimum": latency.minimum,
        "maximum": latency.maximum,
        "samples": len(latency.samples),
        "discarded": latency.discarded,
        "clean": latency.clean,
    }


def trial_record(trial: Trial) -> Record:
    """Describe a paired measurement: `before` is a, `after` is b."""
    return {
        "before": latency_record(trial.a),
        "after": latency_record(trial.b),
        "ratio": trial.ratio,
        "low": trial.low,
        "high": trial.high,
        "p_value": trial.p_value,
        "pairs": trial.pairs,
        "discarded": trial.discarded,
        "clean": trial.clean,
        "faster": trial.faster,
        "slower": trial.slower,
    }


def difference_record(difference: OutputDifference) -> Record:
    """Describe how an output differs."""
    return asdict(difference)


def _planning(planned: Planned) -> Record:
    return {
        "goal": _goal(planned.goal),
        "shortfall": planned.shortfall or None,
        "rounds": [asdict(each) for each in planned.rounds],
    }


def _at_goal(planned: Planned) -> Record:
    """Describe what came of one of several goals, without the way there."""
    return {
        "goal": _goal(planned.goal),
        "shortfall": planned.shortfall or None,
        "kept": None if planned.kept is None else asdict(planned.kept),
        "plan": None if planned.plan is None else planned.plan.model_dump(),
    }


def _goal(goal: Goal) -> Record:
    """Describe a goal; where none was given, by the error that is then tolerated."""
    return {**asdict(goal), "max_error": goal.error, "text": str(goal)}


def _settings(settings: Settings) -> Record:
    """Describe what was asked for; of a plan all but its rows, which are those of the outcome."""
    plan, folder = settings.plan, settings.cache_dir
    return {
        **asdict(replace(settings, plan=None)),
        "plan": None if plan is None else plan.model_dump(exclude={"sites"}),
        "cache_dir": None if folder is None else str(folder),
    }


def _decision(decision: Decision) -> Record:
    site, option, result = decision.site, decision.option, decision.result
    chosen = None
    if option is not None and result is not None:
        chosen = {
            "family": option.family.name,
            "ranks": option.ranks,
            "macs": option.macs,
            "parameters": result.chain.parameters,
            "weight_error": result.error,
            "alone": {**asdict(option.timing), "ratio": option.timing.ratio},
        }
    return {
        "name": site.name,
        "op": site.op,
        "kernel_shape": site.kernel_shape,
        "group": site.group,
        "macs": decision.macs,
        "parameters": site.parameters,
        "chosen": chosen,
        "refit": None if decision.refit is None else _refit(decision.refit),
        "refusals": _refusals(decision.refusals),
    }


def _refit(refit: Refit) -> Record:
    """Describe a refit: errors of the site's output, and whether the site itself was changed."""
    return {"before": refit.before, "after": refit.after, "dense": refit.dense is not None}


def _refusals(refusals: Iterable[Refusal]) -> list[Record]:
    return [
        {"name": each.site, "reason": str(each.reason), "detail": each.detail} for each in refusals
    ]


def _strict(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _strict(item) for key, item in value.items()}
        case list() | tuple():
            return [_strict(item) for item in value]
        case _:
            return value
