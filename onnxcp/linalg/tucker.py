"""Tucker-2 of a kernel: both channel modes compressed, the spatial modes left alone.

``K ≈ core ×_T output_factor ×_S input_factor`` (Kim et al. 2016), a chain of a 1×1
kernel, a small spatial kernel and another 1×1 kernel. The factors come from higher-order
orthogonal iteration (HOOI; De Lathauwer, De Moor & Vandewalle 2000b) started at the truncated
higher-order SVD, and stay orthonormal, so that all scale sits in the core. In the norm of the data
the two factors on the output side have a closed form, given the third (`tucker2_outputs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxcp.linalg import checks
from onnxcp.linalg.moments import reduced_rank
from onnxcp.linalg.svd import singular_values

Kernel = NDArray[np.float64]
Factor = NDArray[np.float64]

_JITTER = 1e-9  # of the mean diagonal, added to what may be short of full rank before it is solved


def tucker2(
    kernel: ArrayLike,
    ranks: tuple[int, int],
    *,
    sweeps: int = 10,
    tol: float = 1e-5,
    start: Factor | None = None,
) -> tuple[Factor, Kernel, Factor]:
    """Compress the input and the output channels of a kernel.

    Minimises ``||K - core ×_T output_factor ×_S input_factor||_F`` over orthonormal factors by
    alternation. Each step is exact, so the error never rises above that of the truncated
    higher-order SVD.

    Parameters
    ----------
    kernel : (T, S, *k) array_like
        The kernel of one group.
    ranks : (int, int)
        Ranks ``(R_S, R_T)`` of the input and the output channels. What exceeds the channels, or
        what the other rank can feed (``R_S <= R_T·prod(k)`` and the reverse), is cut off with a
        note; it could not lower the error.
    sweeps : int
        Most sweeps of alternation; 0 gives the truncated higher-order SVD.
    tol : float
        Stop when a sweep gains less than this share of the kernel's energy.
    start : (S, R_S) ndarray, optional
        Input factor of orthonormal columns to start at, in place of the truncated higher-order SVD;
        the error never rises above that of the best kernel with this factor.

    Returns
    -------
    input_factor : (S, R_S) ndarray
        Orthonormal columns.
    core : (R_T, R_S, *k) ndarray
    output_factor : (T, R_T) ndarray
        Orthonormal columns.

    Raises
    ------
    ValueError
        If the kernel is empty, not finite or not floating point, a rank is below 1, ``ranks``
        is not a pair, or ``sweeps`` or ``tol`` is negative.

    Notes
    -----
    Subspaces are eigenvectors of Gram matrices: far faster than an SVD of the unfoldings, at a
    relative error of up to 1e-8, the root of the rounding unit, where the rank is truncated.
    """
    checked = checks.float64("kernel", kernel, 2)
    sweeps = checks.integer("sweeps", sweeps, 0)
    if not tol >= 0:
        raise ValueError(f"tol is {tol}; it must be at least 0")
    if len(ranks) != 2:
        raise ValueError(f"ranks is {ranks!r}; a pair (R_S, R_T) is needed")
    wanted = checks.integer("ranks[0]", ranks[0], 1), checks.integer("ranks[1]", ranks[1], 1)
    full = feasible_ranks(checked.shape, wanted)
    rank_s, rank_t = (checks.at_most(f"ranks[{n}]", wanted[n], full[n]) for n in (0, 1))
    scale = float(np.abs(checked).max()) or 1.0
    tensor = (checked / scale).reshape(*checked.shape[:2], -1)  # (T, S, D)

    if start is None:
        input_factor = _leading(tensor, 1, rank_s)
        output_factor = _leading(tensor, 0, rank_t)
    else:
        input_factor = start
        output_factor = _leading(_shrink(tensor, 1, start), 0, rank_t)
    total = float(np.vdot(tensor, tensor))
    kept = 0.0
    for _ in range(sweeps):
        output_factor = _leading(_shrink(tensor, 1, input_factor), 0, rank_t)
        half = _shrink(tensor, 0, output_factor)
        input_factor = _leading(half, 1, rank_s)
        core = _shrink(half, 1, input_factor)
        before, kept = kept, float(np.vdot(core, core))
        if kept - before <= tol * total:
            break
    core = _shrink(_shrink(tensor, 0, output_factor), 1, input_factor)
    return input_factor, scale * core.reshape(rank_t, rank_s, *checked.shape[2:]), output_factor


def feasible_ranks(shape: Sequence[int], ranks: tuple[int, int]) -> tuple[int, int]:
    """Cut ranks at the channels and at what the other rank can feed.

    Parameters
    ----------
    shape : sequence of int
        ``(T, S, *k)``.
    ranks : (int, int)
        ``(R_S, R_T)``.

    Returns
    -------
    (int, int)
        Ranks that serve as well as those given.
    """
    rank_s, rank_t = ranks
    channels_t, channels_s, *spatial = shape
    size = prod(spatial)
    rank_t = min(rank_t, channels_t, min(rank_s, channels_s) * size)
    return min(rank_s, channels_s, rank_t * size), rank_t


def tucker2_kernel(input_factor: ArrayLike, core: ArrayLike, output_factor: ArrayLike) -> Kernel:
    """Kernel that a Tucker-2 chain stands for.

    Parameters
    ----------
    input_factor : (S, R_S) array_like
    core : (R_T, R_S, *k) array_like
    output_factor : (T, R_T) array_like

    Returns
    -------
    (T, S, *k) ndarray
    """
    middle = np.asarray(core, dtype=np.float64)
    flat = middle.reshape(*middle.shape[:2], -1)
    for axis, factor in ((0, output_factor), (1, input_factor)):
        flat = _shrink(flat, axis, np.asarray(factor, dtype=np.float64).T)
    return flat.reshape(*flat.shape[:2], *middle.shape[2:])


def tucker2_outputs(
    kernel: ArrayLike,
    gram: NDArray[np.floating],
    input_factor: ArrayLike,
    rank: int,
    outputs: NDArray[np.floating] | None = None,
) -> tuple[Kernel, Factor]:
    """Solve for the core and the output factor together, in the norm of the data.

    Minimises ``tr H (K - Y) G (K - Y)ᵀ`` over all kernels Y of the given input factor and output
    rank. With ``F = (U_S ⊗ I)ᵀ`` what the first step makes of input patches, that is the regression
    ``B = K G Fᵀ (F G Fᵀ)⁻¹`` cut to the rank in the norm of ``F G Fᵀ``: exact, where alternation
    over the two factors only comes near. Costs ``R_S P² + R_S P T prod(k)`` multiply-adds and a
    solve of size ``R_S prod(k)``.

    Parameters
    ----------
    kernel : (T, S, *k) array_like
        The kernel of one group.
    gram : (P, P) ndarray
        Covariance G of input patches, ``P = S prod(k)``; its type is that of the large products.
    input_factor : (S, R_S) array_like
    rank : int
        Output rank ``R_T``; more than there can be counts as that.
    outputs : (T, T) ndarray, optional
        What errors of outputs count, H; by default all the same.

    Returns
    -------
    core : (R_T, R_S, *k) ndarray
    output_factor : (T, R_T) ndarray
        Orthonormal columns, if all outputs count the same.
    """
    weight = np.asarray(kernel)
    channels, inputs, *spatial = weight.shape
    basis = np.asarray(input_factor, gram.dtype).T
    size = prod(spatial)

    def through(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
        """``F`` times a matrix of P rows."""
        made: NDArray[np.floating] = basis @ matrix.reshape(inputs, -1)
        return made.reshape(len(basis) * size, -1)

    features = through(gram)
    normal = np.asarray(through(features.T.copy()), np.float64)
    right = np.asarray(features @ weight.reshape(channels, -1).T.astype(gram.dtype), np.float64)
    normal = (normal + normal.T) / 2
    jitter = _JITTER * float(np.trace(normal)) / len(normal) or 1.0
    mixed = np.linalg.solve(normal + jitter * np.eye(len(normal)), right).T
    core, output_factor = reduced_rank(mixed, normal, min(rank, channels), outputs)
    return core.reshape(-1, len(basis), *spatial), output_factor


def channel_mode_spectra(
    kernel: ArrayLike,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Singular values of the input-channel and the output-channel unfolding.

    Parameters
    ----------
    kernel : (T, S, *k) array_like

    Returns
    -------
    spectrum_s : (min(S, T·prod(k)),) ndarray
    spectrum_t : (min(T, S·prod(k)),) ndarray

    Raises
    ------
    ValueError
        If the kernel is empty, not finite or not floating point.
    """
    checked = checks.float64("kernel", kernel, 2)
    by_input = np.moveaxis(checked, 1, 0).reshape(checked.shape[1], -1)
    return singular_values(by_input), singular_values(checked.reshape(checked.shape[0], -1))


def _shrink(tensor: Kernel, axis: int, factor: Factor) -> Kernel:
    """Multiply ``factor.T`` onto one axis of a ``(T, S, D)`` tensor."""
    return np.moveaxis(np.tensordot(factor, tensor, axes=(0, axis)), 0, axis)


def _leading(tensor: Kernel, axis: int, rank: int) -> Factor:
    """Orthonormal basis of the ``rank`` strongest directions of one axis, strongest first."""
    unfolding = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    _, vectors = np.linalg.eigh(unfolding @ unfolding.T)
    return np.ascontiguousarray(vectors[:, : -rank - 1 : -1])
