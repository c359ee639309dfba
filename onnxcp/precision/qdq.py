"""Static int8 quantization by `onnxruntime.quantization`, from ranges that are known already.

Every quantized tensor is followed by a QuantizeLinear and a DequantizeLinear (QDQ), which ONNX
Runtime fuses with the operators between them into integer kernels. Activations are uint8 and
asymmetric, weights int8, symmetric and per output channel, biases int32: what ONNX Runtime's own
documentation advises for CPUs.
"""

from __future__ import annotations

import glob
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx

from onnxcp.graph.model import Model
from onnxcp.graph.walk import attributes
from onnxcp.precision.amend import WEIGHTED, amend, label_nodes
from onnxcp.precision.foreign import foreign

Ranges = Mapping[str, tuple[float, float]]
"""The least and the largest value of tensors, by name."""

OPERATORS = (
    "Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Flatten", "Gemm",
    "GlobalAveragePool", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Reshape",
    "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""What is quantized: operators that have integer kernels, and those that only move values.

Outputs such as probabilities stay float, and so does what computes them (Softmax, Sigmoid).
"""

_OPSET = 13  # from which on a scale may be one of a channel


def prepare(model: Model) -> Model:
    """Make a network ready to be quantized: what it computes stays the same.

    Constants are folded, shapes inferred, nodes named, and what the quantizer gets wrong is written
    otherwise (`onnxcp.precision.amend`). The opset is raised to 13 if it is lower, since scales of
    single channels need it. Weights that are graph inputs with a default cannot be overridden any
    more.

    Raises
    ------
    ModelError
        If the opset cannot be raised, or ONNX Runtime cannot optimise the network.
    """
    from onnxruntime.quantization import quant_pre_process

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    constants = {each.name for each in proto.graph.initializer}
    free = [each for each in proto.graph.input if each.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(free)
    proto.ir_version = max(proto.ir_version, 4)
    proto = raise_opset(model.with_proto(proto))
    with (
        tempfile.TemporaryDirectory(prefix="onnxcp-", ignore_cleanup_errors=True) as folder,
        foreign(f"'{model.name}' cannot be prepared for int8"),
    ):
        source, made = Path(folder) / "source.onnx", Path(folder) / "made.onnx"
        onnx.save(proto, source)
        quant_pre_process(source, made, skip_symbolic_shape=True)
        prepared = onnx.load(made)
    label_nodes(prepared)
    amend(prepared.graph)
    for field in ("doc_string", "producer_name", "producer_version", "domain", "model_version"):
        setattr(prepared, field, getattr(model.proto, field))
    prepared.metadata_props.extend(
        each
        for each in model.proto.metadata_props
        if each.key not in {known.key for known in prepared.metadata_props}
    )
    return model.with_proto(prepared)


def quantize(
    model: Model, ranges: Ranges, *, keep: Iterable[str] = (), reduce_range: bool = False
) -> Model:
    """Quantize a network that is prepared.

    Parameters
    ----------
    model
        The network, as of `prepare`.
    ranges
        Least and largest values of all of its activations.
    keep
        Names of nodes, as patterns of a shell, that stay float; so does what lies between them.
    reduce_range
        Whether weights have 7 bits only, for processors whose 8 bit products saturate.

    Raises
    ------
    ModelError
        If the quantizer cannot quantize the network.
    """
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

    patterns = tuple(keep)
    kept = [
        each.name
        for each in model.proto.graph.node
        if matches(each.name, patterns) or _is_beyond_it(each)
    ]
    kept += _between(model.proto.graph, kept)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    limits = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    with foreign(f"'{model.name}' cannot be quantized"):
        quantizer = QDQQuantizer(
            proto,
            True,  # per channel
            reduce_range,
            QuantType.QInt8,
            QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, limits),
            [],
            kept,
            list(OPERATORS),
            {},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return model.with_proto(quantizer.model.model)


def exactly(name: str) -> str:
    """Return a pattern without spaces that matches a name, and hardly anything else."""
    return re.sub(r"\s", "?", glob.escape(name))


def matches(name: str, keep: Iterable[str]) -> bool:
    """Tell whether a node of some name stays float: it, or the layer that its chain replaced."""
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"{p}/*") for p in keep)


def activations(model: Model) -> list[str]:
    """Return the names of the float tensors of a prepared network that are no constants."""
    graph = model.proto.graph
    constants = {each.name for each in graph.initializer}
    known = {
        each.name: each.type.tensor_type.elem_type
        for each in (*graph.input, *graph.output, *graph.value_info)
    }
    made = (name for node in graph.node for name in node.output)
    names = dict.fromkeys([*(each.name for each in graph.input), *made])
    return [
        name
        for name in names
        if name and name not in constants and known.get(name) == onnx.TensorProto.FLOAT
    ]


def is_quantized(model: Model) -> bool:
    """Tell whether a network computes in integers already."""
    return any(
        node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
        or node.op_type.startswith("QLinear")
        or node.op_type.endswith("Integer")
        for node in model.proto.graph.node
    )


def raise_opset(model: Model) -> onnx.ModelProto:
    """Return a copy of a model's message at the opset that scales of single channels need.

    Raises
    ------
    ModelError
        If it cannot be raised.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    if model.opset >= _OPSET:
        return proto
    with foreign(f"int8 needs opset {_OPSET}, and '{model.name}' cannot be converted to it"):
        return onnx.version_converter.convert_version(proto, _OPSET)


def _between(graph: onnx.GraphProto, kept: Collection[str]) -> list[str]:
    """Return the nodes without weights that lie between layers in float, and no other layers.

    In integers they would round values that nobody needs rounded.
    """
    if not kept:
        return []
    # An optional tensor that is left out has no name, and connects nothing.
    makers = {name: node for node in graph.node for name in node.output if name}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in filter(None, node.input):
            readers.setdefault(name, []).append(node)

    def layers(start: onnx.NodeProto, *, behind: bool) -> Iterator[str]:
        """Yield the names of the next layers in one direction."""
        todo, seen = [start], {start.name}
        while todo:
            node = todo.pop()
            if behind:
                others = [each for name in node.output for each in readers.get(name, ())]
            else:
                others = [makers[name] for name in node.input if name in makers]
            for other in others:
                if other.op_type in WEIGHTED:
                    yield other.name
                elif other.name not in seen:
                    seen.add(other.name)
                    todo.append(other)

    floats = set(kept)
    return [
        node.name
        for node in graph.node
        if node.op_type in OPERATORS
        and node.op_type not in WEIGHTED
        and floats.issuperset(layers(node, behind=False))
        and floats.issuperset(layers(node, behind=True))
    ]


def _is_beyond_it(node: onnx.NodeProto) -> bool:
    """Tell whether the quantizer fails: at a transposed convolution of groups with a bias."""
    if node.op_type != "ConvTranspose" or len(node.input) < 3:
        return False
    return bool(attributes(node).get("group", 1) > 1)
