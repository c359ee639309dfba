"""Folders that may not be searched are named in a sentence."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxcp.cli.outputs import check_outputs, external_files
from onnxcp.cli.script import load_function
from onnxcp.errors import OnnxcpError, OutputError
from onnxcp.graph.model import load, save
from tests.networks import conv_model


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that seems to be another user's, private to them."""
    folder = tmp_path / "locked"
    folder.mkdir()

    def denying(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, *args: Any, **kwargs: Any) -> Any:
            if folder in path.parents:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return method(path, *args, **kwargs)

        return call

    for name in ("stat", "lstat"):
        monkeypatch.setattr(Path, name, denying(getattr(Path, name)))
    return folder


class TestLocked:
    def test_output(self, locked: Path, tmp_path: Path) -> None:
        path = locked / "out.onnx"
        for inputs in ({}, {"the input": tmp_path}):
            with pytest.raises(OutputError) as caught:
                check_outputs({"the model": path}, inputs, force=True)
            assert str(caught.value) == f"Cannot write '{path}': Permission denied."

    def test_script(self, locked: Path) -> None:
        path = locked / "score.py"
        with pytest.raises(OnnxcpError) as caught:
            load_function(f"{path}:score")
        assert str(caught.value) == f"Cannot read script '{path}': Permission denied."


def test_external_files_are_those_that_the_model_names(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    save(load(conv_model((3, 3), channels=(8, 16))), path, external=True)
    assert external_files(load(path)) == {tmp_path / "net.onnx.data"}
    assert external_files(load(load(path).proto)) == set()


class TestScripts:
    def test_what_they_print_is_no_result(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "score.py").write_text("print('loading')\ndef score(s): return 1\n")
        load_function(f"{tmp_path / 'score.py'}:score")
        assert capsys.readouterr() == ("", "loading\n")
