"""Telling models and arrays apart by a short text: the key under which measurements are kept."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import Message

from onnxcp.graph.model import Model, raw_bytes

_SAYS_NOTHING = {
    "ModelProto": {
        "ir_version", "producer_name", "producer_version", "domain", "model_version",
        "training_info", "configuration",
    },
    "GraphProto": {"name", "value_info", "quantization_annotation"},
    "FunctionProto": {"value_info"},
    "NodeProto": {"device_configurations"},
    "TypeProto": {"denotation"},
    "Dimension": {"denotation"},
}  # fmt: skip
_DESCRIBES = {"doc_string", "metadata_props"}  # of whatever message
_STORES = {"data_location", "external_data"} | {
    field.name for field in onnx.TensorProto.DESCRIPTOR.fields if field.name.endswith("_data")
}
_UNORDERED = {
    "attribute", "attribute_proto", "functions", "initializer", "opset_import",
    "sparse_initializer",
}  # fmt: skip


def model_digest(model: Model) -> str:
    """Return a SHA-256 of what a model computes, in hexadecimal.

    That is its nodes and their names, attributes, weights, inputs, outputs, operator sets and
    functions, wherever the weights are stored and in whatever order what has no order stands. What
    is only said of a model does not count: doc strings, metadata, who made it, shapes of its inner
    tensors, how to quantize, train or distribute it.

    One tensor at a time is copied, so a model may be larger than a protobuf message.
    """
    return _message_digest(model.proto)


def array_digest(array: npt.NDArray[Any]) -> str:
    """Return a SHA-256 of an array's type, shape and elements, in hexadecimal.

    It does not depend on the order of bytes or on strides. Texts, which have no bytes of their own,
    count as Python writes them.
    """
    digest = hashlib.sha256(repr((array.dtype.name, array.shape)).encode())
    if array.dtype.hasobject:
        digest.update(repr(array.tolist()).encode())
    else:
        native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
        # As bytes, since not all types (bfloat16) give out a buffer of their own.
        digest.update(np.ascontiguousarray(native).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _message_digest(message: Message) -> str:
    """Return the digest of a message: that of its fields' names with their values' digests."""
    kind = message.DESCRIPTOR.name
    ignored = _DESCRIBES | _SAYS_NOTHING.get(kind, set())
    fields: list[tuple[str, object]] = []
    if isinstance(message, onnx.TensorProto) and (data := _data_digest(message)) is not None:
        ignored |= _STORES
        fields.append(("data", data))
    for field, value in message.ListFields():
        if field.name in ignored:
            continue
        if isinstance(value, str | bytes | int | float | Message):
            fields.append((field.name, _value(value)))
        else:
            values = [_value(each) for each in value]
            fields.append((field.name, sorted(values) if field.name in _UNORDERED else values))
    return _bytes_digest(repr(fields).encode())


def _value(value: Any) -> Any:
    """Return what stands for a value in a digest: short, and of no two values the same."""
    if isinstance(value, Message):
        return _message_digest(value)
    return _bytes_digest(value) if isinstance(value, bytes) else value


def _bytes_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _data_digest(tensor: onnx.TensorProto) -> str | None:
    """Return the digest of a tensor's elements, which are let go of; None if there are no bytes."""
    data = raw_bytes(tensor)
    return None if data is None else _bytes_digest(data)
