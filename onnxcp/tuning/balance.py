"""Factors of one layer brought to one size, which changes nothing that the layer computes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from onnxcp.graph.origins import Origin
from onnxcp.tuning.module import OnnxModule, escaped
from onnxcp.tuning.operators import Call

_SWEEPS = 50


def balance(module: OnnxModule, known: Sequence[Origin]) -> None:
    """Share the norms of a chain's factors out, channel by channel between its steps.

    What a step makes of a channel can be larger by a number if the next step makes less of it:
    nothing stands in between. The product is the same, but its gradient is not: that of a small
    factor is large where the others are large (Lebedev et al. 2015 put the whole weight into one
    factor, and found no rate to train at; Phan et al. 2020, section 4: equal norms). Chains are
    left alone where anything else reads a factor or what is in between.

    Parameters
    ----------
    module
        The network; its parameters are changed.
    known
        Which of its weights are factors.
    """
    for origin in known:
        calls = _chain(module, origin)
        if calls is not None:
            weights = [getattr(module, escaped(name)) for name in origin.factors]
            with torch.no_grad():
                _even_out(
                    [_grouped(*each) for each in zip(calls, origin.factors, weights, strict=True)]
                )


def _chain(module: OnnxModule, origin: Origin) -> list[Call] | None:
    """Return the nodes of a chain in their order, or None if it is not one in a row any more."""
    places = dict(module.named_parameters())
    found: list[Call] = []
    for name in origin.factors:
        readers = [call for call in module.calls if name in call.inputs]
        if len(readers) != 1 or escaped(name) not in places:
            return None
        if readers[0].op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return None
        found += readers
    for one, other in pairwise(found):
        readers = [call for call in module.calls if one.outputs[0] in call.inputs]
        if [id(each) for each in readers] != [id(other)] or one.given(2):
            return None
    return found


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
