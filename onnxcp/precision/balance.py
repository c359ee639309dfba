"""The free gauge of a chain, chosen so that both of two factors quantize well.

Between two convolutions, or two products with matrices, with nothing in between, every rank may be
scaled by any s > 0: the first
makes s times as much of it and the second takes it s times less. The tensor between them is
quantized with one scale for all of its ranks, and a filter of the second with one scale for all
that it reads; the first has a scale for every filter, so it is quantized equally well whatever s
is. With the largest magnitude a of the rank on samples and b of the weights that read it, ::

    s = (1 / a)^alpha b^(1 - alpha)

evens the tensor at alpha = 1 and the weights at alpha = 0 (cross-layer equalisation: Nagel et al.
2019, equation 11, with the ranges of activations in the place of those of the first weights;
SmoothQuant, Xiao et al. 2023, equation 4). A convolution of one filter for each rank, such as the
middle of CP3, has a scale for each as well: what is taken from the tensor costs it nothing, so
alpha is 1 ahead of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxcp.graph.model import Model
from onnxcp.graph.walk import attributes, names_captured
from onnxcp.precision.amend import output_axis
from onnxcp.precision.watch import channel_maxima
from onnxcp.profiling.compare import Batch
from onnxcp.profiling.machine import Machine

ALPHA = 0.7


@dataclass(frozen=True)
class _Pair:
    """Two factors in a row: their weights, the bias of the first, and what lies between.

    `axis` is that of the first weight which goes over what it makes, `reads` that of the second
    which goes over what it reads, and `ranks` that of the tensor between which goes over ranks.
    `evened` says that the second has a scale for each of them, too.
    """

    first: str
    bias: str | None
    second: str
    between: str
    axis: int
    reads: int
    ranks: int
    evened: bool = False


def balance(
    model: Model, batches: Iterable[Batch], machine: Machine, alpha: float = ALPHA
) -> tuple[Model, int]:
    """Scale the ranks between factors in a row; what the network computes stays the same.

    Parameters
    ----------
    model
        A network as of `onnxcp.precision.qdq.prepare`.
    batches
        Samples to see the ranges of ranks on.
    machine
        Where to run them.
    alpha
        How much of the range goes from the tensor to the weights that read it, from 0 to 1.

    Returns
    -------
    model : Model
    count : int
        How many pairs were balanced.
    """
    pairs = _pairs(model.proto.graph)
    if not pairs:
        return model, 0
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    weights = {each.name: each for each in proto.graph.initializer}
    sizes = channel_maxima(model, {each.between: each.ranks for each in pairs}, batches, machine)
    for pair in pairs:  # what a pair makes in the end is what it was: others do not notice
        second = onnx.numpy_helper.to_array(weights[pair.second])
        others = tuple(axis for axis in range(second.ndim) if axis != pair.reads)
        reads = np.abs(second).max(axis=others).astype(np.float64)
        made = sizes[pair.between]
        known = (made > 0) & (reads > 0)
        given = 1.0 if pair.evened else alpha
        scale = np.ones_like(made)
        scale[known] = reads[known] ** (1 - given) / made[known] ** given
        if known.any():
            scale[known] /= np.exp(np.log(scale[known]).mean())
        first = onnx.numpy_helper.to_array(weights[pair.first])
        _put(weights[pair.first], first * _along(scale, pair.axis, first.ndim))
        _put(weights[pair.second], second / _along(scale, pair.reads, second.ndim))
        if pair.bias is not None:
            _put(weights[pair.bias], onnx.numpy_helper.to_array(weights[pair.bias]) * scale)
    return model.with_proto(proto), len(pairs)


def _pairs(graph: onnx.GraphProto) -> list[_Pair]:
    """Find convolutions that nothing but another one reads, of one group or of one per channel.

    The same of products with matrices.
    """
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in (*node.input, *names_captured(node)):
            readers.setdefault(name, []).append(node)
    for output in graph.output:
        readers.setdefault(output.name, []).append(onnx.NodeProto())

    def own(name: str) -> bool:
        return name in shapes and len(readers[name]) == 1

    found = []
    for node in graph.node:
        following = readers.get(node.output[0], []) if node.output else []
        if len(following) != 1 or not _of_a_kind(node, following[0]):
            continue
        (after,) = following
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if after.input[0] != node.output[0] or not (bias is None or own(bias)):
            continue
        if not (own(node.input[1]) and own(after.input[1])):
            continue
        first, second = shapes[node.input[1]], shapes[after.input[1]]
        between, axis = node.output[0], output_axis(node, len(first))
        pair = _Pair(node.input[1], bias, after.input[1], between, axis, reads=1, ranks=1)
        if node.op_type == "Conv":
            groups = attributes(after).get("group", 1)
            if groups == 1:
                found.append(pair)
            elif second[:2] == (groups, 1):
                found.append(replace(pair, reads=0, evened=True))
        elif len(first) == len(second) == 2:
            found.append(replace(pair, reads=1 - output_axis(after, 2), ranks=-1))
    return found


def _of_a_kind(first: onnx.NodeProto, second: onnx.NodeProto) -> bool:
    """Tell whether two nodes are convolutions, or products of samples with a matrix."""
    if any(each.domain not in ("", "ai.onnx") for each in (first, second)):
        return False
    if first.op_type == "Conv":
        return second.op_type == "Conv"
    products = all(each.op_type in ("Gemm", "MatMul") for each in (first, second))
    return products and not attributes(second).get("transA")


def _along(scale: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    return scale.reshape([-1 if each == axis else 1 for each in range(ndim)])


def _put(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(kind), tensor.name))
