"""Ranges of activations, by the calibrators of `onnxruntime.quantization`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcp.graph.model import Model
from onnxcp.precision.foreign import foreign
from onnxcp.precision.qdq import OPERATORS, activations
from onnxcp.profiling.compare import Batch

METHODS = ("minmax", "percentile", "entropy")

_PERCENTILE = 99.99  # of the magnitudes; what ONNX Runtime defaults to, 99.999, is near the largest


def calibrate(
    model: Model, batches: Iterable[Batch], method: str = "minmax"
) -> dict[str, tuple[float, float]]:
    """Run samples through a prepared network and return the ranges of its activations.

    Parameters
    ----------
    model
        The network, as of `onnxcp.precision.qdq.prepare`.
    batches
        Samples, at least one batch.
    method
        ``minmax``: all values; ``percentile``: 99.99 % of the magnitudes; ``entropy``: the
        threshold at which the histogram of the quantized values diverges least from that of the
        values (as of TensorRT: Migacz 2017).

    Raises
    ------
    ModelError
        If the network does not run on the samples.
    """
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    kinds = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    options = {"percentile": _PERCENTILE, "symmetric": False}
    with (
        tempfile.TemporaryDirectory(prefix="onnxcp-", ignore_cleanup_errors=True) as folder,
        foreign(f"'{model.name}' cannot be calibrated"),
    ):
        source = Path(folder) / "source.onnx"
        onnx.save(model.proto, source)
        calibrator = create_calibrator(
            source,
            list(OPERATORS),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=kinds[method],
            extra_options=options if method == "percentile" else {},
        )
        for batch in batches:  # one by one: calibrators keep all that they get at once
            calibrator.collect_data(_Reader(batch))
        found = calibrator.compute_data()
    return {
        name: (float(np.min(low)), float(np.max(high)))
        for name, (low, high) in ((name, each.range_value) for name, each in found.items())
    }


def assumed(model: Model) -> dict[str, tuple[float, float]]:
    """Return made-up ranges for all activations of a prepared network.

    For networks that are only timed: time does not depend on ranges.
    """
    return dict.fromkeys(activations(model), (-1.0, 1.0))


class _Reader:
    """Hands out one batch, as a `CalibrationDataReader` does."""

    def __init__(self, batch: Batch) -> None:
        self._left = [dict(batch)]

    def get_next(self) -> dict[str, Any] | None:
        """Return the batch, and then None."""
        return self._left.pop() if self._left else None
