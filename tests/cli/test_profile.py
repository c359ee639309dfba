from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from onnxcp.graph.model import load, save
from onnxcp.passes import PassManager
from onnxcp.pipeline import parse_pipeline
from tests.cli.conftest import Run, made_up
from tests.networks import conv_model

FEW = ("--warmup", "1", "--iterations", "3", "--input-shapes", "4,16,12,12")


@pytest.fixture
def rewritten(model: Path) -> Path:
    path = model.with_name("rewritten.onnx")
    passes = parse_pipeline('tucker2{rank=4,nodes="conv"}')
    save(PassManager(passes).run(load(model))[0], path)
    return path


def test_the_table(onnxcp: Run, model: Path) -> None:
    done = onnxcp("profile", model, *FEW)
    assert (done.code, done.out) == (0, "")
    for word in ("median", "mean", "90th percentile", "least", "samples per second"):
        assert word in done.err


def test_json(onnxcp: Run, model: Path) -> None:
    record = json.loads(onnxcp("profile", model, *FEW, "--json", "-q").out)
    latency = record["latency"]
    assert 0 < latency["minimum"] <= latency["median"] <= latency["p90"]
    assert latency["samples"] == 3
    assert record["shapes"] == {"x": [4, 16, 12, 12]}


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(3.0, "is faster than the baseline: 3.00x"), (0.5, "is slower"), (1.0, "is not told apart")],
)
def test_against_a_baseline(
    onnxcp: Run,
    model: Path,
    rewritten: Path,
    monkeypatch: pytest.MonkeyPatch,
    ratio: float,
    words: str,
) -> None:
    monkeypatch.setattr("onnxcp.profiling.timing.paired", made_up(ratio))
    done = onnxcp("profile", rewritten, "--baseline", model, *FEW, "--json")
    assert done.code == 0
    assert words in done.err
    assert json.loads(done.out)["trial"]["ratio"] == ratio


def test_chains_are_summed_under_their_sites(
    onnxcp: Run, model: Path, rewritten: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcp.profiling.timing.paired", made_up(2.0))
    done = onnxcp("profile", rewritten, "--baseline", model, *FEW, "--per-node", "--json")
    record = json.loads(done.out)
    assert {"conv", "depthwise", "fc"} <= set(record["nodes"])
    assert {"conv", "depthwise", "fc"} <= set(record["baseline_nodes"])
    assert not [name for name in record["nodes"] if "tucker2" in name]
    assert "all nodes" in done.err


def test_a_baseline_of_other_inputs(onnxcp: Run, model: Path) -> None:
    other = model.with_name("other.onnx")
    onnx.save(conv_model((3, 3)), other)
    done = onnxcp("profile", model, "--baseline", other, *FEW)
    assert done.code == 2
    assert "wants shape" in done.err


def test_a_scalar_input_has_no_batch(onnxcp: Run, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float x) => (float y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "scalar.onnx")
    done = onnxcp("profile", tmp_path / "scalar.onnx", "--iterations", "3")
    assert "runs per second" in done.err
    assert done.code == 0


def test_open_extents_are_found_by_running(onnxcp: Run, sound: Path) -> None:
    done = onnxcp("profile", sound, "--iterations", "3", "--json", "-q")
    assert json.loads(done.out)["shapes"] == {"x": [1, 2, 64]}
