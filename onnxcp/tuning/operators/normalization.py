"""Normalisation, by statistics that are kept or that are of the input."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxcp.tuning.operators.registry import Call, operator, positive


def _plain_norm(call: Call) -> str | None:
    if not call.get("spatial", 1):
        return "its statistics are of single pixels"
    if call.get("training_mode", 0) or any(call.outputs[1:]):
        return "it puts out the statistics of a batch"
    return None


@operator("BatchNormalization", trained=True, check=_plain_norm)
def batch_norm(
    call: Call,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    training: bool,
) -> Tensor:
    """Normalise by the statistics kept, or in training by those of the batch, and move those."""
    epsilon = call.get("epsilon", 1e-5)
    if not training:
        kept = mean.detach(), variance.detach()
        return F.batch_norm(x, *kept, scale, bias, False, 0.0, epsilon)
    # Those of this batch alone, to be moved by: ONNX keeps the variance of the batch itself, where
    # PyTorch keeps its estimate of that of all, n / (n - 1) as large.
    of_batch = torch.zeros_like(mean), torch.ones_like(variance)
    result = F.batch_norm(x, *of_batch, scale, bias, True, 1.0, epsilon)
    count = prod(x.shape) // x.shape[1]
    share = 1 - call.get("momentum", 0.9)
    with torch.no_grad():
        mean.lerp_(of_batch[0], share)
        variance.lerp_(of_batch[1] * ((count - 1) / count), share)
    return result


@operator("InstanceNormalization")
def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalise every channel of every sample."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


def _one_output(call: Call) -> str | None:
    return "it puts out its statistics" if any(call.outputs[1:]) else None


@operator("LayerNormalization", check=_one_output)
def layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Normalise over all axes from one on."""
    axes = x.shape[positive(call.get("axis", -1), x.ndim) :]
    values = F.layer_norm(x, axes, eps=call.get("epsilon", 1e-5)) * scale
    return values if bias is None else values + bias


@operator("GroupNormalization")
def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalise groups of channels; before version 21 scales are those of groups."""
    each = x.shape[1] // len(scale)
    scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return F.group_norm(x, call.get("num_groups"), scale, bias, call.get("epsilon", 1e-5))


@operator("LRN")
def local_response_norm(call: Call, x: Tensor) -> Tensor:
    """Normalise by neighbouring channels."""
    size = call.get("size")
    squares = x.square().reshape(len(x), 1, x.shape[1], -1)
    squares = F.pad(squares, (0, 0, (size - 1) // 2, size // 2))
    means = F.avg_pool2d(squares, (size, 1), stride=1).reshape(x.shape)
    alpha: float = call.get("alpha", 1e-4)
    beta: float = call.get("beta", 0.75)
    return x / torch.pow(alpha * means + call.get("bias", 1.0), beta)


@operator("LpNormalization")
def lp_norm(call: Call, x: Tensor) -> Tensor:
    """Divide by the norm along an axis."""
    axis = call.get("axis", -1)
    norm: Tensor = torch.linalg.vector_norm(x, call.get("p", 2), dim=axis, keepdim=True)
    return x / norm.clamp_min(torch.finfo(x.dtype).tiny)


@operator("MeanVarianceNormalization")
def mean_variance_norm(call: Call, x: Tensor) -> Tensor:
    """Bring to mean 0 and variance 1 over axes."""
    axes = tuple(call.get("axes", (0, 2, 3)))
    centred = x - x.mean(dim=axes, keepdim=True)
    deviation: Tensor = centred.square().mean(dim=axes, keepdim=True).sqrt()
    return centred / (deviation + 1e-9)
