"""From a spectrum or a curve of errors to a rank: the rules, one function each.

All of them take what is known of the ranks first, and return a rank from 1 on: by energy kept, by
error allowed, by cosine similarity, by what it costs, by what stands out of noise
(`onnxcp.linalg.evbmf`), by the multiple that a machine likes.

The relative Frobenius error of cutting singular values ``s`` after ``r`` terms is
``e(r) = sqrt(sum_{i>r} s_i² / sum_i s_i²)`` and the energy kept is ``1 - e(r)²``.
"""

from __future__ import annotations

from collections.abc import Iterable

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


def rank_for_cosine(spectrum: ArrayLike, cosine: float) -> int:
    """Find the smallest rank whose approximation has a cosine similarity to the matrix.

    The cosine of a matrix and its truncated SVD is the root of the energy kept, so this is
    `rank_for_energy` of its square (the rule of Zhang, Liu & Weng 2023, on weights).

    Parameters
    ----------
    spectrum : (n,) array_like
        Singular values, largest first.
    cosine : float
        The similarity asked for, between 0 and 1.

    Returns
    -------
    int
        From 1 to ``n``; 1 for an all-zero spectrum.

    Raises
    ------
    ValueError
        If the spectrum is no spectrum or the similarity lies outside 0 to 1.
    """
    return _smallest(spectrum, 1 - checks.fraction("cosine", cosine) ** 2)


def rank_on_curve(errors: ArrayLike, bound: float) -> int:
    """Find the smallest rank from which on a curve of errors stays within a bound.

    For errors that were measured, of any kind, and need not fall with every rank: one minus the
    cosine similarity of responses (see `response_cosines`), say.

    Parameters
    ----------
    errors : (n,) array_like
        Errors at ranks 1, 2, ..., n.
    bound : float
        Greatest error allowed.

    Returns
    -------
    int
        From 1 to ``n``; ``n`` where no rank is within the bound.

    Raises
    ------
    ValueError
        If the curve is empty or not finite, or the bound is not.
    """
    curve = checks.float64("errors", errors, 1)
    if curve.ndim != 1:
        raise ValueError(f"errors has shape {curve.shape}; one axis is needed")
    over = np.flatnonzero(curve > checks.finite("bound", bound))
    return min(int(over[-1]) + 2, len(curve)) if len(over) else 1


def rank_for_cost(costs: ArrayLike, budget: float) -> int:
    """Find the largest rank that costs no more than a budget.

    Parameters
    ----------
    costs : (n,) array_like
        What ranks 1, 2, ..., n cost, in parameters or multiply-adds; rising.
    budget : float
        In the same unit: a ratio times what the original costs.

    Returns
    -------
    int
        From 1 to ``n``; 1 where no rank is within the budget.

    Raises
    ------
    ValueError
        If the costs are empty, not finite or fall, or the budget is not finite.
    """
    curve = checks.float64("costs", costs, 1)
    if curve.ndim != 1 or (np.diff(curve) < 0).any():
        raise ValueError("costs fall or have more than one axis; a rising curve is needed")
    within = int(np.searchsorted(curve, checks.finite("budget", budget), "right"))
    return max(1, within)


def weight_cosines(spectrum: ArrayLike) -> NDArray[np.float64]:
    """Cosine similarity of a matrix to its best approximations of every rank.

    The best approximation W_R is a projection of W, so that ``<W, W_R> = ||W_R||^2`` and the cosine
    is ``||W_R|| / ||W|| = sqrt(sum_{i<=R} s_i² / sum_i s_i²)``: the root of the energy kept. The
    rule of Zhang, Liu & Weng 2023 on weights, for all thresholds at once; where there is but one,
    see `rank_for_cosine`.

    Parameters
    ----------
    spectrum : (n,) array_like
        Singular values, largest first.

    Returns
    -------
    (n,) ndarray
        At ranks 1, 2, ..., n; rising, and all 1 for an all-zero spectrum.

    Raises
    ------
    ValueError
        If the spectrum is no spectrum.
    """
    tails = _tails(spectrum)
    if tails[0] == 0:
        return np.ones(len(tails) - 1)
    return np.asarray(np.sqrt(np.maximum(1 - tails[1:] / tails[0], 0.0)))


def response_cosines(wanted: ArrayLike, made: Iterable[ArrayLike]) -> NDArray[np.float64]:
    """Cosine similarity of responses to what approximations make of them.

    The rule of Zhang, Liu & Weng 2023 on outputs, where `made` are those of ranks from low to high;
    what an activation hides is not to be compared, so both are given behind it.

    Parameters
    ----------
    wanted : (n, T) array_like
        What a layer puts out, one sample a row.
    made : iterable of (n, T) array_like
        What takes its place puts out, one approximation after the other.

    Returns
    -------
    (m,) ndarray
        One for each approximation; 1 where there is nothing to compare, 0 where only one of the
        two is zero. ``1 - cosine`` is a curve for `rank_on_curve`.

    Raises
    ------
    ValueError
        If responses are empty, not finite or not floating point.
    """
    given = checks.float64("wanted", wanted, 2)
    norm = float(np.linalg.norm(given))
    found = []
    for each in made:
        response = checks.float64("made", each, 2)
        product = norm * float(np.linalg.norm(response))
        same = 1.0 if norm == 0 and not response.any() else 0.0
        found.append(float(np.vdot(given, response)) / product if product else same)
    return np.asarray(np.clip(np.array(found), -1, 1))


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
