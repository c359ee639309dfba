"""Checks of arguments: every message names the argument, what was given and what is allowed."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray


class RankWarning(UserWarning):
    """A rank beyond full was asked for, and the full one was taken."""


def at_most(name: str, rank: int, full: int) -> int:
    """Cut a rank at the full one, with a note if it was beyond.

    Parameters
    ----------
    name : str
        What to call the rank in the note.
    rank : int
        The rank.
    full : int
        The largest rank of any use.

    Returns
    -------
    int

    Warns
    -----
    RankWarning
        If the rank was cut.
    """
    if rank > full:
        note = f"{name} is {rank}; no more than {full} is of any use here, and {full} is taken"
        warnings.warn(note, RankWarning, stacklevel=3)
    return min(rank, full)


def floats(name: str, array: ArrayLike, min_ndim: int) -> NDArray[np.floating]:
    """Check that an array is real floating point, not empty and finite.

    Parameters
    ----------
    name : str
        What to call the array in messages.
    array : array_like
        The array.
    min_ndim : int
        The least number of axes allowed.

    Returns
    -------
    ndarray
        The array, in the precision it came in.

    Raises
    ------
    ValueError
        For another dtype, too few axes, an empty array, NaN or infinity.
    """
    checked = np.asarray(array)
    if not np.issubdtype(checked.dtype, np.floating):
        raise ValueError(f"{name} has dtype {checked.dtype}; a floating-point dtype is needed")
    if checked.ndim < min_ndim:
        raise ValueError(f"{name} has shape {checked.shape}; at least {min_ndim} axes are needed")
    if checked.size == 0:
        raise ValueError(f"{name} has shape {checked.shape}; no axis may be empty")
    if not np.isfinite(checked).all():
        raise ValueError(f"{name} holds NaN or infinity; all values must be finite")
    return checked


def float64(name: str, array: ArrayLike, min_ndim: int) -> NDArray[np.float64]:
    """Check an array as `floats` does and return it in float64."""
    return floats(name, array, min_ndim).astype(np.float64, copy=False)


def integer(name: str, value: object, least: int, most: int | None = None) -> int:
    """Check that a value is an integer between ``least`` and ``most``.

    Raises
    ------
    ValueError
        For a value that is no integer (a bool is none) or lies outside.
    """
    allowed = f"at least {least}" if most is None else f"from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} is {value!r}; an integer, {allowed}, is needed")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name} is {value}; it must be {allowed}")
    return int(value)


def fraction(name: str, value: float) -> float:
    """Check that a value lies between 0 and 1, ends included.

    Raises
    ------
    ValueError
        For a value outside, or NaN.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it must lie between 0 and 1")
    return float(value)


def positive(name: str, value: float, least: float = 0.0) -> float:
    """Check that a value is finite and not below the least allowed.

    Raises
    ------
    ValueError
        For a value below, infinity or NaN.
    """
    if not least <= value < np.inf:
        raise ValueError(f"{name} is {value}; it must be finite and at least {least:g}")
    return float(value)


def finite(name: str, value: float) -> float:
    """Check that a value is finite.

    Raises
    ------
    ValueError
        For infinity or NaN.
    """
    if not np.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be finite")
    return float(value)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Check that a value is among those allowed.

    Raises
    ------
    ValueError
        For any other.
    """
    if value not in allowed:
        names = ", ".join(repr(each) for each in allowed)
        raise ValueError(f"{name} is {value!r}; it must be one of {names}")
    return value
