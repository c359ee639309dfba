"""The block that ranks cost in on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import onnx

from onnxcp.graph.model import Model
from onnxcp.planning.cache import Cache
from onnxcp.precision.alone import at_precision, random_input
from onnxcp.profiling.environment import describe
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.session import Runner
from onnxcp.profiling.timing import paired

_FINE, _COARSE = 8, 16
_CHANNELS = 64
_GRID = 56
_STEP = 1.06  # half a block more work, of five and a half, would show as 1.1


def rank_block(machine: Machine, cache: Cache) -> int:
    """Find by measuring which multiple of ranks costs no more than the numbers below it.

    Convolutions work on blocks of channels: 16 with AVX-512, 8 with AVX2 and NEON, so that 72
    channels may cost what 80 do. A 3x3 convolution with 72 filters is timed against one with 80.
    """
    key = asdict(describe(machine))
    kept = cache.get("block", key)
    if isinstance(kept, int):
        return kept
    trial = paired(_convolution(72, machine), _convolution(80, machine), rounds=20, max_seconds=2.0)
    if not trial.clean:
        return _COARSE  # where the machine is too busy to tell: 16 is a multiple of 8 as well
    block = _FINE if trial.high < 1 / _STEP else _COARSE
    cache.put("block", key, block)
    return block


def _convolution(filters: int, machine: Machine) -> Callable[[], None]:
    shape = [1, _CHANNELS, _GRID, _GRID]
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((filters, _CHANNELS, 3, 3), dtype=np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = onnx.helper.make_graph(
        [node],
        "block",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opset = onnx.helper.make_opsetid("", 13)
    model = Model(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8))
    model = at_precision(model, machine.precision)
    feeds = {"x": random_input(model, tuple(shape))}
    return Runner(machine.open(model, label="a trial convolution"), feeds).run
