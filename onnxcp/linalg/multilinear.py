"""Products of factors, fitted to a matrix in the norm of a Gram matrix.

Every family of chains writes a kernel ``K[t, s, i, j]`` as an Einstein sum of factors, each of
which enters linearly: ``tr,rsij`` (channel SVD), ``trj,rsi`` (spatial SVD), ``tq,qpij,ps``
(Tucker-2), ``tr,rij,rs`` (CP). The error that counts is not that of the kernel but that of what the
kernel puts out on real inputs x of covariance G::

    E || (K - W) x ||^2 = tr (K - W) G (K - W)'

(data-aware approximation: Zhang et al. 2016, equation 4, for channel SVD.) Fitting one factor at a
time is a linear least-squares problem, whatever the family is; this module solves them in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_SWEEPS = 6
_STEPS = 12  # of conjugate gradients for one factor
_ENOUGH = 0.3  # relative residual at which a factor is solved well enough for this sweep
_CANCELLED = 1e5  # roundings that an error must be worth to be taken for a difference of sums
_FLAT = 300  # roundings that the image of a direction must be worth for a step along it
_JITTER = 1e-9  # of the mean diagonal, added to Gram matrices of features before they are solved
_DAMPING = 1e-4  # likewise to what preconditions: with less, directions without effect blow up


@dataclass(frozen=True)
class Product:
    """An Einstein sum of factors that makes a kernel.

    Attributes
    ----------
    operands
        Subscripts of each factor. `t` stands for output and `s` for input channels, the letters
        that the kernel has besides for its spatial axes, all others for ranks. `t` is in exactly
        one operand, and so is `s`.
    kernel
        Subscripts of the kernel, `t` and `s` first: ``"tsij"``.
    """

    operands: tuple[str, ...]
    kernel: str

    def __str__(self) -> str:
        return f"{','.join(self.operands)}->{self.kernel}"

    @classmethod
    def parse(cls, text: str) -> Product:
        """Read ``"tr,rsij->tsij"``."""
        operands, _, kernel = text.partition("->")
        return cls(tuple(operands.split(",")), kernel)

    @cached_property
    def last(self) -> int:
        """Position of the operand that has `t`."""
        return next(i for i, letters in enumerate(self.operands) if "t" in letters)

    def multiply(self, factors: Sequence[Floats]) -> Floats:
        """Return the kernel that factors make."""
        order = [*(i for i in range(len(factors)) if i != self.last), self.last]
        return contract(
            [self.operands[i] for i in order], self.kernel, *(factors[i] for i in order)
        )


def refine(
    product: Product,
    factors: Sequence[Floats],
    target: Floats,
    gram: Floats,
    *,
    sweeps: int = _SWEEPS,
    tolerance: float = 5e-3,
) -> tuple[list[Floats], list[float]]:
    """Bring factors closer to a kernel in the norm of a Gram matrix, one factor after the other.

    The factor with the output channels is solved exactly, the others by a few steps of conjugate
    gradients (more do not pay before the others have moved), preconditioned by what the Hessian
    would be if `gram` were a Kronecker product of its marginals. No step makes the error larger.
    A sweep costs about ``8 n q P^2`` multiply-adds for n other factors, where q is the smaller of
    T and the number of features that the last factor mixes.

    Parameters
    ----------
    product
        How the factors make a kernel.
    factors
        Where to start; shapes as `product` says.
    target : (T, S, *k) ndarray
        The kernel W.
    gram : (P, P) ndarray
        G, positive definite, of ``P = S prod(k)``. Its type is the one that products are computed
        in; systems of equations are solved in float64.
    sweeps
        At most; 0 solves the last factor only.
    tolerance
        Relative improvement of the squared error by a sweep below which it ends.

    Returns
    -------
    factors : list of ndarray
    errors : list of float
        ``tr (K - W) G (K - W)' / tr W G W'`` before, with the last factor solved, and after each
        sweep, as far as it fell.
    """
    work = _Problem(product, [np.asarray(f, gram.dtype) for f in factors], target, gram)
    errors = [work.error()]
    best = list(work.factors)
    for sweep in range(sweeps + 1):
        if sweep:
            work.reduce()
            for position in range(len(factors)):
                if position != product.last:
                    work.improve(position)
        error = work.solve_last()
        if error < errors[-1]:
            errors.append(error)
            best = list(work.factors)
        elif sweep:
            break
        else:
            work.factors = list(best)
        if sweep and error > (1 - tolerance) * errors[-2]:
            break
    return balanced(best), errors


def balanced(factors: Sequence[Floats]) -> list[Floats]:
    """Give all factors the same norm; their product stays what it is."""
    norms = [float(np.linalg.norm(factor)) for factor in factors]
    if not all(norms):
        return [np.zeros_like(factor) for factor in factors]
    mean = float(np.exp(np.mean(np.log(norms))))
    return [factor * (mean / norm) for factor, norm in zip(factors, norms, strict=True)]


class _Problem:
    """The factors while they are fitted, and what does not change meanwhile."""

    def __init__(
        self, product: Product, factors: list[Floats], target: Floats, gram: Floats
    ) -> None:
        self.product = product
        self.factors = factors
        self.shape = target.shape
        self.gram = gram
        self.target = np.asarray(target, gram.dtype).reshape(len(target), -1)
        self.weighted = self.target @ gram
        self.power = float(np.vdot(self.target, self.weighted))
        self.rows = self.target, self.weighted  # what the inner factors are fitted to
        self.mix = factors[product.last]  # and the last factor that goes with these rows

    def error(self) -> float:
        kernel = self.product.multiply(self.factors).reshape(self.target.shape)
        rest = kernel - self.target
        return float(np.vdot(rest, rest @ self.gram)) / (self.power or 1.0)

    def solve_last(self) -> float:
        """Solve the factor with the output channels: a regression on the features of the rest.

        Returns the error, which the regression has nearly for nothing.
        """
        last, letters = self.product.last, self.product.operands[self.product.last]
        spatial = [c for c in self.product.kernel[2:] if c in letters]
        inner = [c for c in letters if c != "t" and c not in spatial]
        # A spatial axis that the last factor moves over is a feature for every position on it.
        others = [*self._others(last), *(c + c.upper() for c in spatial)]
        eyes = [np.eye(self._extent(c), dtype=self.gram.dtype) for c in spatial]
        wanted = "".join(inner) + "".join(spatial).upper() + self.product.kernel[1:]
        features = contract(others, wanted, *self._rest(last), *eyes)
        features = features.reshape(-1, self.gram.shape[0])
        through = features @ self.gram
        normal = np.asarray(through @ features.T, np.float64)
        right = np.asarray(through @ self.target.T, np.float64)
        mixed = _solve(normal, right)
        sizes = dict(zip(letters, self.factors[last].shape, strict=True))
        order = ["t", *inner, *spatial]
        solved = mixed.T.reshape([sizes[c] for c in order]).astype(self.gram.dtype)
        self.factors[last] = np.einsum(f"{''.join(order)}->{letters}", solved)
        rest = self.power + float(np.vdot(mixed, normal @ mixed) - 2 * np.vdot(mixed, right))
        # Of a difference of near equals, only its own rounding would be left. Where features are
        # nearly dependent, the terms of its sums are larger than the sums.
        terms = self.power + float(np.linalg.norm(normal) * np.vdot(mixed, mixed))
        sure = rest > _CANCELLED * np.finfo(self.gram.dtype).eps * terms
        return rest / self.power if sure else self.error()

    def reduce(self) -> None:
        """Turn the output channels so that only as many rows remain as there are features."""
        letters = self.product.operands[self.product.last]
        axis = letters.index("t")
        moved = np.moveaxis(self.factors[self.product.last], axis, 0)
        matrix = moved.reshape(len(moved), -1)
        if matrix.shape[1] >= matrix.shape[0]:
            self.rows, self.mix = (self.target, self.weighted), self.factors[self.product.last]
            return
        basis, small = np.linalg.qr(matrix)
        self.rows = basis.T @ self.target, basis.T @ self.weighted
        self.mix = np.moveaxis(small.reshape(-1, *moved.shape[1:]), 0, axis)

    def improve(self, position: int) -> None:
        """Take steps of preconditioned conjugate gradients for one of the inner factors."""
        letters, others = self.product.operands[position], self._others(position)
        rest = [
            self.mix if i == self.product.last else factor
            for i, factor in enumerate(self.factors)
            if i != position
        ]
        _, weighted = self.rows
        shape = (len(weighted), *self.shape[1:])
        (last,) = (i for i, each in enumerate(others) if "t" in each)
        first = [i for i in range(len(others)) if i != last]  # the one with `t` is the largest

        def forward(values: Floats) -> Floats:
            operands = [letters, *(others[i] for i in first), others[last]]
            return contract(
                operands, self.product.kernel, values, *(rest[i] for i in first), rest[last]
            ).reshape(weighted.shape)

        def adjoint(kernel: Floats) -> Floats:
            operands = [self.product.kernel, others[last], *(others[i] for i in first)]
            return contract(
                operands, letters, kernel.reshape(shape), rest[last], *(rest[i] for i in first)
            )

        # A direction that the other factors map to nothing has an image and a curvature of
        # rounding alone, along which a step has no effect and no end.
        flat = (_FLAT * float(np.finfo(self.gram.dtype).eps)) ** 2
        flat *= float(np.linalg.norm(self.gram)) * prod(float(np.vdot(f, f)) for f in rest)
        self.factors[position] = _conjugate_gradients(
            lambda values: adjoint(forward(values) @ self.gram),
            adjoint(weighted),
            self.factors[position],
            self._preconditioner(letters, others, rest),
            flat,
        )

    def _preconditioner(self, letters: str, others: list[str], rest: list[Floats]) -> Any:
        """Return the inverse of the Hessian of one factor, as if G were a Kronecker product."""
        free = [c for c in self.product.kernel[1:] if c in letters]
        fixed = [c for c in self.product.kernel[1:] if c not in letters]
        axes = self.product.kernel[1:]
        gram = self.gram.reshape(self.shape[1:] * 2)
        there, rest_metric = self._marginal(gram, axes, fixed)
        here, free_metric = self._marginal(gram, axes, free)
        inverses: list[tuple[str, str, Floats]] = []
        if free:
            size = prod(free_metric.shape[: len(free)])
            inverse = _inverse(free_metric.reshape(size, size)).reshape(free_metric.shape)
            inverses.append((here, "".join(free), inverse.astype(self.gram.dtype)))
        for letter in letters:
            if letter in free:
                continue
            matrix = self._hessian(letter, fixed, others, rest, (there, rest_metric))
            inverses.append((letter.upper() + letter, letter, _inverse(matrix)))

        def apply(values: Floats) -> Floats:
            for subscripts, removed, inverse in inverses:
                result = letters.translate({ord(c): c.upper() for c in removed})
                values = contract([letters, subscripts], result, values, inverse)
            return values

        return apply

    def _hessian(
        self,
        letter: str,
        fixed: Sequence[str],
        others: Sequence[str],
        rest: Sequence[Floats],
        metric: tuple[str, Floats],
    ) -> Floats:
        """Return the Gram matrix over one rank of all other factors, in the metric of G."""
        renamed = {ord(c): c.upper() for c in (letter, *fixed)}
        pairs = list(zip(others, rest, strict=True))
        touched = [pair for pair in pairs if set(pair[0]) & set(fixed)]
        moving = [pair for pair in touched if letter in pair[0]]
        # First the metric, with the squares of the factors between it and the others; then each of
        # these, then their twins: so no intermediate is larger than a factor.
        steps = [metric] if fixed else []
        for each, factor in touched:
            if letter not in each:
                twin = each.translate(renamed)
                needed = {metric[0], *(other for other, _ in touched if other != each)}
                kept = "".join(c for c in dict.fromkeys(each + twin) if c in "".join(needed))
                steps.append((kept, contract([each, twin], kept, factor, factor)))
        steps += moving
        steps += [(each.translate(renamed), factor) for each, factor in moving]
        for each, factor in pairs:
            if not set(each) & set(fixed):
                twin = each.translate(renamed)
                kept = letter + letter.upper() if letter in each else ""
                steps.append((kept, contract([each, twin], kept, factor, factor)))
        return contract(
            [each for each, _ in steps], letter + letter.upper(), *(v for _, v in steps)
        )

    def _marginal(self, gram: Floats, axes: str, kept: Sequence[str]) -> tuple[str, Floats]:
        """Return subscripts and values of G with all axes but `kept` traced out."""
        second = "".join(c.upper() if c in kept else c for c in axes)
        subscripts = "".join(kept) + "".join(kept).upper()
        return subscripts, np.einsum(f"{axes}{second}->{subscripts}", gram)

    def _others(self, position: int) -> list[str]:
        return [each for i, each in enumerate(self.product.operands) if i != position]

    def _rest(self, position: int) -> list[Floats]:
        return [each for i, each in enumerate(self.factors) if i != position]

    def _extent(self, letter: str) -> int:
        return int(self.shape[self.product.kernel.index(letter)])


def contract(operands: Sequence[str], result: str, *values: Floats) -> Floats:
    """Contract tensors two by two: with the first always the one that leaves the least.

    Among equals the order is the caller's. Of three tensors that share an index, numpy's own choice
    is to contract all at once, which no matrix product can do.
    """
    sizes = {
        letter: size
        for letters, value in zip(operands, values, strict=True)
        for letter, size in zip(letters, value.shape, strict=True)
    }
    letters, current = operands[0], values[0]
    waiting = list(zip(operands[1:], values[1:], strict=True))

    def left(number: int) -> str:
        """Return the subscripts of what a contraction with one of those that wait makes."""
        others = waiting[:number] + waiting[number + 1 :]
        if not others:
            return result
        needed = set(result).union(*(each for each, _ in others))
        return "".join(c for c in dict.fromkeys(letters + waiting[number][0]) if c in needed)

    while waiting:
        made = [left(number) for number in range(len(waiting))]
        number = min(range(len(made)), key=lambda n: prod(sizes[c] for c in made[n]))
        following, value = waiting.pop(number)
        pair = f"{letters},{following}->{made[number]}"
        letters, current = made[number], np.einsum(pair, current, value, optimize=True)
    return np.asarray(current if letters == result else np.einsum(f"{letters}->{result}", current))


def _conjugate_gradients(
    normal: Any, right: Floats, start: Floats, precondition: Any, flat: float
) -> Floats:
    """Take steps towards ``normal(x) = right``, none along what curves by less than `flat`."""
    values = start
    residual = right - normal(values)
    direction = precondition(residual)
    product = float(np.vdot(residual, direction))
    enough = _ENOUGH**2 * product
    # What rounding leaves has parts along which a step has no effect, and no end.
    rounding = 30 * np.finfo(right.dtype).eps * float(np.linalg.norm(right))
    for _ in range(_STEPS):
        if not product > enough or np.linalg.norm(residual) <= rounding:
            break
        image = normal(direction)
        curvature = float(np.vdot(direction, image))
        if curvature <= flat * float(np.vdot(direction, direction)):
            break
        step = product / curvature
        values = values + step * direction
        residual = residual - step * image
        conditioned = precondition(residual)
        following = float(np.vdot(residual, conditioned))
        direction = conditioned + (following / product) * direction
        product = following
    return values


def _solve(matrix: Floats, right: Floats) -> Floats:
    """Solve symmetric equations that may be short of full rank."""
    size = len(matrix)
    jitter = float(np.trace(matrix)) / size or 1.0
    for exponent in (0, 2, 4):
        try:
            shifted = matrix + (_JITTER * 10**exponent * jitter) * np.eye(size)
            return np.asarray(
                scipy.linalg.solve(shifted, right, assume_a="pos", check_finite=False)
            )
        except scipy.linalg.LinAlgError:
            continue
    return np.asarray(scipy.linalg.lstsq(matrix, right, check_finite=False)[0])


def _inverse(matrix: Floats) -> Floats:
    size = len(matrix)
    exact = np.asarray(matrix, np.float64)
    shift = _DAMPING * (float(np.trace(exact)) / size or 1.0)
    return np.asarray(np.linalg.inv(exact + shift * np.eye(size)), matrix.dtype)
