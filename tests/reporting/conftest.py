"""Results of the main job on a small network, with timings that are made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxcp.optimizer import Optimized, optimize
from onnxcp.reporting.job import Job
from onnxcp.settings import Settings
from tests.cli.conftest import TIMERS, made_up, network
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
