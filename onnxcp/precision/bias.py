"""Biases that make up for what quantization does to the means of channels.

Rounding moves the mean of what a layer puts out, and the layers after it hand the shift on. The
difference of the means, of the network in float and of the quantized one on the same samples, is
taken off the bias (Nagel et al. 2019, section 4.2, its empirical form), layer after layer, since
what is corrected in one changes what the next ones are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from onnxcp.graph.model import Model
from onnxcp.graph.walk import names_captured
from onnxcp.precision.amend import WEIGHTED
from onnxcp.precision.watch import channel_means
from onnxcp.profiling.compare import Batch
from onnxcp.profiling.machine import Machine

_STEPS = 16  # at most: deep networks have several layers corrected at a time


def correct_biases(
    model: Model,
    quantized: Callable[[Model], Model],
    batches: Sequence[Batch],
    machine: Machine,
) -> Model:
    """Return a network whose biases suit the quantized network that is made of it.

    Parameters
    ----------
    model
        The network in float, as of `onnxcp.precision.qdq.prepare`.
    quantized
        Quantizes it, whatever its biases.
    batches
        Samples to see means on.
    machine
        Where to run them.
    """
    layers = _layers(model.proto.graph)
    names = list(layers)
    wanted = _means(model, names, batches, machine)
    size = -(-len(names) // _STEPS)
    for start in range(0, len(names), max(size, 1)):
        group = names[start : start + size]
        got = _means(quantized(model), group, batches, machine)
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        biases = {each.name: each for each in proto.graph.initializer}
        for name in group:
            bias = biases[layers[name]]
            values = onnx.numpy_helper.to_array(bias) + (wanted[name] - got[name])
            bias.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), bias.name))
        model = model.with_proto(proto)
    return model


def _means(
    model: Model, nodes: Sequence[str], batches: Sequence[Batch], machine: Machine
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the means of what nodes put out, ahead of any activation.

    The quantizer leaves out a Relu that the range of its output stands for, but not the tensor that
    the node ahead of it makes, under whatever name.
    """
    outputs = {node.name: node.output[0] for node in model.proto.graph.node if node.output}
    means = channel_means(model, [outputs[name] for name in nodes], batches, machine)
    return {name: means[outputs[name]] for name in nodes}


def _layers(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the names of the nodes with a bias that is theirs alone, and that bias."""
    floats = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT}
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in (*node.input, *names_captured(node)):
            uses[name] = uses.get(name, 0) + 1
    for output in graph.output:
        uses[output.name] = uses.get(output.name, 0) + 1
    return {
        node.name: node.input[2]
        for node in graph.node
        if node.op_type in WEIGHTED
        and len(node.input) > 2
        and node.input[2] in floats
        and uses[node.input[2]] == 1
    }
