from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcp.graph.model import load, save
from tests.cli.conftest import Run, snapshot
from tests.tuning.students import data, student


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    save(student(), path)
    return path


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train.npz"
    np.savez(path, **data(80))
    return path


def arguments(compressed: Path, model: Path, train: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--batch", "16", "--device", "cpu", "--rate", "3e-3", "--epochs", "2"]
    paths = [str(compressed), "--teacher", str(model), "--train-data", str(train), "-o", str(out)]
    return ["finetune", *paths, *fixed, *more]


def test_it_trains(onnxcp: Run, compressed: Path, model: Path, train: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = onnxcp(*arguments(compressed, model, train, out, "--json"))
    assert done.code == 0
    assert "epoch 1 of 2: loss" in done.err
    assert "Fine-tuned for 2 epochs: on samples that were held out, the error" in done.err
    assert f"Wrote the trained model to {out}" in done.err.replace("\n", "")
    record = json.loads(done.out)
    assert record["improved"]
    assert record["after"]["loss"] < record["before"]["loss"]
    assert [each["number"] for each in record["epochs"]] == [1, 2]
    assert load(out).proto.graph.node == load(compressed).proto.graph.node
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "net.onnx",
        "out.onnx",
        "small.onnx",
        "train.npz",
    ]


def test_labels_are_used(onnxcp: Run, compressed: Path, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "l.npz", **data(80, labelled=True))
    out = tmp_path / "out.onnx"
    done = onnxcp(*arguments(compressed, model, tmp_path / "l.npz", out))
    assert done.code == 0
    assert ", accuracy " in done.err


def test_nothing_better_is_said(onnxcp: Run, model: Path, train: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = onnxcp(*arguments(model, model, train, out))
    assert done.code == 0
    assert "nothing was closer on samples that were held out" in done.err
    assert "does not say which of its weights are factors" in done.err
    assert "Wrote the model, unchanged, to" in done.err
    assert onnx.load(out) == onnx.load(model)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--augment", "blur"), "There is no augmentation 'blur'"),
        (("--resume", "--checkpoint", "{model}"), "is not a checkpoint of a fine-tuning"),
        (("--checkpoint", "{out}"), "Cannot write the checkpoint to"),
        (("--checkpoint", "no/where"), "Cannot write"),
        (("--held-out", "1"), "Invalid value for '--held-out'"),
        (("--calibration-samples", "1"), "are too few"),
    ],
)
def test_refusals(
    onnxcp: Run,
    compressed: Path,
    model: Path,
    train: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    said: str,
) -> None:
    out = tmp_path / "out.onnx"
    before = snapshot(tmp_path)
    paths = {"model": tmp_path / "copy.onnx", "out": out}
    paths["model"].write_bytes(b"something else")
    before = snapshot(tmp_path)
    filled = [each.format(**paths) for each in more]
    done = onnxcp(*arguments(compressed, model, train, out, *filled))
    assert done.code == 2
    assert said in done.err.replace("\n", " ")
    assert "Traceback" not in done.err
    assert snapshot(tmp_path) == before


def test_without_data(onnxcp: Run, compressed: Path, model: Path, tmp_path: Path) -> None:
    done = onnxcp("finetune", compressed, "--teacher", model, "-o", tmp_path / "out.onnx")
    assert done.code == 2
    assert "Fine-tuning needs --train-data or --data-loader-script." in done.err


def test_a_teacher_of_other_outputs(
    onnxcp: Run, compressed: Path, sound: Path, train: Path, tmp_path: Path
) -> None:
    done = onnxcp(*arguments(compressed, sound, train, tmp_path / "out.onnx"))
    assert done.code == 2
    assert "cannot compute the samples" in done.err


def test_without_torch(
    onnxcp: Run,
    compressed: Path,
    model: Path,
    train: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [each for each in sys.modules if each.startswith("onnxcp.tuning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = onnxcp(*arguments(compressed, model, train, tmp_path / "out.onnx"))
    assert done.code == 2
    assert 'pip install "onnxcp[torch]"' in done.err


def test_divergence_writes_the_best_and_fails(
    onnxcp: Run, compressed: Path, model: Path, train: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    wild = ("--optimizer", "sgd", "--rate", "1e30", "--factor-rate", "1")
    done = onnxcp(*arguments(compressed, model, train, out, *wild))
    assert done.code == 2
    assert "was not finite in step" in done.err
    assert onnx.load(out) == onnx.load(compressed)


def test_a_checkpoint_that_is_left_is_not_written_over(
    onnxcp: Run, compressed: Path, model: Path, train: Path, tmp_path: Path
) -> None:
    out, left = tmp_path / "out.onnx", tmp_path / "out.onnx.checkpoint"
    left.write_bytes(b"precious")
    done = onnxcp(*arguments(compressed, model, train, out))
    assert done.code == 2
    assert "is left of a training; go on with it by --resume" in done.err.replace("\n", " ")
    assert left.read_bytes() == b"precious"
    assert onnxcp(*arguments(compressed, model, train, out, "--force")).code == 0
    assert not left.exists()


def test_ctrl_c_writes_the_best_so_far(
    onnxcp: Run,
    compressed: Path,
    model: Path,
    train: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    out = tmp_path / "out.onnx"
    with monkeypatch.context() as patch:
        patch.setattr("onnxcp.reporting.tuned.epoch_line", interrupt)
        done = onnxcp(*arguments(compressed, model, train, out))
    assert done.code == 130
    assert f"interrupted; written already: {out}." in done.err
    assert "Fine-tuned for 1 epoch:" in done.err
    onnx.checker.check_model(onnx.load(out))
    # Its checkpoint is there to go on from; what was written is replaced.
    assert (tmp_path / "out.onnx.checkpoint").exists() or out.exists()
    assert onnxcp(*arguments(compressed, model, train, out, "--resume")).code == 0
    assert not (tmp_path / "out.onnx.checkpoint").exists()


def test_killed_at_any_moment_it_ends_the_same(
    onnxcp: Run, compressed: Path, model: Path, train: Path, tmp_path: Path
) -> None:
    """Killed for good, by SIGKILL, after some writing of the checkpoint; then resumed."""
    long = ("--epochs", "4", "--checkpoint-seconds", "0", "--augment", "flip,crop:2")
    whole = tmp_path / "whole.onnx"

    def command(out: Path, *more: str) -> list[str]:
        return arguments(compressed, model, train, out, *long, *more)

    assert onnxcp(*command(whole)).code == 0
    out = tmp_path / "killed.onnx"
    checkpoint = out.with_name("killed.onnx.checkpoint")
    for kills, writings in enumerate((1, 7)):
        more = ("--resume",) if kills else ()
        program = [sys.executable, "-m", "onnxcp", *command(out, *more)]
        process = subprocess.Popen(program, stderr=subprocess.DEVNULL)
        seen: set[int] = set()
        while process.poll() is None and len(seen) < writings + kills:
            if checkpoint.exists():
                seen.add(checkpoint.stat().st_mtime_ns)
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not out.exists()
        assert checkpoint.exists()
    assert onnxcp(*command(out, "--resume")).code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


class TestInTheMainJob:
    def test_optimize_trains_what_it_made(
        self, onnxcp: Run, model: Path, calibration: Path, tmp_path: Path
    ) -> None:
        out, report = tmp_path / "out.onnx", tmp_path / "r.html"
        done = onnxcp(
            *("optimize", model, out, "--passes", 'cp3{rank=4,nodes="conv"}', "--refit", "none"),
            *("--calibration-data", calibration, "--finetune", "2", "--report", report, "--json"),
        )
        assert done.code == 0
        assert "epoch 2 of 2" in done.err
        assert "Fine-tuned for 2 epochs: on samples" in done.err
        assert "Fine-tuned for 2 epochs: on samples" in report.read_text()
        record = json.loads(done.out)
        assert record["finetuned"]["improved"]
        plain = tmp_path / "plain.onnx"
        untrained = onnxcp(
            *("optimize", model, plain, "--passes", 'cp3{rank=4,nodes="conv"}', "--refit", "none"),
            *("--calibration-data", calibration, "--json"),
        )
        errors = [json.loads(each.out)["outputs"][0]["relative"] for each in (done, untrained)]
        assert errors[0] < errors[1]
        assert load(out).proto.graph.node == load(plain).proto.graph.node
        assert json.loads(untrained.out)["finetuned"] is None

    def test_on_other_data(self, onnxcp: Run, model: Path, train: Path, tmp_path: Path) -> None:
        done = onnxcp(
            *("optimize", model, tmp_path / "out.onnx", "--passes", 'cp3{rank=4,nodes="conv"}'),
            *("--finetune", "1", "--train-data", train),
        )
        assert done.code == 0
        assert "Fine-tuned for 1 epoch: on samples" in done.err

    def test_its_options_are_those_of_the_command(
        self,
        onnxcp: Run,
        model: Path,
        train: Path,
        tmp_path: Path,
    ) -> None:
        """Both make the same settings of them: the same command line, the same weights."""
        how = ("--batch", "16", "--rate", "3e-3", "--seed", "3", "--augment", "flip,crop:2")
        start, tuned, out = (tmp_path / f"{name}.onnx" for name in ("start", "tuned", "out"))
        passes = ("--passes", 'cp3{rank=4,nodes="conv"}')
        assert onnxcp("optimize", model, start, *passes).code == 0
        by_itself = ("--teacher", model, "-o", tuned, "--train-data", train, "--epochs", "1")
        assert onnxcp("finetune", start, *by_itself, *how).code == 0
        within = ("--finetune", "1", "--train-data", train, "--json")
        done = onnxcp("optimize", model, out, *passes, *within, *how)
        assert done.code == 0
        assert load(out).proto == load(tuned).proto
        training = json.loads(done.out)["settings"]["training"]
        assert (training["seed"], training["augment"]) == (3, "flip,crop:2")

    @pytest.mark.parametrize(
        ("how", "said"),
        [
            (("--augment", "blur"), "There is no augmentation 'blur'"),
            (("--device", "cuda"), "PyTorch finds no CUDA device"),
            (("--held-out", "0.999"), "samples are too few"),
        ],
    )
    def test_settings_that_do_not_fit_show_before_the_work(
        self,
        onnxcp: Run,
        model: Path,
        train: Path,
        monkeypatch: pytest.MonkeyPatch,
        how: tuple[str, ...],
        said: str,
    ) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("onnxcp.proving.by_goal", lambda *_: pytest.fail("it was begun"))
        done = onnxcp("optimize", model, "--finetune", "1", "--train-data", train, *how)
        assert done.code == 2
        assert said in done.err.replace("\n", " ")

    @pytest.mark.parametrize("option", ["--train-data=t.npz", "--rate=1e-3", "--seed=0"])
    def test_options_without_a_say(self, onnxcp: Run, model: Path, option: str) -> None:
        idle = onnxcp("optimize", model, option)
        assert idle.code == 2
        assert f"{option.partition('=')[0]} has no say without --finetune." in idle.err

    def test_nothing_to_train_on(self, onnxcp: Run, model: Path) -> None:
        bare = onnxcp("optimize", model, "--finetune", "1")
        assert bare.code == 2
        assert "--finetune needs --train-data or --calibration-data." in bare.err
