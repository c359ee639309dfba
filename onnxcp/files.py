"""Writing files so that nothing is ever half-written: beside, fsync, rename."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from onnxcp.errors import OutputError


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends well.

    Any exception in the block, ctrl-C included, removes the temporary file and leaves whatever
    stood at `path` as it was. A symbolic link stays one: what it leads to is written.

    Raises
    ------
    OutputError
        If the folder is missing or read-only, the disk is full, or `path` is no regular file.
    """
    with atomic_writers(path) as (stream,):
        yield stream


@contextlib.contextmanager
def atomic_writers(*paths: Path) -> Iterator[tuple[BinaryIO, ...]]:
    """Do as `atomic_writer` for files that belong together: all take their places, or none.

    The first takes its place last; let it be the one that refers to the others.

    Raises
    ------
    OutputError
        As `atomic_writer`.
    """
    staged: list[_Staged] = []
    try:
        with contextlib.ExitStack() as closing:
            for path in paths:
                staged.append(_stage(path))
                closing.enter_context(staged[-1].stream)
            yield tuple(each.stream for each in staged)
            for each in staged:
                each.stream.flush()
                os.fsync(each.stream.fileno())
        for each in staged:
            each.temporary.chmod(_usual_mode())
        _take_places(staged)
    except OSError as error:
        raise unwritable(paths[0], error) from error
    finally:
        for each in staged:
            each.temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all (see `atomic_writer`)."""
    with atomic_writer(path) as stream:
        stream.write(text.encode())


def check_writable(path: Path) -> None:
    """Fail now, with the sentence that a later `atomic_writer` would give, not after the work.

    Raises
    ------
    OutputError
        If `path` is no regular file, or its folder is missing or cannot be written to.
    """
    target = _target(path)
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise unwritable(path, error, target) from error


def unwritable(path: Path, error: OSError, target: Path | None = None) -> OutputError:
    """Return the error that says why `path`, which leads to `target`, cannot be written."""
    if isinstance(error, FileNotFoundError):
        folder = (target or path).parent
        return OutputError(f"Cannot write '{path}': the folder '{folder}' does not exist.")
    return OutputError(f"Cannot write '{path}': {error.strerror or error}.")


@dataclass(frozen=True)
class _Staged:
    """A file that waits beside its target, and where its target is put meanwhile."""

    stream: BinaryIO
    temporary: Path
    target: Path

    @property
    def old(self) -> Path:
        return self.temporary.with_suffix(".old")


def _stage(path: Path) -> _Staged:
    target = _target(path)
    try:
        descriptor, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"
        )
    except OSError as error:
        raise unwritable(path, error, target) from error
    return _Staged(os.fdopen(descriptor, "wb"), Path(name), target)


def _take_places(staged: Sequence[_Staged]) -> None:
    """Rename every file to its target, the first last; put back what stood there if one fails."""
    first, *others = staged
    try:
        for each in others:
            with contextlib.suppress(FileNotFoundError):
                each.target.replace(each.old)
            each.temporary.replace(each.target)
        first.temporary.replace(first.target)
    finally:
        # What happened is read from the files: ctrl-C may come right after a rename.
        done = not first.temporary.exists()
        for each in others:
            if done:
                each.old.unlink(missing_ok=True)
            elif each.old.exists():
                each.old.replace(each.target)
            elif not each.temporary.exists():
                each.target.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """Return the regular file, there already or not, that a write to `path` is to end in."""
    try:
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    except OSError as error:
        raise unwritable(path, error) from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"Cannot write '{path}': it is a directory; name a file.")
    if not stat.S_ISREG(mode):
        raise OutputError(f"Cannot write '{path}': it is not a regular file; name another.")
    return target


def _usual_mode() -> int:
    """Return the permissions that `open` would give: mkstemp's 0600 would lock others out."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
