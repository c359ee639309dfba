"""Targets for a map whose output is rectified afterwards.

Where a ReLU follows, what a map puts out below zero does not matter, as long as it stays there.
Fitting what comes out of the ReLU is no least-squares problem, but becomes one by a penalty:
targets z are chosen between what the map makes now and what the ReLU should put out, the map is
fitted to them, and so on in turn (Zhang et al. 2016, section 3.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

PENALTIES = (0.05, 0.2, 1.0)
"""Weights of the penalty, one for each turn: from free to strict."""


def rectified_targets(wanted: Floats, made: Floats, penalty: float) -> Floats:
    """Return what a map should aim at, now that it makes something.

    Minimises ``(r(y) - r(z))^2 + penalty (z - c)^2`` for every entry, r the ReLU: of the best z
    below zero and the best one above, the cheaper (Zhang et al. 2016, equations 8 and 9).

    Parameters
    ----------
    wanted
        y: what should come out before the ReLU.
    made
        c: what comes out, of the same shape.
    penalty
        From above 0, where z is free, to infinity, where it is c.
    """
    goal = np.maximum(wanted, 0)
    below = np.minimum(made, 0)
    above = np.maximum((penalty * made + goal) / (penalty + 1), 0)
    cost_below = goal**2 + penalty * (below - made) ** 2
    cost_above = (goal - above) ** 2 + penalty * (above - made) ** 2
    return np.where(cost_below < cost_above, below, above)


def rectified_error(wanted: Floats, made: Floats) -> float:
    """Return the squared error of r(c), relative to the power of r(y), r the ReLU."""
    goal = np.maximum(wanted, 0)
    power = float(np.sum(np.square(goal, dtype=np.float64)))
    off = float(np.sum(np.square(goal - np.maximum(made, 0), dtype=np.float64)))
    return off / (power or 1.0)
