"""Fitting arrays to a model: one batch at a time, then batches to each other."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.errors import DataError
from onnxcp.profiling.inputs import InputSpec

Array = npt.NDArray[Any]

LABELS = ("label", "labels", "y")


@dataclass(frozen=True, eq=False)
class Part:
    """Samples that fit the model and go together.

    Attributes
    ----------
    arrays
        By input name, in the types they were stored in; the first axis counts samples. A scalar
        belongs to all of them.
    labels
        True classes, ``(samples,)``, or None.
    whole
        That this is one sample, of which nothing can be cut off: the first axes of the inputs mean
        different things.
    """

    arrays: dict[str, Array]
    labels: npt.NDArray[np.int64] | None = None
    whole: bool = False

    def __len__(self) -> int:
        if self.whole:
            return 1
        return next((len(array) for array in self.arrays.values() if array.ndim), 1)

    def rows(self, which: slice | npt.NDArray[np.int64]) -> Part:
        """Return some of its samples."""
        if self.whole:
            return self
        arrays = {name: each[which] if each.ndim else each for name, each in self.arrays.items()}
        labels = None if self.labels is None else self.labels[which]
        return Part(arrays, labels)


def fit(origin: str, stored: dict[str, Array], specs: Sequence[InputSpec]) -> Part:
    """Pick a model's inputs, and labels if there are any, out of the arrays of a batch.

    A model may say itself that the first axes of its inputs do not count the same: one is fixed
    (the state of a recurrent network, layers first), others are open or fixed otherwise. What such
    a model is given at once is one sample, unless the axis is fixed at 1 and nothing else was
    given: then it counts samples, which are dealt out one by one.

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
    elif _one_sample(specs, lengths):
        for spec in specs:
            first = spec.shape[0] if spec.shape else None
            if isinstance(first, int) and first != lengths[spec.name]:
                raise _wrong(origin, spec, _shape(arrays[spec.name]))
        return Part(arrays, whole=True)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"'{name}' {count}" for name, count in lengths.items())
        raise DataError(f"The arrays of {origin} differ in their number of samples: {counts}.")
    if not arrays or 0 in lengths.values():
        raise DataError(f"In {origin} are no samples.")
    return Part(arrays, labels)


def fixed_batch(specs: Iterable[InputSpec]) -> int | None:
    """Return the batch size that a model insists on, or None.

    There is none, either, where first axes do not count the same (see `fit`).
    """
    firsts = {spec.shape[0] for spec in specs if spec.shape}
    size = max((extent for extent in firsts if isinstance(extent, int)), default=None)
    return size if size == 1 or len(firsts) == 1 else None


def _one_sample(specs: Sequence[InputSpec], lengths: Mapping[str, int]) -> bool:
    firsts = {spec.shape[0] for spec in specs if spec.shape}
    differ = len(set(lengths.values())) > 1
    fixed = any(isinstance(extent, int) for extent in firsts)
    return fixed and len(firsts) > 1 and (differ or fixed_batch(specs) is None)


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
    wrong = functools.partial(_wrong, origin, spec)
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
        raise wrong(_shape(values))
    if spec.dtype != "string" and (problem := _unfit_numbers(values, spec.dtype)):
        raise wrong(problem)
    return values


def _wrong(origin: str, spec: InputSpec, what: str) -> DataError:
    return DataError(f"Array '{spec.name}' of {origin} {what}; input {spec} wants {spec.dtype}.")


def _shape(values: Array) -> str:
    return f"has shape {list(values.shape)}"


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


def agree(batches: Sequence[Part]) -> bool:
    """Whether batches can be joined: samples of one shape, scalars of one value."""
    if len(batches) > 1 and any(batch.whole for batch in batches):
        return False
    first = batches[0].arrays

    def alike(one: Array, other: Array) -> bool:
        if one.ndim == other.ndim == 0:
            return bool(one == other)
        return one.ndim == other.ndim and one.shape[1:] == other.shape[1:]

    return all(
        alike(value, batch.arrays[name]) for batch in batches[1:] for name, value in first.items()
    )


def join(batches: Sequence[Part]) -> Part:
    """Make one batch of batches that agree, all with labels or all without."""
    if len(batches) == 1:
        return batches[0]
    arrays = {
        name: np.concatenate([batch.arrays[name] for batch in batches]) if value.ndim else value
        for name, value in batches[0].arrays.items()
    }
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return Part(arrays, np.concatenate(labels) if labels else None)
