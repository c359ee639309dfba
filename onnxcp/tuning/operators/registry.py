"""What an operator of ONNX is to PyTorch: one function, found by the operator's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Result: TypeAlias = "Tensor | tuple[Tensor, ...]"


@dataclass(frozen=True)
class Call:
    """A node of a graph, ready to be computed.

    Attributes
    ----------
    op
        The operator.
    version
        Of the operator set that the model imports.
    attributes
        Numbers, strings, lists of them, and tensors.
    inputs, outputs
        Names of tensors; "" for one that is left out.
    known
        Values of settings that are constant, by position among the inputs (see `operator`).
    trains
        Whether it computes something else in training, if the operator does.
    """

    op: str
    version: int
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    known: Mapping[int, Any]
    trains: bool = True

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute, or what it is where the node does not have it."""
        return self.attributes.get(key, default)

    def given(self, position: int) -> bool:
        """Tell whether the node has an input at a position."""
        return position < len(self.inputs) and bool(self.inputs[position])

    def number(self, position: int, value: Tensor) -> Any:
        """Return the one number of an input."""
        (number,) = self.numbers(position, value)
        return number

    def numbers(self, position: int, value: Tensor) -> list[Any]:
        """Return the numbers of an input that is a setting."""
        found = self.known[position] if position in self.known else value.tolist()
        return found if isinstance(found, list) else [found]

    def axes(self, position: int, value: Tensor | None) -> list[int] | None:
        """Return axes, which older versions have in an attribute and newer ones in an input."""
        return self.get("axes") if value is None else self.numbers(position, value)


#: Computes a node from its inputs; None stands for one that is left out.
Operator = Callable[..., Result]
#: Returns what a node has that its function cannot compute, in words; None if there is nothing.
Check = Callable[[Call], "str | None"]

OPERATORS: dict[str, Operator] = {}
CHECKS: dict[str, Check] = {}
#: Operators that compute something else in training; they take one more argument, `training`.
TRAINED: set[str] = set()
#: Positions of inputs that are read as numbers, not computed with: shapes, axes, scales.
SETTINGS: dict[str, tuple[int, ...]] = {}


def operator(
    *names: str, settings: tuple[int, ...] = (), trained: bool = False, check: Check | None = None
) -> Callable[[Operator], Operator]:
    """Enter a function under the names of operators.

    Parameters
    ----------
    names
        Of operators.
    settings
        Positions of the inputs that it reads by `Call.numbers`: where these are constant, they
        stay on the host, so that reading them does not wait for a device.
    trained
        Whether it takes one more argument, `training`.
    check
        Tells what it cannot compute.
    """

    def enter(function: Operator) -> Operator:
        for name in names:
            OPERATORS[name] = function
            SETTINGS[name] = settings
            if trained:
                TRAINED.add(name)
            if check is not None:
                CHECKS[name] = check
        return function

    return enter


def problem(call: Call) -> str | None:
    """Return why a node cannot be computed in PyTorch, in words; None if it can."""
    if call.op not in OPERATORS:
        return f"operator {call.op} has no counterpart here"
    check = CHECKS.get(call.op)
    found = None if check is None else check(call)
    return None if found is None else f"operator {call.op} is refused where {found}"


def compute(
    call: Call, inputs: list[Tensor | None], *, training: bool, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Compute a node; what it makes of whole numbers alone gets the network's `dtype`."""
    function = OPERATORS[call.op]
    more = {"training": training and call.trains} if call.op in TRAINED else {}
    result = function(call, *inputs, **more)
    outputs = (result,) if isinstance(result, Tensor) else result
    if any(x is not None and x.is_floating_point() for x in inputs):
        return outputs
    return tuple(y.to(dtype) if y.is_floating_point() else y for y in outputs)


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Bring tensors to one device: what is on the host goes where the others are."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) == 1:
        return tensors
    there = next(device for device in devices if device.type != "cpu")
    return tuple(tensor.to(there) for tensor in tensors)


def positive(axis: int, rank: int) -> int:
    """Return an axis counted from the front."""
    return axis + rank if axis < 0 else axis


def host(values: list[int]) -> Tensor:
    """Return whole numbers as a tensor on the host, where shapes are."""
    return torch.tensor(values, dtype=torch.int64)
