"""The samples to train on and those to judge by, as batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnxcp.calibration.data import Data
from onnxcp.errors import DataError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Place:
    """Where the samples of one batch are: some rows of one part of the data."""

    part: int
    rows: Rows


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in two lots.

    Attributes
    ----------
    data
        All of them.
    trained, held
        Of each part, the rows to train on and those to judge by.
    """

    data: Data
    trained: tuple[Rows, ...]
    held: tuple[Rows, ...]

    @classmethod
    def of(cls, data: Data, share: float, seed: int) -> Samples:
        """Draw the samples to be held out, at least one batch of them.

        Raises
        ------
        DataError
            If there are too few.
        """
        counts = [len(part) for part in data.parts]
        parts = np.repeat(np.arange(len(counts)), counts)
        rows = np.concatenate([np.arange(count) for count in counts])
        least = data.fixed_batch or 1
        number = max(round(share * len(rows)), least)
        order = np.random.default_rng(seed).permutation(len(rows))

        def chosen(which: Rows) -> tuple[Rows, ...]:
            return tuple(np.sort(rows[which[parts[which] == n]]) for n in range(len(counts)))

        found = cls(data, chosen(order[number:]), chosen(order[:number]))
        if not (found.batches(found.trained, least) and found.batches(found.held, least)):
            raise DataError(
                f"{len(rows)} samples are too few to train on some and hold out others."
            )
        return found

    def batches(
        self,
        lot: Sequence[Rows],
        size: int,
        rng: np.random.Generator | None = None,
        among: int = 1,
    ) -> list[Place]:
        """Return the batches of a lot, of about as many samples each.

        Parameters
        ----------
        lot
            `trained` or `held`.
        size
            Samples in a batch at most; a model of a fixed batch has batches of that.
        rng
            To shuffle with; None leaves samples in their order.
        among
            Processes that share every batch: its size is a multiple of this.
        """
        fixed = self.data.fixed_batch
        places = []
        for part, own in enumerate(lot):
            rows = own if rng is None else rng.permutation(own)
            size = fixed * among if fixed else max(size, among)
            rows = rows[: len(rows) - len(rows) % (size if fixed else among)]
            if len(rows):
                units = rows.reshape(-1, among)
                cut = np.array_split(units, -(-len(rows) // size))
                places += [Place(part, each.reshape(-1)) for each in cut]
        if rng is not None:
            places = [places[n] for n in rng.permutation(len(places))]
        return places

    def tensors(self, place: Place) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the inputs of a batch by name, and its labels if there are any."""
        feeds = self.data.feeds(place.part, place.rows)
        labels = self.data.labels_of(place.part, place.rows)
        inputs = {name: _tensor(value) for name, value in feeds.items()}
        return inputs, None if labels is None else torch.from_numpy(labels)


def _tensor(value: npt.NDArray[Any]) -> Tensor:
    # Half precision is computed in single, as weights are; torch knows no bfloat16 of numpy's.
    half = value.dtype.kind in "fV" and value.dtype.itemsize == 2
    return torch.from_numpy(value.astype(np.float32) if half else np.array(value))
