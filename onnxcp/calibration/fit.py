"""Fitting arrays to a model: one batch at a time, then batches to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.errors import DataError
from onnxcp.profiling.inputs import InputSpec

Array = npt.NDArray[Any]

LABELS = ("label", "labels", "y")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A batch that fits the model: as many rows in every array, and as many labels if any."""

    arrays: dict[str, Array]
    labels: npt.NDArray[np.int64] | None

    def __len__(self) -> int:
        return count_samples(self.arrays)

    def rows(self, which: npt.NDArray[np.int64]) -> Fitted:
        """Return some of its samples."""
        arrays = {name: each[which] if each.ndim else each for name, each in self.arrays.items()}
        return Fitted(arrays, None if self.labels is None else self.labels[which])


def fit(origin: str, stored: dict[str, Array], specs: Sequence[InputSpec]) -> Fitted:
    """Pick a model's inputs, and labels if there are any, out of the arrays of a batch.

    Raises
    ------
    DataError
        If an input is missing, of the wrong type or shape, or not finite, or if arrays differ in
        their number of samples or have none. `origin` is what the message calls the batch.
    """
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
    return Fitted(arrays, labels)


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
    if not _same_shape(values.shape, spec.shape):
        raise wrong(f"has shape {list(values.shape)}")
    if spec.dtype != "string" and (problem := _unfit_numbers(values, spec.dtype)):
        raise wrong(problem)
    return values


def _same_shape(given: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
    """Whether shapes fit but for the first extent. No shape is that of a scalar, or unknown."""
    return not wanted or (
        len(given) == len(wanted)
        and all(
            side == extent
            for side, extent in zip(given[1:], wanted[1:], strict=True)
            if isinstance(extent, int)
        )
    )


def _unfit_numbers(values: Array, wanted: np.dtype[Any]) -> str:
    """Say what is wrong with the numbers themselves for a type; "" if nothing is."""
    if values.dtype.kind in "fV" and not np.isfinite(values).all():  # V: bfloat16
        return "holds values that are not finite (NaN or infinity)"
    if not values.size or np.can_cast(values.dtype, wanted):
        return ""
    if wanted.kind in "iu":
        bounds = np.iinfo(wanted)
        within = bounds.min <= values.min() and values.max() <= bounds.max
    else:
        with np.errstate(over="ignore"):
            within = np.isfinite(values.astype(wanted)).all()
    return "" if within else "holds values that are out of range"


def agree(batches: Sequence[Fitted]) -> bool:
    """Whether batches can be joined: samples of one shape, scalars of one value."""
    first = batches[0].arrays

    def alike(one: Array, other: Array) -> bool:
        if one.ndim == other.ndim == 0:
            return bool(one == other)
        return one.ndim == other.ndim and one.shape[1:] == other.shape[1:]

    return all(
        alike(value, batch.arrays[name]) for batch in batches[1:] for name, value in first.items()
    )


def join(batches: Sequence[Fitted]) -> Fitted:
    """Make one batch of batches that agree, all with labels or all without."""
    if len(batches) == 1:
        return batches[0]
    arrays = {
        name: np.concatenate([batch.arrays[name] for batch in batches]) if value.ndim else value
        for name, value in batches[0].arrays.items()
    }
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return Fitted(arrays, np.concatenate(labels) if labels else None)


def count_samples(arrays: Mapping[str, Array]) -> int:
    """Return how many samples arrays hold; scalars alone are one."""
    return next((len(array) for array in arrays.values() if array.ndim), 1)
