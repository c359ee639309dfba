"""First and second moments of what goes into a linear map and what ought to come out of it.

They are all that least squares needs: a regression, its error on other samples and every
factorisation in the norm of the data are computed from them, and no sample is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcp.linalg.metric import square_roots

Floats = NDArray[np.floating[Any]]
Matrix = NDArray[np.float64]

_WAITING = 4  # a product of fewer samples than a share of its rows is no work for what it adds to
_SINGLE = 1024  # rows of a Gram matrix beyond which products with it are formed in float32


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of inputs x of P entries and targets t of T entries, over n samples.

    Attributes
    ----------
    count
        Number of samples n.
    x_mean : (P,) ndarray
    t_mean : (T,) ndarray
    xx : (P, P) ndarray
        Covariance of x, or its second moment where a bias is out of the question: then both means
        are zero.
    xt : (P, T) ndarray
        Covariance of x and t.
    t_power
        Sum of the variances of t.
    scale
        Sum of the mean squares of t: what errors are relative to.
    """

    count: int
    x_mean: Matrix
    t_mean: Matrix
    xx: Matrix
    xt: Matrix
    t_power: float
    scale: float

    def error(self, weight: Floats, bias: Floats | None = None) -> float:
        """Mean squared error of ``weight x + bias``, relative to the mean square of t.

        Parameters
        ----------
        weight : (T, P) ndarray
        bias : (T,) ndarray
            By default the best one, ``E t - weight E x``.
        """
        return self.loss(weight, bias) / (self.scale or 1.0)

    @cached_property
    def gram(self) -> Floats:
        """``xx`` in the type that products with it are formed in, see `working_type`."""
        return self.xx.astype(working_type(len(self.xx)), copy=False)

    def loss(self, weight: Floats, bias: Floats | None = None) -> float:
        """Mean squared error of ``weight x + bias``, as `error` but not relative."""
        weight = np.asarray(weight, np.float64).reshape(len(self.t_mean), -1)
        through = weight.astype(self.gram.dtype, copy=False) @ self.gram
        squared = self.t_power + float(np.sum(through * weight) - 2 * np.vdot(weight.T, self.xt))
        if bias is not None:
            off = self.t_mean - weight @ self.x_mean - bias
            squared += float(off @ off)
        return max(squared, 0.0)

    def best_bias(self, weight: Floats) -> Matrix:
        """Bias at which the error of ``weight x + bias`` is least, (T,)."""
        weight = np.asarray(weight, np.float64).reshape(len(self.t_mean), -1)
        return self.t_mean - weight @ self.x_mean


class Accumulator:
    """Gathers moments from blocks of samples; sums are kept in float64.

    Products are formed in the type of the blocks, about the mean of the first block, so that
    large means cost no digits.

    Parameters
    ----------
    centred
        Whether moments are taken about the mean. Without, a regression has no bias.
    """

    def __init__(self, centred: bool = True) -> None:
        self._centred = centred
        self._count = 0
        self._scale = self._power = 0.0
        self._shifts: list[Floats] = []
        self._sums: list[Matrix] = []
        self._xx: Matrix = np.zeros((0, 0))
        self._xt: Matrix = np.zeros((0, 0))
        self._waiting: list[tuple[Floats, Floats]] = []

    def add(self, x: Floats, t: Floats) -> None:
        """Take samples in: x of shape (n, P), t of shape (n, T)."""
        if not len(x):
            return
        if not self._count:
            means = [each.mean(axis=0, dtype=np.float64).astype(each.dtype) for each in (x, t)]
            self._shifts = means if self._centred else [np.zeros_like(mean) for mean in means]
            self._sums = [np.zeros(len(mean)) for mean in means]
            self._xx = np.zeros((x.shape[1], x.shape[1]))
            self._xt = np.zeros((x.shape[1], t.shape[1]))
        self._count += len(x)
        self._scale += _power(t)
        x, t = (each - shift for each, shift in zip((x, t), self._shifts, strict=True))
        for total, each in zip(self._sums, (x, t), strict=True):
            total += each.sum(axis=0, dtype=np.float64)
        self._power += _power(t)
        self._waiting.append((x, t))
        if sum(len(each) for each, _ in self._waiting) >= x.shape[1] // _WAITING:
            self._multiply()

    def _multiply(self) -> None:
        """Add products of what waits; a sum as large as a Gram matrix is dear for few samples."""
        if self._waiting:
            x, t = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
            self._xx += x.T @ x
            self._xt += x.T @ t
            self._waiting.clear()

    def moments(self) -> Moments | None:
        """Return the moments of all samples so far; None if there were none."""
        if not self._count:
            return None
        self._multiply()
        n = self._count
        # What the means are off the shifts by; nothing is taken away where there is to be no bias.
        x, t = (total / n if self._centred else np.zeros_like(total) for total in self._sums)
        return Moments(
            count=n,
            x_mean=x + self._shifts[0],
            t_mean=t + self._shifts[1],
            xx=self._xx / n - np.outer(x, x),
            xt=self._xt / n - np.outer(x, t),
            t_power=self._power / n - float(t @ t),
            scale=self._scale / n,
        )


def _power(values: Floats) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))


def working_type(size: int) -> type[np.floating[Any]]:
    """Return the type to form products with a Gram matrix in: float32 for one of many rows.

    Rounding then costs about 1e-8 of what is summed up, which no error that matters comes near.
    """
    return np.float32 if size > _SINGLE else np.float64


def ridge(moments: Moments, prior: Floats, strength: float) -> Matrix:
    """Regress t on x, drawn towards a given map where the samples do not say otherwise.

    Minimises ``E || t - W x - b ||^2 + l || W - W0 ||_F^2`` with l the strength times the mean
    variance of an entry of x: ``W = (C_tx + l W0)(C_xx + l I)^-1``. Takes ``P^3 / 3 + P^2 T``
    multiply-adds.

    Parameters
    ----------
    moments
        Of x and t.
    prior : (T, P) ndarray
        W0.
    strength
        Relative weight of the prior.

    Returns
    -------
    (T, P) ndarray
    """
    level = penalty(moments, strength)
    normal = moments.xx + level * np.eye(len(moments.xx))
    right = moments.xt + level * np.asarray(prior, np.float64).T
    try:
        solved = scipy.linalg.solve(normal, right, assume_a="pos", check_finite=False)
    except scipy.linalg.LinAlgError:
        solved = scipy.linalg.lstsq(normal, right, check_finite=False)[0]
    return np.asarray(solved).T


def penalty(moments: Moments, strength: float) -> float:
    """Return the level of a ridge: `strength` times the mean variance of an entry of x.

    Of inputs that do not vary, it is the strength itself: then any will do.
    """
    mean = float(np.trace(moments.xx)) / max(len(moments.xx), 1)
    return strength * (mean if mean > 0 else 1.0)


def reduced_rank(
    weight: Floats, gram: Floats, rank: int, outputs: Floats | None = None
) -> tuple[Matrix, Matrix]:
    """Cut a linear map to a lower rank, at the least error for inputs of a given covariance.

    Minimises ``tr H (W - B A) G (W - B A)'``: with ``H`` the identity, B holds the leading
    eigenvectors of ``W G W'`` and ``A = B' W`` (reduced-rank regression, Izenman 1975; in this form
    Zhang et al. 2016, equation 4, for the covariance of the outputs). With W a regression on x of
    covariance G it is the best map of this rank from x to the targets.

    Parameters
    ----------
    weight : (T, P) ndarray
    gram : (P, P) ndarray
        Positive semidefinite.
    rank
        R, from 1 to T.
    outputs : (T, T) ndarray, optional
        H, what errors of outputs count, positive semidefinite; by default all the same.

    Returns
    -------
    first : (R, P) ndarray
    last : (T, R) ndarray
        Orthonormal columns, if all outputs count the same.
    """
    weight = np.asarray(weight, np.float64)
    if outputs is not None:
        root, inverse = square_roots(np.asarray(outputs, np.float64))
        first, last = reduced_rank(root @ weight, gram, rank)
        return first, inverse @ last
    covariance = np.asarray(weight @ gram, np.float64) @ weight.T
    covariance = (covariance + covariance.T) / 2
    last = scipy.linalg.eigh(covariance, check_finite=False)[1][:, ::-1][:, :rank]
    return last.T @ weight, np.ascontiguousarray(last)
