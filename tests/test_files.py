"""Files are written whole or not at all, where links lead to, and only where a file can be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxcp.errors import OutputError
from onnxcp.files import atomic_writers, check_writable, write_text


def write(path: Path) -> None:
    write_text(path, "new")


each_way = pytest.mark.parametrize("way", [write, check_writable])
Way = Callable[[Path], None]


def refused(way: Way, path: Path) -> str:
    with pytest.raises(OutputError) as caught:
        way(path)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@each_way
class TestRefused:
    def test_a_directory(self, way: Way, tmp_path: Path) -> None:
        expected = f"Cannot write '{tmp_path}': it is a directory; name a file."
        assert refused(way, tmp_path) == expected

    def test_a_device(self, way: Way) -> None:
        path = Path(os.devnull)
        expected = f"Cannot write '{path}': it is not a regular file; name another."
        assert refused(way, path) == expected
        assert not path.is_file()

    def test_a_missing_folder(self, way: Way, tmp_path: Path) -> None:
        path = tmp_path / "no" / "file"
        expected = f"Cannot write '{path}': the folder '{path.parent}' does not exist."
        assert refused(way, path) == expected

    def test_a_link_into_a_missing_folder(self, way: Way, tmp_path: Path) -> None:
        path = tmp_path / "link"
        path.symlink_to("no/file")
        assert f"the folder '{tmp_path.resolve() / 'no'}' does not" in refused(way, path)

    def test_a_circle_of_links(self, way: Way, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        assert refused(way, tmp_path / "a").startswith(f"Cannot write '{tmp_path / 'a'}': ")

    def test_a_folder_that_is_a_file(self, way: Way, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "Not a directory" in refused(way, tmp_path / "file" / "x")

    def test_a_folder_that_may_not_be_searched(
        self, way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def deny(*_: object, **__: object) -> Any:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        path = tmp_path / "file"
        with monkeypatch.context() as patch:
            patch.setattr(Path, "stat", deny)
            patch.setattr(Path, "lstat", deny)
            message = refused(way, path)
        assert message == f"Cannot write '{path}': Permission denied."


class TestLinks:
    @pytest.mark.parametrize("there", [True, False])
    def test_what_they_lead_to_is_written(self, there: bool, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("folder/real")
        if there:
            (tmp_path / "folder" / "real").write_text("old")
        check_writable(tmp_path / "link")
        write(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "real").read_text() == "new"
        assert names(tmp_path / "folder") == ["real"]


class TestTogether:
    """Two files of which one refers to the other."""

    @staticmethod
    def write(folder: Path) -> None:
        with atomic_writers(folder / "main", folder / "other") as streams:
            for stream in streams:
                stream.write(b"new")

    @pytest.mark.parametrize("there", [True, False])
    def test_both_are_written(self, there: bool, tmp_path: Path) -> None:
        if there:
            (tmp_path / "other").write_text("old")
        self.write(tmp_path)
        assert names(tmp_path) == ["main", "other"]
        assert {path.read_text() for path in tmp_path.iterdir()} == {"new"}

    @pytest.mark.parametrize("there", [(), ("main",), ("other",), ("main", "other")])
    @pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
    @pytest.mark.parametrize("after", [True, False])
    def test_a_failure_at_any_rename_leaves_what_was_or_what_was_to_be(
        self,
        there: tuple[str, ...],
        error: BaseException,
        after: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        rename = Path.replace
        for failing in range(2 + ("other" in there)):
            for path in tmp_path.iterdir():
                path.unlink()
            for name in there:
                (tmp_path / name).write_text("old")
            calls = iter(range(100))

            def fail(
                path: Path, target: Path, calls: Any = calls, failing: int = failing
            ) -> Path | None:
                this = path.exists() and next(calls) == failing
                if this and not after:
                    raise error
                result = rename(path, target)
                if this:
                    raise error
                return result

            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", fail)
                with pytest.raises((OutputError, KeyboardInterrupt)):
                    self.write(tmp_path)
            done = after and failing == 1 + ("other" in there)
            assert names(tmp_path) == (["main", "other"] if done else sorted(there))
            expected = "new" if done else "old"
            assert all(path.read_text() == expected for path in tmp_path.iterdir())
