"""Sparse plus low rank by the relaxed problem as published, for what comes out of an activation.

Ma et al. 2019 (arXiv 1807.10119) approximate a layer ``Y = r(W X + b)`` by

    min over A, B of  1/2 ||Y - r((A + B) X + b)||^2 + l_A ||A||_2,1 + l_B ||B||_*

with the group norm (sum of the norms of groups of columns) for the support of A, and the nuclear
norm for the rank of B. Split by ``M = (A + B) X + b``, the alternating direction method of
multipliers takes turns, U the scaled dual:

    M <- prox of r at  (A + B) X + b + U           (`onnxcp.linalg.activations`, exact)
    A <- group soft threshold of  A - D X' / eta   (linearised, D = (A + B) X + b - M + U)
    B <- singular value threshold of  B - D X' / eta
    U <- U + (A + B) X + b - M

The M-step is not convex, so convergence is no theorem here: it is watched. What norms keep they
also shrink; `debiased` keeps the support and the rank, and fits them anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcp.linalg import checks
from onnxcp.linalg.activations import Activation
from onnxcp.linalg.sparse_low_rank import Columns, SparseLowRank, sparse_low_rank

Floats = NDArray[np.floating[Any]]
Matrix = NDArray[np.float64]

_NOISE = 1e-6  # of the largest singular value, below which one counts as zero


@dataclass(frozen=True)
class Penalties:
    """Weights of the relaxed problem, for a mean over samples.

    Attributes
    ----------
    sparse
        l_A, of the group norm.
    low_rank
        l_B, of the nuclear norm.
    rho
        Of the quadratic term.
    """

    sparse: float
    low_rank: float
    rho: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("sparse", self.sparse)
        checks.positive("low_rank", self.low_rank)
        if not 0 < self.rho < np.inf:
            raise ValueError(f"rho is {self.rho}; it must be finite and above 0")


@dataclass(frozen=True, eq=False)
class Relaxed:
    """What the relaxed problem came to.

    Attributes
    ----------
    sparse, low_rank : (T, P) ndarray
        A and B.
    bias : (T,) ndarray
        b.
    groups : (k,) ndarray of int
        The groups of columns that A sees.
    rank
        Of B.
    objective
        After each iteration, relative to the power of Y.
    primal
        ``||(A + B) X + b - M||`` after each iteration, relative to the norm of M.
    dual
        ``||M - M before||``, likewise.
    converged
        Whether both fell below the tolerance.
    """

    sparse: Matrix
    low_rank: Matrix
    bias: Matrix
    groups: Columns
    rank: int
    objective: tuple[float, ...]
    primal: tuple[float, ...]
    dual: tuple[float, ...]
    converged: bool

    @property
    def weight(self) -> Matrix:
        """The map itself, A + B, (T, P)."""
        return self.sparse + self.low_rank


def solve_relaxed(
    x: Floats,
    wanted: Floats,
    activation: Activation,
    groups: Columns,
    penalties: Penalties,
    *,
    weight: Floats,
    bias: Floats,
    iterations: int = 300,
    tolerance: float = 1e-3,
) -> Relaxed:
    """Solve the relaxed problem by linearised ADMM from calibration samples.

    Parameters
    ----------
    x : (n, P) ndarray
        Input patches. Without data: the identity, (P, P).
    wanted : (n, T') ndarray
        Y: what should come out of the activation.
    activation
        r.
    groups : (g, w) ndarray of int
        The columns of each group; together all of them, each once.
    penalties
        Of the problem. Sums over samples count as means, so that they need not follow n.
    weight : (T, P) ndarray
        W, where to start: B is W, and A is zero.
    bias : (T,) ndarray
        b, which stays as it is.
    iterations
        At most.
    tolerance
        Relative; see `Relaxed`.

    Raises
    ------
    ValueError
        If there are no samples, shapes do not fit, or the groups are no partition of the columns.
    """
    _check(x, wanted, weight, groups)
    n = len(x)
    x = np.asarray(x, np.float64)
    rho = penalties.rho
    gram = x.T @ x / n
    eta = rho * float(scipy.linalg.eigvalsh(gram, subset_by_index=[len(gram) - 1] * 2)[0]) or 1.0
    low, sparse = np.array(weight, np.float64), np.zeros(weight.shape)
    shift = np.asarray(bias, np.float64)
    made: Floats = x @ low.T + shift
    dual: Floats = np.zeros_like(made)
    aim: Floats = made
    power = float(np.vdot(wanted, wanted)) / n or 1.0
    objective: list[float] = []
    primals: list[float] = []
    duals: list[float] = []
    singular = np.zeros(0)
    converged = False
    for _ in range(iterations):
        before, aim = aim, activation.prox(wanted, made + dual, rho)
        # (A + B) X + b - M + U, times X', from the Gram matrix and what does not change with A, B.
        fixed = (shift - aim + dual).T @ x / n
        step = rho * ((sparse + low) @ gram + fixed) / eta
        sparse = group_threshold(sparse - step, groups, penalties.sparse / eta)
        step = rho * ((sparse + low) @ gram + fixed) / eta
        low, singular = singular_threshold(low - step, penalties.low_rank / eta)
        made = x @ (sparse + low).T + shift
        gap = made - aim
        dual = dual + gap
        scale = float(np.linalg.norm(aim)) or 1.0
        primals.append(float(np.linalg.norm(gap)) / scale)
        duals.append(float(np.linalg.norm(aim - before)) / scale)
        rest = np.asarray(wanted - activation(made), np.float64)
        norms = penalties.sparse * _group_norms(sparse, groups).sum()
        cost = float(np.vdot(rest, rest)) / n / 2 + norms + penalties.low_rank * singular.sum()
        objective.append(cost / power)
        if max(primals[-1], duals[-1]) < tolerance:
            converged = True
            break
    return Relaxed(
        sparse=sparse,
        low_rank=low,
        bias=shift,
        groups=np.flatnonzero(_group_norms(sparse, groups)),
        rank=int(np.count_nonzero(singular > _NOISE * max(singular.max(initial=0.0), 1e-300))),
        objective=tuple(objective),
        primal=tuple(primals),
        dual=tuple(duals),
        converged=converged,
    )


def debiased(
    relaxed: Relaxed, groups: Columns, weight: Floats, gram: Floats | None = None
) -> SparseLowRank:
    """Keep the support and the rank that the relaxed problem found, and fit them without shrinking.

    Parameters
    ----------
    relaxed
        What it came to.
    groups
        As of `solve_relaxed`.
    weight : (T, P) ndarray
        What to approximate.
    gram : (P, P) ndarray
        Second moments of the inputs; by default the identity.
    """
    columns = groups[relaxed.groups].reshape(-1)
    return sparse_low_rank(weight, columns, max(relaxed.rank, 1), gram)


def group_threshold(weight: Floats, groups: Columns, level: float) -> Matrix:
    """Shorten every group of columns by a length: the proximal map of ``level ||.||_2,1``.

    Parameters
    ----------
    weight : (T, P) ndarray
    groups : (g, w) ndarray of int
    level
        By how much; a group no longer than that becomes zero.
    """
    norms = _group_norms(weight, groups)
    kept = np.maximum(1 - level / np.where(norms > 0, norms, 1.0), 0.0)
    scale = np.empty(weight.shape[1])
    scale[groups] = kept[:, None]
    return np.asarray(weight * scale, np.float64)


def singular_threshold(weight: Floats, level: float) -> tuple[Matrix, Matrix]:
    """Shorten every singular value by a length: the proximal map of ``level ||.||_*``.

    Returns
    -------
    weight : (T, P) ndarray
    singular : (min(T, P),) ndarray
        What is left of the singular values.
    """
    left, values, right = scipy.linalg.svd(weight, full_matrices=False, check_finite=False)
    kept = np.maximum(values - level, 0.0)
    rank = int(np.count_nonzero(kept))
    return np.asarray((left[:, :rank] * kept[:rank]) @ right[:rank]), kept


def _group_norms(weight: Floats, groups: Columns) -> Matrix:
    return np.asarray(np.sqrt(np.square(weight).sum(axis=0)[groups].sum(axis=1)))


def _check(x: Floats, wanted: Floats, weight: Floats, groups: Columns) -> None:
    if not x.size:
        raise ValueError("x has no samples; the problem is one of a mean over them")
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x has shape {x.shape}; (n, {weight.shape[-1]}) is needed")
    if wanted.ndim != 2 or len(wanted) != len(x):
        raise ValueError(f"wanted has shape {wanted.shape}; one row for each of {len(x)} is needed")
    if not np.array_equal(np.sort(groups, axis=None), np.arange(weight.shape[1])):
        raise ValueError(
            f"groups hold {groups.size} columns; each of the {weight.shape[1]} is needed once"
        )
