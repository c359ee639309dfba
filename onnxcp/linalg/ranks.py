"""From a spectrum to a rank: by energy kept, by error allowed, by the multiple a machine likes.

The relative Frobenius error of cutting singular values ``s`` after ``r`` terms is
``e(r) = sqrt(sum_{i>r} s_i² / sum_i s_i²)`` and the energy kept is ``1 - e(r)²``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxcp.linalg import checks

# Absorbs the rounding of bounds such as 1 - 0.9, which falls just short of 0.1.
_SLACK = 1 + 1e-9


def relative_error(spectrum: ArrayLike, rank: int) -> float:
    """Relative Frobenius error of keeping the leading ``rank`` singular values.

    Parameters
    ----------
    spectrum : (n,) array_like
        Singular values, largest first.
    rank : int
        Number kept, at least 1; more than ``n`` counts as ``n``.

    Returns
    -------
    float
        Between 0 and 1; 0 for an all-zero spectrum.

    Raises
    ------
    ValueError
        If the spectrum is no spectrum or the rank is below 1.
    """
    tails = _tails(spectrum)
    kept = min(checks.integer("rank", rank, 1), len(tails) - 1)
    return float(np.sqrt(tails[kept] / tails[0])) if tails[0] > 0 else 0.0


def rank_for_energy(spectrum: ArrayLike, energy: float) -> int:
    """Find the smallest rank that keeps a share of the energy.

    The smallest ``r >= 1`` with ``sum_{i<=r} s_i² >= energy · sum_i s_i²``. Values that are
    rounding errors of an SVD count as zero, so ``energy=1`` gives the numerical rank.

    Parameters
    ----------
    spectrum : (n,) array_like
        Singular values, largest first.
    energy : float
        The share to keep, between 0 and 1.

    Returns
    -------
    int
        From 1 to ``n``; 1 for an all-zero spectrum.

    Raises
    ------
    ValueError
        If the spectrum is no spectrum or the energy lies outside 0 to 1.
    """
    return _smallest(spectrum, 1 - checks.fraction("energy", energy))


def rank_for_error(spectrum: ArrayLike, error: float) -> int:
    """Find the smallest rank whose relative Frobenius error stays within a bound.

    Parameters
    ----------
    spectrum : (n,) array_like
        Singular values, largest first.
    error : float
        The bound, between 0 and 1; the energy kept is ``1 - error²``.

    Returns
    -------
    int
        From 1 to ``n``; 1 for an all-zero spectrum.

    Raises
    ------
    ValueError
        If the spectrum is no spectrum or the bound lies outside 0 to 1.
    """
    return _smallest(spectrum, checks.fraction("error", error) ** 2)


def round_rank(rank: int, multiple: int, full: int, *, up: bool = False) -> int:
    """Round a rank to a multiple, staying between 1 and the full rank.

    Parameters
    ----------
    rank : int
        The rank, at least 1.
    multiple : int
        What to round to, at least 1.
    full : int
        The largest rank there is, at least 1. It is allowed although it may be no multiple.
    up : bool
        Round up rather than down. Rounding down never gives 0: the least is ``multiple``.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If one of the three is below 1.
    """
    rank = checks.integer("rank", rank, 1)
    multiple = checks.integer("multiple", multiple, 1)
    full = checks.integer("full", full, 1)
    steps = -(-rank // multiple) if up else rank // multiple
    return min(max(steps, 1) * multiple, full)


def _smallest(spectrum: ArrayLike, share: float) -> int:
    """Smallest rank from 1 on that leaves at most this share of the energy in the tail."""
    tails = _tails(spectrum)
    count = len(tails) - 1
    noise = (count * np.finfo(np.float64).eps) ** 2
    enough = tails[1:] <= (share * _SLACK + noise) * tails[0]
    return int(np.argmax(enough)) + 1


def _tails(spectrum: ArrayLike) -> NDArray[np.float64]:
    """Energies ``sum_{i>r} s_i²`` for ``r = 0 ... n``, up to a common factor."""
    values = checks.float64("spectrum", spectrum, 1)
    if values.ndim != 1:
        raise ValueError(f"spectrum has shape {values.shape}; one axis is needed")
    if values.min() < 0 or (np.diff(values) > 0).any():
        raise ValueError(
            "spectrum holds negative or rising values; singular values, largest first, are needed"
        )
    scaled = values / values[0] if values[0] > 0 else values
    # Summed from the smallest up: a tail found as "all minus head" would drown in rounding.
    return np.append(np.cumsum(scaled[::-1] ** 2)[::-1], 0.0)
