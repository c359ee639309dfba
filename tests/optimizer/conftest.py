"""The main job on a small network of low rank, with made-up timings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models.builder import GraphBuilder
from onnxcp import Settings
from onnxcp.profiling.timing import Latency, Trial
from tests.clockwork import trial

FASTER, SLOWER = 2.0, 0.9
WITHIN = 1 - 1e-6
"""Energy of a kernel that is off by a thousandth."""


def low_rank(outputs: int, inputs: int, kernel: int, rank: int, seed: int) -> np.ndarray:
    """A kernel of exact channel rank `rank`."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((outputs, rank)) / np.sqrt(rank)
    filters = rng.standard_normal((rank, inputs * kernel**2)) / np.sqrt(inputs * kernel**2)
    return (mix @ filters).reshape(outputs, inputs, kernel, kernel).astype(np.float32)


def network(batch: int | str = "N") -> onnx.ModelProto:
    """Two convolutions of channel rank 8, the second with BatchNormalization, and a classifier."""
    g = GraphBuilder("small")
    x = g.input("image", [batch, 3, 16, 16])
    x = g.relu(g.conv(x, 3, 32, 3, name="stem", pads=1))
    x = g.relu(g.conv(x, 32, 48, 3, name="body", pads=1, weight=low_rank(48, 32, 3, 8, 0)))
    x = g.conv(x, 48, 48, 3, name="tail", pads=1, strides=2, weight=low_rank(48, 48, 3, 8, 1))
    x = g.relu(g.batch_norm(x, 48, name="norm"))
    x = g.flatten(g.global_average_pool(x, name="pool"), name="flat")
    return g.model([g.gemm(x, 48, 10, name="scores")])


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what every measurement of one chain, and that of the whole network, will give."""

    def set_to(alone: float = FASTER, whole: float = FASTER) -> None:
        def in_turns(runs: Sequence[object], **_: object) -> list[Trial]:
            return [trial(alone, 1.0)] * (len(runs) - 1)

        def paired(*_: object, **__: object) -> Trial:
            return trial(whole, 1.0)

        def measure(*_: object, **__: object) -> Latency:
            return Latency((whole,) * 30)

        monkeypatch.setattr("onnxcp.planning.latency.in_turns", in_turns)
        monkeypatch.setattr("onnxcp.finishing.paired", paired)
        monkeypatch.setattr("onnxcp.finishing.measure", measure)
        monkeypatch.setattr("onnxcp.verification.paired", paired)

    set_to()
    return set_to


def settings(**options: object) -> Settings:
    return Settings(**{"round_to": 1, "cached": False, **options})


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]
