"""An ONNX graph as a module of PyTorch, computed node by node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from onnxcp.graph.model import Model
from onnxcp.graph.view import GraphView
from onnxcp.graph.walk import attributes
from onnxcp.tuning.operators import SETTINGS, Call, compute
from onnxcp.tuning.weights import find_weights, has_own_statistics


class OnnxModule(nn.Module):
    """A network that PyTorch computes node by node; made by `onnxcp.tuning.to_torch`.

    Call it with the inputs of the network in their order, or by name; it returns its outputs, as
    a tuple if there are several.

    Attributes
    ----------
    input_names, output_names
        In the order of the network.
    calls
        Its nodes in their order, but for constants.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    _places: dict[str, str]
    _constants: dict[str, Tensor]
    calls: tuple[Call, ...]
    _finished: tuple[tuple[str, ...], ...]

    def __init__(self, model: Model) -> None:
        super().__init__()
        graph = model.proto.graph
        view = GraphView(graph)
        self.input_names = tuple(i.name for i in graph.input if i.name not in view.initializers)
        self.output_names = tuple(output.name for output in graph.output)
        weights = find_weights(view)
        for name, value in weights.parameters.items():
            tensor = torch.from_numpy(value.astype(weights.dtype))
            self.register_parameter(escaped(name), nn.Parameter(tensor))
        for name, value in weights.buffers.items():
            self.register_buffer(escaped(name), torch.from_numpy(value.astype(weights.dtype)))
        self._places = {n: escaped(n) for n in (*weights.parameters, *weights.buffers)}
        self._constants = {name: on_host(value) for name, value in weights.constants.items()}
        nodes = [node for node in graph.node if node.op_type != "Constant"]
        self.calls = tuple(
            call_of(
                node,
                model.opset,
                self._constants,
                trains=node.op_type != "BatchNormalization" or has_own_statistics(view, node),
            )
            for node in nodes
        )
        self._finished = _last_uses(self.calls, self.output_names)

    def forward(self, *args: Tensor, **named: Tensor) -> Any:
        """Compute the outputs from the inputs, given in order or by name."""
        values: dict[str, Tensor] = {n: getattr(self, place) for n, place in self._places.items()}
        dtype = next((value.dtype for value in values.values()), torch.float32)
        values |= self._constants
        values |= self._inputs(args, named, dtype)
        for call, finished in zip(self.calls, self._finished, strict=True):
            inputs = [values[name] if name else None for name in call.inputs]
            outputs = compute(call, inputs, training=self.training, dtype=dtype)
            values.update(zip(call.outputs, outputs, strict=False))
            for name in finished:
                values.pop(name, None)
        found = tuple(values[name] for name in self.output_names)
        return found[0] if len(found) == 1 else found

    def _inputs(
        self, args: tuple[Tensor, ...], named: Mapping[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return the inputs by name, those of floating point in the type of the weights."""
        given = dict(zip(self.input_names, args, strict=False)) | dict(named)
        if len(args) + len(named) != len(self.input_names) or set(given) != set(self.input_names):
            raise TypeError(
                f"The network takes {', '.join(self.input_names) or 'no inputs'}; given were"
                f" {len(args)} in order and {', '.join(named) or 'none'} by name."
            )
        return {n: x.to(dtype) if x.is_floating_point() else x for n, x in given.items()}

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters and buffers under the names that they have in the ONNX model."""
        for place, tensor in self.state_dict().items():
            yield unescaped(place), tensor

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take values by the names that `named_tensors` gives, all of them."""
        self.load_state_dict({escaped(name): tensor for name, tensor in tensors.items()})


def escaped(name: str) -> str:
    """Return the name of a tensor as a module can have it; `unescaped` undoes it.

    A dot, which would part modules, and "%" itself become "%2E" and "%25"; so does the first
    letter of a name that a module has for something else, such as "forward".
    """
    legal = name.replace("%", "%25").replace(".", "%2E")
    return f"%{ord(legal[0]):02X}{legal[1:]}" if legal in _TAKEN else legal


def unescaped(name: str) -> str:
    """Return the name that `escaped` was given."""
    return unquote(name)


def call_of(
    node: onnx.NodeProto, version: int, constants: Mapping[str, Tensor], *, trains: bool = True
) -> Call:
    """Return a node without a trace of protobuf."""
    positions = (n for n in SETTINGS.get(node.op_type, ()) if n < len(node.input))
    return Call(
        op=node.op_type,
        version=version,
        attributes={key: _plain(value) for key, value in attributes(node).items()},
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        known={
            n: constants[node.input[n]].tolist() for n in positions if node.input[n] in constants
        },
        trains=trains,
    )


def on_host(value: npt.NDArray[Any]) -> Tensor:
    """Return a constant as a tensor that stays where shapes are; half precision becomes single."""
    whole = value.dtype.kind in "biu" or value.dtype == np.float64
    return torch.from_numpy(np.array(value if whole else value.astype(np.float32)))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return on_host(onnx.numpy_helper.to_array(value))
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _last_uses(calls: tuple[Call, ...], outputs: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return, for each call, the tensors that nothing after it reads: memory is given back."""
    needed = set(outputs)
    found = []
    for call in reversed(calls):
        names = {*call.inputs, *call.outputs}
        found.append(tuple(sorted(names - needed)))
        needed |= names - {""}
    return tuple(reversed(found))


_TAKEN = frozenset(dir(nn.Module())).union(dir(OnnxModule), OnnxModule.__annotations__)
