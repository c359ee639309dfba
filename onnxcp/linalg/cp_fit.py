"""The course of a CP fit: where it starts, which solver runs and in which precision.

Also when the terms of a fit are calmed: the course ends with a look at their norms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from onnxcp.linalg.als import Factors, Fit, balance, descend, khatri_rao
from onnxcp.linalg.correction import correct, sensitivity
from onnxcp.linalg.nls import step_down

# The ridge as a share of the squared error: where it starts and what it falls to over the sweeps.
_FIRST_SHARE, _LAST_SHARE = 1.0, 0.003
# Squared relative errors below which rounding would hide the progress of a sweep.
_SINGLE_RESOLVES, _DOUBLE_RESOLVES = 1e-4, 1e-15
# Part of the sweeps that each of several starts gets before the best goes on.
_TRIAL_SHARE = 0.125
# Part of the sweeps that ALS gets, where it has company, to settle the ridge and the terms.
_BURN_IN = 0.5
# Iterations of a solver's turn where two of them take turns.
_TURN = 8
# Share of the norm limit from which on terms count as growing without bound.
_DIVERGED = 0.5
# More error accepted to calm such terms, and sweeps to do it in.
_CALM_SLACK, _CALM_SWEEPS = 0.01, 30

SOLVERS = ("als", "nls", "auto")
"""Names of the solvers: see `onnxcp.linalg.cp.cp`."""


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
    solver : str
        One of `SOLVERS`.
    """

    unfolded: NDArray[np.float64]
    shape: tuple[int, ...]
    sweeps: int
    tol: float
    norm_limit: float
    single: bool
    solver: str = "als"

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
        alone = self.solver == "als"
        count = self.sweeps if alone else max(1, int(_BURN_IN * self.sweeps))
        shares = np.geomspace(_FIRST_SHARE, _LAST_SHARE, count)
        trial = max(1, int(_TRIAL_SHARE * count)) if starts > 1 else count
        fits = []
        for _ in range(starts):
            normal = (rng.standard_normal((dim, rank)) / np.sqrt(dim) for dim in self.shape)
            fits.append(self._run(tuple(normal), 1.0, shares[:trial]))
        best = min(fits, key=lambda fit: fit.error)
        spent = sum(fit.sweeps for fit in fits)
        if trial < count:
            best = self._run(best.factors, best.error, shares[trial:])
            spent += best.sweeps
        if not alone:
            best = self._went_on(best, self.sweeps - count)
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
        if self.solver == "als":
            fit = self._als(factors, before**2, self.sweeps)
        else:
            start = Fit(balance(factors), before**2, norm_sum(factors), 0)
            fit = self._went_on(start, self.sweeps)
        kept = norm_sum(factors) <= self.norm_limit
        if kept and before < residual(self.unfolded, fit.factors):
            return replace(fit, factors=balance(factors))
        return fit

    def calmed(self, fit: Fit) -> tuple[Fit, bool]:
        """Look at the norms of a fit's terms, and correct them where they grew without bound.

        Parameters
        ----------
        fit : Fit
            Any fit within the norm limit.

        Returns
        -------
        fit : Fit
            The same, or one of less sensitive terms (see `onnxcp.linalg.correction`).
        diverged : bool
            Whether the norms neared the limit.
        """
        if fit.norm_sum <= _DIVERGED * self.norm_limit:
            return fit, False
        return self.corrected(fit, _CALM_SLACK), True

    def corrected(self, fit: Fit, slack: float) -> Fit:
        """Lower the sensitivity of a fit at little more error.

        Parameters
        ----------
        fit : Fit
            Any fit within the norm limit.
        slack : float
            How much larger its relative error may become, as a share of it.

        Returns
        -------
        Fit
            The fit itself where no factors of lower sensitivity and norms were found.
        """
        error = residual(self.unfolded, fit.factors)
        bound = ((1 + slack) * error) ** 2
        # The bound is met by a difference of sums, which resolves no less than this.
        if bound < _DOUBLE_RESOLVES * 10:
            return fit
        calm = correct(self.unfolded, fit.factors, bound, sweeps=_CALM_SWEEPS)
        limit = max(fit.norm_sum, self.norm_limit)
        if calm.norm_sum > limit or sensitivity(calm.factors) >= sensitivity(fit.factors):
            return fit
        return replace(fit, factors=calm.factors, error=calm.error, norm_sum=calm.norm_sum)

    def _went_on(self, fit: Fit, count: int) -> Fit:
        """Go on with the solver asked for, under the last share of the ridge."""
        if self.solver == "nls":
            return self._nls(fit.factors, fit.error, count)
        return self._in_turns(fit, count)

    def _in_turns(self, fit: Fit, count: int) -> Fit:
        """Let the solver of more progress a second have the next turn, after one turn each."""
        solvers: tuple[Callable[[Factors, float, int], Fit], ...] = (self._als, self._nls)
        rates = [np.inf, np.inf]
        spent = 0
        while spent < count and max(rates) > 0:
            turn = int(np.argmax(rates))
            begun = perf_counter()
            new = solvers[turn](fit.factors, fit.error, min(_TURN, count - spent))
            seconds = perf_counter() - begun
            spent += max(1, new.sweeps)
            gain = 0.0
            if 0 < new.error < fit.error:
                gain = log(fit.error / new.error) / 2
            rates[turn] = gain / seconds if gain > self.tol * new.sweeps else 0.0
            if new.error < fit.error:
                fit = new
        return replace(fit, sweeps=spent)

    def _als(self, factors: Factors, error: float, count: int) -> Fit:
        return self._run(factors, error, np.full(count, _LAST_SHARE))

    def _nls(self, factors: Factors, error: float, count: int) -> Fit:
        single = self.single and error > 10 * _SINGLE_RESOLVES
        fit = step_down(
            self.unfolded.astype(np.float32) if single else self.unfolded,
            factors,
            _LAST_SHARE,
            steps=count,
            norm_limit=self.norm_limit,
            tol=self.tol,
            enough=_SINGLE_RESOLVES if single else _DOUBLE_RESOLVES,
        )
        if single and fit.error <= _SINGLE_RESOLVES and fit.sweeps < count:
            more = replace(self, single=False)._nls(fit.factors, fit.error, count - fit.sweeps)
            return replace(more, sweeps=fit.sweeps + more.sweeps)
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
