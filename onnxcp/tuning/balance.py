"""Factors of one layer brought to one size, which changes nothing that the layer computes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from onnxcp.graph.origins import Origin
from onnxcp.tuning.module import OnnxModule, escaped
from onnxcp.tuning.operators import Call

_SWEEPS = 50
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def balance(module: OnnxModule, known: Sequence[Origin]) -> None:
    """Share the norms of a chain's factors out, channel by channel between its steps.

    What a step makes of a channel can be larger by a number if the next step makes less of it:
    nothing stands in between. The product is the same, but its gradient is not: that of a small
    factor is large where the others are large (Lebedev et al. 2015 put the whole weight into one
    factor, and found no rate to train at; Phan et al. 2020, section 4: equal norms).

    A kernel that several nodes read becomes as many chains of the same factors, which have one
    scale. Chains are left alone where anything else reads a factor or what is in between, also if
    that is a chain of which only some factors are the same: what suits one would not suit both.

    Parameters
    ----------
    module
        The network; its parameters are changed.
    known
        Which of its weights are factors.
    """
    for factors in dict.fromkeys(origin.factors for origin in known):
        calls = _chain(module, factors)
        if calls is not None:
            weights = [getattr(module, escaped(name)) for name in factors]
            with torch.no_grad():
                _even_out([_grouped(*each) for each in zip(calls, factors, weights, strict=True)])


def _chain(module: OnnxModule, factors: Sequence[str]) -> list[Call] | None:
    """Return the nodes of one of the chains of some factors; None if not all are in a row."""
    places = dict(module.named_parameters())
    found: list[list[Call]] = []
    for name in factors:
        readers = [call for call in module.calls if name in call.inputs]
        uses = {_use(call, name) for call in readers}
        if len(uses) != 1 or escaped(name) not in places or readers[0].op not in _LINEAR:
            return None
        found.append(readers)
    for ones, others in pairwise(found):
        between = {one.outputs[0] for one in ones}
        readers = [c for c in module.calls for name in c.inputs if name in between]
        if [*map(id, readers)] != [*map(id, others)] or between & set(module.output_names):
            return None
        if any(one.given(2) for one in ones):
            return None
    return [readers[0] for readers in found]


def _use(call: Call, name: str) -> tuple[Any, ...]:
    """Return what a node takes a weight for: where it has inputs, outputs and groups."""
    return call.op, call.inputs.index(name), call.get("group", 1), call.get("transB", 0)


def _grouped(call: Call, name: str, weight: Tensor) -> Tensor:
    """Return a view of a weight as groups × outputs × inputs × the rest."""
    if call.op in ("Conv", "ConvTranspose"):
        group = call.get("group", 1)
        view = weight.view(group, len(weight) // group, weight.shape[1], -1)
        return view if call.op == "Conv" else view.transpose(1, 2)
    outputs_first = call.get("transB", 0) or call.inputs[0] == name
    matrix = weight if outputs_first else weight.T
    return matrix[None, :, :, None]


def _even_out(factors: Sequence[Tensor]) -> None:
    for _ in range(_SWEEPS):
        for one, other in pairwise(factors):
            made = one.square().sum(dim=(2, 3)).sqrt().reshape(-1)
            read = other.square().sum(dim=(1, 3)).sqrt().reshape(-1)
            known = (made > 0) & (read > 0)
            scale = torch.where(known, (read / made).sqrt(), 1.0)
            one.mul_(scale.reshape(*one.shape[:2], 1, 1))
            other.div_(scale.reshape(other.shape[0], 1, other.shape[2], 1))
