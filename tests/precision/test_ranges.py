"""Ranges by histograms: as many bins as were meant, whatever the first samples hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcp.graph.model import load
from onnxcp.precision import ranges
from onnxcp.precision.qdq import prepare
from onnxcp.precision.ranges import calibrate
from tests.quantized import network, samples


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_a_first_batch_of_silence_costs_nothing(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    empty = ranges._empty

    def watched(*given: Any) -> dict[str, Any]:
        seen.update(histograms=empty(*given))
        return seen["histograms"]

    monkeypatch.setattr(ranges, "_empty", watched)
    loud = samples()
    silent = [{"image": 1e-5 * loud[0]["image"]}]
    prepared = prepare(load(network()))
    found = calibrate(prepared, [*silent, *loud], method)
    sizes = {len(each[0]) for each in seen["histograms"].values()}
    assert sizes == {ranges._BINS[method]}
    values = sum(batch["image"].size for batch in (*silent, *loud))
    assert seen["histograms"]["image"][0].sum() == values
    widest = calibrate(prepared, [*silent, *loud])
    assert found.keys() == widest.keys()
    for name, (low, high) in found.items():
        least, most = widest[name]
        assert least <= low <= 0 <= high <= most * (1 + 1e-5)
        assert high - low > 0.3 * (most - least)


def test_enough_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    reader = ranges._Reader

    def counted(batch: Any) -> Any:
        read.append(batch)
        return reader(batch)

    prepared, batches = prepare(load(network())), samples()
    monkeypatch.setattr(ranges, "_Reader", counted)
    monkeypatch.setattr(ranges, "_VALUES", 1)
    calibrate(prepared, batches, "percentile")
    assert len(read) == len(batches) + 1  # all of them for the whole ranges, one for histograms
    np.testing.assert_array_equal(read[-1]["image"], batches[0]["image"])


@pytest.mark.parametrize("method", ranges.METHODS)
def test_what_is_silent_throughout(method: str) -> None:
    prepared = prepare(load(network()))
    silent = [{"image": np.zeros((4, 3, 8, 8), np.float32)}] * 2
    assert calibrate(prepared, silent, method)["image"] == (0.0, 0.0)


def test_an_outlier_in_a_later_batch_leaves_the_common_values_their_range() -> None:
    batches = samples(256)
    batches[-1]["image"][0, 0, 0, 0] = 4096.0
    low, high = calibrate(prepare(load(network())), batches, "percentile")["image"]
    assert -6 < low < -3
    assert 3 < high < 6
