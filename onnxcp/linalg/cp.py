"""Canonical polyadic (CP) decomposition of a kernel: a sum of ``R`` rank-1 terms.

``X[t, s, y, ...] ≈ Σ_r U_T[t, r] U_S[s, r] U_y[y, r] ...`` becomes a 1×1 convolution, depthwise
ones and another 1×1 one (Lebedev et al. 2015). At the ranks that pay, ``R`` exceeds the number
of channels; there, terms that grow and cancel each other (degeneracy) are the rule, and such
factors amplify rounding and cannot be tuned. The solver therefore bounds ``Σ_r λ_r²``, the
squared norms of the terms; see `onnxcp.linalg.als`. It reports of every fit how far it is from the
tensor, how sensitive its factors are and what it cost.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxcp.linalg import checks
from onnxcp.linalg.als import Factor, Factors, Fit, balance, khatri_rao
from onnxcp.linalg.candelinc import Compressed, compress
from onnxcp.linalg.correction import sensitivity
from onnxcp.linalg.cp_fit import SOLVERS, Fitting, norm_sum, residual
from onnxcp.linalg.svd import truncated_svd

# From here on single-precision input is multiplied in single precision.
_LARGE = 1_000_000
# Entries from which on a compression ahead of the fit can pay.
_COMPRESSIBLE = 100_000
# Greatest share of the energy that a compression ahead of the fit may lose.
_LOSS = 1e-4
# Sweeps over the whole tensor after the fit of its core, where the core's error dominates.
_POLISH = 5


class DegenerateWarning(UserWarning):
    """The terms of a fit grew against each other until the limit of their norms held them."""


@dataclass(frozen=True)
class CPResult:
    """Factors of a CP decomposition and how well they do.

    Attributes
    ----------
    factors : tuple of (dim, R) ndarray
        One for each axis of the tensor; column ``r`` has the same norm in all of them. The terms
        are ordered by falling norm.
    relative_error : float
        ``||X - X̂||_F / ||X||_F``, from the residual itself; 0 for an all-zero tensor.
    norm_sum : float
        ``Σ_r λ_r²`` with ``λ_r`` the norm of term ``r``. Far above ``||X||²`` it tells of terms
        that cancel each other.
    sweeps : int
        Iterations: sweeps of alternating least squares and steps of nonlinear least squares, those
        of all starts together; 0 where the decomposition is known in closed form.
    seconds : float
        Time that the fit took.
    """

    factors: Factors
    relative_error: float
    norm_sum: float
    sweeps: int
    seconds: float = field(default=0.0, compare=False)

    @property
    def rank(self) -> int:
        """Number of terms ``R``."""
        return int(self.factors[0].shape[1])

    @property
    def sensitivity(self) -> float:
        """Expected squared change of the tensor per unit of noise variance in the factors.

        ``Σ_r Σ_n dim_n · Π_{m≠n} ||u_r⁽ᵐ⁾||²`` (Phan et al. 2020).
        """
        return sensitivity(self.factors)


def cp(
    tensor: ArrayLike,
    rank: int,
    *,
    sweeps: int = 60,
    starts: int = 1,
    seed: int = 0,
    tol: float = 1e-6,
    init: Sequence[ArrayLike] | None = None,
    norm_limit: float = 100.0,
    solver: str = "als",
    slack: float = 0.0,
    compression: bool = True,
) -> CPResult:
    """Approximate a tensor by a sum of rank-1 terms.

    A sweep of alternating least squares takes ``2 R Π dim`` multiply-adds in two matrix products,
    ``O(R² Σ dim + N R³)`` more, and memory for the tensor and ``R Π dim / max dim`` entries.

    Parameters
    ----------
    tensor : (T, S, k1, ..., kn) array_like
        Two axes or more. With at most two axes longer than 1 the result is the truncated SVD.
        Single-precision input of a million entries or more is multiplied in single precision;
        Gram matrices and solves are float64 always.
    rank : int
        Number of terms ``R``. From `full_rank` on, an exact decomposition of that rank is
        returned.
    sweeps : int
        Most sweeps of alternating least squares. The ridge falls over this number, so a short
        run is not the beginning of a long one.
    starts : int
        Random starts. With more than one, each gets the first eighth of the sweeps, and the best
        goes on with the rest. Large kernels gain more from more sweeps than from more starts.
    seed : int
        Seed of the random starts; the result depends on nothing else.
    tol : float
        Stop when a sweep lowers the relative error by less than this share of it.
    init : sequence of (dim, R0) array_like, optional
        Factors to improve upon instead of random starts. The result is no worse, unless these
        exceed the norm limit. Of more terms than ``R`` the strongest are taken; fewer are joined
        by random ones. So a fit at one rank is the start at the next.
    norm_limit : float
        Greatest ``Σ_r λ_r²`` allowed, as a multiple of ``||X||²``; at least 1. The ridge keeps
        it, at the price of a higher error where the best approximation does not exist. Terms that
        come near it are calmed by an error-preserving correction.
    solver : str
        ``"als"``, alternating least squares; ``"nls"``, which gives half of the iterations to
        nonlinear least squares (`onnxcp.linalg.nls`); or ``"auto"``, which lets both take turns
        and goes on with the one that makes more progress a second. What ``"auto"`` finds depends
        on the clock.
    slack : float
        Where above 0, the factors are made as little sensitive as they get at an error larger by
        this share (`onnxcp.linalg.correction`).
    compression : bool
        Fit a Tucker core that has all but 1e-4 of the energy, and the whole tensor only at last,
        where there are 100,000 entries or more and the core has few enough of them
        (`onnxcp.linalg.candelinc`).

    Returns
    -------
    CPResult

    Warns
    -----
    DegenerateWarning
        If the terms grew against each other up to the norm limit: the best approximation of this
        rank may not exist.
    RankWarning
        If the rank is beyond `full_rank`.

    Raises
    ------
    ValueError
        If the tensor or ``init`` is empty, not finite, not floating point or of the wrong shape,
        ``rank``, ``sweeps`` or ``starts`` is below 1, ``tol``, ``seed`` or ``slack`` is negative,
        ``norm_limit`` is below 1, or there is no such solver.
    """
    begun = perf_counter()
    given = checks.floats("tensor", tensor, 2)
    rank = checks.integer("rank", rank, 1)
    sweeps = checks.integer("sweeps", sweeps, 1)
    starts = checks.integer("starts", starts, 1)
    seed = checks.integer("seed", seed, 0)
    if not tol >= 0:
        raise ValueError(f"tol is {tol}; it must be at least 0")
    norm_limit = checks.positive("norm_limit", norm_limit, 1)
    slack = checks.positive("slack", slack)
    solver = checks.one_of("solver", solver, SOLVERS)
    rank = checks.at_most("rank", rank, full_rank(given.shape))
    rng = np.random.default_rng(seed)
    first = None if init is None else _checked_init(init, given.shape, rank, rng)

    single = given.dtype != np.float64 and given.size >= _LARGE
    peak = float(np.abs(given).max())
    if peak == 0:
        zeros = tuple(np.zeros((dim, rank)) for dim in given.shape)
        return CPResult(zeros, 0.0, 0.0, 0)
    scaled = given.astype(np.float64) / peak
    norm = float(np.linalg.norm(scaled))
    root = float(peak ** (1 / given.ndim) * norm ** (1 / given.ndim))

    # The longest axis first makes the products cheapest; axes of length 1 only scale the terms.
    order = sorted(range(given.ndim), key=lambda axis: -given.shape[axis])
    used = order[: max(2, sum(dim > 1 for dim in given.shape))]
    unfolded = (scaled / norm).transpose(order).reshape(given.shape[order[0]], -1)
    shape = tuple(given.shape[axis] for axis in used)

    if len(used) == 2:
        left, values, right = truncated_svd(unfolded, rank)
        fit = Fit((left * values, right.T), 0.0, 0.0, 0)
    elif rank >= full_rank(shape):
        fit = Fit(_fibres(unfolded, shape), 0.0, 0.0, 0)
    else:
        fitting = Fitting(unfolded, shape, sweeps, tol, norm_limit, single, solver)
        worth = compression and first is None and given.size >= _COMPRESSIBLE
        core = compress(unfolded, shape, _LOSS) if worth else None
        if first is not None:
            scales = np.prod([first[axis][0] for axis in order[len(used) :]], axis=0)
            warm = [first[axis] / root for axis in used]
            warm[0] = warm[0] * scales / root ** (given.ndim - len(used))
            fit = fitting.from_factors(tuple(warm))
        elif core is not None and rank < full_rank(core.shape):
            fit = _by_core(fitting, core, rank, starts, rng)
        else:
            fit = fitting.from_random(rank, starts, rng)
        fit, diverged = fitting.calmed(fit)
        if slack:
            fit = fitting.corrected(fit, slack)
        if diverged:
            note = (
                f"the {rank} terms grew against each other up to {fit.norm_sum:.3g} times the "
                f"tensor's squared norm, of {norm_limit:g} allowed: a best approximation of this "
                "rank may not exist"
            )
            warnings.warn(note, DegenerateWarning, stacklevel=2)

    error = residual(unfolded, fit.factors)
    found = dict(zip(used, fit.factors, strict=True))
    terms = fit.factors[0].shape[1]
    factors = balance(tuple(found.get(n, np.ones((1, terms))) for n in range(given.ndim)))
    falling = np.argsort(-np.linalg.norm(factors[0], axis=0), kind="stable")
    factors = tuple(root * factor[:, falling] for factor in factors)
    seconds = perf_counter() - begun
    return CPResult(factors, error, norm_sum(factors), fit.sweeps, seconds)


def cp_kernel(factors: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Tensor that CP factors stand for.

    Parameters
    ----------
    factors : sequence of (dim, R) array_like
        One for each axis, at least two.

    Returns
    -------
    (T, S, k1, ..., kn) ndarray
    """
    arrays = [np.asarray(factor, dtype=np.float64) for factor in factors]
    unfolded = arrays[0] @ khatri_rao(arrays[1:], np.dtype(np.float64)).T
    return unfolded.reshape([len(array) for array in arrays])


def full_rank(shape: Sequence[int]) -> int:
    """Rank at which an exact decomposition is known in closed form.

    The least product of all axes but one: one term for each fibre along the longest axis. The
    rank a generic tensor needs is lower.

    Parameters
    ----------
    shape : sequence of int
        At least one axis, all of them at least 1.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If there is no axis, or one is empty.
    """
    if not shape or min(shape) < 1:
        raise ValueError(f"shape is {tuple(shape)}; one axis or more, none empty, is needed")
    return prod(shape) // max(shape)


def _fibres(unfolded: NDArray[np.float64], shape: tuple[int, ...]) -> Factors:
    """Exact decomposition: a term for every fibre along the first axis."""
    others = np.indices(shape[1:]).reshape(len(shape) - 1, -1)
    units = (np.eye(dim)[:, index] for dim, index in zip(shape[1:], others, strict=True))
    return (unfolded, *units)


def _by_core(
    fitting: Fitting, core: Compressed, rank: int, starts: int, rng: np.random.Generator
) -> Fit:
    """Fit the core of a tensor, then the tensor from there."""
    small = replace(fitting, unfolded=core.unfolded, shape=core.shape)
    fit = small.from_random(rank, starts, rng)
    # What the core does not have counts little next to what the terms do not, or else much.
    sweeps = _POLISH if fit.error > 10 * core.lost else fitting.sweeps
    polished = replace(fitting, sweeps=sweeps).from_factors(core.expanded(fit.factors))
    return replace(polished, sweeps=fit.sweeps + polished.sweeps)


def _checked_init(
    init: Sequence[ArrayLike], shape: tuple[int, ...], rank: int, rng: np.random.Generator
) -> list[Factor]:
    """Check the factors of a start, and bring them to the rank wanted."""
    factors = [checks.float64(f"init[{n}]", factor, 2) for n, factor in enumerate(init)]
    given = [factor.shape for factor in factors]
    terms = given[0][1] if given else 0
    if given != [(dim, terms) for dim in shape]:
        needed = [(dim, rank) for dim in shape]
        raise ValueError(f"init has shapes {given}; {needed} are needed, or of another rank")
    if terms > rank:
        norms = np.prod([np.linalg.norm(factor, axis=0) for factor in factors], axis=0)
        kept = np.sort(np.argsort(-norms, kind="stable")[:rank])
        return [factor[:, kept] for factor in factors]
    if terms < rank:
        sizes = [float(np.linalg.norm(factor)) / np.sqrt(factor.size) for factor in factors]
        return [
            np.hstack([factor, size * rng.standard_normal((len(factor), rank - terms))])
            for factor, size in zip(factors, sizes, strict=True)
        ]
    return factors
