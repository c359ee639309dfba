"""The relaxed problem as published: its proximal maps, its minimum, and what it is good for."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from onnxcp.linalg.activations import clip, identity, leaky_relu, relu
from onnxcp.linalg.sparse_low_rank import sparse_low_rank
from onnxcp.linalg.sparse_low_rank_admm import (
    Penalties,
    Relaxed,
    debiased,
    group_threshold,
    singular_threshold,
    solve_relaxed,
)

T, S, K, N = 8, 6, 3, 400
P = S * K
GROUPS = np.arange(P).reshape(S, K)


def normal(*shape: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def planted() -> Any:
    """Return a map of rank 2 beside one of two groups, and some noise."""
    weight = normal(T, 2, seed=0) @ normal(2, P, seed=1) / 2
    weight[:, GROUPS[[1, 4]].reshape(-1)] += 2 * normal(T, 2 * K, seed=2)
    return weight + 0.01 * normal(T, P, seed=3)


def solved(activation: Any, penalties: Penalties, **options: Any) -> Relaxed:
    x, weight, bias = normal(N, P, seed=4), planted(), 0.3 * normal(T, seed=5)
    wanted = activation(x @ weight.T + bias)
    return solve_relaxed(
        x, wanted, activation, GROUPS, penalties, weight=weight, bias=bias, **options
    )


def test_groups_are_shortened() -> None:
    weight = normal(T, P, seed=0)
    norms = np.linalg.norm(weight.reshape(T, S, K), axis=(0, 2))
    level = float(np.median(norms))
    made = group_threshold(weight, GROUPS, level)
    after = np.linalg.norm(made.reshape(T, S, K), axis=(0, 2))
    np.testing.assert_allclose(after, np.maximum(norms - level, 0), atol=1e-12)
    assert not group_threshold(np.zeros((T, P)), GROUPS, 1.0).any()


def test_singular_values_are_shortened() -> None:
    weight = normal(T, P, seed=0)
    values = np.linalg.svd(weight, compute_uv=False)
    made, kept = singular_threshold(weight, float(values[3]))
    np.testing.assert_allclose(np.linalg.svd(made, compute_uv=False), kept, atol=1e-12)
    np.testing.assert_allclose(kept, np.maximum(values - values[3], 0), atol=1e-12)
    assert np.linalg.matrix_rank(made) == 3


def test_the_convex_problem_is_solved_to_its_minimum() -> None:
    """Without an activation it is convex: no step from where it ends makes it any less."""
    penalties = Penalties(sparse=0.3, low_rank=0.3)
    x, weight = normal(N, P, seed=4), planted()
    wanted = x @ weight.T

    def cost(sparse: Any, low: Any) -> float:
        rest = wanted - x @ (sparse + low).T
        norms = np.linalg.norm(sparse.reshape(T, S, K), axis=(0, 2)).sum()
        nuclear = np.linalg.svd(low, compute_uv=False).sum()
        return float(np.vdot(rest, rest) / N / 2 + 0.3 * norms + 0.3 * nuclear)

    found = solve_relaxed(
        x,
        wanted,
        identity(),
        GROUPS,
        penalties,
        weight=weight,
        bias=np.zeros(T),
        iterations=3000,
        tolerance=1e-9,
    )
    assert found.converged
    least = cost(found.sparse, found.low_rank)
    assert least == pytest.approx(found.objective[-1] * np.vdot(wanted, wanted) / N, rel=1e-9)
    for seed in range(40):
        for size in (1e-3, 1e-2, 0.1):
            moved = size * normal(2, T, P, seed=seed)
            assert cost(found.sparse + moved[0], found.low_rank + moved[1]) > least


@pytest.mark.parametrize("activation", [relu(), leaky_relu(0.1), clip(0, 6), identity()])
def test_converges_behind_every_activation_and_says_so(activation: Any) -> None:
    penalties = Penalties(0.2, 0.2, rho=5)
    found = solved(activation, penalties, iterations=600)
    assert found.converged
    assert found.primal[-1] < 1e-3 > found.dual[-1]
    assert found.objective[-1] < found.objective[0]
    assert len(found.objective) == len(found.primal) == len(found.dual) < 600
    assert not solved(activation, penalties, iterations=2).converged


@pytest.mark.parametrize(
    ("activation", "rho"),
    [(relu(), 1.0), (leaky_relu(0.1), 1.0), (clip(0, 6), 1.0), (identity(), 0.05)],
)
def test_finds_the_planted_support_and_rank(activation: Any, rho: float) -> None:
    found = solved(activation, Penalties(0.2, 0.2, rho), iterations=1000)
    np.testing.assert_array_equal(found.groups, [1, 4])
    assert found.rank == 2


def test_more_penalty_means_less_of_it() -> None:
    ranks = [solved(relu(), Penalties(0.3, level)).rank for level in (0.05, 0.5, 2.0)]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > ranks[-1]
    supports = [len(solved(relu(), Penalties(level, 0.3)).groups) for level in (0.02, 0.4, 5.0)]
    assert supports == sorted(supports, reverse=True)
    assert supports[-1] == 0


def test_without_shrinking_the_same_support_and_rank_are_closer() -> None:
    found, weight = solved(identity(), Penalties(0.5, 0.5)), planted()
    x = normal(N, P, seed=4)
    fit = debiased(found, GROUPS, weight, x.T @ x / N)
    assert fit.last.shape[1] == found.rank
    np.testing.assert_array_equal(fit.columns, GROUPS[found.groups].reshape(-1))

    def error(made: Any) -> float:
        return float(np.linalg.norm(x @ (weight - made).T))

    assert error(fit.weight) < 0.5 * error(found.weight)


def test_without_data_the_inputs_are_the_identity() -> None:
    weight = planted()
    found = solve_relaxed(
        np.eye(P),
        weight.T,
        identity(),
        GROUPS,
        Penalties(0.05, 0.05),
        weight=weight,
        bias=np.zeros(T),
    )
    exact = sparse_low_rank(weight, GROUPS[found.groups].reshape(-1), found.rank)
    fit = debiased(found, GROUPS, weight)
    np.testing.assert_allclose(fit.weight, exact.weight, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": np.ones((4, 5))}, "x has shape (4, 5); (n, 18) is needed"),
        ({"x": np.ones((0, P)), "wanted": np.ones((0, T))}, "x has no samples"),
        ({"wanted": np.ones((3, T))}, "wanted has shape (3, 8); one row for each of 4 is needed"),
        ({"groups": GROUPS[1:]}, "groups hold 15 columns; each of the 18 is needed once"),
    ],
)
def test_refuses(change: dict[str, Any], sentence: str) -> None:
    given = {"x": np.ones((4, P)), "wanted": np.ones((4, T)), "groups": GROUPS} | change
    with pytest.raises(ValueError, match=re.escape(sentence)):
        solve_relaxed(
            given["x"],
            given["wanted"],
            relu(),
            given["groups"],
            Penalties(1, 1),
            weight=planted(),
            bias=np.zeros(T),
        )


@pytest.mark.parametrize(("options", "name"), [((-1, 1), "sparse"), ((1, np.nan), "low_rank")])
def test_penalties_are_checked(options: tuple[float, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        Penalties(*options)
    with pytest.raises(ValueError, match="rho is 0; it must be finite and above 0"):
        Penalties(1, 1, rho=0)
