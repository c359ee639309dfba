"""Values of any ONNX type: how a model declares them, and how ONNX Runtime takes and gives them."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnxcp.errors import ModelError
from onnxcp.profiling.session import infer

Array = npt.NDArray[Any]
Shape = tuple[int, ...] | None
"""The shape of an array; None for any other value."""


def value_type(text: str) -> onnx.TypeProto:
    """Parse a type as ONNX Runtime writes it, such as ``seq(tensor(float))``."""
    kind, inner = re.fullmatch(r"(\w+)\((.*)\)", text).groups()  # type: ignore[union-attr]
    match kind:
        case "tensor":
            return onnx.helper.make_tensor_type_proto(_element(inner), None)
        case "sparse_tensor":
            return onnx.helper.make_sparse_tensor_type_proto(_element(inner), None)
        case "seq":
            return onnx.helper.make_sequence_type_proto(value_type(inner))
        case "optional":
            return onnx.helper.make_optional_type_proto(value_type(inner))
        case _:
            key, _, value = inner.partition(",")
            return onnx.helper.make_map_type_proto(_element(key), value_type(value))


def _element(name: str) -> int:
    return int(onnx.TensorProto.DataType.Value(name.upper()))


def with_extents(kind: onnx.TypeProto, shapes: Iterable[Shape]) -> onnx.TypeProto:
    """Return the type of tensors of these shapes; extents are open where they differ.

    What is no tensor, or of several ranks or of none, keeps a type without a shape.
    """
    result = onnx.TypeProto()
    result.CopyFrom(kind)
    if not kind.HasField("tensor_type"):
        return result
    result.tensor_type.ClearField("shape")
    known = set(shapes)
    if None in known or len({len(shape) for shape in known if shape is not None}) != 1:
        return result
    result.tensor_type.shape.SetInParent()
    for extents in zip(*(shape for shape in known if shape is not None), strict=True):
        dim = result.tensor_type.shape.dim.add()
        if len(set(extents)) == 1:
            dim.dim_value = extents[0]
    return result


def run_session(session: ort.InferenceSession, feeds: Mapping[str, Any], label: str) -> list[Any]:
    """Run a session on values of any type, and return its outputs.

    Tensors are arrays, sequences lists of them, an optional value that is missing None.

    Raises
    ------
    ModelError
        If ONNX Runtime fails.
    """
    foreign = any(output.type in _FOREIGN for output in session.get_outputs())
    if not foreign and all(isinstance(value, np.ndarray) for value in feeds.values()):
        return infer(session, feeds, label=label)
    try:
        if foreign:
            binding = session.io_binding()
            for name, value in feeds.items():
                binding.bind_ortvalue_input(name, _ort_value(value))
            for output in session.get_outputs():
                binding.bind_output(output.name)  # in host memory
            session.run_with_iobinding(binding)
            return [_array(each) for each in binding.get_outputs()]
        return list(session.run(None, {name: _acceptable(value) for name, value in feeds.items()}))
    except Exception as error:  # ONNX Runtime has one for every status, and no base for them
        raise ModelError(f"ONNX Runtime cannot run {label}: {error}.") from error


# Types that `InferenceSession.run` does not return, or as bytes only.
_FOREIGN = {
    "tensor(bfloat16)",
    *(f"tensor(float8{kind})" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")),
}


def _acceptable(value: Any) -> Any:
    foreign = isinstance(value, np.ndarray) and value.dtype.kind == "V"
    return _ort_value(value) if foreign else value


def _ort_value(value: Array) -> ort.OrtValue:
    if value.dtype.kind != "V":
        return ort.OrtValue.ortvalue_from_numpy(value)
    bits = np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


def _array(value: ort.OrtValue) -> Any:
    if value.data_type() not in _FOREIGN:
        return value.numpy()
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.element_type()))
    shape = tuple(value.shape())
    # Numpy knows these types only by way of ml_dtypes, and ONNX Runtime does not know that.
    content = ctypes.string_at(value.data_ptr(), math.prod(shape) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(shape)
