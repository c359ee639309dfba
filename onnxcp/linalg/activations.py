"""Activations and their proximal maps: what a map should aim at so that much comes out right.

For an activation r, wanted outputs Y, and what a map makes now, c, the proximal map is the m that
minimises ``(Y - r(m))^2 / 2 + rho (m - c)^2 / 2``. Neither is this convex in m, nor does a gradient
lead to its minimum: below zero a ReLU has none. But r is linear piece by piece, on each piece the
minimum is known, and the best of these is the best there is. For a ReLU these are the two branches
of Zhang et al. 2016 (equations 8 and 9) and of Ma et al. 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Slope = float | Floats


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of an activation on which it is ``slope * m + offset``.

    Attributes
    ----------
    low, high
        Where it begins and ends.
    slope
        A number, or one for each channel, (T,).
    offset
        A number.
    """

    low: float
    high: float
    slope: Slope
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Piecewise:
    """An activation that is continuous and linear piece by piece.

    Attributes
    ----------
    pieces
        From left to right, without gaps.
    """

    pieces: tuple[Piece, ...]

    def __call__(self, made: Floats) -> Floats:
        """Apply the activation to values (n, T)."""
        result = np.empty_like(made)
        for piece in self.pieces:
            inside = (made >= piece.low) & (made <= piece.high)
            np.copyto(result, piece.slope * made + piece.offset, where=inside, casting="same_kind")
        return result

    def prox(self, wanted: Floats, made: Floats, rho: float) -> Floats:
        """Return the m that minimises ``(wanted - r(m))^2 + rho (m - made)^2``, entry by entry.

        Parameters
        ----------
        wanted : (n, T) ndarray
            Y: what should come out.
        made : (n, T) ndarray
            c.
        rho
            Above 0.
        """
        best, least = np.empty_like(made), np.full_like(made, np.inf)
        for piece in self.pieces:
            slope = np.asarray(piece.slope, made.dtype)
            free = (slope * (wanted - piece.offset) + rho * made) / (slope**2 + rho)
            found = np.clip(free, piece.low, piece.high)
            cost = (wanted - slope * found - piece.offset) ** 2 + rho * (found - made) ** 2
            better = cost < least
            np.copyto(best, found, where=better)
            np.copyto(least, cost, where=better)
        return best


@dataclass(frozen=True, eq=False)
class Maxout:
    """The largest of `width` equal parts of the channels (Goodfellow et al. 2013).

    Channels c, c + T / width, c + 2 T / width and so on become one: a Split by channels and a Max.

    Attributes
    ----------
    width
        How many channels become one.
    """

    width: int

    def __call__(self, made: Floats) -> Floats:
        """Apply the activation to values (n, T): (n, T / width)."""
        return np.asarray(self._split(made).max(axis=-1))

    def prox(self, wanted: Floats, made: Floats, rho: float) -> Floats:
        """Return the m that minimises ``(wanted - r(m))^2 + rho ||m - made||^2``, group by group.

        Let v be the maximum of m. Where v is above all of c, raising the largest is enough; where
        it is below, those above it all come down to it. Either way the cost is convex in v, so v is
        found by looking at how many come down.

        Parameters
        ----------
        wanted : (n, T / width) ndarray
            Y.
        made : (n, T) ndarray
            c.
        rho
            Above 0.
        """
        parts = self._split(made)
        falling = -np.sort(-parts, axis=-1)
        sums = np.cumsum(falling, axis=-1)
        counts = np.arange(1, self.width + 1)
        levels = (wanted[..., None] + rho * sums) / (1 + rho * counts)
        # As many come down as the level that this makes leaves above it.
        after = np.concatenate([falling[..., 1:], np.full_like(falling[..., :1], -np.inf)], axis=-1)
        first = np.argmax(levels >= after, axis=-1)
        level = np.take_along_axis(levels, first[..., None], axis=-1)
        found = np.minimum(parts, level)
        top = np.argmax(parts, axis=-1)[..., None]
        np.put_along_axis(found, top, level.astype(found.dtype), axis=-1)
        return np.asarray(np.moveaxis(found, -1, -2).reshape(made.shape))

    def _split(self, made: Floats) -> Floats:
        """Return values (..., T) as (..., T / width, width)."""
        parts = made.reshape(*made.shape[:-1], self.width, -1)
        return np.asarray(np.moveaxis(parts, -2, -1))


Activation = Piecewise | Maxout


def identity() -> Piecewise:
    """Return what changes nothing: least squares before any activation."""
    return Piecewise((Piece(-np.inf, np.inf, 1.0),))


def leaky_relu(slope: float | Sequence[float] | Floats = 0.0) -> Piecewise:
    """Return a ReLU with a slope below zero, a PReLU where every channel has its own.

    Parameters
    ----------
    slope
        0 for a ReLU; a number; or one for each channel, (T,).
    """
    slopes = np.asarray(slope)
    below = slopes if slopes.ndim else float(slopes)
    return Piecewise((Piece(-np.inf, 0.0, below), Piece(0.0, np.inf, 1.0)))


def relu() -> Piecewise:
    """Return the ReLU."""
    return leaky_relu(0.0)


def clip(low: float, high: float) -> Piecewise:
    """Return what cuts values off at two ends: a ReLU6 is ``clip(0, 6)``.

    Raises
    ------
    ValueError
        If the ends are the wrong way round.
    """
    if not low <= high:
        raise ValueError(f"low is {low} and high is {high}; low must not be above")
    inside = Piece(low, high, 1.0)
    below = (Piece(-np.inf, low, 0.0, low),) if np.isfinite(low) else ()
    above = (Piece(high, np.inf, 0.0, high),) if np.isfinite(high) else ()
    return Piecewise((*below, inside, *above))


def relative_error(activation: Activation, wanted: Floats, made: Floats) -> float:
    """Return the squared error behind an activation, relative to the power of what should be there.

    Parameters
    ----------
    activation
        r.
    wanted, made : (n, T) ndarray
        What should come out ahead of it, and what does.
    """
    goal = activation(wanted)
    power = float(np.sum(np.square(goal, dtype=np.float64)))
    off = float(np.sum(np.square(goal - activation(made), dtype=np.float64)))
    return off / (power or 1.0)
