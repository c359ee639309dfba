"""Ranges of activations, by the calibrators of `onnxruntime.quantization`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
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
# Of a histogram. Fine ones find what is common beside an outlier. Entropy quantizes 128 of them: so
# it may cut off a ninth of the range and no more, which it would do where samples are few (an error
# of 0.15 for 0.03 on the network of the tests).
_BINS = {"percentile": 2**16, "entropy": 144}
_VALUES = 10**9  # of all tensors together, enough for histograms: more samples are left out


def calibrate(
    model: Model, batches: Iterable[Batch], method: str = "minmax"
) -> dict[str, tuple[float, float]]:
    """Run samples through a prepared network and return the ranges of its activations.

    Parameters
    ----------
    model
        The network, as of `onnxcp.precision.qdq.prepare`.
    batches
        Samples, at least one batch. Of networks with many activations not all of them are used for
        histograms.
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
    binned, batches = method in _BINS, list(batches)
    known = calibrate(model, batches) if binned else {}
    options: dict[str, Any] = {"num_bins": _BINS[method]} if binned else {}
    if method == "percentile":
        options |= {"percentile": _PERCENTILE, "symmetric": False}
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
            extra_options=options,
        )
        histograms = _empty(calibrator, known) if binned else {}
        for batch in batches:  # one by one: calibrators keep all that they get at once
            calibrator.collect_data(_Reader(batch))
            if sum(int(each[0].sum()) for each in histograms.values()) >= _VALUES:
                break
        found = calibrator.compute_data()
    return {
        name: (float(np.min(low)), float(np.max(high)))
        for name, (low, high) in ((name, each.range_value) for name, each in found.items())
    }


def _empty(calibrator: Any, known: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Give a calibrator histograms of the ranges that all samples will turn out to have.

    It would begin with those of the first batch, and add bins of that width for each that reaches
    further: hundreds of thousands where the first batch leaves a layer almost silent.

    Returns
    -------
    dict of str to tuple
        The histograms, which the calibrator will fill: counts come first.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    calibrator.collector = HistogramCollector(
        method=calibrator.method,
        symmetric=calibrator.symmetric,
        num_bins=calibrator.num_bins,
        num_quantized_bins=calibrator.num_quantized_bins,
        percentile=calibrator.percentile,
        scenario=calibrator.scenario,
    )
    histograms: dict[str, Any] = calibrator.collector.histogram_dict
    for name in calibrator.tensors_to_calibrate:
        low, high = known[name]
        most = np.float32(max(abs(low), abs(high)))
        edges = np.linspace(-most, most, calibrator.num_bins + 1, dtype=np.float32)
        counts = np.zeros(calibrator.num_bins, np.int64)
        histograms[name] = (counts, edges, np.float32(low), np.float32(high), most)
    return histograms


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
