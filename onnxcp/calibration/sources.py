"""Where samples come from: paths, arrays, readers, iterables, and functions that return these."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxcp.calibration.files import Batch, array_batches, as_batch, find_files, inputs_text
from onnxcp.calibration.images import Normalize, picturing
from onnxcp.calibration.preprocess import Preprocess
from onnxcp.errors import DataError, OnnxcpError
from onnxcp.profiling.inputs import InputSpec

Array = npt.NDArray[Any]

SAMPLES = 1024
"""How many samples serve for calibration unless another number is asked for."""


class Reader(Protocol):
    """What `onnxruntime.quantization.CalibrationDataReader` is: gives one batch at a time."""

    def get_next(self) -> Mapping[str, Any] | None:
        """Return the next batch by input name; None after the last."""


DataSource: TypeAlias = (
    "str | os.PathLike[str] | Mapping[str, Any] | Array | Reader | Iterable[Mapping[str, Any]]"
    " | Callable[[], Any]"
)
"""What `onnxcp.calibration.data.load_data` takes; it says what each of these means."""


@dataclass(frozen=True, eq=False)
class CalibrationSource:
    """Samples to calibrate on, and what is to be done to get at them.

    Attributes
    ----------
    data
        Where they come from.
    preprocess
        What is done to pictures. By default they are stretched to the model's size, and scaled to
        0..1 for an input of floats.
    samples
        How many to take at most; None takes all. Files, and arrays in memory, are drawn from at
        random; of readers and iterables, which may be endless, the first are taken.
    seed
        Of the drawing.
    path
        The file or folder that all of it is read from, if one is known that should not be written
        over.
    """

    data: DataSource
    preprocess: Preprocess | None = None
    samples: int | None = SAMPLES
    seed: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        said = [_name(self.data)]
        if self.preprocess is not None:
            said.append(f"preprocessed by {self.preprocess}")
        said.append("all samples" if self.samples is None else f"at most {self.samples} samples")
        return ", ".join([*said, f"seed {self.seed}"])


@dataclass(frozen=True)
class Found:
    """Batches that have yet to be read.

    Attributes
    ----------
    origin
        What messages call the whole.
    batches
        A sequence if they may be read in any order, else an iterator.
    normalize
        What is left to do to pictures.
    """

    origin: str
    batches: Sequence[Batch] | Iterator[Batch]
    normalize: Normalize | None = None


def find(
    source: DataSource, specs: Sequence[InputSpec], preprocess: Preprocess | None = None
) -> Found:
    """Find the batches of a source. Little is read yet; a function is called.

    Raises
    ------
    DataError
        If there are none, or not of a kind that serves, or if the function fails.
    """
    origin = _name(source)
    given: Any = source
    if callable(source) and not _gives_batches(source):
        with _foreign(origin):
            given = source()
        origin = f"what {origin} returned"
    if isinstance(given, str | os.PathLike):
        return _in_files(Path(given), specs, preprocess)
    if preprocess is not None:
        raise DataError(f"Only pictures are preprocessed, and {origin} holds none.")
    if isinstance(given, np.ndarray):
        if len(specs) != 1:
            raise DataError(
                f"A single array serves a model of one input; in place of {origin} give arrays "
                f"for the inputs {inputs_text(specs)}."
            )
        given = {specs[0].name: as_batch(given, specs[0])}
    if isinstance(given, Mapping):
        return Found(origin, [Batch(origin, functools.partial(_arrays, origin, given))])
    if _gives_batches(given):
        return Found(origin, _stream(origin, given))
    raise DataError(
        f"No samples can be had of {origin}, of type {type(given).__name__}; give a path, arrays "
        "by input name, a CalibrationDataReader or an iterable of batches."
    )


def _in_files(path: Path, specs: Sequence[InputSpec], preprocess: Preprocess | None) -> Found:
    origin = f"'{path}'"
    kind, files = find_files(path)
    if kind != "pictures":
        if preprocess is not None:
            raise DataError(f"Only pictures are preprocessed, and {origin} holds {kind}.")
        return Found(origin, array_batches(path, kind, files, specs))
    if len(specs) != 1:
        raise DataError(
            f"'{path}' holds pictures, which serve a model of one input; the inputs are "
            f"{inputs_text(specs)}."
        )
    how = picturing(preprocess or Preprocess(), specs[0])

    def read(file: Path) -> dict[str, Array]:
        return {specs[0].name: how.read(file)}

    batches = [Batch(f"'{file}'", functools.partial(read, file)) for file in files]
    return Found(origin, batches, how.normalize)


def _gives_batches(source: object) -> bool:
    return hasattr(source, "get_next") or isinstance(source, Iterable)


def _stream(origin: str, source: Any) -> Iterator[Batch]:
    """Yield the batches of a reader or an iterable, which is the user's own code."""
    with _foreign(origin):
        items = _drained(source) if hasattr(source, "get_next") else iter(source)
    for number, item in enumerate(_guarded(origin, items), start=1):
        name = f"batch {number} of {origin}"
        if not isinstance(item, Mapping):
            raise DataError(
                f"{_capital(name)} is of type {type(item).__name__}; every batch should be a "
                "dictionary of arrays by input name."
            )
        yield Batch(name, functools.partial(_arrays, name, item, copy=True))


def _drained(reader: Reader) -> Iterator[Mapping[str, Any]]:
    while (item := reader.get_next()) is not None:
        yield item


def _guarded(origin: str, items: Iterator[Any]) -> Iterator[Any]:
    end = object()
    while True:
        with _foreign(origin):
            item = next(items, end)
        if item is end:
            return
        yield item


def _arrays(origin: str, item: Mapping[str, Any], copy: bool = False) -> dict[str, Array]:
    """Make arrays of what a batch holds; copies where a reader may use its buffers again."""
    with _foreign(origin):
        return {
            name: np.array(value) if copy else np.asarray(value) for name, value in item.items()
        }


@contextlib.contextmanager
def _foreign(name: str) -> Iterator[None]:
    """Make a sentence of what the user's own code raises; what it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except OnnxcpError:
        raise
    except (Exception, SystemExit) as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise DataError(f"{_capital(name)} failed: {detail}.") from error


def _name(source: object) -> str:
    """Return what messages call a source."""
    if isinstance(source, str | os.PathLike):
        return f"'{os.fspath(source)}'"
    if isinstance(source, Mapping | np.ndarray):
        return "the given data"
    if callable(source) and not _gives_batches(source):
        return f"'{getattr(source, '__name__', type(source).__name__)}'"
    return f"the given {type(source).__name__}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
