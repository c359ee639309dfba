"""A linear map as a sum: a low-rank one, and one that sees only some of the inputs.

The published model (Ma et al. 2019) asks for the two by norms that stand for rank and support, and
pays for it: what is kept is shrunk as well (`onnxcp.linalg.sparse_low_rank_admm`). Here rank and
support are given as they are. Then there is nothing left to iterate over: with G the second moments
of the inputs, and A free on the columns J and zero elsewhere,

    min over A, B of  tr (W - A - B) G (W - A - B)'   is reached at
    B = V V' W,  A_J = (I - V V') W G_:J inv(G_JJ),

where V holds the leading eigenvectors of ``W S W'`` and ``S = G - G_:J inv(G_JJ) G_J:`` is what the
columns J say nothing about: whatever B is, the best A leaves ``tr (W - B) S (W - B)'``, and of that
reduced-rank regression is the minimum. Only the choice of J is combinatorial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcp.linalg import checks

Floats = NDArray[np.floating[Any]]
Matrix = NDArray[np.float64]
Columns = NDArray[np.intp]

_ROUNDS = 6
_JITTER = 1e-9  # of the mean diagonal, added to the moments of the columns that A sees


@dataclass(frozen=True, eq=False)
class SparseLowRank:
    """A linear map of P inputs and T outputs, ``last @ first`` and `sparse` on some of its columns.

    Attributes
    ----------
    first : (R, P) ndarray
    last : (T, R) ndarray
        Orthonormal columns.
    sparse : (T, |J|) ndarray
        A on the columns J that it sees.
    columns : (|J|,) ndarray of int
        J.
    lost
        Squared error, ``tr (W - A - B) G (W - A - B)'``.
    """

    first: Matrix
    last: Matrix
    sparse: Matrix
    columns: Columns
    lost: float

    @property
    def weight(self) -> Matrix:
        """The map itself, A + B, (T, P)."""
        whole = self.last @ self.first
        whole[:, self.columns] += self.sparse
        return whole


def sparse_low_rank(
    weight: Floats, columns: Columns, rank: int, gram: Floats | None = None
) -> SparseLowRank:
    """Fit a low-rank map and one on given columns, both at once, at the least error there is.

    Parameters
    ----------
    weight : (T, P) ndarray
        W.
    columns : (|J|,) ndarray of int
        J, no column twice.
    rank
        R, at least 1; more than T counts as T.
    gram : (P, P) ndarray
        G, positive semidefinite; by default the identity: no data. Its type is the one that
        products with it are computed in.

    Raises
    ------
    ValueError
        If the weight is not finite, the rank below 1, or a column not one of the weight's.
    """
    work = _Problem.of(weight, gram)
    rank = checks.integer("rank", rank, 1)
    columns = np.asarray(columns, np.intp)
    if columns.size and not 0 <= columns.min() <= columns.max() < work.weight.shape[1]:
        raise ValueError(
            f"columns reach from {columns.min()} to {columns.max()}; "
            f"the weight has those from 0 to {work.weight.shape[1] - 1}"
        )
    return work.fit(columns, rank)


def choose_groups(
    weight: Floats,
    groups: Columns,
    count: int,
    rank: int,
    gram: Floats | None = None,
    start: Columns | None = None,
) -> Columns:
    """Choose the groups of columns that a sparse part beside a low-rank one had best see.

    By turns: the low-rank part that is best beside the groups chosen, and the groups that are worth
    most beside this low-rank part, each by itself (iterative hard thresholding on groups). The
    best choice on the way is kept.

    Parameters
    ----------
    weight : (T, P) ndarray
    groups : (n, w) ndarray of int
        The columns of each group.
    count
        How many to choose, from 1 to n.
    rank
        Of the low-rank part.
    gram : (P, P) ndarray
        Second moments of the inputs; by default the identity.
    start : (count,) ndarray of int
        A choice to be no worse than.

    Returns
    -------
    (count,) ndarray of int
        In ascending order.
    """
    work = _Problem.of(weight, gram)
    rank = checks.integer("rank", rank, 1)
    count = checks.integer("count", count, 1, len(groups))
    if count == len(groups):
        return np.arange(count)
    best, lost = np.arange(count), np.inf
    if start is not None:
        best, lost = np.sort(start), work.fit(groups[start].reshape(-1), rank).lost
    low = work.fit(np.zeros(0, np.intp), rank).last
    for _ in range(_ROUNDS):
        worth = work.worth(groups, low)
        chosen = np.sort(np.argsort(-worth, kind="stable")[:count])
        fit = work.fit(groups[chosen].reshape(-1), rank)
        if not fit.lost < lost:
            break
        best, lost, low = chosen, fit.lost, fit.last
    return best


@dataclass(frozen=True, eq=False)
class _Problem:
    """A weight, the moments of its inputs, and their products."""

    weight: Floats
    gram: Floats | None
    through: Floats
    power: Matrix

    @classmethod
    def of(cls, weight: Floats, gram: Floats | None) -> _Problem:
        kind = np.float64 if gram is None else gram.dtype
        work = checks.floats("weight", weight, 2).astype(kind, copy=False)
        if work.ndim != 2:
            raise ValueError(f"weight has shape {work.shape}; two axes are needed")
        if gram is not None and gram.shape != (work.shape[1],) * 2:
            raise ValueError(f"gram has shape {gram.shape}; {(work.shape[1],) * 2} is needed")
        through = work if gram is None else work @ gram
        return cls(work, gram, through, np.asarray(through @ work.T, np.float64))

    def fit(self, columns: Columns, rank: int) -> SparseLowRank:
        seen = np.asarray(self.through[:, columns], np.float64)
        solved = self._solve(columns, seen)
        covariance = self.power - solved @ seen.T
        values, vectors = scipy.linalg.eigh(
            (covariance + covariance.T) / 2, driver="evd", check_finite=False
        )
        last = np.ascontiguousarray(vectors[:, ::-1][:, :rank])
        lost = float(np.maximum(values[::-1][rank:], 0).sum())
        sparse = solved - last @ (last.T @ solved)
        first = np.asarray(last.T @ self.weight, np.float64)
        return SparseLowRank(first, last, sparse, columns, lost)

    def worth(self, groups: Columns, last: Matrix) -> Matrix:
        """Return what each group of columns takes off the error beside a low-rank part."""
        through = np.asarray(self.through - last @ (last.T @ self.through), np.float64)
        if self.gram is None:
            return np.asarray(np.square(through).sum(axis=0)[groups].sum(axis=1))
        squares = np.empty(len(groups))
        for index, columns in enumerate(groups):
            part = through[:, columns]
            squares[index] = np.vdot(self._solve(columns, part), part)
        return squares

    def _solve(self, columns: Columns, right: Matrix) -> Matrix:
        """Return ``right @ inv(G_JJ)``; inputs that do not vary take nothing."""
        if self.gram is None or not columns.size:
            return right
        block = np.asarray(self.gram[np.ix_(columns, columns)], np.float64)
        level = _JITTER * (float(np.trace(block)) / len(block) or 1.0)
        block = block + level * np.eye(len(block))
        try:
            solved = scipy.linalg.solve(block, right.T, assume_a="pos", check_finite=False)
        except scipy.linalg.LinAlgError:
            solved = scipy.linalg.lstsq(block, right.T, check_finite=False)[0]
        return np.asarray(solved).T
