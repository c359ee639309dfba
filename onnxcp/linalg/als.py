"""Alternating least squares (ALS) for CP, with extrapolation and a ridge on the rank-1 norms.

One sweep minimises, exactly and one factor at a time,

    F = ||X - Σ_r u_r⁽⁰⁾ ∘ ... ∘ u_r⁽ᴺ⁻¹⁾||² + ridge · Σ_r λ_r²,      λ_r = Π_n ||u_r⁽ⁿ⁾||,

by ``U_n = M_n (G_n + ridge · diag(G_n))⁻¹``: ``M_n`` is the product of the unfolded tensor with
the Khatri-Rao product of the other factors and ``G_n`` the Hadamard product of their Gram
matrices, whose diagonal is ``λ_r² / ||u_r⁽ⁿ⁾||²``. The penalty does not depend on how a term's
scale is shared among the factors, and it bounds the norms: as ``F(U_n = 0) = ||X||²``, every
update leaves ``Σ λ_r² <= ||X||² / ridge``, where plain ALS can diverge (degeneracy; Phan et al.
2020).

Three measures make it fast and good:

* Two matrix products a sweep, by the dimension tree {0} | {1, ..., N-1} (Phan, Tichavský &
  Cichocki 2013): one for mode 0, and one whose result serves all other modes. The error comes
  for free, ``||X||² - 2<M_n, U_n> + Σ (Gram of all modes)``.
* The ridge is a share of the squared error, and the share falls from sweep to sweep (as in
  Navasca, De Lathauwer & Kindermann 2008): ALS then seldom strays into swamps and reaches lower
  errors in fewer sweeps, and an exact low-rank tensor is approached without bias.
* Factors are extrapolated between sweeps, with restarts (Ang, Cohen, Gillis & Hien 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Factor = NDArray[np.float64]
Factors = tuple[Factor, ...]

# How much the ridge rises a sweep while the norms are near their limit, and falls otherwise.
_GUARD_RISE, _GUARD_FALL = 3.0, 0.5
# As in Ang et al. 2021: first step, growth of the step and of its bound, cut on failure.
_STEP, _STEP_GROWTH, _BOUND_GROWTH, _STEP_CUT = 0.5, 1.05, 1.01, 1.5
# Progress is judged over this many sweeps.
_WINDOW = 10


@dataclass(frozen=True)
class Fit:
    """Balanced factors of a unit-norm tensor, and how well they fit.

    Attributes
    ----------
    factors : tuple of (dim, R) ndarray
        Column ``r`` has the norm ``λ_r^(1/N)`` in every factor.
    error : float
        Squared relative error ``||X - X̂||² / ||X||²``, as far as rounding lets it be resolved.
    norm_sum : float
        ``Σ λ_r² / ||X||²``.
    sweeps : int
        Sweeps it took.
    """

    factors: Factors
    error: float
    norm_sum: float
    sweeps: int


def descend(
    unfolded: NDArray[np.floating],
    factors: Factors,
    error: float,
    shares: Sequence[float],
    *,
    norm_limit: float,
    tol: float,
    enough: float,
) -> Fit:
    """Sweep until the shares are used up or progress stalls.

    Parameters
    ----------
    unfolded : (dim_0, dim_1 · ... · dim_{N-1}) ndarray
        Mode-0 unfolding of the tensor, with unit norm. Its dtype is that of the two large
        products; all else is float64.
    factors : tuple of (dim, R) ndarray
        Where to start.
    error : float
        Their squared relative error; 1 for random factors. Sets the first ridge.
    shares : sequence of float
        The ridge of each sweep, as a share of the squared relative error; at least one, falling.
    norm_limit : float
        Greatest ``Σ λ_r²`` of the result. The ridge rises where the sum nears it.
    tol : float
        Stop when, under the last share, a sweep lowers the relative error by less than this share
        of it, on average of ten sweeps.
    enough : float
        Stop at this squared relative error.

    Returns
    -------
    Fit
        The best factors seen within the limit.
    """
    eps = float(np.finfo(unfolded.dtype).eps)
    # Keeps the systems positive definite in spite of the rounding of the Gram matrices.
    floor = max(1e-12, 16 * factors[0].shape[1] * float(np.finfo(np.float64).eps))
    current = Fit(balance(factors), error, 0.0, 0)
    best: Fit | None = None
    point = current.factors
    objective = np.inf  # of `current`, under the ridge of the next sweep
    step, bound, guard, cap = _STEP, 1.0, 0.0, np.inf
    history: list[float] = []

    for number, planned in enumerate(shares, start=1):
        share = min(planned, cap)
        ridge = max(share * current.error, floor, guard)
        if point is not current.factors:
            objective = current.error + ridge * current.norm_sum
        new = sweep(unfolded, point, ridge, number)
        if new.error + ridge * new.norm_sum > objective + eps:
            # Extrapolated too far: go on from the last sweep itself, which cannot fail.
            point, objective = current.factors, np.inf
            bound, step = step, step / _STEP_CUT
            continue
        step, bound = min(bound, step * _STEP_GROWTH), min(1.0, bound * _BOUND_GROWTH)
        point = new.factors
        if current.sweeps:
            pairs = zip(new.factors, current.factors, strict=True)
            point = tuple(now + step * (now - before) for now, before in pairs)
        current = new
        if current.norm_sum <= norm_limit and (best is None or current.error < best.error):
            best = current
        if current.norm_sum > norm_limit / 2:
            guard = min(_GUARD_RISE * ridge, 1 / norm_limit)
        else:
            guard *= _GUARD_FALL
        history.append(current.error)
        if current.error <= enough:
            break
        if _stalled(history, tol):
            if share <= shares[-1]:
                break
            cap = shares[-1]  # nothing more to gain under this ridge: skip to the last
            history.clear()

    if best is None:  # one sweep under this ridge cannot end above the limit
        best = sweep(unfolded, current.factors, 1 / norm_limit, number)
    return Fit(best.factors, best.error, best.norm_sum, number)


def sweep(unfolded: NDArray[np.floating], factors: Factors, ridge: float, number: int = 1) -> Fit:
    """Update every factor once, mode 0 first, and balance them.

    Parameters
    ----------
    unfolded : (dim_0, dim_1 · ... · dim_{N-1}) ndarray
        As in `descend`.
    factors : tuple of (dim, R) ndarray
        Factor 0 is not read.
    ridge : float
        Weight of ``Σ λ_r²``, at least 0.
    number : int
        What to report as the number of sweeps.

    Returns
    -------
    Fit
    """
    visited = visit(unfolded, factors, lambda _, gram, product, __: solve(gram, product, ridge))
    return Fit(balance(visited.factors), visited.error, visited.norm_sum, number)


@dataclass(frozen=True)
class Visit:
    """Factors as a walk over the modes left them, and how well they fit.

    Attributes
    ----------
    factors : tuple of (dim, R) ndarray
    error : float
        Squared relative error, as of `Fit`.
    norm_sum : float
        ``Σ λ_r²``.
    """

    factors: Factors
    error: float
    norm_sum: float


class Update(Protocol):
    """What makes a new factor of a mode."""

    def __call__(
        self, mode: int, gram: NDArray[np.float64], product: Factor, factors: Factors, /
    ) -> Factor:
        """Return the new factor.

        Parameters
        ----------
        mode : int
            The mode ``n``.
        gram : (R, R) ndarray
            ``G_n``, the Hadamard product of the Gram matrices of all other factors.
        product : (dim, R) ndarray
            ``M_n``, the unfolded tensor times the Khatri-Rao product of all other factors.
        factors : tuple of (dim, R) ndarray
            All factors as they are now.
        """
        ...


def visit(unfolded: NDArray[np.floating], factors: Factors, update: Update) -> Visit:
    """Walk over the modes by the dimension tree, mode 0 first, and update each factor.

    Takes two products of ``dim_0 · ... · dim_{N-1} · R`` multiply-adds, whatever the order; no
    temporary is larger than ``(dim_1 · ... · dim_{N-1}, R)``.

    Parameters
    ----------
    unfolded : (dim_0, dim_1 · ... · dim_{N-1}) ndarray
        As in `descend`.
    factors : tuple of (dim, R) ndarray
        Where to start.
    update : Update
        Makes the new factor of a mode.

    Returns
    -------
    Visit
    """
    dtype = unfolded.dtype
    rank = factors[0].shape[1]
    updated = list(factors)
    grams = [factor.T @ factor for factor in factors]

    def renew(mode: int, product: NDArray[np.floating]) -> Factor:
        others = np.multiply.reduce([gram for n, gram in enumerate(grams) if n != mode])
        exact = product.astype(np.float64, copy=False)
        updated[mode] = update(mode, others, exact, tuple(updated))
        grams[mode] = updated[mode].T @ updated[mode]
        return updated[mode]

    leading = renew(0, unfolded @ khatri_rao(factors[1:], dtype))
    partial = unfolded.T @ leading.astype(dtype)  # axes mode, ..., N-1 in one, then R
    product = partial
    for mode in range(1, len(factors)):
        product = partial
        for later in range(len(factors) - 1, mode, -1):
            cut = product.reshape(-1, len(factors[later]), rank)
            product = np.einsum("adr,dr->ar", cut, updated[later].astype(dtype))
        factor = renew(mode, product)
        if mode < len(factors) - 1:
            cut = partial.reshape(len(factor), -1, rank)
            partial = np.einsum("dar,dr->ar", cut, factor.astype(dtype))

    fitted = float(np.vdot(product.astype(np.float64, copy=False), updated[-1]))
    square = float(np.multiply.reduce(grams).sum())
    terms = np.multiply.reduce([np.diagonal(gram) for gram in grams])
    return Visit(tuple(updated), max(1 - 2 * fitted + square, 0.0), float(terms.sum()))


def khatri_rao(factors: Sequence[Factor], dtype: np.dtype[np.floating]) -> NDArray[np.floating]:
    """Column-wise Kronecker product ``(Π dim, R)``, the last factor's index running fastest."""
    product = factors[0].astype(dtype, copy=False)
    for factor in factors[1:]:
        wide = product[:, None, :] * factor.astype(dtype, copy=False)
        product = wide.reshape(-1, product.shape[1])
    return product


def balance(factors: Factors) -> Factors:
    """Share out the norm of every rank-1 term equally among the factors."""
    norms = np.array([np.linalg.norm(factor, axis=0) for factor in factors])
    alive = (norms > 0).all(axis=0)
    safe = np.where(alive, norms, 1.0)
    even = np.where(alive, np.exp(np.log(safe).mean(axis=0)), 0.0)
    return tuple(factor * (even / norm) for factor, norm in zip(factors, safe, strict=True))


def solve(gram: NDArray[np.float64], product: Factor, ridge: float) -> Factor:
    """``product @ inv(gram + ridge · diag(gram))``, scaled to a unit diagonal."""
    diagonal = np.diagonal(gram)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    system = gram / scale[:, None] / scale
    on_diagonal = np.einsum("ii->i", system)
    on_diagonal += ridge
    # LU by numpy rather than scipy's Cholesky: numpy and scipy bring a BLAS each, whose threads
    # wait for work by spinning, and going back and forth between the two slows both down.
    solved = np.linalg.solve(system, (product / scale).T)
    return np.ascontiguousarray(solved.T) / scale


def _stalled(history: list[float], tol: float) -> bool:
    if len(history) <= _WINDOW:
        return False
    before, now = np.sqrt(history[-1 - _WINDOW]), np.sqrt(history[-1])
    return bool(abs(before - now) < _WINDOW * tol * now)
