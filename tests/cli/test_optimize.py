from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import onnx
import pytest

from onnxcp import refit
from onnxcp.cli.optimize import optimize as command
from onnxcp.cli.options import PREFIXES, SCOPES, TARGETS, memory_size
from onnxcp.graph.model import load, save
from tests.cli.conftest import QUICK, Run, Timings, snapshot


@pytest.fixture
def optimize(onnxcp: Run, model: Path) -> Callable[..., Any]:
    def run(*arguments: object) -> Any:
        return onnxcp("optimize", model, *QUICK, *arguments)

    return run


class TestWrites:
    def test_the_rewritten_model_beside_the_input(self, optimize: Any, model: Path) -> None:
        before = snapshot(model.parent)
        done = optimize()
        assert done.code == 0
        assert done.out == ""
        output = model.with_name("net.optimized.onnx")
        names = [node.name for node in onnx.load(output).graph.node]
        assert [name for name in names if name.startswith("conv")] == [
            f"conv/tucker2/{i}" for i in range(3)
        ]
        after = snapshot(model.parent)
        assert after.pop(output.name)
        assert after == before

    def test_to_a_given_place(self, optimize: Any, tmp_path: Path) -> None:
        assert optimize(tmp_path / "other.onnx").code == 0
        assert (tmp_path / "other.onnx").is_file()
        assert not (tmp_path / "net.optimized.onnx").exists()

    def test_external_data_where_asked(self, optimize: Any, tmp_path: Path) -> None:
        assert optimize(tmp_path / "out.onnx", "--save-as-external-data").code == 0
        assert (tmp_path / "out.onnx.data").stat().st_size > 0
        assert load(tmp_path / "out.onnx").external

    def test_the_original_where_it_is_not_beaten(
        self, optimize: Any, timings: Timings, model: Path
    ) -> None:
        timings(network=1.0)
        done = optimize()
        assert done.code == 0
        assert "not faster; the original is handed back" in done.err
        assert "Wrote the original, unchanged" in done.err
        assert onnx.load(model.with_name("net.optimized.onnx")) == onnx.load(model)

    def test_the_original_where_nothing_pays(
        self, optimize: Any, timings: Timings, model: Path
    ) -> None:
        timings(chains=1.0)
        done = optimize()
        assert done.code == 0
        assert "Nothing was worth rewriting" in done.err
        assert onnx.load(model.with_name("net.optimized.onnx")) == onnx.load(model)

    def test_nothing_in_a_dry_run(self, optimize: Any, model: Path) -> None:
        before = snapshot(model.parent)
        done = optimize("--dry-run")
        assert done.code == 0
        assert "2.00×" in done.err
        assert "No model was written" in done.err
        assert snapshot(model.parent) == before

    def test_over_what_exists_with_force(self, optimize: Any, tmp_path: Path) -> None:
        output = tmp_path / "out.onnx"
        output.write_text("old")
        assert optimize(output, "--force").code == 0
        assert onnx.load(output).graph.node

    def test_a_report(self, optimize: Any, tmp_path: Path) -> None:
        assert optimize("--report", tmp_path / "r.html").code == 0
        assert "2.00× faster" in (tmp_path / "r.html").read_text()


class TestSays:
    def test_what_was_decided_and_what_it_gives(self, optimize: Any) -> None:
        said = optimize().err
        for words in (
            "tucker2, rank",
            "it is depthwise",
            "latency, batch 4",
            "2.00× (1.90 to 2.10)",
            "Accuracy unknown",
            "on random inputs",
            "The rewritten network is faster",
        ):
            assert words in said

    def test_accuracy_where_there_are_labels(self, optimize: Any, labelled: Path) -> None:
        said = optimize("--eval-data", labelled).err
        assert "accuracy" in said
        assert "points" in said
        assert "unknown" not in said
        assert "random inputs" not in said

    def test_the_score_of_a_function(self, optimize: Any, tmp_path: Path) -> None:
        script = tmp_path / "score.py"
        script.write_text("def evaluate(session):\n    return len(session.get_outputs()) * 21.5\n")
        said = optimize("--eval-script", f"{script}:evaluate").err
        assert "score" in said
        assert "21.5" in said

    def test_nothing_when_quiet(self, optimize: Any) -> None:
        done = optimize("-q")
        assert (done.code, done.out, done.err) == (0, "", "")

    def test_all_when_verbose(self, optimize: Any) -> None:
        assert "fold-batchnorm" in optimize("-v").err

    def test_lines_of_tables_fit_80_columns_and_hold_no_codes(self, optimize: Any) -> None:
        said = optimize().err
        tables = [line for line in said.splitlines() if not line.endswith((".", "onnx"))]
        assert max(map(len, tables)) <= 80
        assert "\x1b" not in said

    def test_what_a_pipeline_did(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp("optimize", model, "--passes", 'channel-svd{rank=2,nodes="conv"}')
        assert done.code == 0
        assert "conv: channel-svd rank 2, weight error" in done.err


class TestJson:
    def test_tells_all(self, optimize: Any, labelled: Path) -> None:
        done = optimize("--json", "--eval-data", labelled)
        record = json.loads(done.out)
        assert record["schema"] == 3
        assert record["improved"] is True
        assert record["latency"]["ratio"] == 2.0
        assert record["before"]["parameters"] > record["after"]["parameters"]
        assert record["shapes"] == {"x": [4, 16, 12, 12]}
        assert set(record["accuracy"]) == {"before", "after"}
        assert record["outputs"][0]["name"] == "y"
        (conv, fc) = record["sites"]
        assert conv["chosen"]["family"] == "tucker2"
        assert conv["chosen"]["macs"] <= 0.5 * conv["macs"]
        assert fc["chosen"] is None
        assert fc["refusals"]
        assert record["refusals"][0]["reason"] == "depthwise"
        assert record["settings"]["machine"]["providers"] == ["cpu"]
        assert record["environment"]["versions"]["onnxcp"]

    def test_tells_what_data_served(self, optimize: Any, labelled: Path) -> None:
        samples = ("--calibration-samples", "6")
        done = optimize("--json", "--calibration-data", labelled, *samples, "--eval-data", labelled)
        record = json.loads(done.out)
        assert record["data_is_random"] is False
        assert record["calibration_data"] == f"'{labelled}', at most 6 samples, seed 0"
        assert record["eval_data"] == str(labelled)
        assert record["eval_script"] is None
        assert f"--calibration-data {labelled} --calibration-samples 6" in record["command"]

    def test_is_all_there_is_on_stdout_when_quiet(self, optimize: Any) -> None:
        done = optimize("--json", "-q")
        assert json.loads(done.out)["output"].endswith("net.optimized.onnx")
        assert done.err == ""

    def test_of_a_network_left_alone(self, optimize: Any, timings: Timings) -> None:
        timings(chains=1.0)
        record = json.loads(optimize("--json").out)
        assert record["improved"] is False
        assert record["latency"] is None
        assert record["after"] is None


class TestRefit:
    @pytest.fixture
    def refit(self, optimize: Any, calibration: Path) -> Callable[..., Any]:
        def run(*options: object) -> Any:
            return optimize("--calibration-data", calibration, "--json", *options)

        return run

    def test_is_told_layer_by_layer_and_of_the_whole(self, refit: Any) -> None:
        done = refit()
        for words in ("output error", "→", "before the refit", "without labels"):
            assert words in done.err
        record = json.loads(done.out)
        (conv, fc) = record["sites"]
        assert conv["refit"]["after"] < conv["refit"]["before"]
        assert (conv["refit"]["dense"], fc["refit"]["dense"]) == (False, True)
        assert record["outputs"][0]["relative"] < record["unfitted"][0]["relative"]

    def test_shows_the_layers_that_keep_their_shape(self, refit: Any) -> None:
        assert re.search(r"fc +refitted, not", refit().err)

    def test_leaves_them_alone_if_told_to(self, refit: Any) -> None:
        record = json.loads(refit("--refit", "factorised").out)
        assert record["settings"]["refit"]["scope"] == "factorised"
        (conv, fc) = record["sites"]
        assert conv["refit"]
        assert fc["refit"] is None

    def test_is_not_done_if_told_so(self, refit: Any) -> None:
        done = refit("--refit", "none")
        record = json.loads(done.out)
        assert [site["refit"] for site in record["sites"]] == [None, None]
        assert record["unfitted"] is None
        assert "weight error" in done.err
        assert "refit" not in done.err

    def test_gives_the_same_on_disk(self, refit: Any) -> None:
        on_disk, in_memory = (
            json.loads(refit("--force", *options).out) for options in (("--memory-limit", "0"), ())
        )
        assert on_disk["settings"]["refit"]["memory_limit"] == 0
        assert in_memory["settings"]["refit"]["memory_limit"] == 2**31
        assert on_disk["sites"] == in_memory["sites"]

    def test_reaches_into_the_report(self, refit: Any, tmp_path: Path) -> None:
        refit("--report", tmp_path / "r.html")
        assert "before the refit" in (tmp_path / "r.html").read_text()

    def test_lines_of_tables_fit_80_columns(self, refit: Any) -> None:
        said = refit().err
        tables = [line for line in said.splitlines() if not line.endswith((".", "onnx"))]
        assert max(map(len, tables)) <= 80

    @pytest.mark.parametrize(
        ("pipeline", "options", "told"),
        [
            ("channel-svd{rank=2}", (), True),
            ("channel-svd{rank=2}", ("--refit", "factorised", "--memory-limit", "1MB"), True),
            ("channel-svd{rank=2}", ("--refit", "none"), False),
            ("fold-batchnorm", (), False),
        ],
    )
    def test_is_done_by_passes(
        self,
        onnxcp: Run,
        model: Path,
        calibration: Path,
        pipeline: str,
        options: tuple[str, ...],
        told: bool,
    ) -> None:
        done = onnxcp(
            "optimize", model, "--passes", pipeline, "--calibration-data", calibration, *options
        )
        assert done.code == 0
        assert ("What the passes replaced was refitted" in done.err) == told


class TestMemorySize:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("0", 0),
            ("123456", 123456),
            ("12B", 12),
            ("500MB", 500 * 10**6),
            ("500 mb", 500 * 10**6),
            ("64kB", 64_000),
            ("64KiB", 65_536),
            ("1.5GB", 1_500_000_000),
            ("2GiB", 2**31),
            ("1TiB", 2**40),
        ],
    )
    def test_is_read(self, text: str, size: int) -> None:
        assert memory_size(text) == size

    @pytest.mark.parametrize(
        "text", ["", "2G", "1.5", "2iB", "-1", "1e9", "2 gigabytes", "GiB", "٢GiB", "9" * 400]
    )
    def test_is_refused_with_how_to_write_it(self, text: str) -> None:
        with pytest.raises(click.BadParameter, match=r"is no size; write .* such as 500MB or 2GiB"):
            memory_size(text)


def test_the_options_have_what_the_settings_have() -> None:
    assert SCOPES == refit.SCOPES
    assert TARGETS == refit.TARGETS
    assert PREFIXES == refit.PREFIXES
    defaults = {each.name: each.default for each in command.params}
    assert memory_size(defaults["memory_limit"]) == refit.RefitSettings().memory_limit
    assert defaults["refit"] == refit.RefitSettings().scope


class TestExternalInput:
    @pytest.fixture
    def external(self, model: Path) -> Path:
        path = model.with_name("big.onnx")
        save(load(model), path, external=True)
        return path

    def test_stays_external(self, onnxcp: Run, external: Path) -> None:
        assert onnxcp("optimize", external, *QUICK).code == 0
        assert load(external.with_name("big.optimized.onnx")).external

    def test_its_weights_are_not_overwritten(self, onnxcp: Run, external: Path) -> None:
        moved = external.with_name("moved.onnx")
        external.rename(moved)  # It still names big.onnx.data.
        before = snapshot(moved.parent)
        done = onnxcp("optimize", moved, external, "--force", *QUICK)
        assert done.code == 2
        assert "external data" in done.err
        assert snapshot(moved.parent) == before


def test_the_command_is_recorded_as_it_was_typed(optimize: Any, tmp_path: Path) -> None:
    output = tmp_path / "with space.onnx"
    command = json.loads(optimize(output, "--json", "-q").out)["command"]
    assert command.startswith("onnxcp optimize ")
    assert f"'{output}'" in command


class TestInAPrecision:
    def test_every_step_is_shown_and_integers_are_written(
        self, optimize: Any, tmp_path: Path, calibration: Path
    ) -> None:
        data = ("--calibration-data", calibration, "--precision", "int8")
        done = optimize(tmp_path / "out.onnx", *data)
        assert done.code == 0
        for words in ("int8 alone", "low rank alone", "low rank, then int8", "For int8: ranges by"):
            assert words in done.err
        assert "QuantizeLinear" in {
            node.op_type for node in load(tmp_path / "out.onnx").proto.graph.node
        }

    def test_float_where_it_is_not_faster(
        self, optimize: Any, tmp_path: Path, calibration: Path, timings: Timings
    ) -> None:
        timings(network=1.0)
        data = ("--calibration-data", calibration, "--precision", "int8")
        done = optimize(tmp_path / "out.onnx", *data)
        assert done.code == 0
        assert "int8 is not faster here" in " ".join(done.err.split())

    def test_steps_are_in_the_record(self, optimize: Any, calibration: Path) -> None:
        data = ("--calibration-data", calibration, "--precision", "int8")
        record = json.loads(optimize("--dry-run", "--json", "-q", *data).out)["precision"]
        assert record["kept"] == "int8"
        assert [each["name"] for each in record["steps"]][-1] == "low rank, then int8"
        assert all(each["latency"]["ratio"] > 0 for each in record["steps"])

    def test_int8_without_samples(self, optimize: Any) -> None:
        done = optimize("--precision", "int8")
        assert done.code == 2
        assert "give --calibration-data" in done.err
