"""Biases after quantization: the means of layers are what they were."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcp.graph.model import Model, load
from onnxcp.precision.bias import correct_biases
from onnxcp.precision.qdq import prepare, quantize
from onnxcp.precision.ranges import calibrate
from onnxcp.precision.watch import channel_means
from onnxcp.profiling.machine import Machine
from tests.networks import initializers
from tests.quantized import error, network, samples

MACHINE = Machine()


@pytest.fixture(scope="module")
def prepared() -> Model:
    return prepare(load(network()))


def last_mean(model: Model) -> np.ndarray:
    (name,) = (n.output[0] for n in model.proto.graph.node if n.name == "two/1")
    return channel_means(model, [name], samples(), MACHINE)[name]


def test_means_are_put_right(prepared: Model) -> None:
    ranges = calibrate(prepared, samples())
    # Weights of 7 bits and narrow ranges shift means enough to see.
    narrow = {name: (low / 2, high / 2) for name, (low, high) in ranges.items()}

    def quantized(model: Model) -> Model:
        return quantize(model, narrow, reduce_range=True)

    made = correct_biases(prepared, quantized, samples(), MACHINE)
    wanted = last_mean(prepared)
    before = np.abs(last_mean(quantized(prepared)) - wanted).max()
    after = np.abs(last_mean(quantized(made)) - wanted).max()
    assert after < before / 10
    assert error(quantized(made), network()) < error(quantized(prepared), network())


def test_only_biases_change(prepared: Model) -> None:
    ranges = calibrate(prepared, samples())
    made = correct_biases(prepared, lambda model: quantize(model, ranges), samples(), MACHINE)
    before, after = initializers(prepared.proto), initializers(made.proto)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.endswith("bias") for name in changed)


def test_what_needs_no_correction_stays(prepared: Model) -> None:
    made = correct_biases(prepared, lambda model: model, samples(), MACHINE)
    before, after = initializers(prepared.proto), initializers(made.proto)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
