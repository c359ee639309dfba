"""Error-preserving correction: calmer factors within a bound on the error."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from onnxcp.linalg.als import sweep
from onnxcp.linalg.correction import correct, sensitivity
from onnxcp.linalg.cp import cp, cp_kernel

SHAPES = [(9, 8, 7), (8, 6, 3, 3), (12, 9)]


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def fitted(shape: tuple[int, ...], rank: int) -> tuple[np.ndarray, tuple[np.ndarray, ...], float]:
    """A tensor of unit norm, and what ALS without a ridge makes of it."""
    tensor = normal(shape)
    tensor /= np.linalg.norm(tensor)
    unfolded = tensor.reshape(shape[0], -1)
    factors = tuple(normal((dim, rank), seed=dim) for dim in shape)
    for _ in range(30):
        fit = sweep(unfolded, factors, 1e-12)
        factors = fit.factors
    return unfolded, factors, fit.error


def squared_error(unfolded: np.ndarray, factors: tuple[np.ndarray, ...]) -> float:
    return float(np.sum((cp_kernel(factors).reshape(unfolded.shape) - unfolded) ** 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slack", [1e-3, 0.02, 0.5])
def test_less_sensitive_within_the_bound(shape: tuple[int, ...], slack: float) -> None:
    unfolded, factors, error = fitted(shape, 6)
    bound = (1 + slack) * error
    calm = correct(unfolded, factors, bound, sweeps=20)
    assert sensitivity(calm.factors) < sensitivity(factors)
    assert squared_error(unfolded, calm.factors) <= bound * (1 + 1e-9)
    assert calm.error == pytest.approx(squared_error(unfolded, calm.factors), rel=1e-9)


def test_more_slack_and_more_sweeps_are_calmer() -> None:
    unfolded, factors, error = fitted((9, 8, 7), 8)
    by_slack = [
        sensitivity(correct(unfolded, factors, (1 + slack) * error, sweeps=20).factors)
        for slack in (0.001, 0.01, 0.1)
    ]
    assert (np.diff(by_slack) < 0).all()
    by_sweeps = [
        sensitivity(correct(unfolded, factors, 1.01 * error, sweeps=count, tol=0).factors)
        for count in (1, 4, 16)
    ]
    assert (np.diff(by_sweeps) < 0).all()


def test_a_factor_is_the_best_within_the_bound() -> None:
    """Against a general solver of constrained problems, for the factor updated last."""
    unfolded, factors, error = fitted((4, 3, 3), 2)
    bound = 1.2 * error
    ours = correct(unfolded, factors, bound, sweeps=1).factors
    sizes = [np.linalg.norm(factor, axis=0) for factor in ours]

    def with_last(values: np.ndarray) -> tuple[np.ndarray, ...]:
        return (*ours[:-1], values.reshape(ours[-1].shape))

    start = factors[-1] * (sizes[-1] / np.linalg.norm(factors[-1], axis=0))
    found = minimize(
        lambda values: sensitivity(with_last(values)),
        start.ravel(),
        constraints={
            "type": "ineq",
            "fun": lambda values: bound - squared_error(unfolded, with_last(values)),
        },
        options={"maxiter": 500, "ftol": 1e-12},
    )
    if not found.success:  # the start may be infeasible for these neighbours: ours is a start too
        found = minimize(
            lambda values: sensitivity(with_last(values)),
            ours[-1].ravel(),
            constraints={
                "type": "ineq",
                "fun": lambda values: bound - squared_error(unfolded, with_last(values)),
            },
        )
    assert sensitivity(ours) <= found.fun * (1 + 1e-4)


def test_a_bound_that_cannot_be_met_changes_nothing() -> None:
    unfolded, factors, error = fitted((9, 8, 7), 4)
    calm = correct(unfolded, factors, 0.5 * error, sweeps=5)
    np.testing.assert_allclose(cp_kernel(calm.factors), cp_kernel(factors), atol=1e-12)


def test_a_mode_of_zeros_is_no_trouble() -> None:
    unfolded, factors, _ = fitted((9, 8, 7), 3)
    factors = (*factors[:2], np.zeros_like(factors[2]))
    calm = correct(unfolded, factors, 2.0, sweeps=3)
    assert all(np.isfinite(factor).all() for factor in calm.factors)


@pytest.mark.parametrize("slack", [0.01, 0.1])
def test_cp_corrects_what_it_returns(slack: float) -> None:
    tensor = normal((12, 10, 9))
    plain, calm = cp(tensor, 12), cp(tensor, 12, slack=slack)
    assert plain.relative_error < calm.relative_error <= (1 + slack) * plain.relative_error + 1e-12
    assert calm.sensitivity < plain.sensitivity
