"""Error-preserving correction: the least sensitive CP factors within an error bound.

Terms that grow and cancel each other fit no better than calmer ones, yet amplify noise. The
correction (Phan et al. 2020, section 3) solves

    min Σ_r Σ_n dim_n Π_{m≠n} ||u_r⁽ᵐ⁾||²    s.t.    ||X - X̂||_F <= δ

one factor at a time. For factor ``n`` the objective is, up to a constant, ``Σ_r w_r ||u_r⁽ⁿ⁾||²``
with ``w_r = Σ_{m≠n} dim_m Π_{k≠m,n} ||u_r⁽ᵏ⁾||²``: ridge regression, whose one multiplier is found
by bisection. With ``D = diag(w)``, the eigenvectors ``V`` and eigenvalues ``l`` of
``D^{-1/2} G_n D^{-1/2}``, and ``B = M_n D^{-1/2} V`` (``G_n``, ``M_n`` as in `onnxcp.linalg.als`),

    U_n(μ) = B diag(1 / (l + μ)) Vᵀ D^{-1/2},
    ||X - X̂(μ)||² = ||X||² - Σ_j ||b_j||² (l_j + 2μ) / (l_j + μ)²,

and the latter rises with ``μ``. The published algorithm solves the same problem as a spherically
constrained quadratic programme.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxcp.linalg.als import Factor, Factors, Visit, balance, visit

_BISECTIONS = 60
# Multipliers from here down, as a share of the largest eigenvalue, count as none.
_LEAST = 1e-15


def correct(
    unfolded: NDArray[np.floating],
    factors: Factors,
    bound: float,
    *,
    sweeps: int,
    tol: float = 0.01,
) -> Visit:
    """Lower the sensitivity of factors without exceeding an error.

    A sweep costs as much as one of ALS, and an eigendecomposition of size ``R`` for each factor
    instead of a solve.

    Parameters
    ----------
    unfolded : (dim_0, dim_1 · ... · dim_{N-1}) ndarray
        Mode-0 unfolding of the tensor, with unit norm.
    factors : tuple of (dim, R) ndarray
        Where to start. A factor stays as it is where no choice of it meets the bound.
    bound : float
        Greatest squared relative error ``δ²``.
    sweeps : int
        Most sweeps, at least 1.
    tol : float
        Stop when a sweep lowers the sensitivity by less than this share of it.

    Returns
    -------
    Visit
        Its factors are balanced.
    """
    before = sensitivity(factors)
    for _ in range(sweeps):
        visited = visit(
            unfolded,
            factors,
            lambda mode, gram, product, now: _calmest(mode, gram, product, now, bound),
        )
        factors = balance(visited.factors)
        after = sensitivity(factors)
        if after > (1 - tol) * before:
            break
        before = after
    return Visit(factors, visited.error, visited.norm_sum)


def sensitivity(factors: Factors) -> float:
    """Tell how the tensor changes with the factors: squared, per unit of noise variance in them.

    The expectation is ``Σ_r Σ_n dim_n · Π_{m≠n} ||u_r⁽ᵐ⁾||²`` (Phan et al. 2020, equation 7).

    Parameters
    ----------
    factors : tuple of (dim, R) ndarray

    Returns
    -------
    float
    """
    squares = [np.sum(factor**2, axis=0) for factor in factors]
    return float(
        sum(
            len(factor) * np.prod([s for m, s in enumerate(squares) if m != n], axis=0).sum()
            for n, factor in enumerate(factors)
        )
    )


def _calmest(
    mode: int, gram: NDArray[np.float64], product: Factor, factors: Factors, bound: float
) -> Factor:
    """Factor of one mode of the least sensitivity within the bound, the others given."""
    squares = [np.sum(factor**2, axis=0) for factor in factors]
    weights = sum(
        len(factors[m]) * np.prod([s for k, s in enumerate(squares) if k not in (m, mode)], axis=0)
        for m in range(len(factors))
        if m != mode
    )
    weights = np.broadcast_to(weights, squares[0].shape)
    root = np.sqrt(np.where(weights > 0, weights, 1.0))
    values, basis = np.linalg.eigh(gram / root[:, None] / root)
    floor = _LEAST * float(values[-1])
    values = np.maximum(values, floor)
    rotated = (product / root) @ basis
    power = np.sum(rotated**2, axis=0)

    def error(multiplier: float) -> float:
        return float(1 - np.sum(power * (values + 2 * multiplier) / (values + multiplier) ** 2))

    if floor <= 0 or error(floor) > bound:
        return factors[mode]
    low, high = np.log(floor), np.log(floor)
    while error(np.exp(high)) <= bound and high < np.log(values[-1]) + 30:
        high += 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if error(np.exp(middle)) <= bound else (low, middle)
    calmest: Factor = ((rotated / (values + np.exp(low))) @ basis.T) / root
    return calmest
