"""Shapes of tensors, as far as they can be told without running the model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import onnx

from onnxcp.errors import DataError
from onnxcp.graph.model import Model
from onnxcp.graph.skeleton import skeleton


def infer_shapes(
    model: Model, input_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that are fully known, by tensor name, from ONNX shape inference.

    Parameters
    ----------
    model
        The model.
    input_shapes
        Shapes to give to graph inputs, by name.

    Raises
    ------
    DataError
        If a name is not an input's, or a shape contradicts the model.
    """
    bare = skeleton(model.proto)
    _set_input_shapes(bare, model, input_shapes or {})
    # Inference gives up on some graphs that run well; what is declared still holds.
    with contextlib.suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    known = {}
    for value in (*bare.graph.value_info, *bare.graph.input, *bare.graph.output):
        shape = _static_shape(value)
        if shape is not None:
            known[value.name] = shape
    return known


def _set_input_shapes(
    bare: onnx.ModelProto, model: Model, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    if not shapes:
        return
    weights = {tensor.name for tensor in model.proto.graph.initializer}
    inputs = {value.name: value for value in bare.graph.input if value.name not in weights}
    for name, shape in shapes.items():
        if name not in inputs:
            raise DataError(f"{model.name} has no input '{name}'; it has: {', '.join(inputs)}.")
        dims = inputs[name].type.tensor_type.shape.dim
        if inputs[name].type.tensor_type.HasField("shape") and len(dims) != len(shape):
            raise DataError(f"Input '{name}' has {len(dims)} dimensions, not {len(shape)}.")
        for dim, size in zip(dims, shape, strict=False):
            if dim.HasField("dim_value") and dim.dim_value > 0 and dim.dim_value != size:
                raise DataError(
                    f"Input '{name}' is fixed at {_format(dims)}; {list(shape)} was given."
                )
        tensor = inputs[name].type.tensor_type
        tensor.ClearField("shape")
        for size in shape:
            tensor.shape.dim.add(dim_value=size)
    # Shapes that were declared for a free batch would contradict those that follow now.
    del bare.graph.value_info[:]


def _static_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    dims = tensor.shape.dim
    if not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)


def _format(dims: object) -> str:
    names = [
        str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in dims  # type: ignore[attr-defined]
    ]
    return f"[{', '.join(names)}]"
