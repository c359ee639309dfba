"""Results of the main job on a small network, with timings that are made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxcp.optimizer import Optimized, optimize
from onnxcp.refit import Refit
from onnxcp.reporting.job import Job
from onnxcp.settings import Settings
from tests.cli.conftest import TIMERS, made_up, network, samples
from tests.networks import noise

SETTINGS = Settings(
    macs=0.5, families=("tucker2", "channel-svd"), round_to=1, input_shapes={"x": (4, 16, 12, 12)}
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


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Runs the main job with ratios that are made up."""

    def run(*, network_ratio: float = 2.0, chain_ratio: float = 3.0, **options: Any) -> Optimized:
        for module, ratio in zip(TIMERS, (network_ratio, chain_ratio, 1.0), strict=True):
            monkeypatch.setattr(f"{module}.paired", made_up(ratio))
        return optimize(network(), SETTINGS, **options)

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
