"""Bad input: one sentence, the exit code 2, no traceback, nothing written, the input untouched."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Outcome, Run, snapshot
from tests.networks import noise

QUICK = ("--passes", 'channel-svd{rank=1,nodes="conv"}')


def assert_refused(done: Outcome, *words: str, code: int = 2) -> None:
    assert done.code == code
    assert done.out == ""
    (sentence,) = done.err.splitlines()
    assert sentence.startswith("onnxcp: ")
    assert sentence.endswith(".")
    for word in words:
        assert word in sentence


Prepare = Callable[[Path], list[object]]


def bad_file(content: bytes | None) -> Prepare:
    def prepare(folder: Path) -> list[object]:
        path = folder / "bad.onnx"
        if content is not None:
            path.write_bytes(content)
        return [path]

    return prepare


def directory(folder: Path) -> list[object]:
    (folder / "dir.onnx").mkdir()
    return [folder / "dir.onnx"]


def truncated(folder: Path) -> list[object]:
    path = folder / "bad.onnx"
    path.write_bytes((folder / "net.onnx").read_bytes()[:-1000])
    return [path]


BAD_MODELS = {
    "missing": (bad_file(None), ("There is no file", "bad.onnx")),
    "empty": (bad_file(b""), ("not an ONNX model",)),
    "text": (bad_file(b"hello, world\n" * 50), ("not an ONNX model",)),
    "picture": (bad_file(b"\x89PNG\r\n\x1a\n" + bytes(range(256))), ("not an ONNX model",)),
    "truncated": (truncated, ("bad.onnx", "truncated")),
    "directory": (directory, ("is a directory",)),
}


@pytest.mark.parametrize("command", ["optimize", "inspect", "profile", "compare"])
@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(onnxcp: Run, model: Path, command: str, case: str) -> None:
    prepare, words = BAD_MODELS[case]
    arguments = prepare(model.parent)
    if command == "compare":
        arguments.append(model)
    before = snapshot(model.parent)
    assert_refused(onnxcp(command, *arguments), *words)
    assert snapshot(model.parent) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input-shapes", "1,3,224,224"], ["wants shape", "(1, 3, 224, 224)"]),
        (["--input-shapes", "z:1,16,12,12"], ["no input 'z'"]),
        (["--input-shapes", "1x16"], ["Cannot read the input shape '1x16'"]),
        (["--families", "cp3,cp5"], ["There is no family 'cp5'", "tucker2"]),
        (["--passes", "cp9{rank=1}"], ["There is no pass 'cp9'"]),
        (["--passes", "cp3{rank=1"], ["In the pipeline", "was expected"]),
        (["--passes", "cp3{rang=1}"], ["has no option 'rang'"]),
        (["--providers", "gpu"], ["There is no execution provider 'gpu'"]),
        (["--eval-script", "score.py"], ["Cannot read 'score.py'", "FILE.py:FUNCTION"]),
        (["--eval-script", "none.py:f"], ["There is no script 'none.py'"]),
        (["--calibration-data", "none.npz"], ["There is no file 'none.npz'"]),
        (["--data-loader-script", "load.py"], ["Cannot read 'load.py'", "FILE.py:FUNCTION"]),
        (["--data-loader-script", "none.py:f"], ["There is no script 'none.py'"]),
        (["--preprocess", "size=3"], ["Cannot read 'size=3'", "resize, crop, layout"]),
    ],
)  # fmt: skip
def test_bad_options(onnxcp: Run, model: Path, options: list[str], words: list[str]) -> None:
    before = snapshot(model.parent)
    assert_refused(onnxcp("optimize", model, *options), *words)
    assert snapshot(model.parent) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--macs", "2"], "'2' is neither a share, from above 0 to 1, nor GLOB=SHARE"),
        (["--macs", "0"], "'0' is neither a share, from above 0 to 1, nor GLOB=SHARE"),
        (["--macs", "0.5,conv3=x"], "'conv3=x' is neither a share"),
        (["--energy", "much"], "not a valid float"),
        (["--macs", "0.5", "--energy", "0.9"], "--macs and --energy exclude each other"),
        (["--passes", "fold-batchnorm", "--macs", "0.5"], "--macs has no say there"),
        (["--passes", "fold-batchnorm", "--families", "cp3"], "--families has no say there"),
        (["--passes", "fold-batchnorm", "--nodes", "*"], "--nodes has no say there"),
        (["--passes", "fold-batchnorm", "--exclude", "fc"], "--exclude has no say there"),
        (["--passes", "fold-batchnorm", "--round-to", "auto"], "--round-to has no say there"),
        (["--families", "cp3,,cp4"], "empty name"),
        (["--round-to", "0"], "neither auto nor a whole number"),
        (["--eval-data", "a.npz", "--eval-script", "f.py:f"], "one of"),
        (["--calibration-data", "a", "--data-loader-script", "f.py:f"], "one of --calibration"),
        (["--preprocess", "crop=3"], "--preprocess has no say without --calibration-data"),
        (["--calibration-samples", "3"], "--calibration-samples has no say without"),
        (["--calibration-data", "a", "--calibration-samples", "0"], "neither all nor a whole"),
        (["--refit", "none"], "--refit has no say without --calibration-data"),
        (["--passes", "cp3{rank=1}", "--refit", "all"], "--refit has no say without"),
        (["--memory-limit", "1GB"], "--memory-limit has no say without --calibration-data"),
        (["--calibration-data", "a", "--refit", "some"], "'all', 'factorised', 'none'"),
        (["--calibration-data", "a", "--memory-limit", "2G"], "such as 500MB or 2GiB"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_bad_usage(onnxcp: Run, model: Path, options: list[str], words: str) -> None:
    done = onnxcp("optimize", model, *options)
    assert done.code == 2
    assert words in " ".join(done.err.split())
    assert "Traceback" not in done.err


class TestBadOutputs:
    @pytest.fixture(autouse=True)
    def untouched(self, model: Path) -> object:
        before = snapshot(model.parent)
        yield
        after = snapshot(model.parent)
        assert after["net.onnx"] == before["net.onnx"]
        assert not [name for name in after if name.endswith(".tmp")]

    def test_a_missing_folder(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp("optimize", model, model.parent / "none" / "out.onnx")
        assert_refused(done, "the folder", "does not exist")

    def test_a_directory(self, onnxcp: Run, model: Path) -> None:
        assert_refused(onnxcp("optimize", model, model.parent), "it is a directory")

    def test_the_input(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp("optimize", model, model, "--force")
        assert_refused(done, "it is the input model")

    @pytest.mark.parametrize("link", [os.symlink, os.link])
    def test_the_input_behind_a_link(
        self, onnxcp: Run, model: Path, link: Callable[[Path, Path], None]
    ) -> None:
        output = model.with_name("link.onnx")
        link(model, output)
        assert_refused(onnxcp("optimize", model, output, "--force"), "it is the input model")

    def test_the_data(self, onnxcp: Run, model: Path, labelled: Path) -> None:
        done = onnxcp("optimize", model, labelled, "--eval-data", labelled, "--force")
        assert_refused(done, "it is the evaluation data")

    @pytest.mark.parametrize("option", ["--calibration-data", "--data-loader-script"])
    def test_what_the_calibration_data_come_from(
        self, onnxcp: Run, model: Path, labelled: Path, option: str
    ) -> None:
        given = labelled if option == "--calibration-data" else f"{labelled}:load"
        done = onnxcp("optimize", model, labelled, option, given, "--force")
        assert_refused(done, "it is where the calibration data come from")

    def test_a_report_over_the_input(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp("optimize", model, "--report", model, "--force")
        assert_refused(done, "the report", "it is the input model")

    def test_a_report_over_the_output(self, onnxcp: Run, model: Path) -> None:
        output = model.with_name("out.onnx")
        done = onnxcp("optimize", model, output, "--report", output)
        assert_refused(done, "the report", "it is the model")

    def test_an_existing_file(self, onnxcp: Run, model: Path) -> None:
        output = model.with_name("out.onnx")
        output.write_text("precious")
        assert_refused(onnxcp("optimize", model, output), "exists", "--force")
        assert output.read_text() == "precious"

    def test_a_full_disk(self, onnxcp: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Full(io.FileIO):
            def write(self, _: object) -> int:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        output = model.with_name("out.onnx")
        output.write_text("precious")
        monkeypatch.setattr(os, "fdopen", lambda descriptor, _: Full(descriptor, "wb"))
        done = onnxcp("optimize", model, output, "--force", "-q", *QUICK)
        assert_refused(done, "Cannot write", "No space left")
        assert output.read_text() == "precious"


BAD_ARRAYS = {
    "wrong shape": ({"x": noise(8, 3, 12, 12)}, "has shape"),
    "wrong name": ({"a": noise(8, 16, 12, 12), "b": noise(8)}, "no array for input"),
    "no samples": ({"x": noise(0, 16, 12, 12)}, "no samples"),
    "wrong type": ({"x": np.full((8, 16, 12, 12), "a")}, "is of type"),
    "no labels": ({"x": noise(8, 16, 12, 12)}, "no array 'label'"),
    "labels missing": ({"x": noise(8, 16, 12, 12), "label": np.arange(7)}, "differ"),
}


class TestBadData:
    @pytest.mark.parametrize("case", BAD_ARRAYS)
    def test_arrays(self, onnxcp: Run, model: Path, case: str) -> None:
        arrays, words = BAD_ARRAYS[case]
        path = model.with_name("data.npz")
        np.savez(path, **arrays)  # type: ignore[arg-type]
        assert_refused(onnxcp("optimize", model, "--eval-data", path), words)

    @pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04 cut off"])
    def test_files(self, onnxcp: Run, model: Path, content: bytes) -> None:
        path = model.with_name("data.npz")
        path.write_bytes(content)
        done = onnxcp("optimize", model, "--calibration-data", path)
        assert_refused(done, "cannot be read as an npz file")

    def test_pictures_have_no_labels(self, onnxcp: Run, model: Path) -> None:
        folder = model.with_name("pictures")
        folder.mkdir()
        (folder / "a.png").touch()
        assert_refused(onnxcp("optimize", model, "--eval-data", folder), "have no labels")

    def test_a_loader_that_fails(self, onnxcp: Run, model: Path) -> None:
        script = model.with_name("load.py")
        script.write_text("def load():\n    yield {}\n    print('working')\n")
        done = onnxcp("optimize", model, "--data-loader-script", f"{script}:load")
        assert_refused(done, f"In batch 1 of what '{script}:load' returned is no array for input")
        script.write_text("def load():\n    raise OSError('no disk')\n")
        done = onnxcp("optimize", model, "--data-loader-script", f"{script}:load")
        assert_refused(done, f"'{script}:load' failed: OSError: no disk")


SCRIPTS = {
    "does not parse": ("def evaluate(:\n", "SyntaxError"),
    "fails when imported": ("\nimport no_such_module\n", "in line 2: ModuleNotFoundError"),
    "exits": ("raise SystemExit(3)\n", "SystemExit"),
    "lacks the function": ("def other(session): return 1\n", "defines no 'evaluate'"),
    "has no function": ("evaluate = 3\n", "is no function"),
    "fails": ("def evaluate(session):\n    raise KeyError('accuracy')\n", "KeyError"),
    "returns no number": ("def evaluate(session):\n    return None\n", "TypeError"),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_bad_scripts(onnxcp: Run, model: Path, case: str) -> None:
    source, words = SCRIPTS[case]
    script = model.with_name("score.py")
    script.write_text(source)
    done = onnxcp("optimize", model, *QUICK, "--eval-script", f"{script}:evaluate")
    assert_refused(done, words)
    assert not model.with_name("net.optimized.onnx").exists()


def test_a_model_that_onnx_runtime_refuses(onnxcp: Run, model: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(proto, model)
    assert_refused(onnxcp("optimize", model), "ONNX Runtime cannot load", "NoSuchOperator")


class TestWhatWasNotForeseen:
    @pytest.fixture
    def failing(self, onnxcp: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
        def run(error: BaseException, *options: str) -> Outcome:
            def fail(*_: object, **__: object) -> None:
                raise error

            monkeypatch.setattr("onnxcp.optimizer.optimize", fail)
            return onnxcp("optimize", model, *options)

        return run

    def test_a_fault_asks_for_a_report(self, failing: Run) -> None:
        done = failing(IndexError("list index"))
        assert_refused(done, "please report it: IndexError: list", code=70)

    def test_verbose_shows_where(self, failing: Run) -> None:
        done = failing(IndexError("list index"), "-v")
        assert done.code == 70
        assert "Traceback" in done.err
        assert "in fail" in done.err

    def test_no_memory(self, failing: Run) -> None:
        assert_refused(failing(MemoryError()), "not enough memory")

    def test_an_interruption(self, failing: Run) -> None:
        done = failing(KeyboardInterrupt())
        assert done.code == 130
        assert done.err.strip() == "onnxcp: interrupted; nothing was written."


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "onnxcp.cli.main", *map(str, arguments)]


def test_ctrl_c_in_the_middle(model: Path, request: pytest.FixtureRequest) -> None:
    folder = model.parent
    script, sign = folder / "slow.py", folder / "started"
    script.write_text(
        "import pathlib, time\n"
        "def evaluate(session):\n"
        f"    pathlib.Path({str(sign)!r}).touch()\n"
        "    time.sleep(60)\n"
    )
    before = snapshot(folder)
    arguments = ("optimize", model, *QUICK, "--eval-script", f"{script}:evaluate")
    # A child of a background job would be born deaf to ctrl-C.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, usual))
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not sign.exists() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "onnxcp: interrupted; nothing was written.")
    after = snapshot(folder)
    assert after.pop(sign.name)
    assert after == before


def test_a_reader_that_leaves_early() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command("passes", "--json", "-q"), stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b""
