"""Compression before a CP fit: a small core in place of a tensor of low multilinear rank.

The factors of a CP decomposition lie in the column spaces of the unfoldings. A Tucker compression
that keeps nearly all of the energy therefore loses nearly nothing, for any number of terms, and
what is left to fit is smaller (CANDELINC: Carroll, Pruzansky & Kruskal 1980; Bro & Andersson 1998).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxcp.linalg.als import Factors

_LEAST_GAIN = 1.3  # times as many entries as the core, from which on a compression pays
_LONG = 16  # modes shorter than this are left alone: there is nothing to gain


@dataclass(frozen=True)
class Compressed:
    """A tensor as a core and an orthonormal basis for each mode.

    Attributes
    ----------
    unfolded : (r_0, r_1 · ... · r_{N-1}) ndarray
        Mode-0 unfolding of the core, with unit norm.
    shape : tuple of int
        ``(r_0, ..., r_{N-1})``.
    bases : tuple of (dim, r) ndarray or None
        None where a mode is not compressed.
    scale : float
        Norm of the core before it was scaled.
    """

    unfolded: NDArray[np.float64]
    shape: tuple[int, ...]
    bases: tuple[NDArray[np.float64] | None, ...]
    scale: float

    @property
    def lost(self) -> float:
        """Share of the tensor's energy that the core does not have."""
        return max(0.0, 1 - self.scale**2)

    def expanded(self, factors: Factors) -> Factors:
        """Turn factors of the core into factors of the tensor.

        Parameters
        ----------
        factors : tuple of (r, R) ndarray

        Returns
        -------
        tuple of (dim, R) ndarray
        """
        even = self.scale ** (1 / len(factors))
        return tuple(
            even * (factor if basis is None else basis @ factor)
            for basis, factor in zip(self.bases, factors, strict=True)
        )


def compress(
    unfolded: NDArray[np.float64], shape: tuple[int, ...], loss: float
) -> Compressed | None:
    """Compress the long modes of a tensor, or return None where that does not pay.

    Costs ``Σ dim_n · Π dim`` multiply-adds for the Gram matrices, as much as a sweep of ALS at a
    rank of half the sum of the long dimensions, and their eigenvectors.

    Parameters
    ----------
    unfolded : (dim_0, dim_1 · ... · dim_{N-1}) ndarray
        Mode-0 unfolding of the tensor, with unit norm.
    shape : tuple of int
        ``(dim_0, ..., dim_{N-1})``.
    loss : float
        Greatest share of the energy to lose, all modes together.

    Returns
    -------
    Compressed or None
    """
    tensor = unfolded.reshape(shape)
    long = [mode for mode, dim in enumerate(shape) if dim >= _LONG]
    bases: list[NDArray[np.float64] | None] = [None] * len(shape)
    for mode in long:
        matrix = np.moveaxis(tensor, mode, 0).reshape(shape[mode], -1)
        values, vectors = np.linalg.eigh(matrix @ matrix.T)
        # Tails of the eigenvalues from the smallest up; rounding may leave negative ones.
        dropped = int(np.searchsorted(np.cumsum(np.maximum(values, 0)), loss / len(long), "right"))
        if dropped:
            bases[mode] = np.ascontiguousarray(vectors[:, min(dropped, len(values) - 1) :])
    core_shape = tuple(
        dim if basis is None else basis.shape[1] for dim, basis in zip(shape, bases, strict=True)
    )
    if prod(shape) < _LEAST_GAIN * prod(core_shape):
        return None
    core = tensor
    for mode, basis in enumerate(bases):
        if basis is not None:
            core = np.moveaxis(np.tensordot(basis, core, axes=(0, mode)), 0, mode)
    scale = float(np.linalg.norm(core))
    flat = np.ascontiguousarray(core).reshape(core_shape[0], -1) / scale
    return Compressed(flat, core_shape, tuple(bases), scale)
