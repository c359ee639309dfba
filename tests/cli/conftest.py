"""The command line in this process, a small network, and timings that are made up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcp.cli.main import main
from onnxcp.planning.cache import Cache
from onnxcp.profiling.timing import Latency, Trial
from tests.networks import model_of, noise

BATCH, CLASSES = 4, 5


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]
Timings = Callable[..., None]

# Of `optimize`, for a choice that takes no time.
QUICK = (
    "--macs",
    "0.5",
    "--families",
    "tucker2",
    "--round-to",
    "1",
    "--input-shapes",
    "4,16,12,12",
)


@pytest.fixture
def onnxcp(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line as the console script does."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(autouse=True)
def timings(monkeypatch: pytest.MonkeyPatch) -> Timings:
    """Sets how many times faster rewritten networks and chains are; 2 unless told otherwise."""

    def fake(*, network: float = 2.0, chains: float = 2.0) -> None:
        monkeypatch.setattr("onnxcp.verification.paired", made_up(network))
        monkeypatch.setattr("onnxcp.finishing.paired", made_up(network))
        monkeypatch.setattr("onnxcp.finishing.measure", lambda _, **__: Latency((4e-3,) * 10))
        monkeypatch.setattr("onnxcp.planning.blocks.paired", made_up(1.0))
        monkeypatch.setattr("onnxcp.planning.latency.in_turns", made_up_turns(chains))

    fake()
    return fake


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what is measured out of the user's folder."""
    monkeypatch.setattr("onnxcp.planning.cache.Cache.default", lambda: Cache(None))


def made_up(ratio: float) -> Callable[..., Trial]:
    def paired(run_a: Callable[[], object], run_b: Callable[[], object], **_: object) -> Trial:
        run_a()
        run_b()
        return trial(ratio)

    return paired


def made_up_turns(ratio: float) -> Callable[..., list[Trial]]:
    def in_turns(runs: Sequence[Callable[[], object]], **_: object) -> list[Trial]:
        for run in runs:
            run()
        return [trial(ratio)] * (len(runs) - 1)

    return in_turns


def trial(ratio: float) -> Trial:
    return Trial(
        a=Latency((1e-3 * ratio,) * 10),
        b=Latency((1e-3,) * 10),
        ratio=ratio,
        low=0.95 * ratio,
        high=1.05 * ratio,
        p_value=0.001,
        pairs=10,
        discarded=0,
        clean=True,
    )


def samples(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return inputs of the network whose channels depend on each other, so that a fit pays."""
    mixed = np.einsum("sc,nchw->nshw", noise(16, 3, seed=7), noise(count, 3, 12, 12, seed=8))
    return mixed.astype(np.float32)


def network() -> onnx.ModelProto:
    """Return a classifier: conv, relu, depthwise, pool, fc. Its batch is open."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "d"], ["s"], name="depthwise", group=24),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "v", "c"], ["y"], name="fc"),
    ]
    weights = {
        "w": noise(24, 16, 3, 3),
        "b": noise(24, seed=1),
        "d": noise(24, 1, 3, 3, seed=2),
        "v": noise(24, CLASSES, seed=3),
        "c": noise(CLASSES, seed=4),
    }
    return model_of(nodes, inputs={"x": ("N", 16, 12, 12)}, weights=weights)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A network that does not run on an input of length 1, and leaves the length open."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    weights = {"w": noise(4, 2, 5)}
    path = tmp_path / "sound.onnx"
    onnx.save(model_of(nodes, inputs={"x": ("N", 2, "L")}, weights=weights), path)
    return path


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.npz"
    np.savez(path, x=samples(256))
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.npz"
    labels = np.arange(8) % CLASSES
    np.savez(path, x=noise(8, 16, 12, 12, seed=9), label=labels)
    return path


def snapshot(folder: Path) -> dict[str, str]:
    """Return every file below a folder, hidden ones too, with a hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
