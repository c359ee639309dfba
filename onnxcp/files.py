"""Writing files so that nothing is ever half-written: beside, fsync, rename."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from onnxcp.errors import OutputError


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends well.

    Any exception in the block, ctrl-C included, removes the temporary file and leaves whatever
    stood at `path` as it was.

    Raises
    ------
    OutputError
        If the folder is missing or read-only, or the disk is full.
    """
    temporary: Path | None = None
    try:
        if path.is_dir():
            raise OutputError(f"Cannot write '{path}': it is a directory; name a file.")
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(_usual_mode())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(_sentence(path, error)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all (see `atomic_writer`)."""
    with atomic_writer(path) as stream:
        stream.write(text.encode())


def check_writable(path: Path) -> None:
    """Fail now, with the sentence that a later `atomic_writer` would give, not after the work.

    Raises
    ------
    OutputError
        If `path` is a directory, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise OutputError(f"Cannot write '{path}': it is a directory; name a file.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(_sentence(path, error)) from error


def _usual_mode() -> int:
    """Return the permissions that `open` would give: mkstemp's 0600 would lock others out."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sentence(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"Cannot write '{path}': the folder '{path.parent}' does not exist."
    return f"Cannot write '{path}': {error.strerror or error}."
