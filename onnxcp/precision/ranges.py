"""Ranges of activations, by the calibrators of `onnxruntime.quantization`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxcp.errors import ModelError
from onnxcp.graph.model import Model
from onnxcp.precision.qdq import OPERATORS, activations, quiet

METHODS = ("minmax", "percentile", "entropy")

_PERCENTILE = 99.99  # of the magnitudes; what ONNX Runtime defaults to, 99.999, is near the largest


def calibrate(
    model: Model, batches: Iterable[Mapping[str, npt.NDArray[Any]]], method: str = "minmax"
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
    with tempfile.TemporaryDirectory(prefix="onnxcp-", ignore_cleanup_errors=True) as folder:
        source = Path(folder) / "source.onnx"
        onnx.save(model.proto, source)
        try:
            calibrator = create_calibrator(
                source,
                list(OPERATORS),
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=kinds[method],
                extra_options=options if method == "percentile" else {},
            )
            with quiet():
                for batch in batches:  # one by one: calibrators keep all that they get at once
                    calibrator.collect_data(_reader(batch))
                found = calibrator.compute_data()
        except Exception as error:  # what sessions and histograms raise
            detail = str(error).splitlines()[0].rstrip(".")
            raise ModelError(f"'{model.name}' cannot be calibrated: {detail}.") from error
    return {
        name: (float(np.min(low)), float(np.max(high)))
        for name, (low, high) in ((name, each.range_value) for name, each in found.items())
    }


def assumed(model: Model) -> dict[str, tuple[float, float]]:
    """Return made-up ranges for all activations of a prepared network.

    For networks that are only timed: time does not depend on ranges.
    """
    return dict.fromkeys(activations(model), (-1.0, 1.0))


def _reader(batch: Mapping[str, npt.NDArray[Any]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = [dict(batch)]

        def get_next(self) -> dict[str, Any] | None:
            return self._left.pop() if self._left else None

    return Reader()
