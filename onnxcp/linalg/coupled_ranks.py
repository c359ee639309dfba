"""How many weights of coupled kernels to share: the split with the least error at their number.

Of a number of weights for all layers together, a share goes to what is common, the rest to what
each layer has for itself; the ranks follow, and of several shares that with the least error is
taken. Sharing more gives the common part higher ranks at the expense of all the others: what pays
depends on how alike the kernels are, and on how many there are (Sun et al. 2021 choose by hand, and
find about 1/3 to 1/2 of the ranks in common best).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxcp.linalg.coupled_tensor_train import Coupled, Pair, check_shapes, coupled_tensor_train
from onnxcp.linalg.tucker import feasible_ranks

Shape = tuple[int, ...]

_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)  # of the weights for what is common, fully coupled
_PARTIAL_SHARES = (0.3, 0.5, 0.7, 0.85)  # likewise, partially coupled,
_PARTIAL_OUTPUTS = (0.5, 0.75, 1.0)  # at these shares of the output channels
_TRIAL = 3  # turns to compare splits by


def train_parameters(shape: Shape, ranks: Pair) -> int:
    """Return the weights of a train of a kernel ``(T, S, *k)``: ``S p + prod(k) p q + q T``."""
    outputs, inputs, *spatial = shape
    p, q = feasible_ranks(shape, ranks)
    return inputs * p + prod(spatial) * p * q + q * outputs


def coupled_parameters(
    shapes: Sequence[Shape], common: Pair, independent: Pair, *, partial: bool
) -> int:
    """Return the weights of coupled kernels, those in common counted once (equations 19, 27)."""
    own = sum(train_parameters(shape, independent) for shape in shapes)
    return train_parameters(_joint(shapes, partial=partial), common) + own


def splits(shapes: Sequence[Shape], budget: float, *, partial: bool) -> Iterator[tuple[Pair, Pair]]:
    """Yield ranks of what is common and what is not, of at most so many weights together.

    Ranks of a train are one share of its input and of its output channels; but where input factors
    are not shared, one share of the output channels and as many input ranks as are left.
    """
    joint = _joint(shapes, partial=partial)
    for share in _PARTIAL_SHARES if partial else _SHARES:
        for common in _common(joint, share * budget, partial=partial):
            left = budget - train_parameters(joint, common)
            independent = _largest(shapes, left)
            if independent is not None:
                yield common, independent


def fit_within(
    kernels: Sequence[ArrayLike],
    budget: float,
    *,
    partial: bool = False,
    weights: Sequence[float] | None = None,
    grams: Sequence[NDArray[np.floating]] | None = None,
) -> tuple[Coupled, Pair, Pair]:
    """Couple kernels at the split of a number of weights that has the least error.

    Parameters
    ----------
    kernels, partial, weights, grams
        As of `coupled_tensor_train`.
    budget
        Weights of all layers together at most.

    Returns
    -------
    coupled : Coupled
    common, independent : (int, int)
        The ranks of the split.

    Raises
    ------
    ValueError
        As `coupled_tensor_train`, or if even ranks of one have more weights.
    """
    shapes = [np.shape(each) for each in kernels]
    check_shapes(shapes, partial=partial)

    couple = functools.partial(
        coupled_tensor_train, kernels, partial=partial, weights=weights, grams=grams
    )

    tried = list(dict.fromkeys(splits(shapes, budget, partial=partial)))
    if not tried:
        least = coupled_parameters(shapes, (1, 1), (1, 1), partial=partial)
        if least > budget:
            raise ValueError(f"{budget:.0f} weights are too few; ranks of one have {least}")
        tried = [((1, 1), (1, 1))]
    best = min(tried, key=lambda ranks: couple(*ranks, sweeps=_TRIAL).errors[-1])
    return couple(*best), *best


def _joint(shapes: Sequence[Shape], *, partial: bool) -> Shape:
    """Return the shape of what stands for all kernels: of one, or of their stack."""
    outputs, inputs, *spatial = shapes[0]
    return (outputs, sum(each[1] for each in shapes) if partial else inputs, *spatial)


def _common(joint: Shape, budget: float, *, partial: bool) -> list[Pair]:
    if not partial:
        found = _largest([joint], budget)
        return [] if found is None else [found]
    outputs, inputs, *spatial = joint
    widths = dict.fromkeys(max(1, round(share * outputs)) for share in _PARTIAL_OUTPUTS)
    pairs = []
    for q in widths:
        p = int((budget - q * outputs) // (inputs + prod(spatial) * q))
        if p >= 1:
            pairs.append(feasible_ranks(joint, (p, q)))
    return pairs


def _largest(shapes: Sequence[Shape], budget: float) -> Pair | None:
    """Return the largest ranks at which trains of some kernels have so many weights at most."""
    outputs, inputs = shapes[0][0], max(each[1] for each in shapes)
    best = None
    steps = max(outputs, inputs)
    for step in range(1, steps + 1):
        ranks = max(1, step * inputs // steps), max(1, step * outputs // steps)
        if sum(train_parameters(each, ranks) for each in shapes) > budget:
            break
        best = ranks
    return best
