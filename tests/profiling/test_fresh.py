from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcp.errors import ModelError
from onnxcp.graph.model import load
from onnxcp.profiling import fresh
from onnxcp.profiling.environment import describe
from onnxcp.profiling.fresh import Fresh, measure_here, start_fresh
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.nvidia import device_name
from tests.networks import model_of, noise

ONE = Machine(intra_op_num_threads=1)
WEIGHTS = 2048 * 2048 * 4


@pytest.fixture(scope="module")
def large() -> onnx.ModelProto:
    """A product with 16 MiB of weights."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return model_of(nodes, inputs={"x": ("N", 2048)}, weights={"w": noise(2048, 2048)})


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "_MAX_SECONDS", 0.0)


@pytest.mark.parametrize("stored", [False, True])
def test_a_process_of_its_own(
    large: onnx.ModelProto, stored: bool, tmp_path: Path, once: None
) -> None:
    if stored:
        onnx.save(large, tmp_path / "large.onnx")
    model = load(tmp_path / "large.onnx" if stored else large)
    found = start_fresh(model, ONE, {"x": (3, 2048)})
    assert found.processes == 1
    assert found.session_seconds > 0
    assert found.first_seconds > 0
    assert found.to_first_result == found.session_seconds + found.first_seconds
    assert found.device_bytes is None
    assert found.peak_bytes is not None
    # The weights at least, and no more than a few copies of them and what a session sets up.
    assert WEIGHTS <= found.peak_bytes <= 10 * WEIGHTS


def test_medians_of_times_and_the_most_of_memory(
    large: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([Fresh(3.0, 0.1, 5), Fresh(1.0, 0.3, None, 7), Fresh(2.0, 0.2, 6, 4)])
    monkeypatch.setattr(fresh, "_in_process", lambda *_: next(answers))
    found = start_fresh(load(large), ONE, {}, clock=lambda: 0.0)
    assert found == Fresh(2.0, 0.2, 6, 7, processes=3)


def test_a_process_that_fails(large: onnx.ModelProto, tmp_path: Path, once: None) -> None:
    onnx.save(large, tmp_path / "large.onnx")
    model = load(tmp_path / "large.onnx")
    (tmp_path / "large.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"^'large.onnx' does not run in a process of its own: "):
        start_fresh(model, ONE, {"x": (1, 2048)})


def test_in_this_process(large: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(large, tmp_path / "large.onnx")
    task = {
        "path": str(tmp_path / "large.onnx"),
        "providers": ["cpu"],
        "intra_op_num_threads": 1,
        "shapes": {"x": [1, 2048]},
    }
    assert measure_here(task).first_seconds > 0


class TestMemory:
    @pytest.fixture
    def status(self, tmp_path: Path) -> Path:
        path = tmp_path / "status"
        path.write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
        return path

    def test_of_linux(self, status: Path) -> None:
        assert fresh.peak_bytes(status) == 2 * 2**20
        assert fresh.resident_bytes(status) == 2**20

    def test_of_a_linux_that_does_not_tell(self, tmp_path: Path) -> None:
        (tmp_path / "status").write_text("Name:\tpython\n")
        assert fresh.peak_bytes(tmp_path / "status") is None

    def test_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        known = fresh.peak_bytes(tmp_path / "none")
        assert known is not None
        assert fresh.resident_bytes(tmp_path / "none") == known
        monkeypatch.setitem(sys.modules, "resource", None)
        assert fresh.peak_bytes(tmp_path / "none") is None

    def test_the_peak_can_be_forgotten(self) -> None:
        block = np.ones(2**24)  # 128 MiB
        del block
        fresh.forget_peak()
        peak, now = fresh.peak_bytes(), fresh.resident_bytes()
        assert peak is not None
        assert now is not None
        assert peak - now < 2**24


class TestDevice:
    def script(self, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        path = folder / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")

    def test_as_nvidia_smi_counts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.script(tmp_path, 'case "$*" in *--id=1) echo 1234;; esac', monkeypatch)
        assert fresh.device_bytes(1) == 1234 * 2**20
        assert fresh.device_bytes(0) is None

    @pytest.mark.parametrize(
        ("visible", "told"),
        [("3,1", "1"), (" 3 , GPU-8a ", "GPU-8a"), ("3", None), ("", None)],
    )
    def test_of_those_that_cuda_may_see(
        self, visible: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """CUDA numbers these, nvidia-smi all there are."""
        self.script(tmp_path, f'case "$*" in *"--id={told}"*) echo 7;; esac', monkeypatch)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert fresh.device_bytes(1) == (None if told is None else 7 * 2**20)

    def test_has_a_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.script(tmp_path, "echo 'NVIDIA H100 80GB HBM3, 580.82.07'", monkeypatch)
        assert device_name() == "NVIDIA H100 80GB HBM3, driver 580.82.07"
        found = describe(Machine(("cuda{device_id=0}",)))
        assert found.device == device_name()
        assert describe(Machine()).device == ""
        assert describe(Machine(), Machine(("cuda",))).device == device_name()

    @pytest.mark.parametrize("text", ["echo failed; exit 9", "echo '[N/A]'"])
    def test_where_it_does_not_tell(
        self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.script(tmp_path, text, monkeypatch)
        assert fresh.device_bytes() is None

    def test_where_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        assert fresh.device_bytes() is None
