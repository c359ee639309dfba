"""Results of the main job on a small network, with timings that are made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from onnxcp.graph.model import load
from onnxcp.optimizer import Optimized, optimize
from onnxcp.planned import Planned
from onnxcp.planning.goal import Goal
from onnxcp.planning.plan import Numbers, Plan, PlannedModel, Row
from onnxcp.planning.planner import Forecast
from onnxcp.planning.search import Round
from onnxcp.profiling.timing import Latency
from onnxcp.refit import Refit
from onnxcp.reporting.html import render
from onnxcp.reporting.job import Job
from onnxcp.reporting.page import page_of
from onnxcp.settings import Settings
from onnxcp.training import Epoch, Finetuned, Score
from tests.cli.conftest import made_up, made_up_turns, network, samples
from tests.networks import noise

SETTINGS = Settings(
    macs=0.5,
    families=("tucker2", "channel-svd"),
    round_to=1,
    input_shapes={"x": (4, 16, 12, 12)},
    cached=False,
)
JOB = Job(
    SETTINGS,
    model="net <1>.onnx",
    command="onnxcp optimize 'net <1>.onnx' --macs 0.5",
    output="out.onnx",
)
CALIBRATION = {"x": samples(64)}
LABELLED = {"x": noise(8, 16, 12, 12, seed=9), "label": np.arange(8) % 5}

Make = Callable[..., Optimized]


def rendered(result: Optimized, job: Job = JOB, now: datetime | None = None) -> str:
    """The page on a result, as HTML."""
    return render(page_of(result, job, now=now))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Runs the main job with ratios that are made up."""

    def run(
        *,
        network_ratio: float = 2.0,
        chain_ratio: float = 3.0,
        settings: Settings = SETTINGS,
        **options: Any,
    ) -> Optimized:
        monkeypatch.setattr("onnxcp.planning.latency.in_turns", made_up_turns(chain_ratio))
        monkeypatch.setattr("onnxcp.finishing.measure", lambda _, **__: Latency((4e-3,) * 10))
        for module in ("onnxcp.verification", "onnxcp.finishing"):
            monkeypatch.setattr(f"{module}.paired", made_up(network_ratio))
        return optimize(network(), settings, **options)

    return run


@pytest.fixture
def given_up(make: Make) -> Optimized:
    """A result as it is where the refit took the outputs further away."""
    result = make(data=CALIBRATION)
    assert result.verification is not None
    decisions = tuple(replace(each, refit=None) for each in result.decisions)
    return replace(result, decisions=decisions, unfitted=result.verification.differences)


@pytest.fixture
def unknown(make: Make) -> Optimized:
    """A result of which no layer could be refitted."""
    result = make(data=CALIBRATION)
    conv, fc = result.decisions
    nothing = Refit(math.nan, math.nan, conv.result)
    return replace(result, decisions=(replace(conv, refit=nothing), replace(fc, refit=None)))


def tuned(before: float, after: float, *, improved: bool = True) -> Finetuned:
    """Return what fine-tuning may say, with such shares of the same top class."""
    start = Score(loss=2.0, error=0.2, agreement=before)
    end = Score(loss=1.0, error=0.1, agreement=after) if improved else start
    epochs = (Epoch(1, 1.5, end, improved),)
    return Finetuned(load(network()), start, end, epochs, grouped=True)


def done(
    expected: float,
    error: float,
    *,
    measured: float | None = None,
    found: float | None = None,
    score: float | None = None,
    kept: bool = False,
) -> Round:
    """A round for a network of 8 ms, of which one site is replaced."""
    before = None if measured is None else 8e-3
    after = None if measured is None else 8e-3 / measured
    forecast = Forecast(8e-3, 8e-3 / expected, error, error**2)
    return Round(1, forecast, before, after, found, score, kept)


THREE_TIMES = Planned(
    Goal(speedup=3),
    (
        done(3.0, 0.0387, measured=2.61),
        done(3.03, 0.0412, measured=3.01, found=0.0351, score=0.9412, kept=True),
    ),
    "",
    (),
)
SHORT = Planned(
    Goal(speedup=8),
    (done(5.62, 0.31, measured=5.4, found=0.366, score=0.702, kept=True),),
    "No plan makes it 8 times faster; the fastest is expected to be 5.62 times faster.",
    (),
)
NOTHING = Planned(Goal(speedup=2), (), "", ())
PLAN = Plan(
    model=PlannedModel(name="net", digest="ab12"),
    made_on={"cpu": "a processor"},
    goal="3 times faster",
    predicted=Numbers(before_ms=8.0, after_ms=2.64, error=0.0412),
    sites=(
        Row(site="stem", keep="it makes up 0.12% of the MACs, too few to pay"),
        Row(
            site="/encoder/layer.11/attention/output/dense/MatMul",
            family="tucker2",
            ranks=(48, 64),
            before_ms=12.34,
            after_ms=0.345,
            error=0.0123,
        ),
        Row(site="by hand", family="cp3", ranks=(96,)),
    ),
)


@pytest.fixture
def planned(make: Make) -> Optimized:
    """A result that was planned for, with plans for other speed-ups besides."""
    result = make(labelled=LABELLED)
    return replace(result, planned=THREE_TIMES, plan=PLAN, frontier=(NOTHING, THREE_TIMES, SHORT))
