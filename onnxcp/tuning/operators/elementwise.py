"""Operators that work entry by entry."""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxcp.tuning.operators.registry import Call, operator, together

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Asin": torch.asin,
    "Atan": torch.atan,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,  # half to even, as ONNX has it
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x),
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

_VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}

_TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
}
_HALF = (torch.float16, torch.bfloat16)


@operator(*_UNARY)
def unary(call: Call, x: Tensor) -> Tensor:
    """Apply a function of one tensor."""
    return _UNARY[call.op](x)


def _legacy(call: Call) -> str | None:
    """Before version 7, a second operand was stretched along axes that an attribute names."""
    return f"it broadcasts as before version 7 of {call.op}" if call.version < 7 else None


@operator(*_BINARY, check=_legacy)
def binary(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Apply a function of two tensors that are broadcast."""
    return _BINARY[call.op](*together(a, b))


@operator(*_VARIADIC)
def variadic(call: Call, *values: Tensor) -> Tensor:
    """Fold any number of tensors."""
    return functools.reduce(_VARIADIC[call.op], together(*values))


@operator("Mean")
def mean(_: Call, *values: Tensor) -> Tensor:
    """Average any number of tensors."""
    return functools.reduce(torch.add, together(*values)) / len(values)


@operator("Div", check=_legacy)
def div(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """Divide; whole numbers are cut towards zero."""
    a, b = together(a, b)
    if a.is_floating_point() or b.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


@operator("Pow", check=_legacy)
def power(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """Raise to a power, in the type of the base."""
    a, b = together(a, b)
    return torch.pow(a, b).to(a.dtype)


@operator("Mod")
def modulo(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return the rest, with the sign of the divisor, or as C has it."""
    a, b = together(a, b)
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """Let a share of what is negative through."""
    return F.leaky_relu(x, call.get("alpha", 0.01))


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """Let through what is above a threshold."""
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    """Exponential linear unit."""
    return F.elu(x, call.get("alpha", 1.0))


@operator("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    """Exponential linear unit with a continuous derivative."""
    return F.celu(x, call.get("alpha", 1.0))


@operator("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    """Scaled exponential linear unit."""
    gamma: float = call.get("gamma", 1.0507010)
    return gamma * F.elu(x, call.get("alpha", 1.6732632))


@operator("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    """Gaussian error linear unit."""
    return F.gelu(x, approximate=call.get("approximate", "none"))


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """Cut ``alpha x + beta`` to 0..1."""
    alpha: float = call.get("alpha", 0.2)
    return torch.clamp(alpha * x + call.get("beta", 0.5), 0, 1)


@operator("Affine", "ParametricSoftplus")
def affine(call: Call, x: Tensor) -> Tensor:
    """Two operators that ONNX dropped: ``alpha x + beta``, ``alpha log(1 + exp(beta x))``."""
    alpha: float = call.get("alpha", 1.0)
    beta: float = call.get("beta", 0.0)
    return alpha * x + beta if call.op == "Affine" else alpha * F.softplus(beta * x)


@operator("ImageScaler")
def image_scaler(call: Call, x: Tensor) -> Tensor:
    """Scale pictures and shift their channels; dropped by ONNX."""
    bias = torch.tensor(call.get("bias", [0.0]), dtype=x.dtype, device=x.device)
    scale: float = call.get("scale", 1.0)
    return scale * x + bias.reshape(-1, 1, 1)


@operator("Clip", settings=(1, 2))
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Cut to an interval, which older versions have in attributes."""
    least = call.get("min") if low is None else call.number(1, low)
    most = call.get("max") if high is None else call.number(2, high)
    return x if least is None and most is None else torch.clamp(x, least, most)


@operator("Where")
def where(_: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Take entries from one of two tensors."""
    condition, a, b = together(condition, a, b)
    return torch.where(condition, a, b)


def _castable(call: Call) -> str | None:
    kind = call.get("to")
    if call.op == "CastLike" or kind in _TYPES:
        return None
    return f"it casts to {onnx.TensorProto.DataType.Name(kind)}"


@operator("Cast", "CastLike", check=_castable)
def cast(call: Call, x: Tensor, like: Tensor | None = None) -> Tensor:
    """Change the type.

    Among types of floating point nothing is done: how finely it is computed is up to who trains.
    """
    wanted = _TYPES[call.get("to")] if like is None else like.dtype
    if wanted.is_floating_point and x.is_floating_point():
        return x
    return x.to(torch.float32 if wanted in _HALF else wanted)


@operator("Identity")
def identity(_: Call, x: Tensor) -> Tensor:
    """Return the same."""
    return x


@operator("Dropout", settings=(1, 2), trained=True)
def dropout(
    call: Call,
    x: Tensor,
    ratio: Tensor | None = None,
    mode: Tensor | None = None,
    *,
    training: bool,
) -> tuple[Tensor, Tensor]:
    """Drop entries, in training only; the mask is that of nothing dropped."""
    del mode
    share = call.get("ratio", 0.5) if ratio is None else call.number(1, ratio)
    return F.dropout(x, share, training), torch.ones_like(x, dtype=torch.bool)
