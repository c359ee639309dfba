"""What tensors within a network hold while samples go through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxcp.graph.model import Model
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.session import infer

Batch = Mapping[str, npt.NDArray[Any]]


def watch(
    model: Model, tensors: Sequence[str], batches: Iterable[Batch], machine: Machine
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Run batches through a network and yield the values of tensors for each.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot run the network on them.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name)
        for name in dict.fromkeys(tensors)
        if name not in present
    )
    label = f"'{model.name}'"
    session = machine.open(model.with_proto(proto), label=label)
    names = [output.name for output in session.get_outputs()]
    for batch in batches:
        found = dict(zip(names, infer(session, batch, label=label), strict=True))
        yield {name: found[name] for name in tensors}


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
    model: Model, tensors: Sequence[str], batches: Iterable[Batch], machine: Machine
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the largest magnitude of every channel (axis 1) of tensors."""
    most: dict[str, npt.NDArray[np.float64]] = {}
    for found in watch(model, tensors, batches, machine):
        for name, value in found.items():
            size = np.abs(np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)).max(axis=1)
            most[name] = np.maximum(most.get(name, 0.0), size)
    return most
