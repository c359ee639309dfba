"""LSTM and GRU, step by step: networks of convolutions that have one have a short one."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxcp.tuning.operators.registry import Call, operator

_LSTM, _GRU = ["sigmoid", "tanh", "tanh"], ["sigmoid", "tanh"]


def _plain(call: Call) -> str | None:
    expected = _LSTM if call.op == "LSTM" else _GRU
    names = [name.lower() for name in call.get("activations") or []]
    if any(name != expected[n % len(expected)] for n, name in enumerate(names)):
        return "its activations are not the usual ones"
    if call.get("clip") is not None or call.get("input_forget", 0):
        return "it cuts off or couples its gates"
    if call.given(4):
        return "its samples have lengths of their own"
    if call.given(7):
        return "its gates look at the state of the cell"
    return None


@operator("LSTM", check=_plain)
def lstm(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run a long short-term memory; gates in the order of ONNX: input, output, forget, cell."""
    del lengths
    x = x.transpose(0, 1) if call.get("layout", 0) else x
    outputs, hiddens, cells = [], [], []
    for number, order in enumerate(_orders(call, len(x))):
        h = _state(call, hidden, number, x, recurrence)
        c = _state(call, cell, number, x, recurrence)
        steps = {}
        given = _with_bias(x @ weight[number].T, bias, number)
        for step in order:
            gates = given[step] + h @ recurrence[number].T
            i, o, f, g = gates.chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            steps[step] = h
        outputs.append(torch.stack([steps[step] for step in range(len(x))]))
        hiddens.append(h)
        cells.append(c)
    return _arranged(call, outputs, hiddens, cells)


@operator("GRU", check=_plain)
def gru(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run gated recurrent units; gates in the order of ONNX: update, reset, hidden."""
    del lengths
    x = x.transpose(0, 1) if call.get("layout", 0) else x
    size = recurrence.shape[-1]
    outputs, hiddens = [], []
    for number, order in enumerate(_orders(call, len(x))):
        h = _state(call, hidden, number, x, recurrence)
        w, r = weight[number], recurrence[number]
        both = x.new_zeros(6 * size) if bias is None else bias[number]
        given = x @ w.T + both[: 3 * size]
        inner = both[3 * size :]
        steps = {}
        for step in order:
            gates = given[step][:, : 2 * size] + h @ r[: 2 * size].T + inner[: 2 * size]
            update, reset = torch.sigmoid(gates).chunk(2, dim=-1)
            if call.get("linear_before_reset", 0):
                recalled = reset * (h @ r[2 * size :].T + inner[2 * size :])
            else:
                recalled = (reset * h) @ r[2 * size :].T + inner[2 * size :]
            h = (1 - update) * torch.tanh(given[step][:, 2 * size :] + recalled) + update * h
            steps[step] = h
        outputs.append(torch.stack([steps[step] for step in range(len(x))]))
        hiddens.append(h)
    return _arranged(call, outputs, hiddens)


def _orders(call: Call, length: int) -> list[range]:
    forward, backward = range(length), range(length - 1, -1, -1)
    direction = call.get("direction", "forward")
    return {
        "forward": [forward],
        "reverse": [backward],
        "bidirectional": [forward, backward],
    }[direction]


def _state(call: Call, start: Tensor | None, number: int, x: Tensor, recurrence: Tensor) -> Tensor:
    if start is None:
        return x.new_zeros(x.shape[1], recurrence.shape[-1])
    return start[:, number] if call.get("layout", 0) else start[number]


def _with_bias(values: Tensor, bias: Tensor | None, number: int) -> Tensor:
    if bias is None:
        return values
    given, inner = bias[number].chunk(2)
    return values + given + inner


def _arranged(call: Call, outputs: list[Tensor], *states: list[Tensor]) -> tuple[Tensor, ...]:
    """Return all outputs (steps, directions, samples, size), and the last states."""
    whole, last = torch.stack(outputs, dim=1), [torch.stack(each) for each in states]
    if not call.get("layout", 0):
        return whole, *last
    return whole.permute(2, 0, 1, 3), *(each.transpose(0, 1) for each in last)
