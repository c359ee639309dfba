"""Decompositions in the norm of the data, by square roots of what it is nearly made of.

What counts of a kernel is what it puts out on inputs of covariance ``G``: the norm
``tr K G Kᵀ``. Where ``G`` is a Kronecker product of one matrix for each group of axes that some
factor moves over alone, multiplying the kernel by their square roots turns that norm into the
Frobenius one, in which any decomposition can be run; dividing them out of the factors goes back.
Covariances of input patches are nearly such products, of their own marginals (of which the nearest
product is made: Van Loan & Pitsianis 1993). What they are not is left to the fit that follows
(`onnxcp.linalg.multilinear.refine`), and a start from the plain kernel is kept where it is better.
Errors of some outputs may count more than those of others: a metric ``H`` of the outputs makes the
norm ``tr H K G Kᵀ`` (with second moments of the gradients there, the curvature of the loss as
Martens & Grosse 2015 approximate it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcp.linalg.multilinear import Product

Floats = NDArray[np.floating[Any]]
Matrix = NDArray[np.float64]

_FLOOR = 1e-6  # eigenvalues of a marginal below this share of the largest count as this


@dataclass(frozen=True, eq=False)
class Whitening:
    """Square roots of a separable metric, one for each group of axes of a kernel.

    Attributes
    ----------
    product : Product
        How factors make the kernel.
    roots : dict
        For each group of subscripts, symmetric square root and its inverse.
    """

    product: Product
    roots: dict[str, tuple[Matrix, Matrix]]

    @classmethod
    def of(
        cls, product: Product, gram: Floats, shape: Sequence[int], outputs: Floats | None = None
    ) -> Whitening:
        """Take the marginals of a metric.

        A group is all subscripts of the kernel but `t` that an operand has. For a channel SVD there
        is but one, and nothing is neglected. Costs ``P²`` additions and eigendecompositions of the
        sizes of the groups.

        Parameters
        ----------
        product : Product
            How factors make the kernel.
        gram : (P, P) ndarray
            Positive semidefinite, of ``P = S prod(k)``.
        shape : sequence of int
            ``(T, S, *k)``.
        outputs : (T, T) ndarray, optional
            What errors of outputs count, positive semidefinite; by default all the same.
        """
        axes = product.kernel[1:]
        full = np.asarray(gram, np.float64).reshape(*shape[1:], *shape[1:])
        groups = ["".join(c for c in axes if c in each) for each in product.operands]
        roots = {}
        for group in filter(None, groups):
            second = "".join(c.upper() if c in group else c for c in axes)
            marginal = np.einsum(f"{axes}{second}->{group}{group.upper()}", full)
            size = int(np.sqrt(marginal.size))
            roots[group] = square_roots(marginal.reshape(size, size))
        if outputs is not None:
            roots[product.kernel[0]] = square_roots(np.asarray(outputs, np.float64))
        return cls(product, roots)

    def whiten(self, kernel: Floats) -> Matrix:
        """Multiply a kernel ``(T, S, *k)`` by the roots."""
        for group, (root, _) in self.roots.items():
            kernel = _along(root, kernel, self.product.kernel, group)
        return np.asarray(kernel, np.float64)

    def undo(self, factors: Sequence[Floats]) -> list[Matrix]:
        """Divide the roots out of the factors of a whitened kernel."""
        undone = []
        for letters, factor in zip(self.product.operands, factors, strict=True):
            made = np.asarray(factor, np.float64)
            for group, (_, inverse) in self.roots.items():
                if set(group) <= set(letters):
                    made = _along(inverse, made, letters, group)
            undone.append(made)
        return undone


def _along(matrix: Matrix, tensor: Floats, letters: str, group: str) -> Matrix:
    """Multiply a symmetric matrix onto some axes of a tensor, taken as one."""
    axes = [letters.index(letter) for letter in group]
    front = np.moveaxis(tensor, axes, range(len(axes)))
    made = (matrix @ front.reshape(len(matrix), -1)).reshape(front.shape)
    return np.moveaxis(made, range(len(axes)), axes)


def square_roots(metric: Matrix) -> tuple[Matrix, Matrix]:
    """Return the symmetric root of a metric and its inverse.

    What hardly counts is taken to count a little, so that there is an inverse.

    Parameters
    ----------
    metric : (n, n) ndarray
        Positive semidefinite.

    Returns
    -------
    root, inverse : (n, n) ndarray
    """
    values, basis = np.linalg.eigh(metric)
    root = np.sqrt(np.maximum(values, _FLOOR * max(float(values[-1]), np.finfo(float).tiny)))
    return (basis * root) @ basis.T, (basis / root) @ basis.T
