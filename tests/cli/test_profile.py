from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxcp.graph.model import load, save
from onnxcp.passes import PassManager
from onnxcp.pipeline import parse_pipeline
from onnxcp.profiling import profile as profiling
from onnxcp.profiling.fresh import Fresh
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.product import Ceiling
from onnxcp.profiling.timing import Latency, Trial
from tests.cli.conftest import Run, made_up, trial
from tests.networks import conv_model

FEW = ("--iterations", "3", "--input-shapes", "4,16,12,12")

Noisy = Callable[[float], None]


@pytest.fixture
def rewritten(model: Path) -> Path:
    path = model.with_name("rewritten.onnx")
    passes = parse_pipeline('tucker2{rank=4,nodes="conv"}')
    save(PassManager(passes).run(load(model))[0], path)
    return path


@pytest.fixture(autouse=True)
def noisy(monkeypatch: pytest.MonkeyPatch) -> Noisy:
    """Sets how far identical work comes out apart; there are no other processes, and no waiting."""

    def to(apart: float) -> None:
        latency = Latency((1e-3,) * 10)
        found = Trial(latency, latency, 1.0, 1.0, 1 + apart, 1.0, 10, 0, clean=True)
        monkeypatch.setattr(profiling, "probe", lambda _: lambda: found)

    monkeypatch.setattr(profiling, "start_fresh", lambda *_: Fresh(0.2, 0.01, 2**20))
    monkeypatch.setattr(profiling, "measure_ceiling", lambda *_: Ceiling(1e11, "float32", 1024))
    monkeypatch.setattr("onnxcp.profiling.warmup._WINDOW_SECONDS", 0.0)
    to(0.0)
    return to


def test_the_table(onnxcp: Run, model: Path) -> None:
    done = onnxcp("profile", model, *FEW)
    assert (done.code, done.out) == (0, "")
    for word in (
        *("median", "mean", "least", "most", "90th percentile", "95th", "99th percentile"),
        *("samples per second", "peak memory", "1.00 MiB", "time to first result", "210 ms"),
        "The machine is quiet",
    ):
        assert word in done.err


def test_json(onnxcp: Run, model: Path) -> None:
    record = json.loads(onnxcp("profile", model, *FEW, "--json", "-q").out)
    assert (record["schema"], record["kind"]) == (3, "profile")
    assert record["command"].startswith("onnxcp profile")
    assert record["environment"]["versions"]["onnxruntime"]
    (row,) = record["rows"]
    latency = row["model"]["latency"]
    assert 0 < latency["minimum"] <= latency["median"] <= latency["p90"] <= latency["maximum"]
    assert latency["samples"] == 3
    assert row["shapes"] == {"x": [4, 16, 12, 12]}
    assert row["batch"] == 4


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
    monkeypatch.setattr(profiling, "paired", made_up(ratio))
    done = onnxcp("profile", rewritten, "--baseline", model, *FEW, "--json")
    assert done.code == 0
    assert words in done.err
    assert "The machine is" not in done.err
    (row,) = json.loads(done.out)["rows"]
    assert row["trial"]["ratio"] == ratio


@pytest.mark.parametrize(
    ("apart", "words"),
    [
        (0.1, ["is not told apart", "less than 10.0 % is no difference", "wider for it"]),
        (
            0.5,
            [
                "Which is faster is not said, since the machine is too busy",
                "No intervals are given",
            ],
        ),
    ],
)
def test_noise_widens_and_refuses_claims(
    onnxcp: Run,
    model: Path,
    noisy: Noisy,
    monkeypatch: pytest.MonkeyPatch,
    apart: float,
    words: list[str],
) -> None:
    monkeypatch.setattr(profiling, "paired", lambda *_, **__: trial(1.09))
    noisy(apart)
    done = onnxcp("profile", model, "--baseline", model, *FEW)
    for word in words:
        assert word in done.err


def test_the_row_that_was_disturbed_most_is_told_of(
    onnxcp: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drifts = iter([0.0, 0.2])
    monkeypatch.setattr(Latency, "drift", property(lambda _: next(drifts)))
    done = onnxcp("profile", model, "--batch-sizes", "1,2", *FEW[:2])
    assert "the runs themselves drifted by 20.0 %" in " ".join(done.err.split())


def test_chains_are_summed_under_their_sites(
    onnxcp: Run, model: Path, rewritten: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "paired", made_up(2.0))
    done = onnxcp("profile", rewritten, "--baseline", model, *FEW, "--per-node", "--json")
    (row,) = json.loads(done.out)["rows"]
    after, before = (
        {site["name"]: site for site in row[which]["nodes"]["sites"]}
        for which in ("model", "baseline")
    )
    assert {"conv", "depthwise", "fc"} <= set(after)
    assert {"conv", "depthwise", "fc"} <= set(before)
    assert not [name for name in after if "tucker2" in name]
    assert after["conv"]["nodes"] == 3
    assert after["conv"]["flops"] < before["conv"]["flops"]
    for words in ("all nodes", "before", "GFLOP/s", "ceiling", "operator", "100 GFLOP/s here"):
        assert words in done.err


def test_a_row_for_each_setting(onnxcp: Run, model: Path) -> None:
    grid = ("--batch-sizes", "1,3", "--intra-op-num-threads", "1,2", "--iterations", "2")
    done = onnxcp("profile", model, *grid, "--json", "--per-node")
    rows = json.loads(done.out)["rows"]
    assert [(row["threads"], row["batch"]) for row in rows] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    for words in ("p50", "p99", "per s", "threads", "batch", "cpu, 2 threads, batch 3:"):
        assert words in done.err


def test_several_settings_against_a_baseline(
    onnxcp: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "paired", made_up(3.0))
    done = onnxcp("profile", model, "--baseline", model, "--batch-sizes", "1,3", *FEW[:2])
    assert "cpu, batch 3: " in done.err
    assert done.err.count("is faster than the baseline: 3.00x") == 2
    assert "3.00×" in done.err


def test_providers_one_after_the_other(
    onnxcp: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Machine] = []

    def profile(_: object, machines: list[Machine], **__: object) -> tuple[()]:
        asked.extend(machines)
        raise profiling.ModelError("Enough.")

    monkeypatch.setattr(profiling, "profile", profile)
    providers = "cpu,cuda{use_tf32=0,prefer_nhwc=1},tensorrt+cuda"
    onnxcp("profile", model, "--providers", providers, "--intra-op-num-threads", "0,2")
    assert asked == [
        Machine(names, threads)
        for names in (("cpu",), ("cuda{use_tf32=0,prefer_nhwc=1}",), ("tensorrt", "cuda"))
        for threads in (0, 2)
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch-sizes", "0,1"], "'0,1' is no list of whole numbers from 1 on"),
        (["--batch-sizes", "1,x"], "no list of whole numbers"),
        (["--intra-op-num-threads", "1,,2"], "no list of whole numbers from 0 on"),
        (["--providers", "cuda{a=1"], "Cannot read the providers 'cuda{a=1'"),
        (["--providers", "cuda{a}"], "Cannot read the options of 'cuda{a}'"),
        (["--providers", "gpu"], "There is no execution provider 'gpu'"),
        (["--providers", "cpu,cuda"], "has no provider 'cuda'"),
    ],
)
def test_bad_options(onnxcp: Run, model: Path, options: list[str], words: str) -> None:
    done = onnxcp("profile", model, *FEW[:2], *options)
    assert done.code == 2
    assert words in done.err


def test_distributions_that_break_each_other_are_named(
    onnxcp: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "onnxcp.profiling.installation.installed", lambda: ["onnxruntime", "onnxruntime-gpu"]
    )
    done = onnxcp("profile", model, *FEW)
    assert "Note that 'onnxruntime' and 'onnxruntime-gpu' are installed together" in done.err
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu" in done.err


def test_a_broken_onnx_runtime_is_explained(
    onnxcp: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def profile(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxruntime.capi'", name="onnxruntime.capi")

    monkeypatch.setattr(profiling, "profile", profile)
    done = onnxcp("profile", model)
    assert done.code == 2
    assert "The installation of ONNX Runtime is broken" in done.err


def test_in_a_precision(onnxcp: Run, model: Path) -> None:
    done = onnxcp("profile", model, *FEW, "--precision", "int8", "--per-node", "--json")
    record = json.loads(done.out)
    assert record["environment"]["precision"] == "int8"
    operators = record["rows"][0]["model"]["nodes"]["operators"]
    assert "QLinearConv" in {each["name"] for each in operators}


def test_a_fixed_batch(onnxcp: Run, tmp_path: Path) -> None:
    onnx.save(conv_model((3, 3), batch=2), tmp_path / "fixed.onnx")
    done = onnxcp("profile", tmp_path / "fixed.onnx", "--batch-sizes", "1,8")
    assert done.code == 2
    assert "only 2 can be profiled" in done.err


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
    assert json.loads(done.out)["rows"][0]["shapes"] == {"x": [1, 2, 64]}


class TestSaved:
    @pytest.fixture
    def saved(self, onnxcp: Run, model: Path) -> Path:
        path = model.with_name("a.json")
        many = "--iterations", "30"
        path.write_text(onnxcp("profile", model, *FEW, *many, "--per-node", "--json", "-q").out)
        return path

    def scaled(self, saved: Path, factor: float) -> Path:
        content = json.loads(saved.read_text())
        for row in content["rows"]:
            timed = row["model"]
            timed["interval"] = [factor * each for each in timed["interval"]]
            for name, value in timed["latency"].items():
                if isinstance(value, float):
                    timed["latency"][name] = factor * value
        path = saved.with_name("b.json")
        path.write_text(json.dumps(content))
        return path

    @pytest.mark.parametrize(
        ("factor", "code", "word"),
        [(0.01, 0, "faster"), (100.0, 1, "slower"), (1.0, 0, "not told apart")],
    )
    def test_two_are_compared(
        self, onnxcp: Run, saved: Path, factor: float, code: int, word: str
    ) -> None:
        done = onnxcp("compare", saved, self.scaled(saved, factor), "--json")
        assert done.code == code
        assert word in done.err
        assert "all nodes" not in done.err
        assert "conv" in done.err
        record = json.loads(done.out)
        assert record["rows"][0]["verdict"] == word
        assert record["rows"][0]["ratio"] == pytest.approx(1 / factor)

    def test_another_machine(self, onnxcp: Run, saved: Path) -> None:
        other = self.scaled(saved, 100.0)
        content = json.loads(other.read_text())
        content["environment"]["cpu"] = "Another"
        other.write_text(json.dumps(content))
        done = onnxcp("compare", saved, other)
        assert done.code == 0
        assert "Which is faster is not said, for the machines differ in processor" in done.err

    def changed(self, saved: Path, change: Callable[[dict[str, Any]], None]) -> Path:
        content = json.loads(saved.read_text())
        change(content)
        path = saved.with_name("changed.json")
        path.write_text(json.dumps(content))
        return path

    def test_says_what_the_two_are_of(self, onnxcp: Run, saved: Path) -> None:
        other = self.changed(saved, lambda c: c.update(model="other.onnx"))
        done = onnxcp("compare", saved, other)
        assert "net.onnx, fp32" in done.err
        assert "b: other.onnx, fp32" in done.err

    def test_says_that_the_machine_was_slower(self, onnxcp: Run, saved: Path) -> None:
        def slower(content: dict[str, Any]) -> None:
            for row in content["rows"]:
                row["noise"]["seconds"] *= 1.25

        other = self.changed(saved, slower)
        said = onnxcp("compare", saved, other).err.replace("\n", " ")
        assert "The machine itself was 1.25 times slower for the second profile" in said
        assert "for the first profile" in onnxcp("compare", other, saved).err.replace("\n", " ")
        assert "The machine itself" not in onnxcp("compare", saved, saved).err

    def test_other_inputs(self, onnxcp: Run, saved: Path) -> None:
        other = self.changed(saved, lambda c: c["rows"][0]["shapes"].update(x=[1, 1, 9, 9]))
        done = onnxcp("compare", saved, other)
        assert done.code == 2
        assert "of inputs of different shapes: " in done.err
        assert "x 1x1x9x9" in done.err

    def test_a_provider_by_its_other_name(self, onnxcp: Run, saved: Path) -> None:
        full = ["CPUExecutionProvider"]
        other = self.changed(saved, lambda c: c["rows"][0].update(providers=full))
        assert onnxcp("compare", saved, other).code == 0

    def test_too_few_runs(self, onnxcp: Run, saved: Path, model: Path) -> None:
        few = saved.with_name("few.json")
        few.write_text(onnxcp("profile", model, *FEW, "--iterations", "1", "--json", "-q").out)
        done = onnxcp("compare", saved, few)
        assert done.code == 0
        assert "refused" in done.err

    @pytest.mark.parametrize("median", [0, -1.0, float("nan"), None])
    def test_times_that_are_none(self, onnxcp: Run, saved: Path, median: float | None) -> None:
        def change(content: dict[str, Any]) -> None:
            content["rows"][0]["model"]["latency"]["median"] = median

        done = onnxcp("compare", saved, self.changed(saved, change))
        assert done.code == 2
        assert "is damaged: rows.0.model.latency.median" in done.err

    def test_without_its_noise(self, onnxcp: Run, saved: Path) -> None:
        other = self.changed(saved, lambda c: c["rows"][0].update(noise={}))
        done = onnxcp("compare", saved, other)
        assert done.code == 2
        assert "rows.0.noise.level" in done.err

    def test_nested_too_deeply(self, onnxcp: Run, saved: Path) -> None:
        deep = saved.with_name("deep.json")
        deep.write_text('{"a":' * 100_000)
        done = onnxcp("compare", saved, deep)
        assert done.code == 2
        assert "is no JSON" in done.err

    def test_a_profile_and_a_model(self, onnxcp: Run, saved: Path, model: Path) -> None:
        done = onnxcp("compare", saved, model)
        assert done.code == 2
        assert "net.onnx' is no JSON" in done.err

    @pytest.mark.parametrize("option", ["--rtol", "--atol"])
    def test_options_of_models(self, onnxcp: Run, saved: Path, option: str) -> None:
        done = onnxcp("compare", saved, saved, option, "0.1")
        assert done.code == 2
        assert f"{option} has no say where two profiles are compared" in done.err
