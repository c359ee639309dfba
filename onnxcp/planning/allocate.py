"""Choosing one option for every site: a multiple-choice knapsack.

Of each site only the options are kept that none is both cheaper and better than, the site itself
among them; of these one is chosen by mixed-integer linear programming (HiGHS, by
`scipy.optimize.milp`), so that an objective is least while other sums stay within limits. Their
lower convex hull would be fewer, and greedy choices along it would do; but where a network has few
sites, what fits a limit best often lies above the hull.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

_GAP = 1e-3  # of the objective, whose numbers are not known any better
_SECONDS = 60.0  # to solve in at most; problems of 300 sites take a few

MEASURES = ("seconds", "macs", "parameters", "distortion", "error")


@dataclass(frozen=True)
class Weighed:
    """An option as the allocation sees it; each number is to be kept small.

    Attributes
    ----------
    seconds
        Of the whole chain in the network.
    macs, parameters
        Of the chain.
    distortion, error
        What it adds to the distortion, and to the squared relative error, of the outputs.
    """

    seconds: float
    macs: float
    parameters: float
    distortion: float
    error: float


def allocate(
    sites: Sequence[Sequence[Weighed]], objective: str, limits: Mapping[str, float]
) -> list[int] | None:
    """Choose one option for each site.

    Parameters
    ----------
    sites
        For each site, what it may be: one option at least, itself among them.
    objective
        Which of `MEASURES` to make least, in sum.
    limits
        Largest sums of other measures.

    Returns
    -------
    list of int or None
        For each site, which option; None if the limits cannot be met.
    """
    kept = [undominated(options, objective, next(iter(limits), objective)) for options in sites]
    flat = [(row, each) for row, options in enumerate(kept) for each in options]
    weighed = [sites[row][each] for row, each in flat]
    if not flat:
        return [] if all(limit >= 0 for limit in limits.values()) else None
    one_each = np.zeros((len(sites), len(flat)))
    one_each[[row for row, _ in flat], range(len(flat))] = 1
    constraints = [LinearConstraint(one_each, 1, 1)]
    for measure, limit in limits.items():
        values, scale = _scaled(weighed, measure)
        constraints.append(LinearConstraint(values[None], -np.inf, limit / scale))
    # Where an objective does not tell options apart, the faster is taken.
    cost = _scaled(weighed, objective)[0] + 1e-7 * _scaled(weighed, "seconds")[0]
    with _nothing_on_stdout():
        found = milp(
            cost,
            constraints=constraints,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": _GAP, "time_limit": _SECONDS},
        )
    if found.x is None:
        return None
    chosen = [0] * len(sites)
    for (row, each), taken in zip(flat, found.x, strict=True):
        if taken > 0.5:
            chosen[row] = each
    return chosen


def nearest(sites: Sequence[Sequence[Weighed]], objective: str, measure: str) -> list[int]:
    """Choose for each site the option of which a measure is least, and then the objective."""
    return [undominated(options, objective, measure)[0] for options in sites]


@contextlib.contextmanager
def _nothing_on_stdout() -> Iterator[None]:
    """Send what HiGHS leaves on standard output, of all places, to standard error.

    It is a line now and then that no option turns off; standard output is for results.
    """
    try:
        kept = os.dup(1)
    except OSError:  # closed
        yield
        return
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        os.dup2(2, 1)
        yield
    finally:
        if sys.platform != "win32":  # where C buffers it, it would come out later
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def undominated(options: Sequence[Weighed], objective: str, cost: str) -> list[int]:
    """Return which options none is cheaper than and as good.

    From the cheapest to the one with the least objective; infinite ones are left out.
    """
    # Of equal ones the fastest comes first, and stays.
    by_time = sorted(enumerate(options), key=lambda pair: pair[1].seconds)
    known = [
        (getattr(each, cost), getattr(each, objective), position)
        for position, each in by_time
        if math.isfinite(getattr(each, cost)) and math.isfinite(getattr(each, objective))
    ]
    kept: list[int] = []
    best = math.inf
    for _, value, position in sorted(known, key=lambda point: point[:2]):
        if value < best:
            kept.append(position)
            best = value
    return kept


def _scaled(options: Sequence[Weighed], measure: str) -> tuple[npt.NDArray[np.float64], float]:
    """Return values of the order of 1, as the solver expects them, and what they are over."""
    values = np.array([getattr(each, measure) for each in options], np.float64)
    scale = float(np.abs(values).max()) or 1.0
    return values / scale, scale
