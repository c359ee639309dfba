"""Samples for a model, from npz files or arrays."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxcp.errors import DataError
from onnxcp.profiling.inputs import InputSpec

Array = npt.NDArray[Any]

DataSource: TypeAlias = "str | os.PathLike[str] | Mapping[str, Array]"

LABELS = ("label", "labels", "y")


@dataclass(frozen=True, eq=False)
class Data:
    """Samples for every input of a model, the first axis counting them.

    A scalar is no sample: it belongs to every batch.

    Attributes
    ----------
    arrays
        By input name, in the types they were stored in.
    specs
        What the model wants.
    labels
        True classes, ``(samples,)``, or None.
    """

    arrays: Mapping[str, Array]
    specs: tuple[InputSpec, ...]
    labels: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return next((len(array) for array in self.arrays.values() if array.ndim), 1)

    def feeds(self, start: int, stop: int) -> dict[str, Array]:
        """Return samples `start` to `stop` in the types that the model wants."""
        feeds = {}
        for spec in self.specs:
            values = self.arrays[spec.name]
            dtype = np.dtype(object) if spec.dtype == "string" else spec.dtype
            part = values[start:stop] if values.ndim else values
            feeds[spec.name] = np.asarray(part, dtype=dtype, order="C")
        return feeds

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield feeds of `size` samples; the last of fewer, unless the model's batch is fixed.

        A model of a fixed batch is fed batches of that size whatever `size` says, and what does
        not fill one is left out.
        """
        fixed = self.fixed_batch
        size = fixed or size
        stop = len(self) - (len(self) % size if fixed else 0)
        for start in range(0, stop, size):
            yield self.feeds(start, min(start + size, stop))

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model insists on, at the first input to do so, or None."""
        firsts = (spec.shape[0] for spec in self.specs if spec.shape)
        return next((size for size in firsts if isinstance(size, int)), None)

    @property
    def used(self) -> int:
        """How many samples `batches` yields."""
        return len(self) - (len(self) % self.fixed_batch if self.fixed_batch else 0)


def load_data(source: DataSource, specs: Sequence[InputSpec]) -> Data:
    """Take the inputs of a model, and labels if there are any, from an npz file or from arrays.

    Parameters
    ----------
    source
        Path of an npz file, or arrays by name. They are named as the model's inputs; for a model
        of one input, a single array of any name will do. An array `label`, `labels` or `y` of one
        class per sample, if no input is named so, is taken for labels. Values must be convertible
        to the input's type without loss of range: uint8 pictures serve a float input as they are.
        A scalar, for an input that may be one, is fed to the model with every batch.
    specs
        What the model wants, from `onnxcp.profiling.inputs.session_inputs`.

    Raises
    ------
    DataError
        If the file cannot be read or does not fit the model; says what is wanted and what is given.
    """
    if isinstance(source, Mapping):
        origin, stored = (
            "the given data",
            {name: np.asarray(value) for name, value in source.items()},
        )
    else:
        origin, stored = f"'{os.fspath(source)}'", _read(Path(source))
    inputs = {spec.name for spec in specs}
    named = [name for name in LABELS if name in stored and name not in inputs]
    labels = _labels(origin, {name: stored.pop(name) for name in named})
    if len(specs) == 1 and len(stored) == 1:
        stored = {specs[0].name: next(iter(stored.values()))}
    arrays = {}
    for spec in specs:
        if spec.name not in stored:
            given = ", ".join(f"'{name}'" for name in stored) or "none"
            raise DataError(f"In {origin} is no array for input {spec}; the arrays are: {given}.")
        arrays[spec.name] = _fitting(origin, spec, stored[spec.name])
    lengths = {name: len(array) for name, array in arrays.items() if array.ndim}
    if labels is not None:
        lengths["labels"] = len(labels)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"'{name}' {count}" for name, count in lengths.items())
        raise DataError(f"The arrays of {origin} differ in their number of samples: {counts}.")
    if not arrays or 0 in lengths.values():
        raise DataError(f"In {origin} are no samples.")
    data = Data(arrays, tuple(specs), labels)
    if data.used == 0:
        raise DataError(
            f"In {origin} are {len(data)} samples, fewer than one batch of {data.fixed_batch}, "
            "which the model is fixed at."
        )
    return data


def _read(path: Path) -> dict[str, Array]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"'{path}' is a single array; save it with numpy.savez.")
        with loaded as file:
            members = {name: file[name] for name in file.files}
            return {name: each for name, each in members.items() if isinstance(each, np.ndarray)}
    except FileNotFoundError:
        raise DataError(f"There is no file '{path}'.") from None
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # RuntimeError: what is encrypted, or compressed in a way that zipfile does not know.
        raise DataError(
            f"'{path}' cannot be read as an npz file: {error}".rstrip(".") + "."
        ) from None


def _labels(origin: str, found: dict[str, Array]) -> npt.NDArray[np.int64] | None:
    for name, values in found.items():
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise DataError(
                f"Array '{name}' of {origin} should hold one class number per sample; it is of "
                f"type {values.dtype} and shape {list(values.shape)}."
            )
        return values.astype(np.int64)
    return None


def _fitting(origin: str, spec: InputSpec, values: Array) -> Array:
    def wrong(what: str) -> DataError:
        return DataError(
            f"Array '{spec.name}' of {origin} {what}; input {spec} wants {spec.dtype}."
        )

    if spec.dtype == "string":
        if values.dtype.kind not in "OUS":
            raise wrong(f"is of type {values.dtype}")
        if values.dtype.kind == "S":
            try:
                values = np.char.decode(values, "utf-8")
            except UnicodeDecodeError:
                raise wrong("is not in UTF-8") from None
    elif not np.can_cast(values.dtype, spec.dtype, casting="same_kind"):
        raise wrong(f"is of type {values.dtype}")
    if not spec.shape:  # a scalar, or of unknown rank
        return values
    if values.ndim != len(spec.shape):
        raise wrong(f"has shape {list(values.shape)}")
    for given, wanted in zip(values.shape[1:], spec.shape[1:], strict=True):
        if isinstance(wanted, int) and wanted != given:
            raise wrong(f"has shape {list(values.shape)}")
    return values
