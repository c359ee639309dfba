"""CP: exact where that is known, planted tensors found, degenerate ones kept within bounds."""

from __future__ import annotations

import warnings
from time import perf_counter

import numpy as np
import pytest
import tensorly
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from tensorly.decomposition import parafac

from onnxcp.linalg.checks import RankWarning
from onnxcp.linalg.cp import CPResult, DegenerateWarning, cp, cp_kernel, full_rank

SHAPES = [(7, 6, 9), (5, 4, 3, 3), (3, 9, 2, 2), (4, 5, 1, 3), (6, 8, 1, 1), (6, 8), (4, 1, 3, 3)]


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def planted(shape: tuple[int, ...], rank: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cp_kernel([rng.standard_normal((dim, rank)) for dim in shape])


def smooth(shape: tuple[int, ...], width: float = 1.0) -> np.ndarray:
    """Kernels that vary slowly over space, as those of trained networks do."""
    sigma = (0, 0, *[width] * (len(shape) - 2))
    return gaussian_filter(normal(shape), sigma, mode="constant")


def error(tensor: np.ndarray, result: CPResult) -> float:
    residual = tensor - cp_kernel(result.factors)
    return float(np.linalg.norm(residual) / np.linalg.norm(tensor))


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_exact(shape: tuple[int, ...]) -> None:
    tensor = normal(shape)
    result = cp(tensor, full_rank(shape))
    assert result.rank == full_rank(shape)
    assert result.sweeps == 0
    assert result.relative_error < 1e-12
    np.testing.assert_allclose(cp_kernel(result.factors), tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tensor", [normal((5, 4, 3)), np.zeros((5, 4, 3)), normal((5, 12))])
def test_a_rank_beyond_full_is_cut_with_a_note(tensor: np.ndarray) -> None:
    full = full_rank(tensor.shape)
    with pytest.warns(RankWarning, match=f"rank is 40; no more than {full} is of any use"):
        result = cp(tensor, 40)
    assert result.rank == full


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((512, 512, 9), 4608), ((64, 3, 3, 3), 27), ((5, 8), 5), ((5, 8, 1, 1), 5), ((4,), 1)],
)
def test_full_rank_of_a_shape(shape: tuple[int, ...], rank: int) -> None:
    assert full_rank(shape) == rank


@pytest.mark.filterwarnings("ignore::onnxcp.linalg.checks.RankWarning")
@pytest.mark.parametrize("shape", [(6, 8), (8, 6, 1, 1), (1, 9, 4), (5, 1, 1, 1), (1, 1)])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_matrix_gets_its_svd(shape: tuple[int, ...], rank: int) -> None:
    tensor = normal(shape)
    values = np.linalg.svd(np.atleast_2d(tensor.squeeze()), compute_uv=False)
    result = cp(tensor, rank)
    assert np.linalg.norm(cp_kernel(result.factors) - tensor) == pytest.approx(
        np.linalg.norm(values[rank:]), rel=1e-10, abs=1e-12
    )
    assert result.norm_sum == pytest.approx(np.sum(values[:rank] ** 2))


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((16, 12, 9), 5), ((16, 12, 9), 12), ((20, 20, 9), 25), ((24, 16, 3, 3), 10), ((9, 7, 5), 1)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_terms_are_recovered(shape: tuple[int, ...], rank: int, seed: int) -> None:
    tensor = planted(shape, rank, seed=100 + seed)
    result = cp(tensor, rank, sweeps=150, seed=seed)
    assert error(tensor, result) < 1e-6
    assert result.rank == rank


def test_planted_terms_are_recovered_beyond_their_rank() -> None:
    tensor = planted((16, 12, 9), 5)
    assert error(tensor, cp(tensor, 20)) < 1e-6


def test_single_precision_input_is_no_bar_to_accuracy() -> None:
    tensor = planted((400, 300, 9), 8).astype(np.float32)
    assert error(tensor.astype(np.float64), cp(tensor, 8, sweeps=100)) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_the_result_tells_the_truth(shape: tuple[int, ...]) -> None:
    tensor = normal(shape)
    result = cp(tensor, 3)
    assert [factor.shape for factor in result.factors] == [(dim, result.rank) for dim in shape]
    assert result.relative_error == pytest.approx(error(tensor, result), rel=1e-9, abs=1e-13)
    norms = np.array([np.linalg.norm(factor, axis=0) for factor in result.factors])
    np.testing.assert_allclose(norms, np.broadcast_to(norms[0], norms.shape), rtol=1e-9)
    assert (np.diff(norms[0]) <= 1e-12).all()
    assert result.norm_sum == pytest.approx(np.sum(norms.prod(axis=0) ** 2))


def test_sensitivity_is_the_response_to_noise() -> None:
    result = cp(normal((6, 5, 4)), 3)
    rng = np.random.default_rng(0)
    exact = cp_kernel(result.factors)
    sigma = 1e-4
    changes = [
        np.sum(
            (cp_kernel([f + sigma * rng.standard_normal(f.shape) for f in result.factors]) - exact)
            ** 2
        )
        for _ in range(4000)
    ]
    assert np.mean(changes) / sigma**2 == pytest.approx(result.sensitivity, rel=0.05)


@pytest.mark.parametrize("shape", [(16, 12, 9), (16, 12, 3, 3)])
def test_more_terms_fit_better(shape: tuple[int, ...]) -> None:
    tensor = smooth(shape)
    errors = [cp(tensor, rank).relative_error for rank in (1, 2, 4, 8, 16, 32, 64)]
    assert all(np.diff(errors) < 0)


@pytest.mark.parametrize("shape", [(24, 16, 5, 5), (24, 16, 25)])
@pytest.mark.parametrize("rank", [16, 40])
def test_the_fit_beats_tensorly_at_equal_sweeps(shape: tuple[int, ...], rank: int) -> None:
    tensor = smooth((24, 16, 5, 5)).reshape(shape)
    seeds = range(3)
    ours = [cp(tensor, rank, sweeps=40, seed=seed).relative_error for seed in seeds]
    theirs = []
    for seed in seeds:
        found = parafac(tensor, rank, n_iter_max=40, init="random", random_state=seed, tol=0)
        residual = tensorly.cp_to_tensor(found) - tensor
        theirs.append(np.linalg.norm(residual) / np.linalg.norm(tensor))
    assert np.mean(ours) < np.mean(theirs)


def test_reconstruction_is_tensorlys() -> None:
    factors = [normal((dim, 4), seed=dim) for dim in (6, 5, 3, 2)]
    np.testing.assert_allclose(
        cp_kernel(factors), tensorly.cp_to_tensor((None, factors)), atol=1e-12
    )


def border_rank_two() -> np.ndarray:
    """Of rank 3, yet approached by rank-2 tensors whose terms diverge (De Silva & Lim 2008)."""
    a, b = np.eye(2)
    return sum(np.einsum("i,j,k", *term) for term in [(a, a, b), (a, b, a), (b, a, a)])


@pytest.mark.parametrize("sweeps", [1, 60, 400])
@pytest.mark.parametrize("limit", [3, 10, 100])
def test_terms_that_cancel_stay_bounded(sweeps: int, limit: float) -> None:
    tensor = border_rank_two()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)  # not all of them come that far
        result = cp(tensor, 2, sweeps=sweeps, norm_limit=limit)
    assert result.norm_sum <= limit * np.sum(tensor**2) * (1 + 1e-9)


def test_terms_that_grow_without_bound_are_told_of() -> None:
    with pytest.warns(DegenerateWarning, match="the 2 terms grew against each other up to"):
        result = cp(border_rank_two(), 2, sweeps=400, norm_limit=10)
    assert np.isfinite(result.sensitivity)


def test_terms_that_do_not_are_not(recwarn: pytest.WarningsRecorder) -> None:
    cp(normal((9, 8, 7)), 6)
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore::onnxcp.linalg.cp.DegenerateWarning")
def test_a_wider_limit_lets_cancelling_terms_fit_better() -> None:
    tensor = border_rank_two()
    errors = [cp(tensor, 2, sweeps=400, norm_limit=limit).relative_error for limit in (2, 4, 8)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]
    assert errors[2] < 0.05


@pytest.mark.filterwarnings("ignore::onnxcp.linalg.cp.DegenerateWarning")
def test_the_norm_limit_holds_for_noise() -> None:
    tensor = normal((8, 8, 8))
    for limit in (1, 2, 100):
        result = cp(tensor, 16, norm_limit=limit)
        assert result.norm_sum <= limit * np.sum(tensor**2) * (1 + 1e-9)


def test_the_seed_decides() -> None:
    tensor = normal((8, 7, 6))
    first, second, other = (cp(tensor, 5, seed=seed) for seed in (3, 3, 4))
    for one, two in zip(first.factors, second.factors, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first.factors[0], other.factors[0])


def test_several_starts_go_on_from_the_best() -> None:
    tensor = normal((8, 7, 6))
    result = cp(tensor, 5, sweeps=40, starts=4, tol=0)
    assert result.sweeps == 4 * 5 + 35
    assert result.relative_error == pytest.approx(error(tensor, result))


@pytest.mark.parametrize("shape", [(8, 7, 6), (8, 6, 1, 3)])
def test_given_factors_are_improved(shape: tuple[int, ...]) -> None:
    tensor = normal(shape)
    start = cp(tensor, 5, sweeps=4)
    once = cp(tensor, 5, sweeps=1, init=start.factors)
    assert once.relative_error < start.relative_error
    ended = cp(tensor, 5, sweeps=500)
    assert cp(tensor, 5, init=ended.factors).relative_error <= ended.relative_error * (1 + 1e-12)


@pytest.mark.parametrize("other", [4, 7])
def test_a_fit_at_one_rank_is_a_start_at_another(other: int) -> None:
    tensor = smooth((16, 12, 3, 3))
    neighbour = cp(tensor, other, sweeps=200)
    warm = cp(tensor, 5, sweeps=5, init=neighbour.factors)
    assert warm.rank == 5
    assert warm.relative_error < cp(tensor, 5, sweeps=5).relative_error


def test_exact_factors_survive() -> None:
    factors = [normal((dim, 4), seed=dim) for dim in (9, 8, 7)]
    assert cp(cp_kernel(factors), 4, sweeps=3, init=factors).relative_error < 1e-12


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_extreme_scales(scale: float) -> None:
    tensor = normal((6, 5, 4))
    assert cp(scale * tensor, 4).relative_error == pytest.approx(
        cp(tensor, 4).relative_error, rel=1e-6
    )


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3), (4, 3, 3, 3)])
def test_a_zero_tensor(shape: tuple[int, ...]) -> None:
    result = cp(np.zeros(shape), 2)
    assert result.relative_error == result.norm_sum == result.sensitivity == 0
    assert not cp_kernel(result.factors).any()


@pytest.mark.parametrize("fill", ["one entry", "one slice", "ones"])
def test_degenerate_tensors(fill: str) -> None:
    tensor = np.ones((6, 5, 4)) if fill == "ones" else np.zeros((6, 5, 4))
    if fill == "one entry":
        tensor[2, 3, 1] = 5
    if fill == "one slice":
        tensor[1] = normal((5, 4))
    assert cp(tensor, 8).relative_error < 1e-6


def test_a_fit_reports_what_it_cost() -> None:
    begun = perf_counter()
    result = cp(normal((9, 8, 7)), 6)
    assert 0 < result.seconds < perf_counter() - begun
    assert 0 < result.sweeps <= 60


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_results_are_float64(dtype: type) -> None:
    for tensor in (normal((6, 5, 4)), normal((6, 5))):
        assert {f.dtype for f in cp(tensor.astype(dtype), 3).factors} == {np.dtype(np.float64)}


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5).map(tuple),
    rank=st.integers(1, 12),
)
def test_any_shape_and_rank(shape: tuple[int, ...], rank: int) -> None:
    tensor = normal(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        result = cp(tensor, rank, sweeps=8)
    assert result.rank == min(rank, full_rank(shape))
    assert cp_kernel(result.factors).shape == shape
    assert result.relative_error <= 1 + 1e-12
    if rank >= full_rank(shape):
        assert result.relative_error < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be at least 1"),
        ({"rank": 1.5}, "rank is 1.5; an integer"),
        ({"sweeps": 0}, "sweeps is 0; it must be at least 1"),
        ({"starts": 0}, "starts is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"tol": -1.0}, "tol is -1.0; it must be at least 0"),
        ({"tol": np.nan}, "tol is nan; it must be at least 0"),
        ({"norm_limit": 0.5}, "norm_limit is 0.5; it must be finite and at least 1"),
        ({"norm_limit": np.inf}, "norm_limit is inf; it must be finite and at least 1"),
        ({"init": [np.ones((4, 2))] * 3}, r"init has shapes .*; \[\(4, 2\), \(3, 2\), \(2, 2\)\]"),
        ({"init": []}, r"init has shapes \[\]; "),
        ({"solver": "sgd"}, "solver is 'sgd'; it must be one of 'als', 'nls', 'auto'"),
        ({"slack": -0.1}, "slack is -0.1; it must be finite and at least 0"),
        ({"init": [np.full((4, 2), np.nan)] * 3}, r"init\[0\] holds NaN"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cp(normal((4, 3, 2)), **({"rank": 2} | options))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.zeros(3), r"tensor has shape \(3,\); at least 2 axes are needed"),
        (np.zeros((3, 0, 3)), r"tensor has shape \(3, 0, 3\); no axis may be empty"),
        (np.zeros((3, 3), int), "tensor has dtype int64"),
        (np.full((3, 3), np.inf), "tensor holds NaN or infinity"),
    ],
)
def test_bad_tensors_are_named(tensor: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cp(tensor, 1)


def test_a_shape_without_axes_has_no_full_rank() -> None:
    for shape in ((), (3, 0)):
        with pytest.raises(ValueError, match="shape is"):
            full_rank(shape)
