"""The course of a CP fit: where it starts, how its ridge falls, in which precision it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxcp.linalg.als import Factors, Fit, balance, descend, khatri_rao

# The ridge as a share of the squared error: where it starts and what it falls to over the sweeps.
_FIRST_SHARE, _LAST_SHARE = 1.0, 0.003
# Squared relative errors below which rounding would hide the progress of a sweep.
_SINGLE_RESOLVES, _DOUBLE_RESOLVES = 1e-4, 1e-15
# Part of the sweeps that each of several starts gets before the best goes on.
_TRIAL_SHARE = 0.125


@dataclass(frozen=True)
class Fitting:
    """A tensor to fit and the means to spend on it.

    Attributes
    ----------
    unfolded : (dim_0, dim_1 · ... · dim_{N-1}) ndarray
        Mode-0 unfolding of the tensor, with unit norm.
    shape : tuple of int
        ``(dim_0, ..., dim_{N-1})``.
    sweeps : int
        Most sweeps of one descent, at least 1.
    tol : float
        Stop when a sweep lowers the relative error by less than this share of it.
    norm_limit : float
        Greatest ``Σ_r λ_r²`` of the result.
    single : bool
        Do the large products in single precision as long as that resolves the error.
    """

    unfolded: NDArray[np.float64]
    shape: tuple[int, ...]
    sweeps: int
    tol: float
    norm_limit: float
    single: bool

    def from_random(self, rank: int, starts: int, rng: np.random.Generator) -> Fit:
        """Start at random; of several starts, go on with the one ahead after a few sweeps.

        Parameters
        ----------
        rank : int
            Number of terms ``R``.
        starts : int
            Number of starts, at least 1.
        rng : Generator
            Source of the starts.

        Returns
        -------
        Fit
            Its sweeps are those of all starts.
        """
        shares = np.geomspace(_FIRST_SHARE, _LAST_SHARE, self.sweeps)
        trial = max(1, int(_TRIAL_SHARE * self.sweeps)) if starts > 1 else self.sweeps
        fits = []
        for _ in range(starts):
            normal = (rng.standard_normal((dim, rank)) / np.sqrt(dim) for dim in self.shape)
            fits.append(self._run(tuple(normal), 1.0, shares[:trial]))
        best = min(fits, key=lambda fit: fit.error)
        spent = sum(fit.sweeps for fit in fits)
        if trial < self.sweeps:
            best = self._run(best.factors, best.error, shares[trial:])
            spent += best.sweeps
        return replace(best, sweeps=spent)

    def from_factors(self, factors: Factors) -> Fit:
        """Start at given factors, and return them if nothing better within the limit is found.

        Parameters
        ----------
        factors : tuple of (dim, R) ndarray
            One for each mode.

        Returns
        -------
        Fit
        """
        before = residual(self.unfolded, factors)
        fit = self._run(factors, before**2, np.full(self.sweeps, _LAST_SHARE))
        kept = norm_sum(factors) <= self.norm_limit
        if kept and before < residual(self.unfolded, fit.factors):
            return replace(fit, factors=balance(factors))
        return fit

    def _run(self, factors: Factors, error: float, shares: NDArray[np.float64]) -> Fit:
        spent = 0
        if self.single:
            fit = self._descend(self.unfolded.astype(np.float32), factors, error, shares)
            if fit.error > _SINGLE_RESOLVES or fit.sweeps == shares.size:
                return fit
            factors, error = fit.factors, fit.error
            shares, spent = shares[fit.sweeps :], fit.sweeps
        fit = self._descend(self.unfolded, factors, error, shares)
        return replace(fit, sweeps=spent + fit.sweeps)

    def _descend(
        self,
        unfolded: NDArray[np.floating],
        factors: Factors,
        error: float,
        shares: NDArray[np.float64],
    ) -> Fit:
        single = unfolded.dtype == np.float32
        return descend(
            unfolded,
            factors,
            error,
            shares.tolist(),
            norm_limit=self.norm_limit,
            tol=self.tol,
            enough=_SINGLE_RESOLVES if single else _DOUBLE_RESOLVES,
        )


def residual(unfolded: NDArray[np.float64], factors: Factors) -> float:
    """Relative error ``||X - X̂||_F / ||X||_F`` from the residual itself.

    Parameters
    ----------
    unfolded : (dim_0, dim_1 · ... · dim_{N-1}) ndarray
        Mode-0 unfolding of the tensor, not zero.
    factors : tuple of (dim, R) ndarray
        One for each mode.

    Returns
    -------
    float
    """
    right = khatri_rao(factors[1:], np.dtype(np.float64)).T
    return float(np.linalg.norm(unfolded - factors[0] @ right) / np.linalg.norm(unfolded))


def norm_sum(factors: Factors) -> float:
    """Sum of the squared norms of the rank-1 terms, ``Σ_r λ_r²``.

    Parameters
    ----------
    factors : tuple of (dim, R) ndarray
        One for each mode.

    Returns
    -------
    float
    """
    squares = [np.sum(factor**2, axis=0) for factor in factors]
    return float(np.prod(squares, axis=0).sum())
