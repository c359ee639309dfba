"""The statistics of BatchNormalization taken anew, from what a rewritten network delivers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from onnxcp.tuning.module import OnnxModule, escaped


def recalibrate(module: OnnxModule, batches: Iterable[dict[str, Tensor]]) -> bool:
    """Set running means and variances to those of some batches; return whether there are any.

    A normalisation moves its statistics by a share 1 - m of those of a batch. From zero on, n
    batches make a weighted mean whose weights add up to 1 - mⁿ, by which it is divided.

    Parameters
    ----------
    module
        The network; its statistics are changed.
    batches
        Inputs by name.
    """
    norms = [call for call in module.calls if call.op == "BatchNormalization" and call.trains]
    buffers = dict(module.named_buffers())
    momentum = {
        escaped(name): call.get("momentum", 0.9)
        for call in norms
        for name in call.inputs[3:5]
        if escaped(name) in buffers
    }
    if not momentum:
        return False
    times = Counter(escaped(name) for call in norms for name in call.inputs[3:5])
    for place in momentum:
        buffers[place].zero_()
    twin = copy.copy(module)  # of the same tensors
    # Nothing else is to behave as in training.
    twin.calls = tuple(replace(c, trains=c.trains and c in norms) for c in module.calls)
    twin.training = True
    count = 0
    with torch.no_grad():
        for batch in batches:
            twin(**batch)
            count += 1
    for place, kept in momentum.items():
        buffers[place].div_(1 - kept ** (count * times[place]))
    return True
