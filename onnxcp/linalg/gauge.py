"""The interpolative gauge: some outputs of a product of two matrices are its inner values as is.

``W = A B`` of rank ``R`` is ``(A M⁻¹)(M B)`` for any ``M``. With ``R`` well-conditioned rows of
``A`` as ``M``, those rows of the first matrix become the identity: ``R`` of the outputs need no
product at all, and the others take ``(T - R) R`` multiply-adds instead of ``T R``. The rows are
chosen by QR with column pivoting (interpolative decomposition: Cheng, Gimbutas, Martinsson &
Rokhlin 2005), which keeps the entries of what remains small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from onnxcp.linalg import checks

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gauged:
    """A product of two factors of which the outer one holds an identity.

    Attributes
    ----------
    first : (R, S, *k) ndarray
        The inner factor: its outputs are the outputs `copied`, as they are.
    rest : (T - R, R) ndarray
        What makes the other outputs of them.
    copied : (R,) ndarray of int
        Which outputs.
    """

    first: Matrix
    rest: Matrix
    copied: NDArray[np.intp]

    @property
    def others(self) -> NDArray[np.intp]:
        """The outputs that `rest` makes, in order."""
        return np.setdiff1d(np.arange(len(self.copied) + len(self.rest)), self.copied)

    def kernel(self) -> Matrix:
        """Multiply out to the kernel ``(T, S, *k)``."""
        made = np.empty((len(self.copied) + len(self.rest), *self.first.shape[1:]))
        made[self.copied] = self.first
        made[self.others] = np.tensordot(self.rest, self.first, axes=1)
        return made


def interpolative(first: ArrayLike, last: ArrayLike) -> Gauged:
    """Turn the factors of a channel SVD so that R of the outputs are copies.

    Takes a pivoted QR of ``(R, T)`` and a solve of size ``R``. The product stays what it is, to
    rounding.

    Parameters
    ----------
    first : (R, S, *k) array_like
    last : (T, R) array_like
        With R no larger than T.

    Returns
    -------
    Gauged

    Raises
    ------
    ValueError
        If a factor is empty, not finite or not floating point, or their shapes do not fit.
    """
    inner = checks.float64("first", first, 2)
    outer = checks.float64("last", last, 2)
    if outer.ndim != 2 or outer.shape[1] != len(inner) or len(inner) > len(outer):
        raise ValueError(
            f"last has shape {outer.shape}, first {inner.shape}; (T, R) and (R, S, ...) with R "
            "from 1 to T are needed"
        )
    outputs, rank = outer.shape
    chosen = scipy.linalg.qr(outer.T, mode="r", pivoting=True, check_finite=False)[1][:rank]
    copied = np.sort(chosen)
    others = np.setdiff1d(np.arange(outputs), copied)
    anchor = outer[copied]
    # Of factors short of full rank, any solution of the consistent system will do.
    rest = np.linalg.lstsq(anchor.T, outer[others].T, rcond=None)[0].T
    return Gauged(np.tensordot(anchor, inner, axes=1), np.ascontiguousarray(rest), copied)
