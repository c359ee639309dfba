from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcp.profiling.machine import Machine
from onnxcp.profiling.product import Ceiling, matrix_product, measure_ceiling, weight_type
from tests.networks import conv_model

ONE = Machine(intra_op_num_threads=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_a_product(dtype: type) -> None:
    product = matrix_product(ONE, 8, dtype)
    product.run()
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((8, 8)).astype(dtype) for _ in range(2))
    (found,) = product.outputs()
    assert found.dtype == dtype
    # Eight products of numbers of size 1 to 3, each rounded.
    np.testing.assert_allclose(found, a @ b, atol=100 * np.finfo(dtype).eps)


def test_the_best_run_counts() -> None:
    # The clock is looked at first, and then before and after each of five runs.
    runs = [0.0, 0.5, 0.0, 0.25, 0.0, 0.5, 0.0, 0.5, 0.0, 0.5]
    ticks = itertools.accumulate([0.0, *runs, 0.0])
    found = measure_ceiling(ONE, size=8, clock=lambda: next(ticks))
    assert found == Ceiling(2 * 8**3 / 0.25, "float32", 8)


def test_a_type_without_a_product() -> None:
    assert measure_ceiling(ONE, np.int8, size=8) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_the_type_of_most_weights(dtype: type) -> None:
    proto = onnx.ModelProto()
    for name, size, kind in (("few", 2, np.float64), ("most", 9, dtype), ("shape", 99, np.int64)):
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(size, kind), name))
    assert weight_type(proto) == dtype


def test_a_model_without_weights() -> None:
    assert weight_type(onnx.ModelProto()) == np.float32
    assert weight_type(conv_model((3, 3))) == np.float32
