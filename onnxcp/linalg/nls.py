"""Nonlinear least squares (NLS) for CP: damped Gauss-Newton with structured products.

All factors move at once, by Levenberg-Marquardt steps on the objective of `onnxcp.linalg.als`,

    F = ||X - X̂||² + ridge · Σ_r λ_r².

The step ``(V_0, ..., V_{N-1})`` solves ``(JᵀJ + μI) V = -g`` by conjugate gradients, and neither
the Jacobian nor ``JᵀJ`` is ever formed: with ``Γ_n`` and ``Γ_nm`` the Hadamard products of the Gram
matrices of all factors but ``n``, and but ``n`` and ``m``,

    (JᵀJ V)_n = V_n Γ_n + U_n Σ_{m≠n} Γ_nm * (V_mᵀ U_m)

costs ``O(R² Σ dim)`` (Sorber, Van Barel & De Lathauwer 2013, whose `cpd_nls` Lebedev et al. 2015
use; Tichavský, Phan & Cichocki 2016). The preconditioner is the block-diagonal part,
``(Γ_n + μI)⁻¹`` for every mode. A step costs two large matrix products, as a sweep of ALS does, and
the inner iterations; it pays where ALS crawls, at ranks up to a few hundred.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from onnxcp.linalg.als import Factor, Factors, Fit, balance, visit

_INNER = 40  # conjugate gradient steps at most for one step
_FORCING = 0.1  # relative residual at which a step is solved well enough
_DAMPING = 1e-3  # first damping, as a share of the largest diagonal entry of the Gram products
_HARDEST = 1e8  # damping over the first one, beyond which no step is found any more
_WINDOW = 4  # progress is judged over this many steps


@dataclass(frozen=True)
class Point:
    """Factors, and the derivatives there.

    Attributes
    ----------
    factors : tuple of (dim, R) ndarray
    error : float
        Squared relative error.
    norm_sum : float
        ``Σ λ_r²``.
    gradient : tuple of (dim, R) ndarray
        Half the gradient of the objective.
    grams : tuple of (R, R) ndarray
        Of every factor.
    ridge : float
        Weight of ``Σ λ_r²``.
    """

    factors: Factors
    error: float
    norm_sum: float
    gradient: Factors
    grams: tuple[NDArray[np.float64], ...]
    ridge: float = 0.0

    def under(self, ridge: float) -> Point:
        """Return the same point under another ridge."""
        change = ridge - self.ridge
        gradient = tuple(
            slope + change * factor * np.diagonal(self._gram_without(n))
            for n, (slope, factor) in enumerate(zip(self.gradient, self.factors, strict=True))
        )
        return replace(self, gradient=gradient, ridge=ridge)

    @property
    def objective(self) -> float:
        """The value of F."""
        return self.error + self.ridge * self.norm_sum

    def product(self, steps: Factors, damping: float) -> Factors:
        """Multiply a step by ``JᵀJ + damping · I`` and the diagonal part of the ridge."""
        cross = [step.T @ factor for step, factor in zip(steps, self.factors, strict=True)]
        count = len(steps)
        made = []
        for n in range(count):
            mixed = sum(self._gram_without(n, m) * cross[m] for m in range(count) if m != n)
            made.append(steps[n] @ self._block(n, damping) + self.factors[n] @ np.asarray(mixed))
        return tuple(made)

    def inverses(self, damping: float) -> list[NDArray[np.floating]]:
        """Invert the diagonal blocks of what `product` multiplies by."""
        return [np.linalg.inv(self._block(n, damping)) for n in range(len(self.factors))]

    def _block(self, mode: int, damping: float) -> NDArray[np.float64]:
        gram = self._gram_without(mode)
        return gram + np.diag(self.ridge * np.diagonal(gram) + damping)

    def _gram_without(self, *modes: int) -> NDArray[np.float64]:
        rest = [gram for n, gram in enumerate(self.grams) if n not in modes]
        return np.multiply.reduce(rest) if rest else np.ones_like(self.grams[0])


def step_down(
    unfolded: NDArray[np.floating],
    factors: Factors,
    share: float,
    *,
    steps: int,
    norm_limit: float,
    tol: float,
    enough: float,
) -> Fit:
    """Take Levenberg-Marquardt steps until progress stalls.

    Parameters
    ----------
    unfolded : (dim_0, dim_1 · ... · dim_{N-1}) ndarray
        Mode-0 unfolding of the tensor, with unit norm. Its dtype is that of the two large
        products; all else is float64.
    factors : tuple of (dim, R) ndarray
        Where to start.
    share : float
        The ridge, as a share of the squared relative error.
    steps : int
        Most steps, accepted or not.
    norm_limit : float
        Greatest ``Σ λ_r²``: a step beyond it is refused.
    tol : float
        Stop when a step lowers the relative error by less than this share of it, on average of a
        few.
    enough : float
        Stop at this squared relative error.

    Returns
    -------
    Fit
        No worse than the start, in `F`; its sweeps are the steps taken, refused ones included.
    """
    floor = 64 * factors[0].shape[1] * float(np.finfo(np.float64).eps)
    point = at(unfolded, balance(factors))
    damping = first = _DAMPING * max(float(np.diagonal(gram).max()) for gram in point.grams)
    growth = 2.0
    history = [point.error]
    number = 0
    while number < steps and damping < _HARDEST * first and point.error > enough:
        number += 1
        point = point.under(max(share * point.error, floor))
        move = _solved(point, damping)
        predicted = -_dot(point.gradient, move) * 2 - _dot(move, point.product(move, 0.0))
        moved = tuple(f + v for f, v in zip(point.factors, move, strict=True))
        trial = at(unfolded, balance(moved)).under(point.ridge)
        gain = point.objective - trial.objective
        if gain <= 0 or trial.norm_sum > max(norm_limit, point.norm_sum):
            damping *= growth
            growth *= 2
            continue
        quality = gain / predicted if predicted > 0 else 0.0
        damping *= max(1 / 3, 1 - (2 * quality - 1) ** 3)
        growth = 2.0
        point = trial
        history.append(point.error)
        if len(history) > _WINDOW and (
            sqrt(history[-1 - _WINDOW]) - sqrt(history[-1]) < _WINDOW * tol * sqrt(history[-1])
        ):
            break
    return Fit(point.factors, point.error, point.norm_sum, number)


def at(unfolded: NDArray[np.floating], factors: Factors) -> Point:
    """Look at a point, without a ridge; two large products give the gradient and the error.

    Parameters
    ----------
    unfolded : (dim_0, dim_1 · ... · dim_{N-1}) ndarray
        As in `step_down`.
    factors : tuple of (dim, R) ndarray
        The point.

    Returns
    -------
    Point
    """
    gradient: list[Factor] = []

    def record(mode: int, gram: NDArray[np.float64], product: Factor, now: Factors) -> Factor:
        gradient.append(now[mode] @ gram - product)
        return now[mode]

    seen = visit(unfolded, factors, record)
    grams = tuple(factor.T @ factor for factor in factors)
    return Point(factors, seen.error, seen.norm_sum, tuple(gradient), grams)


def _solved(point: Point, damping: float) -> Factors:
    """Solve for a step by preconditioned conjugate gradients."""
    inverses = point.inverses(damping)

    def precondition(values: Factors) -> Factors:
        return tuple(value @ inverse for value, inverse in zip(values, inverses, strict=True))

    rest = tuple(-slope for slope in point.gradient)
    move = tuple(np.zeros_like(slope) for slope in rest)
    direction = conditioned = precondition(rest)
    level = _dot(rest, conditioned)
    enough = _FORCING**2 * level
    for _ in range(_INNER):
        if not level > enough:
            break
        image = point.product(direction, damping)
        curvature = _dot(direction, image)
        if curvature <= 0:
            break
        length = level / curvature
        move = tuple(m + length * d for m, d in zip(move, direction, strict=True))
        rest = tuple(r - length * i for r, i in zip(rest, image, strict=True))
        conditioned = precondition(rest)
        following = _dot(rest, conditioned)
        ratio = following / level
        direction = tuple(c + ratio * d for c, d in zip(conditioned, direction, strict=True))
        level = following
    return move


def _dot(one: Factors, other: Factors) -> float:
    return float(sum(np.vdot(a, b) for a, b in zip(one, other, strict=True)))
