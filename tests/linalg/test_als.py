"""One sweep of ALS: the updates, the free error and the promised bounds."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcp.linalg.als import balance, khatri_rao, sweep
from onnxcp.linalg.cp import cp_kernel

SHAPES = [(6, 5), (6, 5, 4), (5, 4, 3, 2), (4, 3, 2, 2, 2)]


def problem(shape: tuple[int, ...], rank: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal(shape)
    factors = tuple(rng.standard_normal((dim, rank)) for dim in shape)
    return tensor / np.linalg.norm(tensor), factors


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.1])
def test_a_sweep_is_one_regularised_least_squares_problem_a_mode(
    shape: tuple[int, ...], ridge: float
) -> None:
    tensor, factors = problem(shape, 3)
    expected = list(factors)
    for mode in range(len(shape)):
        others = [factor for n, factor in enumerate(expected) if n != mode]
        product = khatri_rao(others, np.dtype(float))
        penalty = np.diag(np.sqrt(ridge) * np.linalg.norm(product, axis=0))
        unfolding = np.moveaxis(tensor, mode, 0).reshape(shape[mode], -1)
        left = np.vstack([product, penalty])
        right = np.vstack([unfolding.T, np.zeros((3, shape[mode]))])
        expected[mode] = np.linalg.lstsq(left, right)[0].T
    result = sweep(tensor.reshape(shape[0], -1), factors, ridge)
    np.testing.assert_allclose(cp_kernel(result.factors), cp_kernel(expected), atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_error_and_norms_come_for_free(shape: tuple[int, ...]) -> None:
    tensor, factors = problem(shape, 3)
    result = sweep(tensor.reshape(shape[0], -1), factors, 1e-2)
    residual = tensor - cp_kernel(result.factors)
    assert result.error == pytest.approx(np.sum(residual**2), rel=1e-10)
    norms = np.prod([np.linalg.norm(f, axis=0) for f in result.factors], axis=0)
    assert result.norm_sum == pytest.approx(np.sum(norms**2), rel=1e-10)


@pytest.mark.parametrize("ridge", [1e-3, 1e-1])
def test_sweeps_lower_the_penalised_error_and_bound_the_norms(ridge: float) -> None:
    tensor, factors = problem((6, 6, 6), 12)
    objectives = []
    for _ in range(20):
        result = sweep(tensor.reshape(6, -1), factors, ridge)
        factors = result.factors
        assert result.norm_sum <= 1 / ridge
        objectives.append(result.error + ridge * result.norm_sum)
    assert all(np.diff(objectives) <= 1e-12)


def test_balancing_keeps_the_tensor() -> None:
    _, factors = problem((5, 4, 3), 6)
    factors[1][:, 2] = 0
    lopsided = (1e8 * factors[0], 1e-6 * factors[1], factors[2])
    balanced = balance(lopsided)
    np.testing.assert_allclose(cp_kernel(balanced), cp_kernel(lopsided), rtol=1e-10, atol=1e-9)
    norms = np.array([np.linalg.norm(factor, axis=0) for factor in balanced])
    np.testing.assert_allclose(norms, np.broadcast_to(norms[0], norms.shape), rtol=1e-12)
    assert not norms[:, 2].any()
