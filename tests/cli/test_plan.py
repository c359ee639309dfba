"""`onnxcp plan`, and plans in `onnxcp optimize`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from onnxcp.cli.goals import size
from onnxcp.graph.model import load, save
from tests.cli.conftest import Run, Timings, snapshot
from tests.repeated import repeated, shared

SHAPE = ("--input-shapes", "x:4,16,12,12")
FEW = ("--families", "channel-svd,spatial-svd", "--round-to", "4")


@pytest.fixture
def plan_file(onnxcp: Run, model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    done = onnxcp("plan", model, *SHAPE, *FEW, "--max-error", "0.9", "--save-plan", path)
    assert done.code == 0, done.err
    return path


def rows(path: Path) -> dict[str, dict[str, object]]:
    return {row["site"]: row for row in yaml.safe_load(path.read_text())["sites"]}


class TestPlan:
    def test_says_what_would_become_of_every_layer(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp("plan", model, *SHAPE, *FEW, "--max-error", "0.9")
        assert done.code == 0
        assert "conv" in done.err
        assert "rank" in done.err
        assert done.out == ""

    def test_writes_nothing_but_the_plan(
        self, model: Path, plan_file: Path, tmp_path: Path
    ) -> None:
        assert set(snapshot(tmp_path)) == {model.name, plan_file.name}
        assert rows(plan_file)["conv"]["family"] in ("channel-svd", "spatial-svd")

    def test_json(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp("plan", model, *SHAPE, *FEW, "--max-error", "0.9", "--json", "-q")
        record = json.loads(done.out)
        assert record["schema"] == 3
        assert {row["site"] for row in record["plan"]["sites"]} == {"conv", "fc"}
        assert done.err == ""

    def test_does_not_replace_a_file_unasked(
        self, onnxcp: Run, model: Path, plan_file: Path
    ) -> None:
        before = plan_file.read_bytes()
        again = onnxcp("plan", model, *SHAPE, *FEW, "--save-plan", plan_file)
        assert again.code == 2
        assert "exists" in again.err
        assert plan_file.read_bytes() == before
        assert onnxcp("plan", model, *SHAPE, *FEW, "--save-plan", plan_file, "--force").code == 0

    def test_a_drop_of_accuracy_is_refused(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp("plan", model, *SHAPE, "--max-accuracy-drop", "1%")
        assert done.code == 2
        assert "built" in done.err

    def test_keeps_measurements_where_it_is_told(
        self, onnxcp: Run, model: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "cache"
        assert onnxcp("plan", model, *SHAPE, *FEW, "--cache-dir", folder).code == 0
        assert list(folder.rglob("*"))
        assert onnxcp("plan", model, *SHAPE, *FEW, "--no-cache").code == 0


class TestCarriedOut:
    def test_gives_the_same_file_each_time(
        self, onnxcp: Run, model: Path, plan_file: Path, tmp_path: Path
    ) -> None:
        outputs = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
        for output in outputs:
            done = onnxcp("optimize", model, output, *SHAPE, "--plan", plan_file)
            assert done.code == 0, done.err
        assert outputs[0].read_bytes() == outputs[1].read_bytes()
        assert outputs[0].read_bytes() != model.read_bytes()

    def test_gives_what_it_was_saved_from(
        self, onnxcp: Run, model: Path, calibration: Path, tmp_path: Path
    ) -> None:
        first, again, saved = (tmp_path / name for name in ("1.onnx", "2.onnx", "p.yaml"))
        data = ("--calibration-data", calibration)
        wanted = (*SHAPE, *FEW, "--max-error", "0.9", *data, "--save-plan", saved)
        done = onnxcp("optimize", model, first, *wanted)
        assert done.code == 0, done.err
        assert onnxcp("optimize", model, again, *SHAPE, *data, "--plan", saved).code == 0
        assert first.read_bytes() == again.read_bytes() != model.read_bytes()

    def test_a_changed_row_counts(
        self, onnxcp: Run, model: Path, plan_file: Path, tmp_path: Path
    ) -> None:
        made = yaml.safe_load(plan_file.read_text())
        made["sites"] = [{"site": "conv", "family": "tucker2", "ranks": [5, 7]}]
        plan_file.write_text(yaml.safe_dump(made))
        done = onnxcp("optimize", model, tmp_path / "o.onnx", *SHAPE, "--plan", plan_file, "--json")
        (conv, fc) = json.loads(done.out)["sites"]
        assert (conv["chosen"]["family"], conv["chosen"]["ranks"]) == ("tucker2", [5, 7])
        assert fc["chosen"] is None

    @pytest.mark.parametrize(
        ("row", "word"),
        [
            ({"site": "cnov", "keep": "no"}, "conv"),
            ({"site": "conv", "family": "cp5", "ranks": [4]}, "cp5"),
            ({"site": "conv", "family": "tucker2", "ranks": [4]}, "row 1"),
            ({"site": "conv", "family": "channel-svd", "ranks": [4000]}, "4000"),
        ],
    )
    def test_a_wrong_row_is_named(
        self,
        onnxcp: Run,
        model: Path,
        tmp_path: Path,
        row: dict[str, object],
        word: str,
    ) -> None:
        path = tmp_path / "wrong.yaml"
        path.write_text(yaml.safe_dump({"onnxcp_plan": 1, "sites": [row]}))
        before = snapshot(tmp_path)
        done = onnxcp("optimize", model, tmp_path / "o.onnx", *SHAPE, "--plan", path)
        assert done.code == 2
        assert "row 1" in done.err
        assert word in done.err
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize(
        "option",
        [("--target-speedup", "2"), ("--macs", "0.5"), ("--families", "cp3"), ("--frontier", "2")],
    )
    def test_leaves_no_choice(
        self, onnxcp: Run, model: Path, plan_file: Path, option: tuple[str, str]
    ) -> None:
        done = onnxcp("optimize", model, *SHAPE, "--plan", plan_file, *option)
        assert done.code == 2
        assert f"{option[0]} has no say" in done.err

    def test_a_missing_plan_is_named(self, onnxcp: Run, model: Path, tmp_path: Path) -> None:
        done = onnxcp("optimize", model, "--plan", tmp_path / "none.yaml")
        assert done.code == 2
        assert "none.yaml" in done.err


class TestGoals:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--target-speedup", "1"),
            ("--target-latency", "5"),
            ("--target-latency", "-3ms"),
            ("--target-macs", "1.5"),
            ("--target-params", "0"),
            ("--target-size", "0"),
            ("--target-size", "1.5"),
            ("--target-size", "2TB"),
            ("--target-size", "0.5B"),
            ("--target-size", "1.2.3MB"),
            ("--max-error", "0"),
            ("--max-accuracy-drop", "-1%"),
            ("--frontier", "0.5"),
        ],
    )
    def test_out_of_range_are_refused(
        self, onnxcp: Run, model: Path, option: str, value: str
    ) -> None:
        done = onnxcp("optimize", model, f"{option}={value}")
        assert done.code == 2
        assert option in done.err

    def test_exclude_each_other(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp("optimize", model, "--target-speedup", "2", "--max-error", "0.1")
        assert done.code == 2
        assert "exclude each other" in done.err
        done = onnxcp("optimize", model, "--target-size", "1MB", "--target-params", "0.5")
        assert done.code == 2
        assert "exclude each other" in done.err
        done = onnxcp("optimize", model, "--target-speedup", "2", "--macs", "0.5")
        assert done.code == 2
        assert "exclude each other" in done.err

    def test_accuracy_needs_something_that_scores(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp("optimize", model, *SHAPE, "--max-accuracy-drop", "1%")
        assert done.code == 2
        assert "labelled" in done.err

    def test_accuracy_is_kept_to(self, onnxcp: Run, model: Path, labelled: Path) -> None:
        done = onnxcp(
            "optimize", model, *SHAPE, *FEW, "--max-accuracy-drop", "100%", "--eval-data", labelled,
            "--dry-run", "--json",
        )  # fmt: skip
        record = json.loads(done.out)
        assert record["improved"]
        assert len(record["planning"]["rounds"]) > 1

    def test_a_time_is_kept_to(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp(
            "optimize", model, *SHAPE, *FEW, "--target-latency", "3ms", "--dry-run", "--json"
        )
        assert json.loads(done.out)["planning"]["goal"]["latency"] == 0.003

    def test_a_frontier_is_measured(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp(
            "optimize", model, *SHAPE, *FEW, "--max-error", "0.9", "--frontier", "1.2,1.5",
            "--dry-run", "--json",
        )  # fmt: skip
        assert len(json.loads(done.out)["frontier"]) == 2

    def test_plans_of_a_frontier_are_written(
        self, onnxcp: Run, model: Path, tmp_path: Path
    ) -> None:
        wanted = (*SHAPE, *FEW, "--max-error", "0.9", "--frontier", "1.2,1.5")
        saved = ("--save-plan", tmp_path / "p.yaml", "--dry-run")
        done = onnxcp("optimize", model, *wanted, *saved)
        assert done.code == 0, done.err
        assert set(snapshot(tmp_path)) == {model.name, "p.yaml", "p.1.2x.yaml", "p.1.5x.yaml"}
        assert "measured" in yaml.safe_load((tmp_path / "p.1.5x.yaml").read_text())
        (tmp_path / "p.yaml").unlink()
        again = onnxcp("optimize", model, *wanted, *saved)
        assert again.code == 2
        assert "p.1.2x.yaml" in again.err
        other = tmp_path / "o.onnx"
        assert (
            onnxcp("optimize", model, other, *SHAPE, "--plan", tmp_path / "p.1.5x.yaml").code == 0
        )


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "nbytes"),
        [
            ("2MB", 2e6),
            ("1.5 kB", 1500),
            ("3KiB", 3072),
            ("2GiB", 2 * 2**30),
            ("800B", 800),
            ("0.5", 0.5),
        ],
    )
    def test_are_bytes_or_a_share(self, text: str, nbytes: float) -> None:
        assert size(text) == nbytes

    @pytest.mark.parametrize("target", ["--target-params=0.6", "--target-size=0.6"])
    def test_are_reached_by_coupling(
        self, onnxcp: Run, tmp_path: Path, timings: Timings, target: str
    ) -> None:
        timings(network=0.7)
        path, out = tmp_path / "net.onnx", tmp_path / "small.onnx"
        save(repeated((16,) * 5), path)
        done = onnxcp("optimize", path, out, target, "--families", "coupled-tensor-train")
        assert done.code == 0
        assert "network is smaller" in done.err
        assert "common rank" in done.err
        assert shared(load(out)) != []
        if "size" in target:
            assert out.stat().st_size <= 0.6 * path.stat().st_size

    def test_are_no_plan(self, onnxcp: Run, tmp_path: Path) -> None:
        save(repeated((16,) * 5), tmp_path / "net.onnx")
        options = ("--target-size=0.6", "--families", "coupled-tensor-train")
        plan = tmp_path / "plan.yaml"
        done = onnxcp("optimize", tmp_path / "net.onnx", *options, "--save-plan", plan)
        assert done.code == 2
        assert "are no plan" in done.err
        assert not plan.exists()

    def test_do_not_go_with_a_goal_of_time(self, onnxcp: Run, tmp_path: Path) -> None:
        save(repeated(), tmp_path / "net.onnx")
        options = ("--target-speedup", "2", "--families", "coupled-tensor-train")
        done = onnxcp("optimize", tmp_path / "net.onnx", *options)
        assert done.code == 2
        assert "makes files smaller, not networks faster" in done.err
        assert "Traceback" not in done.err
