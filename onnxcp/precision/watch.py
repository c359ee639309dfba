"""What the channels of tensors within a network hold while samples go through it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from onnxcp.graph.model import Model
from onnxcp.profiling.compare import Batch
from onnxcp.profiling.machine import Machine, watch


def channel_means(
    model: Model, tensors: Sequence[str], batches: Iterable[Batch], machine: Machine
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the mean of every channel (axis 1) of tensors, over samples and places."""
    sums: dict[str, npt.NDArray[np.float64]] = {}
    counts = dict.fromkeys(tensors, 0)
    for found in watch(model, tensors, batches, machine):
        for name, value in found.items():
            flat = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)
            sums[name] = sums.get(name, 0.0) + flat.sum(axis=1, dtype=np.float64)
            counts[name] += flat.shape[1]
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def channel_maxima(
    model: Model, tensors: Mapping[str, int], batches: Iterable[Batch], machine: Machine
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the largest magnitude of every channel of tensors, by name; given is their axis."""
    most: dict[str, npt.NDArray[np.float64]] = {}
    for found in watch(model, list(tensors), batches, machine):
        for name, value in found.items():
            axis = tensors[name]
            size = np.abs(np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)).max(axis=1)
            most[name] = np.maximum(most.get(name, 0.0), size)
    return most
