"""Tensor trains of a kernel: a chain of small kernels, one for each group of its axes.

The axes of a kernel stand in the order in which a chain moves over them, input channels first and
output channels last, and the spatial ones in between, merged (three cores) or one by one (one core
each; four for a 2-D kernel)::

    K[t, s, i, j] ≈ Σ_pqr G1[s, p] G2[p, i, q] G3[q, j, r] G4[r, t]

TT-SVD (Oseledets 2011, algorithm 1) cuts one SVD after the other and is within ``sqrt(cores - 1)``
of the best error; alternating least squares then solves for one core at a time with all others
orthogonal (Holtz, Rohwedder & Schneider 2012). Three cores are a Tucker-2 chain with the spatial
axes in the middle (Sun et al. 2021), which `onnxcp.linalg.tucker` fits by subspaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxcp.linalg import checks
from onnxcp.linalg.svd import singular_values, truncated_svd

Kernel = NDArray[np.float64]
Core = NDArray[np.float64]


def tensor_train(
    kernel: ArrayLike,
    ranks: Sequence[int],
    *,
    merged: bool = False,
    sweeps: int = 10,
    tol: float = 1e-5,
) -> tuple[Core, ...]:
    """Approximate a kernel by a tensor train.

    Minimises ``||K - train||_F`` by TT-SVD and alternation. Each step is exact, so the error never
    rises above that of TT-SVD. A sweep costs about ``4 R Π dim`` multiply-adds for ranks ``R`` at
    the ends.

    Parameters
    ----------
    kernel : (T, S, *k) array_like
        The kernel of one group, with one spatial axis or more.
    ranks : sequence of int
        Ranks between neighbouring cores, from the input channels on: one fewer than cores. What
        exceeds the sizes of an unfolding, or what a neighbour can feed, is cut off with a note.
    merged : bool
        Three cores, with all spatial axes in the middle, instead of one for each spatial axis.
    sweeps : int
        Most sweeps of alternation, there and back; 0 gives TT-SVD.
    tol : float
        Stop when a sweep gains less than this share of the kernel's energy.

    Returns
    -------
    tuple of (R_left, *k_n, R_right) ndarray
        The first is ``(S, R_1)``, the last ``(R, T)``, what is in between has its spatial axes.
        All but the last have orthonormal columns, so that all scale sits there.

    Raises
    ------
    ValueError
        If the kernel has no spatial axis, is empty, not finite or not floating point, a rank is
        below 1 or there are more or fewer than needed, or ``sweeps`` or ``tol`` is negative.
    """
    checked = checks.float64("kernel", kernel, 3)
    sweeps = checks.integer("sweeps", sweeps, 0)
    tol = checks.positive("tol", tol)
    scale = float(np.abs(checked).max()) or 1.0
    tensor = _in_order(checked / scale, merged)
    wanted = [checks.integer(f"ranks[{n}]", rank, 1) for n, rank in enumerate(ranks)]
    if len(wanted) != tensor.ndim - 1:
        raise ValueError(f"ranks is {tuple(ranks)!r}; {tensor.ndim - 1} ranks are needed")
    dims = (tensor.shape[-1], *tensor.shape[:-1])
    full = feasible_ranks(dims, wanted)
    used = [checks.at_most(f"ranks[{n}]", r, full[n]) for n, r in enumerate(wanted)]

    cores = _tt_svd(tensor, used)
    total = float(np.vdot(tensor, tensor))
    kept = float(np.vdot(cores[-1], cores[-1]))
    for _ in range(sweeps):
        cores = _there_and_back(tensor, cores)
        before, kept = kept, float(np.vdot(cores[-1], cores[-1]))
        if kept - before <= tol * total:
            break
    first, *middle, last = cores
    if merged:
        (core,) = middle
        middle = [core.reshape(len(core), *checked.shape[2:], -1)]
    return first[0], *middle, scale * last[:, :, 0]


def tensor_train_kernel(cores: Sequence[ArrayLike]) -> Kernel:
    """Kernel that a tensor train stands for.

    Parameters
    ----------
    cores : sequence of (R_left, *k_n, R_right) array_like
        As of `tensor_train`.

    Returns
    -------
    (T, S, *k) ndarray
    """
    made, *others = (np.asarray(core, dtype=np.float64) for core in cores)
    for core in others:
        made = np.tensordot(made, core, axes=1)
    return np.moveaxis(made, -1, 0)


def tensor_train_spectra(kernel: ArrayLike, *, merged: bool = False) -> list[NDArray[np.floating]]:
    """Singular values of the unfoldings that bound the ranks of a tensor train.

    Parameters
    ----------
    kernel : (T, S, *k) array_like
        With one spatial axis or more.
    merged : bool
        As in `tensor_train`.

    Returns
    -------
    list of (n,) ndarray
        One for each rank. TT-SVD at ranks ``r`` has a squared error of at most the sum of their
        tails (Oseledets 2011, theorem 2.2).

    Raises
    ------
    ValueError
        If the kernel has no spatial axis, is empty, not finite or not floating point.
    """
    tensor = _in_order(checks.float64("kernel", kernel, 3), merged)
    return [
        singular_values(tensor.reshape(prod(tensor.shape[:cut]), -1))
        for cut in range(1, tensor.ndim)
    ]


def full_train_ranks(shape: Sequence[int], *, merged: bool = False) -> tuple[int, ...]:
    """Ranks at which a tensor train meets every kernel of a shape.

    Parameters
    ----------
    shape : sequence of int
        ``(T, S, *k)``.
    merged : bool
        As in `tensor_train`.

    Returns
    -------
    tuple of int
    """
    outputs, inputs, *spatial = shape
    middle = [prod(spatial)] if merged else spatial
    dims = (inputs, *middle, outputs)
    return tuple(min(prod(dims[:cut]), prod(dims[cut:])) for cut in range(1, len(dims)))


def feasible_ranks(shape: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """Cut ranks at what the axes and the ranks on either side can feed.

    Parameters
    ----------
    shape : sequence of int
        ``(T, S, *k)``, the spatial axes merged if the train has three cores.
    ranks : sequence of int
        One fewer than axes.

    Returns
    -------
    tuple of int
        Ranks that serve as well as those given.
    """
    outputs, *others = shape
    dims = (*others, outputs)
    cut = list(ranks)
    left = 1
    for n, dim in enumerate(dims[:-1]):
        left = cut[n] = min(cut[n], left * dim)
    right = 1
    for n in range(len(cut) - 1, -1, -1):
        right = cut[n] = min(cut[n], right * dims[n + 1])
    return tuple(cut)


def _in_order(kernel: Kernel, merged: bool) -> Kernel:
    """Input channels first, output channels last."""
    tensor = np.moveaxis(kernel, 0, -1)
    return tensor.reshape(len(tensor), -1, tensor.shape[-1]) if merged else tensor


def _tt_svd(tensor: Kernel, ranks: Sequence[int]) -> list[Core]:
    """Cores ``(R_left, dim, R_right)``, all but the last orthonormal."""
    cores = []
    rest, left = tensor, 1
    for dim, rank in zip(tensor.shape[:-1], ranks, strict=True):
        basis, values, right = truncated_svd(rest.reshape(left * dim, -1), rank)
        cores.append(basis.reshape(left, dim, -1))
        rest, left = values[:, None] * right, basis.shape[1]
    return [*cores, rest.reshape(left, -1, 1)]


def _there_and_back(tensor: Kernel, cores: list[Core]) -> list[Core]:
    """Solve for every core from the last to the first, and back.

    With all others orthogonal, the best core is what they make of the tensor; then it is made
    orthogonal itself.
    """
    cores = list(cores)
    count = len(cores)
    lefts = [np.ones((1, 1))]  # the cores before, multiplied out: (Π dim, R)
    for core in cores[:-1]:
        lefts.append(np.tensordot(lefts[-1], core, axes=1).reshape(-1, core.shape[2]))
    rights = [np.ones((1, 1))]  # the cores behind: (R, Π dim), from the last one on
    for n in range(count - 1, 0, -1):
        best = _projected(tensor, lefts[n], n, rights[-1])
        basis = np.linalg.qr(best.reshape(len(best), -1).T)[0].T
        cores[n] = basis.reshape(-1, *best.shape[1:])
        rights.append(np.tensordot(cores[n], rights[-1], axes=1).reshape(len(cores[n]), -1))
    left = lefts[0]
    for n in range(count):
        best = _projected(tensor, left, n, rights[count - 1 - n])
        if n == count - 1:
            cores[n] = best
            break
        basis = np.linalg.qr(best.reshape(-1, best.shape[2]))[0]
        cores[n] = basis.reshape(*best.shape[:2], -1)
        left = np.tensordot(left, cores[n], axes=1).reshape(-1, cores[n].shape[2])
    return cores


def _projected(tensor: Kernel, left: Core, mode: int, right: Core) -> Core:
    """Project all axes of a tensor but one on the bases to its left and right."""
    flat = tensor.reshape(len(left), tensor.shape[mode], -1)
    if left.size > right.size:  # the product that shrinks it the most comes first
        shrunk = (left.T @ flat.reshape(len(left), -1)).reshape(-1, *flat.shape[1:])
        return shrunk @ right.T
    return np.tensordot(left, flat @ right.T, axes=(0, 0))
