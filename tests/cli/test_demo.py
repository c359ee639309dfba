"""The demo on a stand-in for the trained network: its input and its classes, and quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcp.cli import demo
from onnxcp.cli.optimize import shares
from tests.cli.conftest import Run
from tests.networks import model_of, noise


def _network() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["h"], name="conv1", strides=[2, 2]),
        helper.make_node("Conv", ["h", "v"], ["m"], name="conv2"),
        helper.make_node("Conv", ["m", "u"], ["s"], name="conv3"),
        helper.make_node("GlobalMaxPool", ["s"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flatten"),
    ]
    weights = {
        "w": noise(48, 1, 5, 5),
        "v": noise(64, 48, 7, 7, seed=1),
        "u": noise(36, 64, 1, 1, seed=2),
    }
    return model_of(nodes, inputs={"image": ("N", 1, 24, 24)}, weights=weights)


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "charnet"
    folder.mkdir()
    onnx.save(_network(), folder / demo.MODEL)
    pictures = np.random.default_rng(0).integers(0, 256, (40, 1, 24, 24)).astype(np.uint8)
    np.savez(folder / demo.TEST, image=pictures, label=np.arange(40) % 36)
    np.savez(folder / demo.CALIBRATION, image=pictures[::-1])
    monkeypatch.setattr(demo, "demo_folder", lambda: folder)
    return folder


def test_writes_a_model_and_a_report_and_can_be_run_again(
    onnxcp: Run, standin: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "demo"
    for _ in range(2):
        done = onnxcp("demo", "--output", folder)
        assert done.code == 0
        assert {path.name for path in folder.iterdir()} == {"charnet.optimized.onnx", "report.html"}
        for words in ("accuracy", "latency, batch 32", "report.html"):
            assert words in done.err


def test_a_folder_that_cannot_be_made(onnxcp: Run, standin: Path) -> None:
    done = onnxcp("demo", "--output", standin / demo.TEST)
    assert done.code == 2
    assert "Cannot make the folder" in done.err


def test_an_installation_without_the_network(
    onnxcp: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "MODEL", "no-such-file.onnx")
    done = onnxcp("demo", "--output", tmp_path / "d")
    assert done.code == 2
    assert "did not come with this installation" in done.err
    assert not (tmp_path / "d").exists()


def test_its_options_say_what_its_settings_are() -> None:
    settings: Any = demo.settings()
    text = demo.options().split("--macs ")[1].split()[0]
    assert shares(text) == settings.macs
    assert f"--families {','.join(settings.families)} " in demo.options()
    assert settings.input_shapes == {"image": demo.INPUT_SHAPE}
