"""Trained tensors back into the ONNX model that they came from; nothing else of it changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import torch
from torch import Tensor

from onnxcp.errors import DataError
from onnxcp.graph.model import Model, ModelSource, load
from onnxcp.tuning.module import OnnxModule
from onnxcp.tuning.to_torch import to_torch

_MOST_NAMES = 3


def from_torch(source: ModelSource | Model, weights: OnnxModule | Mapping[str, Tensor]) -> Model:
    """Return a model with other weights, each in the type that it is stored in.

    Parameters
    ----------
    source
        The model that `to_torch` was given.
    weights
        What it returned, or its tensors under the names that they have in the model.

    Returns
    -------
    Model
        The very model if no value is another; else one that differs in those tensors only.

    Raises
    ------
    DataError
        If a tensor is missing, or not one of the model, or of another shape, or not finite where
        the model's own is, or too large for the type that it is stored in.
    ModelError
        As `to_torch`.
    """
    model = load(source)
    own = dict(to_torch(model).named_tensors())
    given = dict(weights.named_tensors() if isinstance(weights, OnnxModule) else weights)
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing:
        raise DataError(f"There is no tensor for {_listed(missing)} of '{model.name}'.")
    if extra:
        raise DataError(f"'{model.name}' has no weights called {_listed(extra)}.")
    changed = {name: _checked(name, own[name], given[name]) for name in own}
    changed = {n: value for n, value in changed.items() if not _equal(value, own[n])}
    if not changed:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for name, holder in _holders(proto.graph):
        if name in changed:
            _put(name, holder, changed[name])
    return model.with_proto(proto)


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_MOST_NAMES])
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown


def _checked(name: str, own: Tensor, given: Tensor) -> Tensor:
    """Return a tensor on the host, in the type that the model is computed in."""
    if own.shape != given.shape:
        raise DataError(
            f"The tensor for '{name}' has shape {list(given.shape)}, not {list(own.shape)}."
        )
    value = given.detach().to("cpu", own.dtype)
    if not value.isfinite().all() and own.isfinite().all():
        raise DataError(f"The tensor for '{name}' holds values that are not finite.")
    return value


def _equal(one: Tensor, other: Tensor) -> bool:
    """Tell whether all values are the same; not a number is the same as itself."""
    return bool(torch.all((one == other) | (one.isnan() & other.isnan())))


def _holders(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto | onnx.NodeProto]]:
    """Yield initializers and Constant nodes under the names of their tensors."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    yield from ((n.output[0], n) for n in graph.node if n.op_type == "Constant")


def _put(name: str, holder: onnx.TensorProto | onnx.NodeProto, value: Tensor) -> None:
    if isinstance(holder, onnx.NodeProto):
        for attribute in holder.attribute:
            if attribute.name == "value":
                _put(name, attribute.t, value)
            elif attribute.name == "value_float":
                attribute.f = value.item()
            elif attribute.name == "value_floats":
                attribute.floats[:] = value.tolist()
        return
    kind = onnx.helper.tensor_dtype_to_np_dtype(holder.data_type)
    with np.errstate(over="ignore"):  # said below, by name
        array = value.numpy().astype(kind)
    if np.isfinite(array.astype(np.float64)).all() != bool(value.isfinite().all()):
        stored = onnx.TensorProto.DataType.Name(holder.data_type)
        raise DataError(f"The tensor for '{name}' holds values too large for {stored}.")
    raw = onnx.numpy_helper.from_array(array).raw_data
    for field in ("float_data", "int32_data", "double_data"):
        holder.ClearField(field)
    holder.raw_data = raw
