"""Samples for a model: what they are, and how arrays are fitted to its inputs."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.calibration.files import Batch, find_files
from onnxcp.calibration.fit import Part, agree, fit, fixed_batch, join
from onnxcp.calibration.images import Normalize
from onnxcp.calibration.preprocess import Preprocess
from onnxcp.calibration.sources import CalibrationSource, DataSource, Found, find
from onnxcp.errors import DataError
from onnxcp.graph.digest import array_digest
from onnxcp.profiling.inputs import InputSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """What data were: how many of their samples are used, and what tells all from others."""

    count: int
    digest: str


@dataclass(frozen=True, eq=False)
class Data:
    """Samples for every input of a model.

    Attributes
    ----------
    parts
        Samples of one shape are one part; those of several (pictures of varied size) are as many
        as they came in batches.
    specs
        What the model wants.
    normalize
        What is done to stored pixels when they are dealt out: as bytes they take a quarter of the
        memory.
    """

    parts: tuple[Part, ...]
    specs: tuple[InputSpec, ...]
    normalize: Normalize | None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @functools.cached_property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """True classes, ``(samples,)``, or None."""
        labels = [part.labels for part in self.parts if part.labels is not None]
        return np.concatenate(labels) if labels else None

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield feeds of `size` samples in the types that the model wants; the last of fewer.

        Samples of several shapes come in the batches that they were given in, whatever `size`
        says. A model of a fixed batch is fed batches of that size in any case, and what does not
        fill one is left out.
        """
        for part, start, stop in self._cuts(size):
            yield self._feeds(part, slice(start, stop))

    def feeds(self, part: int, rows: npt.NDArray[np.int64]) -> dict[str, Array]:
        """Return some samples of a part as feeds, in the types that the model wants."""
        return self._feeds(self.parts[part], rows)

    def labels_of(self, part: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Return the labels of some samples of a part, if there are labels."""
        return self.parts[part].rows(rows).labels

    def batch_count(self, size: int) -> int:
        """Return how many batches `batches` yields."""
        return sum(1 for _ in self._cuts(size))

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model insists on, or None."""
        return fixed_batch(self.specs)

    @property
    def used(self) -> int:
        """How many samples `batches` yields."""
        return sum(stop - start for _, start, stop in self._cuts(len(self)))

    def part(self, keep: npt.NDArray[np.bool_]) -> Data:
        """Return some of the samples: those that a mask over all of them says."""
        ends = np.cumsum([len(part) for part in self.parts])[:-1]
        masks = np.split(keep, ends)
        chosen = [
            part if part.whole else part.rows(np.flatnonzero(mask))
            for part, mask in zip(self.parts, masks, strict=True)
            if mask.any()
        ]
        return replace(self, parts=tuple(chosen))

    @property
    def summary(self) -> Samples:
        """What is left to say of the samples when they are gone."""
        return Samples(self.used, hashlib.sha256(self.digests.encode()).hexdigest())

    @functools.cached_property
    def digests(self) -> str:
        """SHA-256 of every array as it is stored, of the labels, and what is done to them."""
        digests = [
            array_digest(array) for part in self.parts for _, array in sorted(part.arrays.items())
        ]
        digests += [] if self.labels is None else [array_digest(self.labels)]
        return f"{digests} {self.normalize}"

    def _cuts(self, size: int) -> Iterator[tuple[Part, int, int]]:
        for part in self.parts:
            fixed = None if part.whole else self.fixed_batch
            stop = len(part) - len(part) % fixed if fixed else len(part)
            step = fixed or (len(part) if len(self.parts) > 1 else size)
            for start in range(0, stop, step):
                yield part, start, min(start + step, stop)

    def _feeds(self, part: Part, which: slice | npt.NDArray[np.int64]) -> dict[str, Array]:
        arrays = part.rows(which).arrays
        feeds = {}
        for spec in self.specs:
            values = arrays[spec.name]
            if self.normalize is not None:
                values = self.normalize(values)
            dtype = np.dtype(object) if spec.dtype == "string" else spec.dtype
            feeds[spec.name] = np.asarray(values, dtype=dtype, order="C")
        return feeds


def load_data(
    source: DataSource,
    specs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Data:
    """Take the inputs of a model, and labels if there are any, from wherever samples come from.

    Parameters
    ----------
    source
        One of:

        - a npz file, or a dictionary of arrays, named as the model's inputs. For a model of one
          input, a single array of any name will do;
        - a npy file, or an array, for a model of one input;
        - a folder of npz files, of npy files, of pictures, or of ``test_data_set_*/input_0.pb``
          (see `onnxcp.calibration.files.array_batches`), searched to its bottom;
        - a picture, for a model of one input of four axes;
        - an `onnxruntime.quantization.CalibrationDataReader`, or an iterable, that gives
          dictionaries of arrays, or of what `numpy.asarray` takes: each is one batch. Batches
          whose samples differ in shape stay as they are, and so do those of a model whose inputs
          have no first axis in common (a state of 2x1x64 beside a signal of 1x512);
        - a function without arguments that returns one of these.

        An array `label`, `labels` or `y` of one class per sample, if no input is named so, is
        taken for labels. Values must be convertible to the input's type without loss of range:
        uint8 pictures serve a float input as they are. A scalar, for an input that may be one, is
        fed to the model with every batch.
    specs
        What the model wants, from `onnxcp.profiling.inputs.session_inputs`.
    preprocess
        What is done to pictures. By default they are stretched to the model's size, and scaled to
        0..1 for an input of floats.
    samples
        Take at most so many; by default all. Files, and arrays in memory, are drawn from at
        random and stay in order; of readers and iterables, which may be endless, the first are
        taken. Pictures that were not drawn are not decoded. Batches that differ in the shape of
        their samples are not cut.
    seed
        Of the drawing.

    Raises
    ------
    DataError
        If something cannot be read or does not fit the model, or is not finite; says what is
        wanted and what is given.
    """
    fixed = fixed_batch(specs)
    if samples is not None and samples < (least := fixed or 1):
        raise DataError(f"Of {samples} samples no batch of {least} can be made; ask for more.")
    found = find(source, specs, preprocess)
    rng = np.random.default_rng(seed)
    taken = _taken(found, specs, samples, rng)
    if not taken:
        raise DataError(f"In {found.origin} are no samples.")
    if agree(taken):
        whole = join(taken)
        if samples is not None and samples < len(whole):
            drawn = rng.choice(len(whole), samples, replace=False, shuffle=False)
            whole = whole.rows(
                np.sort(drawn) if isinstance(found.batches, Sequence) else np.arange(samples)
            )
        if fixed and len(whole) < fixed:
            raise DataError(
                f"In {found.origin} are {len(whole)} samples, fewer than one batch of {fixed}, "
                "which the model is fixed at."
            )
        taken = [whole]
    elif fixed:
        full = (each.rows(np.arange(len(each) - len(each) % fixed)) for each in taken)
        taken = [each for each in full if len(each)]
        if not taken:
            raise DataError(
                f"The samples of {found.origin} differ in shape, and nowhere do {fixed} of one "
                "shape come together, the batch that the model is fixed at."
            )
    return Data(tuple(taken), tuple(specs), found.normalize)


def load_labelled(source: DataSource, specs: Sequence[InputSpec]) -> Data:
    """Load all samples of a source that has labels.

    Raises
    ------
    DataError
        As `load_data`, and if there are no labels.
    """
    if isinstance(source, str | os.PathLike) and find_files(Path(source))[0] == "pictures":
        raise DataError(
            f"'{os.fspath(source)}' holds pictures, which have no labels; give npz files with an "
            "array 'label' of one class number per sample."
        )
    data = load_data(source, specs)
    if data.labels is None:
        raise DataError("The labelled data have no array 'label' of one class number per sample.")
    return data


def load_calibration(source: DataSource | CalibrationSource, specs: Sequence[InputSpec]) -> Data:
    """Load samples to calibrate on; a plain source is that with the defaults of its class.

    Raises
    ------
    DataError
        As `load_data`.
    """
    if not isinstance(source, CalibrationSource):
        source = CalibrationSource(source)
    return load_data(
        source.data,
        specs,
        preprocess=source.preprocess,
        samples=source.samples,
        seed=source.seed,
    )


def load_training(source: DataSource | CalibrationSource, specs: Sequence[InputSpec]) -> Data:
    """Load samples to train on; of a plain source, all.

    Raises
    ------
    DataError
        As `load_data`.
    """
    if not isinstance(source, CalibrationSource):
        source = CalibrationSource(source, samples=None)
    return load_calibration(source, specs)


def _taken(
    found: Found, specs: Sequence[InputSpec], samples: int | None, rng: np.random.Generator
) -> list[Part]:
    """Read batches until there are enough samples; return them in the order of the source."""
    order: Iterable[tuple[int, Batch]] = enumerate(found.batches)
    if samples is not None and isinstance(found.batches, Sequence):
        batches = found.batches
        order = ((int(place), batches[place]) for place in rng.permutation(len(batches)))
    taken: dict[int, Part] = {}
    count = 0
    for place, batch in order:
        taken[place] = fit(batch.origin, batch.read(), specs)
        count += len(taken[place])
        if samples is not None and count >= samples:
            break
    if len({each.labels is None for each in taken.values()}) > 1:
        raise DataError(f"Some batches of {found.origin} have labels, and others have none.")
    return [taken[place] for place in sorted(taken)]
