"""Rank rules: the smallest rank that meets a bound, robust to rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcp.linalg import ranks

SPECTRA = st.lists(st.floats(0, 1e3), min_size=1, max_size=20).map(lambda s: sorted(s)[::-1])


@pytest.mark.parametrize(
    ("spectrum", "energy", "rank"),
    [
        ([2, 1, 1], 0.6, 1),
        ([2, 1, 1], 0.7, 2),
        ([2, 1, 1], 1.0, 3),
        ([2, 1, 1], 0.0, 1),
        ([1] * 10, 0.9, 9),  # 1 - 0.9 is a little less than 0.1
        ([1] * 4, 0.75, 3),
        ([1] * 3, 2 / 3, 2),
        ([1, 1, 0, 0], 1.0, 2),
        ([1, 1e-17], 1.0, 1),
        ([1, 1e-8], 1.0, 2),
        ([0, 0, 0], 1.0, 1),
        ([1e200, 1e200], 1.0, 2),
        ([1e-200, 1e-200], 0.5, 1),
        ([5], 1.0, 1),
    ],
)
def test_rank_for_energy(spectrum: list[float], energy: float, rank: int) -> None:
    assert ranks.rank_for_energy(np.array(spectrum, float), energy) == rank


@pytest.mark.parametrize(
    ("error", "rank"), [(0, 3), (0.3, 3), (0.5, 2), (0.7, 2), (0.71, 1), (1, 1)]
)
def test_rank_for_error(error: float, rank: int) -> None:
    assert ranks.rank_for_error(np.sqrt([2.0, 1.0, 1.0]), error) == rank


@given(spectrum=SPECTRA, share=st.floats(0, 1))
def test_the_bound_holds_and_no_smaller_rank_meets_it(spectrum: list[float], share: float) -> None:
    rank = ranks.rank_for_error(spectrum, share)
    assert 1 <= rank <= len(spectrum)
    assert ranks.relative_error(spectrum, rank) <= share * (1 + 1e-8) + 1e-14
    if rank > 1:
        assert ranks.relative_error(spectrum, rank - 1) > share
    assert ranks.rank_for_energy(spectrum, 1 - share**2) >= min(rank, 1)


@given(spectrum=SPECTRA)
def test_error_falls_with_rank_to_zero(spectrum: list[float]) -> None:
    errors = [ranks.relative_error(spectrum, r) for r in range(1, len(spectrum) + 2)]
    assert all(np.diff(errors) <= 0)
    assert errors[-1] == 0


def test_relative_error_resolves_tiny_tails() -> None:
    assert ranks.relative_error([1.0, 1e-12], 1) == pytest.approx(1e-12, rel=1e-9)


@pytest.mark.parametrize(
    ("rank", "multiple", "full", "down", "up"),
    [
        (17, 8, 64, 16, 24),
        (16, 8, 64, 16, 16),
        (3, 8, 64, 8, 8),
        (3, 8, 5, 5, 5),
        (62, 8, 60, 56, 60),
        (60, 8, 60, 56, 60),
        (100, 16, 64, 64, 64),
        (7, 1, 64, 7, 7),
        (1, 1, 1, 1, 1),
    ],
)
def test_round_rank(rank: int, multiple: int, full: int, down: int, up: int) -> None:
    assert ranks.round_rank(rank, multiple, full) == down
    assert ranks.round_rank(rank, multiple, full, up=True) == up


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 300), st.booleans())
def test_rounding_stays_in_range(rank: int, multiple: int, full: int, up: bool) -> None:
    rounded = ranks.round_rank(rank, multiple, full, up=up)
    assert 1 <= rounded <= full
    assert rounded % multiple == 0 or rounded == full
    assert abs(rounded - min(rank, full)) < multiple


@pytest.mark.parametrize(
    ("spectrum", "message"),
    [
        ([], r"spectrum has shape \(0,\); no axis may be empty"),
        ([[1.0]], r"spectrum has shape \(1, 1\); one axis is needed"),
        ([1, 2], "spectrum has dtype int64"),
        ([1.0, 2.0], "spectrum holds negative or rising values"),
        ([1.0, -1.0], "spectrum holds negative or rising values"),
        ([np.nan], "spectrum holds NaN or infinity"),
    ],
)
def test_bad_spectra_are_named(spectrum: list[float], message: str) -> None:
    for rule in (ranks.rank_for_energy, ranks.rank_for_error):
        with pytest.raises(ValueError, match=message):
            rule(spectrum, 0.5)
    with pytest.raises(ValueError, match=message):
        ranks.relative_error(spectrum, 1)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_bad_bounds_are_named(value: float) -> None:
    with pytest.raises(ValueError, match=f"energy is {value}; it must lie between 0 and 1"):
        ranks.rank_for_energy([1.0], value)
    with pytest.raises(ValueError, match=f"error is {value}; it must lie between 0 and 1"):
        ranks.rank_for_error([1.0], value)


@pytest.mark.parametrize("name", ["rank", "multiple", "full"])
def test_bad_counts_are_named(name: str) -> None:
    counts = {"rank": 8, "multiple": 8, "full": 8} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        ranks.round_rank(**counts)
    with pytest.raises(ValueError, match="rank is 0; it must be at least 1"):
        ranks.relative_error([1.0], 0)


@given(spectrum=SPECTRA, cosine=st.floats(0, 1))
def test_a_cosine_of_weights_is_that_of_the_truncated_matrix(
    spectrum: list[float], cosine: float
) -> None:
    values = np.array(spectrum)
    rank = ranks.rank_for_cosine(values, cosine)
    peak = values[0] or 1.0
    unit = values / peak
    kept = np.where(np.arange(len(unit)) < rank, unit, 0)
    norms = np.linalg.norm(unit) * np.linalg.norm(kept)
    if norms:
        assert unit @ kept / norms >= cosine - 1e-7
    assert rank == ranks.rank_for_energy(values, cosine**2)


@pytest.mark.parametrize(
    ("errors", "bound", "rank"),
    [
        ([0.5, 0.3, 0.1], 0.3, 2),
        ([0.5, 0.3, 0.1], 0.6, 1),
        ([0.5, 0.3, 0.1], 0.0, 3),
        ([0.5, 0.1, 0.3, 0.1], 0.2, 4),  # from there on, not only there
        ([0.2], 0.1, 1),
    ],
)
def test_rank_on_a_curve(errors: list[float], bound: float, rank: int) -> None:
    assert ranks.rank_on_curve(errors, bound) == rank


@pytest.mark.parametrize(
    ("costs", "budget", "rank"),
    [([10.0, 20.0, 30.0], 20, 2), ([10.0, 20.0, 30.0], 35, 3), ([10.0, 20.0], 5, 1)],
)
def test_rank_for_a_cost(costs: list[float], budget: float, rank: int) -> None:
    assert ranks.rank_for_cost(costs, budget) == rank


def test_cosines_of_weights_are_those_of_the_best_approximations() -> None:
    matrix = np.random.default_rng(0).standard_normal((7, 11))
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    found = ranks.weight_cosines(s)
    for rank, cosine in enumerate(found, 1):
        made = (u[:, :rank] * s[:rank]) @ v[:rank]
        norms = np.linalg.norm(matrix) * np.linalg.norm(made)
        assert cosine == pytest.approx(np.vdot(matrix, made) / norms, rel=1e-12)
        assert cosine**2 == pytest.approx(1 - ranks.relative_error(s, rank) ** 2, rel=1e-12)
    assert found[-1] == 1


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9, 0.95, 0.999])
def test_cosines_of_weights_lead_to_the_rank_for_one_of_them(tau: float) -> None:
    s = np.sort(np.random.default_rng(1).exponential(size=50))[::-1]
    found = ranks.rank_on_curve(1 - ranks.weight_cosines(s), 1 - tau)
    assert found == ranks.rank_for_cosine(s, tau) == ranks.rank_for_energy(s, tau**2)


def test_weights_that_are_zero_are_met_by_any_rank() -> None:
    assert ranks.weight_cosines([0.0, 0.0]).tolist() == [1, 1]


def test_cosines_of_responses_are_those_of_all_entries_together() -> None:
    rng = np.random.default_rng(0)
    wanted = np.maximum(rng.standard_normal((200, 6)), 0)
    made = [np.maximum(wanted + scale * rng.standard_normal(wanted.shape), 0) for scale in (2, 1)]
    found = ranks.response_cosines(wanted, [*made, wanted, -wanted])
    for cosine, each in zip(found, made, strict=False):
        one, two = wanted.ravel(), each.ravel()
        assert cosine == pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    assert found[2:] == pytest.approx([1, -1])
    assert 0 < found[0] < found[1] < 1


def test_responses_that_are_cut_off_have_nothing_to_compare() -> None:
    nothing, some = np.zeros((5, 3)), np.ones((5, 3))
    assert ranks.response_cosines(nothing, [nothing, some]).tolist() == [1, 0]
    assert ranks.response_cosines(some, [nothing]).tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranks.rank_for_cosine([1.0], 1.5), "cosine is 1.5; it must lie between 0 and 1"),
        (lambda: ranks.rank_on_curve(np.zeros(0), 0.1), r"errors has .*; no axis may be empty"),
        (lambda: ranks.rank_on_curve([0.1], np.nan), "bound is nan; it must be finite"),
        (lambda: ranks.rank_for_cost([2.0, 1.0], 1), "costs fall"),
        (lambda: ranks.response_cosines(np.ones((2, 2), int), []), "wanted has dtype int64"),
        (lambda: ranks.response_cosines(np.ones((2, 2)), [np.ones(2)]), "made has shape"),
    ],
)
def test_bad_curves_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
