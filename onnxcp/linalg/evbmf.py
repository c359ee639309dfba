"""Empirical variational Bayes matrix factorisation: the rank that stands out of noise.

For ``Y = B Aᵀ + noise`` with Gaussian priors whose variances, and that of the noise, are estimated
from ``Y`` itself, the variational solution is known in closed form (Nakajima, Sugiyama, Babacan &
Tomioka 2013, theorems 2 and 3 and corollary 1): the singular values above a threshold are kept. Kim
et al. 2016 choose the ranks of Tucker-2 by it. Only singular values and the shape are needed.
"""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from onnxcp.linalg import checks

_TAU = 2.5129  # times sqrt(alpha): where the free energy changes sign, an approximation of theirs
_GRID = 64  # noise variances that are looked at before the best is refined
_TINY = 1e-12  # squared singular values below this share of the largest count as this


def rank_by_evbmf(spectrum: ArrayLike, shape: tuple[int, int]) -> int:
    """Find how many singular values of a matrix are not noise.

    Parameters
    ----------
    spectrum : (n,) array_like
        Singular values, largest first; all of them.
    shape : (int, int)
        Shape of the matrix; which side is the longer makes no difference.

    Returns
    -------
    int
        From 1 to ``n``: never 0, although all may be noise.

    Raises
    ------
    ValueError
        If the spectrum holds negative or rising values, is not as long as the shorter side, or a
        side is empty.
    """
    values = checks.float64("spectrum", spectrum, 1)
    short, long = sorted(checks.integer("shape", side, 1) for side in shape)
    if values.shape != (short,):
        raise ValueError(
            f"spectrum has shape {values.shape}; a matrix of shape {tuple(shape)} has {short} "
            "singular values"
        )
    if values.min() < 0 or (np.diff(values) > 0).any():
        raise ValueError(
            "spectrum holds negative or rising values; singular values, largest first, are needed"
        )
    if values[0] == 0:
        return 1
    energies = np.maximum((values / values[0]) ** 2, _TINY)
    alpha = short / long
    tau = _TAU * np.sqrt(alpha)
    limit = (1 + tau) * (1 + alpha / tau)
    noise = _noise(energies, short, long, limit)
    return max(1, int(np.count_nonzero(energies > long * noise * limit)))


def _noise(energies: NDArray[np.float64], short: int, long: int, limit: float) -> float:
    """Noise variance at which the free energy is least (their equation 30)."""
    alpha = short / long
    most = min(ceil(short / (1 + alpha)) - 1, short - 1)  # ranks beyond this are never kept
    tail = energies[max(most, 0) :]
    low = max(float(tail[0]) / (long * limit), float(tail.mean()) / long)
    high = float(energies.sum()) / (short * long)
    if not low < high:
        return high

    def free_energy(logarithm: float) -> float:
        x = energies / (long * np.exp(logarithm))
        kept, dropped = x[x > limit], x[x <= limit]
        shifted = kept - (1 + alpha)
        tau = (shifted + np.sqrt(shifted**2 - 4 * alpha)) / 2
        gained = kept - tau + np.log((tau + 1) / kept) + alpha * np.log(tau / alpha + 1)
        return float(np.sum(dropped - np.log(dropped)) + np.sum(gained))

    grid = np.linspace(np.log(low), np.log(high), _GRID)
    best = int(np.argmin([free_energy(point) for point in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    found = minimize_scalar(free_energy, bounds=bounds, method="bounded").x
    return float(np.exp(min([grid[best], found], key=free_energy)))
