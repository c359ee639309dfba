"""Kernels of several layers as a common tensor train plus a small one of each layer.

Sun, Chen, Huang, So & Xie, "Deep convolutional neural network compression via coupled tensor
decomposition" (IEEE JSTSP 15(3), 2021). A kernel is taken as a third-order tensor, input channels
times kernel positions times output channels, and a tensor train of such a tensor is a Tucker-2
decomposition, ``D[t, s, k] = sum_pq V[t, q] F[q, p, k] U[s, p]``. For N layers of one shape, *fully
coupled* (equation 8)::

    W_n ~ C + D_n,      min  1/N sum_n || W_n - C - D_n ||²        (9, alpha = 0)

with C and every D_n such trains, by turns (10 to 17)::

    D_n <- train of W_n - C
    C   <- train of 1/N sum_n (W_n - D_n)

For layers that differ in their input channels, *partially coupled*: ``C_n = V F U_n`` has an input
factor of its own, and V and F in common (21 to 26). Stacked along the input channels, the ``C_n``
are one tensor ``C`` of ``sum_n S_n`` input channels, and ``U`` the stack of the ``U_n``::

    C   <- train of [W_1 - D_1; W_2 - D_2; ...]

The axes of a kernel are moved, never reshaped across each other: stacking and unfolding a kernel
stored as (height, width, in, out) without its transpose mixes channels with positions, and a kernel
of exactly low rank is not found any more.

Each update is an orthogonal iteration, which is no worse than the truncated SVDs and the least-
squares sweeps of the paper; one that would raise the objective is not taken, so that it never
rises.

In the norm of the data, ``tr K G_n K'`` for input patches of covariance G_n, metrics are taken to
be separable, ``G_n ~ R_n x M`` (`onnxcp.linalg.metric`), R_n of the input channels of a layer and M
of kernel positions, one for all. Kernels are multiplied by their roots first. What fully coupled
layers share is then fitted in the metric ``R = sum_n w_n R_n``, to the mean
``(sum_n w_n (W_n - D_n) R_n) R^-1`` that takes the place of (15).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxcp.linalg import checks
from onnxcp.linalg.metric import Whitening, square_roots
from onnxcp.linalg.multilinear import Product
from onnxcp.linalg.tucker import feasible_ranks, tucker2, tucker2_kernel

Kernel = NDArray[np.float64]
Pair = tuple[int, int]

_SWEEPS = 40  # turns; the paper takes 10, of as many updates each as they need
_FIRST = 3  # sweeps of the iteration at first
_AXES = "ijk"


@dataclass(frozen=True, eq=False)
class Train:
    """A kernel ``V F U``, ``(T, S, *k)``.

    Attributes
    ----------
    first : (S, p) ndarray
        U, of the input channels.
    core : (q, p, *k) ndarray
        F.
    last : (T, q) ndarray
        V, of the output channels.
    """

    first: Kernel
    core: Kernel
    last: Kernel

    @property
    def kernel(self) -> Kernel:
        """The kernel multiplied out."""
        return tucker2_kernel(self.first, self.core, self.last)


@dataclass(frozen=True, eq=False)
class Coupled:
    """What several kernels share, and what each has for itself.

    Attributes
    ----------
    common
        For every layer its ``C_n``: one and the same where fully coupled, else with one `core` and
        one `last`.
    independent
        For every layer its ``D_n``.
    errors
        ``sum_n w_n ||W_n - C_n - D_n||² / sum_n w_n ||W_n||²`` at the start and after each turn.
    """

    common: tuple[Train, ...]
    independent: tuple[Train, ...]
    errors: tuple[float, ...]

    @property
    def kernels(self) -> list[Kernel]:
        """``C_n + D_n``."""
        pairs = zip(self.common, self.independent, strict=True)
        return [common.kernel + own.kernel for common, own in pairs]


def coupled_tensor_train(
    kernels: Sequence[ArrayLike],
    common: Pair,
    independent: Pair,
    *,
    partial: bool = False,
    weights: Sequence[float] | None = None,
    grams: Sequence[NDArray[np.floating]] | None = None,
    sweeps: int = _SWEEPS,
    tol: float = 1e-4,
) -> Coupled:
    """Approximate kernels by a common tensor train and small ones of their own.

    Parameters
    ----------
    kernels : sequence of (T, S_n, *k) array_like
        Two at least. All S_n are the same unless `partial`.
    common
        Ranks ``(p, q)`` of the input and the output channels of what is shared; at most what there
        can be.
    independent
        Likewise of what is not.
    partial
        Whether every layer has an input factor of its own in what is shared.
    weights
        What the squared error of each kernel counts; by default all the same.
    grams : sequence of (P_n, P_n) ndarray, optional
        For each kernel, the covariance of its input patches, ``P_n = S_n prod(k)``; by default
        errors are those of the weights.
    sweeps
        Turns at most.
    tol
        Stop when a turn gains less than this share of what the kernels amount to.

    Raises
    ------
    ValueError
        If there are fewer than two kernels, their shapes do not go together, a kernel is empty, not
        finite or not floating point, or a rank is below 1.
    """
    targets = [checks.float64(f"kernels[{n}]", each, 2) for n, each in enumerate(kernels)]
    check_shapes([each.shape for each in targets], partial=partial)
    counts = np.ones(len(targets)) if weights is None else np.asarray(weights, np.float64)
    roots = _roots(targets, grams)
    targets = [each.whiten(target) for each, target in zip(roots, targets, strict=True)]
    power = _loss(targets, counts) or 1.0
    model = (_Partial if partial else _Full)(targets, counts, common, roots)
    own = [_nothing(each, independent) for each in targets]
    shared = model.fitted(own)
    errors = [_loss(_rests(targets, shared, own), counts) / power]
    for turn in range(checks.integer("sweeps", sweeps, 0)):
        own = [
            _better(target - base.kernel, before if turn else None, independent)
            for target, base, before in zip(targets, shared, own, strict=True)
        ]
        shared = model.fitted(own)
        errors.append(_loss(_rests(targets, shared, own), counts) / power)
        if errors[-2] - errors[-1] <= tol * errors[-2]:
            break
    own = [_undone(*pair) for pair in zip(roots, own, strict=True)]
    return Coupled(tuple(model.common()), tuple(own), tuple(errors))


def check_shapes(shapes: Sequence[tuple[int, ...]], *, partial: bool) -> None:
    """Fail if kernels of these shapes cannot be coupled.

    Raises
    ------
    ValueError
        If there are fewer than two, or they differ in what they would share.
    """
    if len(shapes) < 2:
        raise ValueError(f"{len(shapes)} kernels cannot be coupled; two at least are needed")
    same = {shape[:1] + shape[2:] if partial else shape for shape in shapes}
    if len(same) > 1:
        what = "output channels and spatial axes" if partial else "shapes"
        listed = ", ".join(map(str, shapes))
        raise ValueError(f"the {what} of coupled kernels must be the same; given are {listed}")


def _roots(
    kernels: Sequence[Kernel], grams: Sequence[NDArray[np.floating]] | None
) -> list[Whitening]:
    """Return the roots of the metric of every kernel, by their groups of axes; none without data.

    A metric of kernel positions is the mean over layers of what each has, at a trace of one.
    """
    axes = _AXES[: kernels[0].ndim - 2]
    product = Product(("tq", f"qp{axes}", "ps"), f"ts{axes}")
    if grams is None:
        return [Whitening(product, {})] * len(kernels)
    pairs = zip(kernels, grams, strict=True)
    each = [Whitening.of(product, gram, kernel.shape).roots for kernel, gram in pairs]
    squares = [own[axes][0] @ own[axes][0] for own in each]
    places = square_roots(sum(square / np.trace(square) for square in squares))
    return [Whitening(product, {axes: places, "s": own["s"]}) for own in each]


def _undone(roots: Whitening, train: Train) -> Train:
    last, core, first = roots.undo((train.last, train.core, train.first.T))
    return Train(np.ascontiguousarray(first.T), core, last)


class _Full:
    """Sharing all of a train: it is fitted to the mean of what it is to stand for."""

    def __init__(
        self, targets: Sequence[Kernel], weights: Kernel, ranks: Pair, roots: Sequence[Whitening]
    ) -> None:
        self._targets = targets
        self._weights = weights / weights.sum()
        self._ranks = ranks
        # From the coordinates of every layer's metric to those of the mean metric.
        self._turns = [np.eye(each.shape[1]) for each in targets]
        self._mean = roots[0]
        if roots[0].roots:
            own = [each.roots["s"][0] for each in roots]
            pooled = sum(w * root @ root for w, root in zip(self._weights, own, strict=True))
            mean = square_roots(np.asarray(pooled))
            self._turns = [mean[1] @ root for root in own]
            self._mean = Whitening(roots[0].product, {**roots[0].roots, "s": mean})
        self._best: Train | None = None

    def fitted(self, own: Sequence[Train]) -> list[Train]:
        """Fit what is shared, given all the rest; return it as every layer sees it."""
        rests = _rests(self._targets, own)
        parts = zip(self._weights, self._turns, rests, strict=True)
        target = sum(w * np.einsum("us,ts...->tu...", turn, rest) for w, turn, rest in parts)
        best = self._best = _better(np.asarray(target), self._best, self._ranks)
        return [Train(turn.T @ best.first, best.core, best.last) for turn in self._turns]

    def common(self) -> list[Train]:
        """Return what is shared, without the metric: the very same for all."""
        assert self._best is not None
        return [_undone(self._mean, self._best)] * len(self._targets)


class _Partial:
    """Sharing core and output factor: fitted to the stack of what they are to stand for."""

    def __init__(
        self, targets: Sequence[Kernel], weights: Kernel, ranks: Pair, roots: Sequence[Whitening]
    ) -> None:
        self._targets = targets
        self._scales = np.sqrt(weights)
        self._ranks = ranks
        self._roots = roots
        self._ends = np.cumsum([each.shape[1] for each in targets])[:-1]
        self._best: Train | None = None

    def fitted(self, own: Sequence[Train]) -> list[Train]:
        """Fit what is shared, and its input factors; return it as every layer sees it."""
        rests = zip(self._scales, _rests(self._targets, own), strict=True)
        stack = np.concatenate([scale * rest for scale, rest in rests], axis=1)
        best = self._best = _better(stack, self._best, self._ranks)
        firsts = zip(np.split(best.first, self._ends), self._scales, strict=True)
        return [Train(first / scale, best.core, best.last) for first, scale in firsts]

    def common(self) -> list[Train]:
        """Return what is shared, without the metric: core and output factor the very same."""
        assert self._best is not None
        firsts = zip(np.split(self._best.first, self._ends), self._scales, strict=True)
        seen = [Train(first / scale, self._best.core, self._best.last) for first, scale in firsts]
        undone = [_undone(*pair) for pair in zip(self._roots, seen, strict=True)]
        return [Train(each.first, undone[0].core, undone[0].last) for each in undone]


def _better(target: Kernel, before: Train | None, ranks: Pair) -> Train:
    """Return a train of a kernel, unless the one that there was is closer.

    It starts at the one that there was, a sweep for each turn: the kernel hardly moves by then.
    """
    wanted = feasible_ranks(target.shape, ranks)
    if before is None:
        found = Train(*tucker2(target, wanted, sweeps=_FIRST))
    else:
        found = Train(*tucker2(target, wanted, sweeps=1, start=before.first))
    if before is None or _distance(target, found) <= _distance(target, before):
        return found
    return before


def _distance(target: Kernel, train: Train) -> float:
    return float(np.linalg.norm(target - train.kernel))


def _nothing(target: Kernel, ranks: Pair) -> Train:
    p, q = feasible_ranks(target.shape, ranks)
    outputs, inputs, *spatial = target.shape
    return Train(np.zeros((inputs, p)), np.zeros((q, p, *spatial)), np.zeros((outputs, q)))


def _rests(targets: Sequence[Kernel], *parts: Sequence[Train]) -> list[Kernel]:
    return [t - sum(each.kernel for each in own) for t, *own in zip(targets, *parts, strict=True)]


def _loss(rests: Sequence[Kernel], weights: Kernel) -> float:
    return float(sum(w * np.vdot(r, r) for w, r in zip(weights, rests, strict=True)))
