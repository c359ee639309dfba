"""Results as plain dictionaries, for `--json`: the one place that fixes their keys.

Times are in seconds, sizes in bytes, multiply-adds for one sample, shares between 0 and 1. What is
not known, and what is infinite or not a number, is null. Keys are only ever added; whatever else
changes raises `SCHEMA`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from onnxcp.graph.refusal import Refusal
from onnxcp.profiling.compare import OutputDifference
from onnxcp.profiling.timing import Latency, Trial

if TYPE_CHECKING:
    from onnxcp.optimizer import Optimized
    from onnxcp.planning.option import Decision
    from onnxcp.refit import Refit
    from onnxcp.reporting.environment import Environment
    from onnxcp.reporting.job import Job

SCHEMA = 1

Record = dict[str, Any]


def to_json(record: Mapping[str, Any]) -> str:
    """Return a record as strict JSON, with the number of the schema ahead of it."""
    return json.dumps(_strict({"schema": SCHEMA, **record}), indent=2, allow_nan=False)


def optimized_record(result: Optimized, job: Job, environment: Environment) -> Record:
    """Describe an outcome of the main job."""
    seen = result.verification
    return {
        "model": job.model,
        "output": job.output,
        "improved": result.improved,
        "verdict": result.verdict,
        "before": asdict(result.before),
        "after": None if result.after is None else asdict(result.after),
        "latency": None if seen is None else trial_record(seen.trial),
        "outputs": None if seen is None else [difference_record(d) for d in seen.differences],
        "unfitted": [difference_record(d) for d in result.unfitted] or None,
        "data_is_random": result.data_is_random,
        "accuracy": (
            None
            if seen is None or seen.accuracy is None
            else dict(zip(("before", "after"), seen.accuracy, strict=True))
        ),
        "sites": [_decision(decision) for decision in result.decisions],
        "refusals": _refusals(result.refusals),
        "passes": [asdict(record) for record in result.records],
        "settings": asdict(job.settings),
        "calibration_data": job.data,
        "eval_data": job.labelled,
        "eval_script": job.script,
        "shapes": dict(result.shapes),
        "environment": asdict(environment),
        "command": job.command,
    }


def latency_record(latency: Latency) -> Record:
    """Describe a latency by its statistics, without its samples."""
    return {
        "median": latency.median,
        "mean": latency.mean,
        "p90": latency.p90,
        "minimum": latency.minimum,
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
            "alone": trial_record(option.trial),
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
