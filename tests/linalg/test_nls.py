"""Nonlinear least squares: derivatives that are derivatives, steps that go down."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcp.linalg import nls
from onnxcp.linalg.cp import DegenerateWarning, cp, cp_kernel

SHAPES = [(6, 5, 4), (5, 4, 3, 3)]


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def problem(shape: tuple[int, ...], rank: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    tensor = normal(shape)
    factors = tuple(normal((dim, rank), seed=dim) for dim in shape)
    return (tensor / np.linalg.norm(tensor)).reshape(shape[0], -1), nls.balance(factors)


def jacobian(factors: tuple[np.ndarray, ...]) -> np.ndarray:
    """Change of the tensor with every entry of every factor."""
    columns = []
    for n, factor in enumerate(factors):
        for index in np.ndindex(factor.shape):
            unit = np.zeros_like(factor)
            unit[index] = 1
            moved = tuple(unit if m == n else other for m, other in enumerate(factors))
            columns.append(cp_kernel(moved).ravel())
    return np.array(columns).T


def flat(factors: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.concatenate([factor.ravel() for factor in factors])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_structured_product_is_that_of_the_jacobian(shape: tuple[int, ...]) -> None:
    unfolded, factors = problem(shape, 3)
    point = nls.at(unfolded, factors)
    steps = tuple(normal(factor.shape, seed=7 + n) for n, factor in enumerate(factors))
    matrix = jacobian(factors)
    expected = matrix.T @ (matrix @ flat(steps)) + 0.3 * flat(steps)
    np.testing.assert_allclose(flat(point.product(steps, 0.3)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ridge", [0.0, 0.2])
def test_the_gradient_is_that_of_the_objective(shape: tuple[int, ...], ridge: float) -> None:
    unfolded, factors = problem(shape, 3)
    point = nls.at(unfolded, factors).under(ridge)
    steps = tuple(normal(factor.shape, seed=7 + n) for n, factor in enumerate(factors))
    width = 1e-6

    def objective(sign: float) -> float:
        moved = tuple(f + sign * width * s for f, s in zip(factors, steps, strict=True))
        return nls.at(unfolded, moved).under(ridge).objective

    slope = (objective(1) - objective(-1)) / (2 * width)
    assert 2 * flat(point.gradient) @ flat(steps) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_go_down_to_where_the_gradient_vanishes(shape: tuple[int, ...]) -> None:
    unfolded, factors = problem(shape, 3)
    before = nls.at(unfolded, factors).under(1e-3)
    fit = nls.step_down(unfolded, factors, 1e-3, steps=200, norm_limit=1e6, tol=0, enough=0)
    after = nls.at(unfolded, fit.factors).under(1e-3 * fit.error)
    assert fit.error < before.error
    assert np.linalg.norm(flat(after.gradient)) < 1e-3 * np.linalg.norm(flat(before.gradient))


def test_an_exact_decomposition_is_reached_to_rounding() -> None:
    tensor = cp_kernel([normal((dim, 6), seed=dim) for dim in (9, 8, 7)])
    assert cp(tensor, 6, solver="nls", sweeps=100).relative_error < 1e-6


def test_the_norm_limit_holds() -> None:
    tensor = normal((8, 8, 8))
    for solver in ("nls", "auto"):
        with pytest.warns(DegenerateWarning):
            result = cp(tensor, 16, norm_limit=2, solver=solver)
        assert result.norm_sum <= 2 * np.sum(tensor**2) * (1 + 1e-9)


@pytest.mark.parametrize("solver", ["nls", "auto"])
@pytest.mark.parametrize("init", [False, True])
def test_other_solvers_go_further_than_a_short_run_of_als(solver: str, init: bool) -> None:
    tensor = normal((12, 10, 9))
    start = cp(tensor, 10, sweeps=20)
    options = {"init": start.factors} if init else {}
    assert cp(tensor, 10, sweeps=60, solver=solver, **options).relative_error < start.relative_error


def test_nls_is_deterministic() -> None:
    tensor = normal((8, 7, 6))
    one, two = (cp(tensor, 5, seed=3, solver="nls") for _ in range(2))
    for first, second in zip(one.factors, two.factors, strict=True):
        np.testing.assert_array_equal(first, second)


def test_single_precision_is_left_where_it_resolves_no_more() -> None:
    factors = [normal((dim, 4), seed=dim) for dim in (400, 300, 9)]
    tensor = cp_kernel(factors).astype(np.float32)
    assert cp(tensor, 4, sweeps=40, solver="nls").relative_error < 1e-6
