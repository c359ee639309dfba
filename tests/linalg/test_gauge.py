"""The interpolative gauge: the same kernel, with copies among its outputs."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcp.linalg.gauge import interpolative
from onnxcp.linalg.svd import channel_kernel, channel_svd

SHAPES = [(12, 5, 3, 3), (8, 30), (6, 6, 2), (5, 9, 1, 1)]


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_product_stays_what_it_is(shape: tuple[int, ...], rank: int) -> None:
    first, last = channel_svd(normal(shape), rank)
    gauged = interpolative(first, last)
    np.testing.assert_allclose(gauged.kernel(), channel_kernel(first, last), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_as_many_outputs_as_the_rank_are_copies(rank: int) -> None:
    first, last = channel_svd(normal((12, 5, 3, 3)), rank)
    gauged = interpolative(first, last)
    kernel = channel_kernel(first, last)
    assert gauged.first.shape == (rank, 5, 3, 3)
    assert gauged.rest.shape == (12 - rank, rank)
    np.testing.assert_allclose(gauged.first, kernel[gauged.copied], atol=1e-12)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([gauged.copied, gauged.others])), np.arange(12)
    )


def test_what_remains_is_small() -> None:
    """Rows chosen at random would blow it up; pivoting keeps it near 1."""
    worst = 0.0
    for seed in range(20):
        first, last = channel_svd(normal((40, 40), seed), 20)
        worst = max(worst, float(np.abs(interpolative(first, last).rest).max()))
    assert worst < 20


def test_factors_short_of_full_rank() -> None:
    first, last = channel_svd(normal((8, 3, 3)), 3)
    doubled = np.hstack([last, last]), np.concatenate([first, first])
    gauged = interpolative(doubled[1], doubled[0])
    np.testing.assert_allclose(gauged.kernel(), channel_kernel(doubled[1], doubled[0]), atol=1e-10)


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (np.ones((3, 4)), np.ones((5, 2)), r"last has shape \(5, 2\), first \(3, 4\)"),
        (np.ones((6, 4)), np.ones((5, 6)), "with R from 1 to T"),
        (np.ones((2, 4)), np.ones((5, 2, 1)), r"last has shape \(5, 2, 1\)"),
        (np.full((2, 4), np.inf), np.ones((5, 2)), "first holds NaN or infinity"),
    ],
)
def test_bad_factors_are_named(first: np.ndarray, last: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpolative(first, last)
