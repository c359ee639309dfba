"""Two-factor chains of a kernel by the truncated SVD: split by channels, or by spatial axes.

Both reshape the kernel ``(T, S, *k)`` to a matrix, cut its SVD at ``R`` terms, which is the best
rank-``R`` approximation in the Frobenius norm (Eckart & Young 1936), and reshape the two halves
back to kernels. The singular values are shared out as square roots, so that neither half has
extreme magnitudes.
"""

from __future__ import annotations

from math import prod

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from onnxcp.linalg import checks

Matrix = NDArray[np.float64]
Kernel = NDArray[np.float64]


def singular_values(matrix: ArrayLike) -> NDArray[np.float64]:
    """Singular values of a matrix, largest first.

    Parameters
    ----------
    matrix : (m, n) array_like
        Any real matrix.

    Returns
    -------
    (min(m, n),) ndarray

    Raises
    ------
    ValueError
        If the matrix is empty, not finite, not floating point or not a matrix.
    """
    checked = checks.float64("matrix", matrix, 2)
    if checked.ndim != 2:
        raise ValueError(f"matrix has shape {checked.shape}; two axes are needed")
    return _spectrum(checked)


def truncated_svd(matrix: Matrix, rank: int) -> tuple[Matrix, NDArray[np.float64], Matrix]:
    """Leading terms of the SVD.

    The cut is made by the eigenvectors of the smaller Gram matrix, in a third of the time of an SVD
    of a square matrix and less for others. They are orthonormal to the last digit, so that no cut
    is farther from the best than rounding; of singular values below 1e-8 of the largest only the
    sum is right.

    Parameters
    ----------
    matrix : (m, n) ndarray
        A finite matrix.
    rank : int
        Number of terms ``R``; more than ``min(m, n)`` counts as that.

    Returns
    -------
    left : (m, R) ndarray
    values : (R,) ndarray
        Largest first.
    right : (R, n) ndarray
    """
    rows, columns = matrix.shape
    if columns >= rows:
        return _by_gram(matrix, rank)
    left, values, right = _by_gram(matrix.T, rank)
    return right.T, values, left.T


def _by_gram(matrix: Matrix, rank: int) -> tuple[Matrix, NDArray[np.float64], Matrix]:
    """Leading terms of the SVD of a matrix no taller than wide; `right` is nearly orthonormal."""
    gram = matrix @ matrix.T
    basis = scipy.linalg.eigh(gram, driver="evd", check_finite=False)[1][:, ::-1][:, :rank]
    right = basis.T @ matrix
    values = np.linalg.norm(right, axis=1)
    right /= np.where(values > 0, values, 1.0)[:, None]
    return basis, values, right


def channel_svd(kernel: ArrayLike, rank: int) -> tuple[Kernel, Kernel]:
    """Split a kernel into one with few output channels and a 1×1 kernel.

    Minimises ``||K - last·first||_F`` over the ``(T, S·prod(k))`` unfolding of the kernel
    (Denton et al. 2014; Zhang et al. 2016, with the Frobenius norm).

    Parameters
    ----------
    kernel : (T, S, *k) array_like
        The kernel of one group.
    rank : int
        Number of channels ``R`` in between; more than ``min(T, S·prod(k))`` is cut at
        that, with a note (`onnxcp.linalg.checks.RankWarning`).

    Returns
    -------
    first : (R, S, *k) ndarray
    last : (T, R) ndarray

    Raises
    ------
    ValueError
        If the kernel is empty, not finite or not floating point, or the rank is below 1.
    """
    checked = checks.float64("kernel", kernel, 2)
    matrix = _channel_matrix(checked)
    wanted = checks.integer("rank", rank, 1)
    left, right = _halves(matrix, checks.at_most("rank", wanted, min(matrix.shape)))
    return np.ascontiguousarray(right).reshape(-1, *checked.shape[1:]), np.ascontiguousarray(left)


def channel_kernel(first: ArrayLike, last: ArrayLike) -> Kernel:
    """Kernel that a channel SVD stands for.

    Parameters
    ----------
    first : (R, S, *k) array_like
    last : (T, R) array_like

    Returns
    -------
    (T, S, *k) ndarray
    """
    return np.tensordot(_float64(last), _float64(first), axes=1)


def channel_spectrum(kernel: ArrayLike) -> NDArray[np.float64]:
    """Singular values of the ``(T, S·prod(k))`` unfolding that `channel_svd` cuts.

    Parameters
    ----------
    kernel : (T, S, *k) array_like

    Returns
    -------
    (min(T, S·prod(k)),) ndarray

    Raises
    ------
    ValueError
        If the kernel is empty, not finite or not floating point.
    """
    return _spectrum(_channel_matrix(checks.float64("kernel", kernel, 2)))


def channel_energies(kernel: ArrayLike) -> NDArray[np.float64]:
    """Squared singular values of the unfolding that `channel_svd` cuts, in a fraction of the time.

    They are the eigenvalues of the smaller Gram matrix; each is right to rounding of the largest,
    and so are their sums, but not the roots of small ones (see `channel_spectrum`).

    Parameters
    ----------
    kernel : (T, S, *k) array_like

    Returns
    -------
    (min(T, S·prod(k)),) ndarray
        Largest first.

    Raises
    ------
    ValueError
        If the kernel is empty, not finite or not floating point.
    """
    return _energies(_channel_matrix(checks.float64("kernel", kernel, 2)))


def spatial_svd(kernel: ArrayLike, rank: int, split: int = 1) -> tuple[Kernel, Kernel]:
    """Split a kernel into one over the leading spatial axes and one over the others.

    For a 2-D kernel and ``split=1`` these are a vertical and a horizontal kernel (Jaderberg et
    al. 2014, scheme 2), here with the least Frobenius error, which the SVD of the
    ``(S·prod(k[:split]), T·prod(k[split:]))`` unfolding gives.

    Parameters
    ----------
    kernel : (T, S, *k) array_like
        The kernel of one group.
    rank : int
        Number of channels ``R`` in between; more than the smaller side of the unfolding is cut
        at that, with a note.
    split : int
        How many spatial axes the first kernel takes, from 0 (a 1×1 kernel comes first) to
        ``len(k)`` (a 1×1 kernel comes last, as in `channel_svd`).

    Returns
    -------
    first : (R, S, *k[:split]) ndarray
    last : (T, R, *k[split:]) ndarray

    Raises
    ------
    ValueError
        If the kernel is empty, not finite or not floating point, the rank is below 1, or the
        split lies outside 0 to ``len(k)``.
    """
    checked = checks.float64("kernel", kernel, 2)
    matrix = _spatial_matrix(checked, split)
    wanted = checks.integer("rank", rank, 1)
    left, right = _halves(matrix, checks.at_most("rank", wanted, min(matrix.shape)))
    first = left.T.reshape(-1, checked.shape[1], *checked.shape[2 : 2 + split])
    last = right.reshape(-1, checked.shape[0], *checked.shape[2 + split :])
    return np.ascontiguousarray(first), np.ascontiguousarray(np.swapaxes(last, 0, 1))


def spatial_kernel(first: ArrayLike, last: ArrayLike) -> Kernel:
    """Kernel that a spatial SVD stands for.

    Parameters
    ----------
    first : (R, S, *k1) array_like
    last : (T, R, *k2) array_like

    Returns
    -------
    (T, S, *k1, *k2) ndarray
    """
    one, two = _float64(first), _float64(last)
    product = np.tensordot(two, one, axes=(1, 0))  # (T, *k2, S, *k1)
    inner = list(range(two.ndim - 1, product.ndim))
    return product.transpose(0, *inner, *range(1, two.ndim - 1))


def spatial_spectrum(kernel: ArrayLike, split: int = 1) -> NDArray[np.float64]:
    """Singular values of the unfolding that `spatial_svd` cuts.

    Parameters
    ----------
    kernel : (T, S, *k) array_like
    split : int
        As in `spatial_svd`.

    Returns
    -------
    (min(S·prod(k[:split]), T·prod(k[split:])),) ndarray

    Raises
    ------
    ValueError
        As in `spatial_svd`.
    """
    return _spectrum(_spatial_matrix(checks.float64("kernel", kernel, 2), split))


def spatial_energies(kernel: ArrayLike, split: int = 1) -> NDArray[np.float64]:
    """Squared singular values of the unfolding that `spatial_svd` cuts; see `channel_energies`.

    Parameters
    ----------
    kernel : (T, S, *k) array_like
    split : int
        As in `spatial_svd`.

    Returns
    -------
    (min(S·prod(k[:split]), T·prod(k[split:])),) ndarray
        Largest first.

    Raises
    ------
    ValueError
        As in `spatial_svd`.
    """
    return _energies(_spatial_matrix(checks.float64("kernel", kernel, 2), split))


def _float64(array: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(array, dtype=np.float64)


def _channel_matrix(kernel: Kernel) -> Matrix:
    return kernel.reshape(kernel.shape[0], -1)


def _spatial_matrix(kernel: Kernel, split: int) -> Matrix:
    split = checks.integer("split", split, 0, kernel.ndim - 2)
    rows = [1, *range(2, 2 + split)]
    columns = [0, *range(2 + split, kernel.ndim)]
    size = prod(kernel.shape[axis] for axis in rows)
    return kernel.transpose(rows + columns).reshape(size, -1)


def _halves(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """``(m, R)`` and ``(R, n)`` factors of the best rank-R approximation, equal in scale."""
    left, values, right = truncated_svd(matrix, rank)
    root = np.sqrt(values)
    return left * root, root[:, None] * right


def _energies(matrix: Matrix) -> NDArray[np.float64]:
    wide = matrix if matrix.shape[1] >= matrix.shape[0] else matrix.T
    values = scipy.linalg.eigh(wide @ wide.T, eigvals_only=True, check_finite=False)
    return np.asarray(np.maximum(values[::-1], 0.0))


def _spectrum(matrix: Matrix) -> NDArray[np.float64]:
    try:
        values = scipy.linalg.svd(
            matrix, compute_uv=False, lapack_driver="gesdd", check_finite=False
        )
    except scipy.linalg.LinAlgError:
        values = scipy.linalg.svd(
            matrix, compute_uv=False, lapack_driver="gesvd", check_finite=False
        )
    return np.asarray(values)
