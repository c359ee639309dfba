"""Saving is all or nothing: what fails leaves the old files and no others."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from onnxcp.errors import OutputError
from onnxcp.graph import model as model_module
from onnxcp.graph.model import load, save
from tests.stored import is_a_sentence, large, stored_outside


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestAtomic:
    @pytest.mark.parametrize("external", [False, True])
    @pytest.mark.parametrize(
        ("where", "error"),
        [
            ("os.fsync", FULL),
            ("os.fsync", KeyboardInterrupt()),
            ("pathlib.Path.replace", FULL),
            ("pathlib.Path.replace", KeyboardInterrupt()),
            ("pathlib.Path.chmod", PermissionError(errno.EPERM, "Operation not permitted")),
        ],
    )
    def test_what_fails_leaves_the_old_files_and_no_others(
        self,
        where: str,
        error: BaseException,
        external: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        names = ["net.onnx", "net.onnx.data"] if external else ["net.onnx"]
        for name in names:
            (tmp_path / name).write_text("old")
        expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
        with monkeypatch.context() as patch:
            patch.setattr(where, fail_with(error))
            with pytest.raises(expected) as caught:
                save(load(large()), tmp_path / "net.onnx", external=external)
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert all((tmp_path / name).read_text() == "old" for name in names)
        if isinstance(error, OSError):
            assert is_a_sentence(str(caught.value))
            assert str(error.strerror) in str(caught.value)

    def test_what_cannot_be_serialised_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for error in (ValueError("no"), KeyboardInterrupt()):
            monkeypatch.setattr(model_module, "_externalise", fail_with(error))
            with pytest.raises(type(error)):
                save(load(large()), tmp_path / "net.onnx", external=True)
            assert list(tmp_path.iterdir()) == []

    def test_a_model_file_that_does_not_fit_costs_no_data(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The disk is full once the data are written: the old pair must still go together."""
        save(load(large()), tmp_path / "net.onnx", external=True)
        data = (tmp_path / "net.onnx.data").read_bytes()
        other = large()
        other.graph.initializer[0].raw_data = b"\0" * len(other.graph.initializer[0].raw_data)

        class Full(io.BufferedWriter):
            def flush(self) -> None:
                raise FULL

        def full_then_not(descriptor: int, mode: str) -> IO[bytes]:
            monkeypatch.undo()
            return Full(io.FileIO(descriptor, mode))

        monkeypatch.setattr(os, "fdopen", full_then_not)
        with pytest.raises(OutputError, match="No space left"):
            save(load(other), tmp_path / "net.onnx", external=True)
        assert (tmp_path / "net.onnx.data").read_bytes() == data
        assert load(tmp_path / "net.onnx").proto == large()

    @pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
    @pytest.mark.parametrize("there", [True, False])
    def test_data_whose_model_cannot_follow_are_taken_back(
        self, there: bool, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if there:
            save(load(large()), tmp_path / "net.onnx", external=True)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        other = large()
        other.graph.initializer[0].raw_data = b"\0" * len(other.graph.initializer[0].raw_data)
        rename = Path.replace

        def fail(path: Path, target: Path) -> Path:
            if target.name == "net.onnx":
                raise error
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises((OutputError, KeyboardInterrupt)):
            save(load(other), tmp_path / "net.onnx", external=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_a_new_file_has_the_usual_permissions(self, tmp_path: Path) -> None:
        save(load(large()), tmp_path / "net.onnx")
        (tmp_path / "usual").touch()
        assert (tmp_path / "net.onnx").stat().st_mode == (tmp_path / "usual").stat().st_mode

    def test_a_model_can_be_saved_over_the_file_it_came_from(self, tmp_path: Path) -> None:
        path = stored_outside(tmp_path, location="model.onnx.data")
        save(load(path), path)
        assert load(path).proto == large()

    @pytest.mark.parametrize("external", [False, True])
    def test_a_missing_folder_is_named(self, external: bool, tmp_path: Path) -> None:
        path = tmp_path / "no" / "net.onnx"
        with pytest.raises(OutputError) as caught:
            save(load(large()), path, external=external)
        assert str(caught.value) == (
            f"Cannot write '{path}': the folder '{path.parent}' does not exist."
        )
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["net.onnx", "net.onnx.data"])
    def test_a_directory_in_the_way_is_named(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).mkdir()
        with pytest.raises(OutputError, match=f"{name}': it is a directory") as caught:
            save(load(large()), tmp_path / "net.onnx", external=True)
        assert is_a_sentence(str(caught.value))
        assert [path.name for path in tmp_path.iterdir()] == [name]
