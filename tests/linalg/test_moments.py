"""Moments, regression and its cut to a lower rank, held against the samples themselves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcp.linalg.moments import Accumulator, Moments, penalty, reduced_rank, ridge

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]

each_centring = pytest.mark.parametrize("centred", [True, False])


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def samples(n: int = 200, inputs: int = 5, outputs: int = 3, seed: int = 0) -> tuple[Array, Array]:
    """Inputs that have means and hang together, and noisy targets that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, inputs)) @ rng.standard_normal((inputs, inputs)) + 2
    t = x @ rng.standard_normal((inputs, outputs)) + 0.3 * rng.standard_normal((n, outputs)) - 1
    return x, t


def gather(x: Array, t: Array, centred: bool = True, blocks: int = 1) -> Moments:
    accumulator = Accumulator(centred)
    for each in zip(np.array_split(x, blocks), np.array_split(t, blocks), strict=True):
        accumulator.add(*each)
    moments = accumulator.moments()
    assert moments is not None
    return moments


def check_against_numpy(moments: Moments, x: Array, t: Array, centred: bool, rtol: float) -> None:
    assert moments.count == len(x)
    x, t = x.astype(np.float64), t.astype(np.float64)
    mean_x, mean_t = (each.mean(0) if centred else np.zeros(each.shape[1]) for each in (x, t))
    dx, dt = x - mean_x, t - mean_t
    spread = [np.sqrt(np.mean(each**2)) for each in (dx, dt)]
    np.testing.assert_allclose(moments.x_mean, mean_x, rtol=rtol, atol=rtol * spread[0])
    np.testing.assert_allclose(moments.t_mean, mean_t, rtol=rtol, atol=rtol * spread[1])
    np.testing.assert_allclose(moments.xx, dx.T @ dx / len(x), atol=rtol * spread[0] ** 2)
    np.testing.assert_allclose(moments.xt, dx.T @ dt / len(x), atol=rtol * np.prod(spread))
    assert moments.t_power == pytest.approx(np.sum(dt**2) / len(x), rel=rtol)
    assert moments.scale == pytest.approx(np.sum(t**2) / len(x), rel=rtol)


class TestAccumulator:
    @each_centring
    @pytest.mark.parametrize("blocks", [1, 2, 7, 200])
    def test_is_numpy_in_blocks(self, centred: bool, blocks: int) -> None:
        x, t = samples()
        check_against_numpy(gather(x, t, centred, blocks), x, t, centred, 1e-10)

    @pytest.mark.parametrize("blocks", [1, 5])
    def test_large_means_cost_no_digits(self, blocks: int) -> None:
        """Uncentred, squares of 4000 in single precision would leave nothing of a variance of 1."""
        x, t = (each.astype(np.float32) for each in samples(5000))
        x, t = x + np.float32(4000), t - np.float32(3000)
        check_against_numpy(gather(x, t, True, blocks), x, t, True, 1e-5)

    def test_a_first_block_that_is_not_like_the_others(self) -> None:
        x, t = (each.astype(np.float32) for each in samples(1000))
        x[:10], t[:10] = 100, -100
        check_against_numpy(gather(x, t, True, 100), x, t, True, 1e-4)

    @each_centring
    def test_of_single_precision(self, centred: bool) -> None:
        x, t = (each.astype(np.float32) for each in samples(3000))
        moments = gather(x, t, centred, 3)
        assert moments.xx.dtype == moments.xt.dtype == moments.x_mean.dtype == np.float64
        check_against_numpy(moments, x, t, centred, 1e-5)

    @each_centring
    def test_of_one_sample(self, centred: bool) -> None:
        x, t = samples(1)
        moments = gather(x, t, centred)
        check_against_numpy(moments, x, t, centred, 1e-12)
        assert moments.xx.any() != centred

    def test_of_no_samples(self) -> None:
        accumulator = Accumulator()
        assert accumulator.moments() is None
        accumulator.add(np.zeros((0, 3)), np.zeros((0, 2)))
        assert accumulator.moments() is None
        x, t = samples()
        accumulator.add(x, t)
        accumulator.add(x[:0], t[:0])
        moments = accumulator.moments()
        assert moments is not None
        check_against_numpy(moments, x, t, True, 1e-10)

    @each_centring
    def test_may_be_asked_in_between(self, centred: bool) -> None:
        x, t = samples()
        accumulator = Accumulator(centred)
        for stop in (100, 200):
            accumulator.add(x[stop - 100 : stop], t[stop - 100 : stop])
            moments = accumulator.moments()
            assert moments is not None
            check_against_numpy(moments, x[:stop], t[:stop], centred, 1e-10)

    def test_does_not_write_to_what_it_is_given(self) -> None:
        x, t = samples()
        x.flags.writeable = t.flags.writeable = False
        gather(x, t, blocks=3)

    def test_keeps_nothing_that_is_square_in_the_outputs(self) -> None:
        """A classifier over words has more of them than a Gram matrix of them would fit."""
        x, t = np.ones((2, 3), np.float32), np.ones((2, 200_000), np.float32)
        moments = gather(x, t)
        assert moments.xt.shape == (3, 200_000)
        assert moments.t_power == 0


class TestError:
    @each_centring
    def test_is_that_of_the_residuals(self, centred: bool) -> None:
        x, t = samples()
        moments = gather(x, t, centred, 3)
        weight = np.random.default_rng(1).standard_normal((3, 5))
        bias = np.random.default_rng(2).standard_normal(3) if centred else np.zeros(3)
        squares = np.sum((x @ weight.T + bias - t) ** 2)
        assert moments.error(weight, bias) == pytest.approx(squares / np.sum(t**2), rel=1e-9)
        assert moments.loss(weight, bias) == pytest.approx(squares / len(t), rel=1e-9)
        assert moments.error(weight.reshape(3, 5, 1, 1), bias) == moments.error(weight, bias)

    def test_without_a_bias_is_that_of_the_best(self) -> None:
        x, t = samples()
        moments = gather(x, t)
        weight = np.random.default_rng(1).standard_normal((3, 5))
        best = np.mean(t - x @ weight.T, axis=0)
        np.testing.assert_allclose(moments.best_bias(weight), best)
        assert moments.error(weight) == pytest.approx(moments.error(weight, best), rel=1e-9)
        for change in np.eye(3):
            assert moments.error(weight) < moments.error(weight, best + 0.01 * change)

    def test_uncentred_there_is_no_bias(self) -> None:
        x, t = samples()
        moments = gather(x, t, centred=False)
        weight = np.random.default_rng(1).standard_normal((3, 5))
        assert not moments.best_bias(weight).any()
        assert moments.error(weight) == moments.error(weight, np.zeros(3))

    def test_of_an_exact_map_is_nothing(self) -> None:
        x, _ = samples()
        weight = np.random.default_rng(1).standard_normal((3, 5))
        moments = gather(x, x @ weight.T + 7)
        assert moments.error(weight) < 1e-14
        assert moments.error(weight, np.full(3, 7.0)) < 1e-14
        assert moments.error(weight) >= 0

    def test_of_targets_of_zeros_is_absolute(self) -> None:
        x, t = samples()
        moments = gather(x, np.zeros_like(t))
        weight = np.ones((3, 5))
        expected = np.sum((x @ weight.T) ** 2) / len(x)
        assert moments.error(weight, np.zeros(3)) == pytest.approx(expected)
        assert moments.error(np.zeros((3, 5))) == 0


class TestRidge:
    @each_centring
    def test_without_strength_is_least_squares(self, centred: bool) -> None:
        x, t = samples()
        moments = gather(x, t, centred)
        ones = np.ones((len(x), 1 if centred else 0))
        expected = np.linalg.lstsq(np.hstack([x, ones]), t)[0].T
        found = ridge(moments, np.zeros((3, 5)), 0.0)
        np.testing.assert_allclose(found, expected[:, :5], atol=1e-9)
        np.testing.assert_allclose(ridge(moments, np.ones((3, 5)), 1e-12), found, atol=1e-6)
        if centred:
            np.testing.assert_allclose(moments.best_bias(found), expected[:, 5], atol=1e-9)

    @pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
    def test_is_least_squares_with_more_rows(self, strength: float) -> None:
        """One for each unknown: the prior, as heavy as the penalty."""
        x, t = samples()
        moments, prior = gather(x, t), np.random.default_rng(1).standard_normal((3, 5))
        weight = np.sqrt(len(x) * penalty(moments, strength))
        rows = np.vstack([x - x.mean(0), weight * np.eye(5)])
        wanted = np.vstack([t - t.mean(0), weight * prior.T])
        expected = np.linalg.lstsq(rows, wanted)[0].T
        np.testing.assert_allclose(ridge(moments, prior, strength), expected, atol=1e-9)

    def test_of_great_strength_is_the_prior(self) -> None:
        moments, prior = gather(*samples()), np.random.default_rng(1).standard_normal((3, 5))
        np.testing.assert_allclose(ridge(moments, prior, 1e12), prior, atol=1e-9)

    def test_keeps_to_the_prior_where_inputs_do_not_vary(self) -> None:
        x, t = samples()
        x[:, 3:] = 2.0
        prior = np.random.default_rng(1).standard_normal((3, 5))
        found = ridge(gather(x, t), prior, 1e-4)
        np.testing.assert_allclose(found[:, 3:], prior[:, 3:], atol=1e-9)
        free = np.linalg.lstsq(x[:, :3] - x[:, :3].mean(0), t - t.mean(0))[0].T
        np.testing.assert_allclose(found[:, :3], free, atol=0.01)

    @pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_is_the_prior_where_no_input_varies(self, value: float, dtype: type) -> None:
        x, t = samples()
        x = np.full(x.shape, value, dtype)
        prior = np.random.default_rng(1).standard_normal((3, 5))
        found = ridge(gather(x, t.astype(dtype), blocks=3), prior, 1e-4)
        np.testing.assert_allclose(found, prior, atol=1e-9)

    def test_of_fewer_samples_than_inputs(self) -> None:
        x, t = samples(4, 9)
        prior = np.random.default_rng(1).standard_normal((3, 9))
        found = ridge(gather(x, t), prior, 1e-6)
        assert gather(x, t).error(found) < 1e-6
        # What no sample tells of is left as it was.
        unseen = scipy.linalg.null_space(x - x.mean(0))
        np.testing.assert_allclose(found @ unseen, prior @ unseen, atol=1e-6)

    def test_the_penalty_is_a_share_of_the_mean_variance(self) -> None:
        x, t = samples()
        assert penalty(gather(x, t), 0.5) == pytest.approx(0.5 * np.var(x, axis=0).mean())
        assert penalty(gather(0 * x, t), 0.5) == 0.5


class TestReducedRank:
    @pytest.mark.parametrize("rank", [1, 2, 3, 4])
    def test_is_eckart_young_where_inputs_are_white(self, rank: int) -> None:
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((4, 6))
        root = rng.standard_normal((6, 6))
        first, last = reduced_rank(weight, root @ root.T, rank)
        u, s, v = np.linalg.svd(weight @ root, full_matrices=False)
        np.testing.assert_allclose(last @ first @ root, (u * s)[:, :rank] @ v[:rank], atol=1e-9)
        np.testing.assert_allclose(last.T @ last, np.eye(rank), atol=1e-12)
        assert first.shape == (rank, 6)

    @pytest.mark.parametrize("rank", [1, 2, 3, 4])
    def test_is_eckart_young_between_two_metrics(self, rank: int) -> None:
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((4, 6))
        right, left = rng.standard_normal((6, 6)), np.diag([3.0, 1.0, 0.5, 0.1])
        first, last = reduced_rank(weight, right @ right.T, rank, left @ left)
        u, s, v = np.linalg.svd(left @ weight @ right, full_matrices=False)
        np.testing.assert_allclose(
            left @ last @ first @ right, (u * s)[:, :rank] @ v[:rank], atol=1e-9
        )

    @given(
        sizes=st.tuples(*[st.integers(1, 6)] * 3),
        condition=st.sampled_from([1.0, 1e3, 1e12]),
        seed=st.integers(0, 2**32),
    )
    @settings(max_examples=100, deadline=None, derandomize=True)
    def test_no_other_map_of_its_rank_is_closer(
        self, sizes: tuple[int, int, int], condition: float, seed: int
    ) -> None:
        outputs, inputs, rank = sizes
        rank = min(rank, outputs)
        rng = np.random.default_rng(seed)
        weight = rng.standard_normal((outputs, inputs))
        basis = np.linalg.qr(rng.standard_normal((inputs, inputs)))[0]
        gram = (basis * np.geomspace(1, 1 / condition, inputs)) @ basis.T

        def loss(other: Array) -> float:
            return float(np.trace((weight - other) @ gram @ (weight - other).T))

        first, last = reduced_rank(weight, gram, rank)
        best = loss(last @ first)
        for scale in (1e-3, 1e-2, 0.1, 1.0):
            for _ in range(5):
                a = first + scale * rng.standard_normal(first.shape)
                b = last + scale * rng.standard_normal(last.shape)
                # With one of the two given, the best other one: as close as it gets from there.
                normal = a @ gram @ a.T
                solved = np.linalg.lstsq(normal, a @ gram @ weight.T)[0].T
                assert best <= min(loss(b @ a), loss(solved @ a)) + 1e-12

    def test_of_full_rank_is_the_map(self) -> None:
        rng = np.random.default_rng(0)
        weight, root = rng.standard_normal((4, 6)), rng.standard_normal((6, 3))
        first, last = reduced_rank(weight, root @ root.T, 4)
        np.testing.assert_allclose(last @ first, weight, atol=1e-12)

    def test_of_a_regression_is_the_best_from_inputs_to_targets(self) -> None:
        """No map of the rank has a smaller error on the samples, found by descent from it."""
        x, t = samples(400, 6, 5)
        moments = gather(x, t)
        fitted = ridge(moments, np.zeros((5, 6)), 0.0)
        first, last = reduced_rank(fitted, moments.xx, 2)
        best = moments.error(last @ first)
        rng = np.random.default_rng(0)
        for scale in (1e-3, 1e-2, 0.1, 1.0):
            for _ in range(50):
                other = (last + scale * rng.standard_normal(last.shape)) @ (
                    first + scale * rng.standard_normal(first.shape)
                )
                assert best <= moments.error(other)

    def test_of_single_precision(self) -> None:
        rng = np.random.default_rng(0)
        weight, root = (rng.standard_normal((6, 6)).astype(np.float32) for _ in range(2))
        gram = root @ root.T
        first, last = reduced_rank(weight, gram, 3)
        exact = reduced_rank(weight.astype(np.float64), gram.astype(np.float64), 3)
        assert first.dtype == last.dtype == np.float64
        np.testing.assert_allclose(last @ first, exact[1] @ exact[0], atol=1e-4)
