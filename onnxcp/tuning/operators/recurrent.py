"""LSTM and GRU, step by step: networks of convolutions that have one have a short one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from onnxcp.tuning.operators.registry import Call, operator

State: TypeAlias = tuple[Tensor, ...]
Advance: TypeAlias = Callable[..., State]
"""Given the number of a step and the state before it, returns that after it; output first."""

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

    def direction(number: int) -> Advance:
        given = _with_bias(x @ weight[number].T, bias, number)

        def advance(step: int, h: Tensor, c: Tensor) -> State:
            i, o, f, g = (given[step] + h @ recurrence[number].T).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c

        return advance

    return _run(call, x, recurrence, (hidden, cell), direction)


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

    def direction(number: int) -> Advance:
        w, r = weight[number], recurrence[number]
        both = x.new_zeros(6 * size) if bias is None else bias[number]
        given, inner = x @ w.T + both[: 3 * size], both[3 * size :]

        def advance(step: int, h: Tensor) -> State:
            gates = given[step][:, : 2 * size] + h @ r[: 2 * size].T + inner[: 2 * size]
            update, reset = torch.sigmoid(gates).chunk(2, dim=-1)
            if call.get("linear_before_reset", 0):
                recalled = reset * (h @ r[2 * size :].T + inner[2 * size :])
            else:
                recalled = (reset * h) @ r[2 * size :].T + inner[2 * size :]
            new = torch.tanh(given[step][:, 2 * size :] + recalled)
            return ((1 - update) * new + update * h,)

        return advance

    return _run(call, x, recurrence, (hidden,), direction)


def _run(
    call: Call,
    x: Tensor,
    recurrence: Tensor,
    starts: Sequence[Tensor | None],
    direction: Callable[[int], Advance],
) -> tuple[Tensor, ...]:
    """Go through the steps of `x` in every direction; return all outputs and the last states."""
    outputs, lasts = [], []
    for number, order in enumerate(_orders(call, len(x))):
        state = tuple(_state(call, start, number, x, recurrence) for start in starts)
        advance, made = direction(number), {}
        for step in order:
            state = advance(step, *state)
            made[step] = state[0]
        outputs.append(torch.stack([made[step] for step in range(len(x))]))
        lasts.append(state)
    # (steps, directions, samples, size), and of each state (directions, samples, size).
    whole, last = torch.stack(outputs, dim=1), [torch.stack(s) for s in zip(*lasts, strict=True)]
    if not call.get("layout", 0):
        return whole, *last
    return whole.permute(2, 0, 1, 3), *(each.transpose(0, 1) for each in last)


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
