"""`--preset cosine-svd`, in `optimize` and `plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml

from tests.cli.conftest import Run, Timings

SHAPE = ("--input-shapes", "x:4,16,12,12")
PRESET = ("--preset", "cosine-svd", *SHAPE)


def rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["site"]: row for row in yaml.safe_load(path.read_text())["sites"]}


class TestOptimize:
    def test_writes_a_network_a_plan_and_a_report(
        self, onnxcp: Run, model: Path, tmp_path: Path
    ) -> None:
        output, plan, report = (tmp_path / name for name in ("o.onnx", "p.yaml", "r.html"))
        done = onnxcp(
            "optimize", model, output, *PRESET, "--cosine", "0.7",
            "--save-plan", plan, "--report", report,
        )  # fmt: skip
        assert done.code == 0, done.err
        assert "cosine 0.7" in done.err
        assert "Forms and ranks were chosen by the cosine similarity of weights." in done.err
        assert onnx.load(output).graph.node
        found = rows(plan)["conv"]
        assert found["family"] in ("channel-svd", "spatial-svd")
        assert 0.7 <= found["cosine"] <= 1
        page = report.read_text()
        assert "cosine-svd at a cosine of 0.7" in page
        assert "parameters</th>" in page

    def test_the_plan_gives_the_same_network(
        self, onnxcp: Run, model: Path, tmp_path: Path
    ) -> None:
        first, second, plan = (tmp_path / name for name in ("1.onnx", "2.onnx", "p.yaml"))
        assert (
            onnxcp("optimize", model, first, *PRESET, "--cosine", "0.7", "--save-plan", plan).code
            == 0
        )
        assert onnxcp("optimize", model, second, "--plan", plan, *SHAPE).code == 0
        assert onnx.load(first) == onnx.load(second)

    def test_keeps_to_an_accuracy_and_tells_every_trial(
        self, onnxcp: Run, model: Path, labelled: Path, tmp_path: Path
    ) -> None:
        done = onnxcp(
            "optimize", model, tmp_path / "o.onnx", *PRESET, "--max-accuracy-drop", "50%",
            "--eval-data", labelled, "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        record = json.loads(done.out)
        assert record["settings"]["preset"] == {
            "cosine": None, "fewest": "parameters", "of": "auto",
        }  # fmt: skip
        rounds = record["planning"]["rounds"]
        assert len(rounds) > 1
        assert all(0 < each["parameters"] <= 1 for each in rounds)
        assert record["accuracy"]["after"] >= record["accuracy"]["before"] - 0.5
        assert "parameters" in done.err

    def test_keeps_to_an_agreement_without_labels(
        self, onnxcp: Run, model: Path, calibration: Path, tmp_path: Path
    ) -> None:
        done = onnxcp(
            "optimize", model, tmp_path / "o.onnx", *PRESET, "--min-agreement", "0.8",
            "--calibration-data", calibration, "--refit", "none", "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        (output,) = json.loads(done.out)["outputs"]
        assert output["top1_agreement"] >= 0.8
        assert "behind their activations" in done.err

    def test_says_clearly_that_the_smaller_network_is_not_handed_out(
        self, onnxcp: Run, model: Path, timings: Timings, tmp_path: Path
    ) -> None:
        timings(network=0.9)
        output = tmp_path / "o.onnx"
        done = onnxcp("optimize", model, output, *PRESET, "--cosine", "0.7")
        assert done.code == 0
        assert "of the parameters" in done.err
        assert "the original is handed back" in done.err
        assert onnx.load(output) == onnx.load(model)


class TestPlan:
    def test_chooses_by_similarity_alone(self, onnxcp: Run, model: Path, tmp_path: Path) -> None:
        path = tmp_path / "p.yaml"
        done = onnxcp("plan", model, *PRESET, "--target-params", "0.6", "--save-plan", path)
        assert done.code == 0, done.err
        assert "cosine" in done.err
        assert rows(path)["conv"]["cosine"] > 0

    def test_with_a_limit_is_refused(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp("plan", model, *PRESET)
        assert done.code == 2
        assert "optimize it, or give a cosine or a share" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--cosine", "0.9"), "--cosine has no say without --preset cosine-svd."),
        (("--fewest", "macs"), "--fewest has no say without --preset cosine-svd."),
        ((*PRESET, "--macs", "0.5"), "--preset and --macs exclude each other."),
        ((*PRESET, "--energy", "0.5"), "--preset and --energy exclude each other."),
        ((*PRESET, "--passes", "cp3{rank=2}"), "--preset and --passes exclude each other."),
        ((*PRESET, "--plan", "p.yaml"), "--preset and --plan exclude each other."),
        ((*PRESET, "--frontier", "2"), "--preset and --frontier exclude each other."),
        ((*PRESET, "--target-speedup", "2"), "--target-speedup has no say."),
        ((*PRESET, "--target-latency", "2ms"), "--target-latency has no say."),
        (
            (*PRESET, "--cosine", "0.9", "--target-params", "0.5"),
            "--cosine and --target-params exclude each other.",
        ),
        (
            (*PRESET, "--cosine-of", "responses"),
            "--cosine-of responses needs --calibration-data or --data-loader-script.",
        ),
        ((*PRESET, "--cosine", "1.5"), "1.5 is not in the range 0<x<=1"),
        ((*PRESET, "--min-agreement", "0.9"), "An agreement needs samples"),
        (("--preset", "other"), "'other' is not"),
        (
            (*PRESET, "--max-accuracy-drop", "1%", "--min-agreement", "0.9"),
            "--max-accuracy-drop and --min-agreement exclude each other.",
        ),
    ],
)
def test_contradictions_are_one_sentence(
    onnxcp: Run, model: Path, options: tuple[str, ...], sentence: str
) -> None:
    done = onnxcp("optimize", model, *options)
    assert done.code == 2
    assert sentence in " ".join(done.err.split())
    assert "Traceback" not in done.err
