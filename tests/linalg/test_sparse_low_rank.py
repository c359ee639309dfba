"""Low rank and given support at once: held to the optimum that alternation and search find."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from onnxcp.linalg.moments import reduced_rank
from onnxcp.linalg.sparse_low_rank import SparseLowRank, choose_groups, sparse_low_rank

Array = Any
T, S, K = 7, 5, 3
P = S * K
GROUPS = np.arange(P).reshape(S, K)


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def moments(seed: int) -> Array:
    root = normal(P, P, seed=seed) * np.geomspace(1, 0.05, P)
    return root @ root.T + 1e-3 * np.eye(P)


def lost(weight: Array, made: Array, gram: Array | None) -> float:
    rest = weight - made
    return float(np.vdot(rest, rest if gram is None else rest @ gram))


def alternated(weight: Array, columns: Array, rank: int, gram: Array, start: int) -> float:
    """Fit one of the two parts after the other, from a random start."""
    sparse = np.zeros_like(weight)
    sparse[:, columns] = normal(T, len(columns), seed=start)
    low = sparse
    for _ in range(600):
        first, last = reduced_rank(weight - sparse, gram, rank)
        low = last @ first
        block = gram[np.ix_(columns, columns)]
        sparse[:, columns] = np.linalg.solve(block, ((weight - low) @ gram)[:, columns].T).T
    return lost(weight, low + sparse, gram)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("data", [False, True])
def test_no_alternation_comes_closer(seed: int, data: bool) -> None:
    weight, gram = normal(T, P, seed=seed), moments(seed) if data else None
    columns = GROUPS[[0, 3]].reshape(-1)
    fit = sparse_low_rank(weight, columns, 2, gram)
    assert fit.lost == pytest.approx(lost(weight, fit.weight, gram), rel=1e-6)
    metric = np.eye(P) if gram is None else gram
    rivals = [alternated(weight, columns, 2, metric, start) for start in range(2)]
    assert fit.lost <= min(rivals) * (1 + 1e-6)
    assert fit.lost == pytest.approx(min(rivals), rel=1e-3), "which alternation ends at, too"


def test_parts_are_what_they_should_be() -> None:
    weight, columns = normal(T, P, seed=1), np.array([2, 4, 11])
    fit = sparse_low_rank(weight, columns, 3, moments(1))
    assert [fit.first.shape, fit.last.shape, fit.sparse.shape] == [(3, P), (T, 3), (T, 3)]
    np.testing.assert_allclose(fit.last.T @ fit.last, np.eye(3), atol=1e-12)
    only_low = fit.weight.copy()
    only_low[:, columns] -= fit.sparse
    assert np.linalg.matrix_rank(only_low) == 3


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize(
    ("columns", "rank"), [(range(P), 1), ([], T), ([0, 1], T), ([], T + 5), (range(P - 2), 2)]
)
def test_full_support_or_rank_is_the_map_itself(columns: Any, rank: int, data: bool) -> None:
    weight = normal(T, P, seed=2)
    seen = np.array(list(columns), np.intp)
    fit = sparse_low_rank(weight, seen, rank, moments(2) if data else None)
    np.testing.assert_allclose(fit.weight, weight, atol=1e-5)


@pytest.mark.parametrize("data", [False, True])
def test_planted_parts_are_found(data: bool) -> None:
    gram = moments(3) if data else None
    weight = normal(T, 2, seed=4) @ normal(2, P, seed=5)
    weight[:, GROUPS[[1, 4]].reshape(-1)] += 3 * normal(T, 2 * K, seed=6)
    chosen = choose_groups(weight, GROUPS, 2, 2, gram)
    np.testing.assert_array_equal(chosen, [1, 4])
    fit = sparse_low_rank(weight, GROUPS[chosen].reshape(-1), 2, gram)
    assert fit.lost < 1e-6 * lost(weight, np.zeros_like(weight), gram)


@pytest.mark.parametrize("seed", range(6))
def test_a_choice_is_near_the_best_of_all_and_no_worse_than_the_start(seed: int) -> None:
    weight, gram = normal(T, P, seed=seed), moments(seed + 20)

    def error(chosen: Any) -> float:
        return sparse_low_rank(weight, GROUPS[list(chosen)].reshape(-1), 2, gram).lost

    pairs = list(itertools.combinations(range(S), 2))
    errors = sorted(map(error, pairs))
    assert error(choose_groups(weight, GROUPS, 2, 2, gram)) <= np.median(errors)
    for pair in pairs:
        assert error(choose_groups(weight, GROUPS, 2, 2, gram, np.array(pair))) <= error(pair)


def test_inputs_that_never_vary_take_nothing() -> None:
    gram = moments(7)
    dead = GROUPS[2]
    gram[dead] = gram[:, dead] = 0.0
    fit = sparse_low_rank(normal(T, P, seed=7), dead, 2, gram)
    assert np.isfinite(fit.weight).all()
    assert not fit.sparse.any()


def test_products_are_in_the_type_of_the_moments() -> None:
    weight, gram = normal(T, P, seed=8), moments(8)
    exact, single = (
        sparse_low_rank(weight, GROUPS[0], 2, each) for each in (gram, gram.astype(np.float32))
    )
    assert isinstance(single, SparseLowRank)
    assert single.lost == pytest.approx(exact.lost, rel=1e-4)


@pytest.mark.parametrize(
    ("weight", "columns", "rank", "gram", "sentence"),
    [
        (np.ones((2, 3)), [0], 0, None, "rank is 0; it must be at least 1"),
        (np.ones((2, 3)), [3], 1, None, "columns reach from 3 to 3; the weight has those from 0"),
        (np.full((2, 3), np.nan), [0], 1, None, "weight holds NaN or infinity"),
        (np.ones((2, 3, 1)), [0], 1, None, "weight has shape (2, 3, 1); two axes are needed"),
        (np.ones((2, 3)), [0], 1, np.eye(2), "gram has shape (2, 2); (3, 3) is needed"),
    ],
)
def test_refuses(weight: Array, columns: Any, rank: int, gram: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sparse_low_rank(weight, np.array(columns, np.intp), rank, gram)


def test_as_many_groups_as_there_are_need_no_choice() -> None:
    np.testing.assert_array_equal(choose_groups(normal(T, P, seed=9), GROUPS, S, 1), np.arange(S))
    with pytest.raises(ValueError, match="count is 6; it must be from 1 to 5"):
        choose_groups(normal(T, P, seed=9), GROUPS, S + 1, 1)
