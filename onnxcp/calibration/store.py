"""Values kept in memory up to a limit, and in a temporary folder beyond it."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.errors import OutputError

Array = npt.NDArray[Any]


class Store:
    """Keeps arrays, the newest on disk when there are too many for memory.

    A context manager: at its end nothing is left on disk, however it ends.

    Parameters
    ----------
    limit
        How many bytes of arrays may stay in memory.
    folder
        Where to make the temporary folder; by default where the system has its own.
    """

    def __init__(self, limit: int, folder: str | os.PathLike[str] | None = None) -> None:
        self._limit = limit
        self._parent = folder
        self._used = 0
        self._numbers = itertools.count()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def put(self, value: Any) -> Handle:
        """Keep a value. What is no array of numbers (text, lists, None) stays in memory.

        Raises
        ------
        OutputError
            If the folder cannot be written to.
        """
        if not isinstance(value, np.ndarray) or value.dtype.hasobject:
            return Handle(self, value, 0)
        if self._used + value.nbytes <= self._limit or not value.nbytes:
            self._used += value.nbytes
            return Handle(self, value, value.nbytes)
        return Handle(self, _Stored(self._write(value), value.dtype, value.shape), 0)

    def _write(self, value: Array) -> Path:
        where = self._parent or tempfile.gettempdir()
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(
                    prefix="onnxcp-", dir=self._parent, ignore_cleanup_errors=True
                )
            where = self._folder.name
            path = Path(where) / f"{next(self._numbers)}.npy"
            # Of types that numpy does not know itself (bfloat16) it would not store the name.
            np.save(path, np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        except OSError as error:
            raise OutputError(
                f"Cannot keep intermediate results in '{where}': {error.strerror or error}; make "
                "room there, let TMPDIR name another folder, or raise --memory-limit."
            ) from error
        return path

    def _forget(self, handle: Handle) -> None:
        self._used -= handle.nbytes


class _Stored:
    """An array in a file."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.shape = path, dtype, shape

    def get(self) -> Array:
        content: Array = np.load(self.path, mmap_mode="r")
        return np.asarray(content).view(self.dtype).reshape(self.shape)


class Handle:
    """One value of a store, until it is freed.

    Attributes
    ----------
    shape
        Of an array; None for any other value.
    nbytes
        What it takes of the store's limit.
    """

    def __init__(self, store: Store, value: Any, nbytes: int) -> None:
        self._store = store
        self._value = value
        self.nbytes = nbytes
        self.shape: tuple[int, ...] | None = getattr(value, "shape", None)

    def get(self) -> Any:
        """Return the value; an array from disk is mapped, not read, and cannot be written to."""
        return self._value.get() if isinstance(self._value, _Stored) else self._value

    def free(self) -> None:
        """Forget the value. To do so again does nothing."""
        self._store._forget(self)
        if isinstance(self._value, _Stored):
            # Where files in use cannot be deleted (Windows) it goes with the folder.
            with contextlib.suppress(OSError):
                self._value.path.unlink()
        self._value, self.nbytes = None, 0
