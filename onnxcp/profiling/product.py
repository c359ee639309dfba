"""One matrix product as a network: what a machine can do at best, and work that is always the same.

ONNX Runtime's own product is the ceiling that the nodes of a network are held against: the same
kernels, threads and provider, with nothing else to do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onnxcp.errors import ModelError
from onnxcp.graph.model import load
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.providers import CPU, full_name
from onnxcp.profiling.session import Runner
from onnxcp.profiling.timing import Clock

_SIZE = {True: 1024, False: 4096}  # on the host, and on devices, which need more to be busy
_SECONDS = 0.3
_RUNS = 5


@dataclass(frozen=True)
class Ceiling:
    """The speed of a large matrix product.

    Attributes
    ----------
    flops
        Floating-point operations per second, a multiply-add counted as two: the best of all runs.
    dtype
        Type of the elements.
    size
        The product is of two matrices size × size, one of them constant.
    """

    flops: float
    dtype: str
    size: int


def matrix_product(machine: Machine, size: int, dtype: npt.DTypeLike = np.float32) -> Runner:
    """Return what multiplies two random matrices, size × size, the second of them constant.

    Raises
    ------
    ModelError
        If the provider has no matrix product of this type.
    """
    kind = np.dtype(dtype)
    rng = np.random.default_rng(0)
    data, weight = (rng.standard_normal((size, size)).astype(kind) for _ in range(2))
    tensor = helper.np_dtype_to_tensor_dtype(kind)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [helper.make_tensor_value_info("x", tensor, (size, size))],
        [helper.make_tensor_value_info("y", tensor, (size, size))],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = load(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    label = f"a product of matrices of {kind}"
    return Runner(machine.open(model, label=label), {"x": data}, label=label)


def measure_ceiling(
    machine: Machine,
    dtype: npt.DTypeLike = np.float32,
    *,
    size: int = 0,
    clock: Clock = time.perf_counter,
) -> Ceiling | None:
    """Measure how fast a machine multiplies matrices; None where it cannot in this type.

    Parameters
    ----------
    machine
        Provider and threads.
    dtype
        Type of the elements.
    size
        Rows and columns. 0: 1024 on the CPU provider and 4096 on others.
    clock
        Where seconds are read.
    """
    size = size or _SIZE[not machine.providers or full_name(machine.providers[0]) == CPU]
    try:
        product = matrix_product(machine, size, dtype)
        product.run()
        taken: list[float] = []
        start = clock()
        while len(taken) < _RUNS or clock() - start < _SECONDS:
            begin = clock()
            product.run()
            taken.append(clock() - begin)
    except ModelError:
        return None
    return Ceiling(2.0 * size**3 / min(taken), str(np.dtype(dtype)), size)


def weight_type(proto: onnx.ModelProto) -> np.dtype[np.generic]:
    """Return the floating-point type that most of a model's weights are of; float32 if none."""
    counts: dict[int, int] = {}
    for tensor in proto.graph.initializer:
        counts[tensor.data_type] = counts.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
    known = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    kind = max(known, key=lambda each: counts.get(each, 0))
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind))
