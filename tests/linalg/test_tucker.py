"""Tucker-2: exact at full rank, no worse than HOSVD and than tensorly below."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker

from onnxcp.linalg import tucker
from onnxcp.linalg.multilinear import Product, refine

# Ranks beyond full are asked for on purpose; one test sees to the note.
pytestmark = pytest.mark.filterwarnings("ignore::onnxcp.linalg.checks.RankWarning")

SHAPES = [(6, 4, 3, 3), (4, 6, 3, 1), (5, 7, 2, 3, 2), (8, 3, 5), (5, 9), (40, 3, 3, 3), (7, 1, 3)]


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def error(kernel: np.ndarray, ranks: tuple[int, int], **options: float) -> float:
    rebuilt = tucker.tucker2_kernel(*tucker.tucker2(kernel, ranks, **options))
    return float(np.linalg.norm(rebuilt - kernel) / np.linalg.norm(kernel))


@pytest.mark.parametrize("shape", SHAPES)
def test_full_ranks_give_the_kernel(shape: tuple[int, ...]) -> None:
    assert error(normal(shape), (1000, 1000)) < 1e-13


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (3, 2)])
def test_factors_are_orthonormal(shape: tuple[int, ...], ranks: tuple[int, int]) -> None:
    input_factor, core, output_factor = tucker.tucker2(normal(shape), ranks)
    assert core.shape == (output_factor.shape[1], input_factor.shape[1], *shape[2:])
    assert (len(output_factor), len(input_factor)) == shape[:2]
    for factor in (input_factor, output_factor):
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-12)


def test_the_core_is_the_projection_of_the_kernel() -> None:
    kernel = normal((6, 4, 3, 3))
    input_factor, core, output_factor = tucker.tucker2(kernel, (2, 3))
    expected = np.einsum("tsyx,ta,sb->abyx", kernel, output_factor, input_factor)
    np.testing.assert_allclose(core, expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 12, 3, 3), (12, 16, 3), (9, 11, 1, 3)])
@pytest.mark.parametrize("ranks", [(4, 6), (8, 3), (1, 1)])
def test_iteration_is_no_worse_than_hosvd_and_tensorly(
    shape: tuple[int, ...], ranks: tuple[int, int]
) -> None:
    kernel = normal(shape)
    ours = error(kernel, ranks, sweeps=100, tol=1e-9)
    assert ours <= error(kernel, ranks, sweeps=0) + 1e-12
    feasible = tucker.tucker2(kernel, ranks)[1].shape[1::-1]
    (_, _), history = partial_tucker(kernel, rank=list(feasible[::-1]), modes=[0, 1], tol=1e-9)
    assert ours <= float(history[-1]) + 1e-4


def test_each_sweep_helps() -> None:
    kernel = normal((16, 12, 3, 3))
    errors = [error(kernel, (5, 6), sweeps=n, tol=0) for n in range(6)]
    assert all(np.diff(errors) < 1e-12)
    assert errors[-1] < errors[0]


def test_higher_ranks_help() -> None:
    kernel = normal((8, 8, 3, 3))
    errors = [error(kernel, (r, r), sweeps=100) for r in range(1, 9)]
    assert all(np.diff(errors) < 0)


def test_low_ranks_are_found_exactly() -> None:
    kernel = np.einsum("abyx,ta,sb->tsyx", *(normal(s) for s in [(3, 2, 3, 3), (9, 3), (7, 2)]))
    assert error(kernel, (2, 3)) < 1e-7
    spectrum_s, spectrum_t = tucker.channel_mode_spectra(kernel)
    assert spectrum_s.shape == (7,)
    assert spectrum_t.shape == (9,)
    assert spectrum_s[2] < 1e-13 < spectrum_s[1]
    assert spectrum_t[3] < 1e-13 < spectrum_t[2]


def test_ranks_the_other_side_cannot_feed_are_cut() -> None:
    kernel = normal((8, 8, 2))
    _, core, _ = tucker.tucker2(kernel, (1, 8))
    assert core.shape == (2, 1, 2)
    assert error(kernel, (1, 8)) == pytest.approx(error(kernel, (1, 2)), abs=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_extreme_scales(scale: float) -> None:
    kernel = normal((5, 4, 3))
    rebuilt = tucker.tucker2_kernel(*tucker.tucker2(scale * kernel, (2, 3)))
    expected = tucker.tucker2_kernel(*tucker.tucker2(kernel, (2, 3)))
    np.testing.assert_allclose(rebuilt / scale, expected, atol=1e-12)


def test_a_zero_kernel() -> None:
    assert not tucker.tucker2_kernel(*tucker.tucker2(np.zeros((4, 3, 3, 3)), (2, 2))).any()


@settings(deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5).map(tuple),
    ranks=st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
def test_any_shape_and_ranks(shape: tuple[int, ...], ranks: tuple[int, int]) -> None:
    kernel = normal(shape)
    rebuilt = tucker.tucker2_kernel(*tucker.tucker2(kernel, ranks))
    assert rebuilt.shape == shape
    assert np.linalg.norm(rebuilt - kernel) <= np.linalg.norm(kernel) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ((0, 1), r"ranks\[0\] is 0; it must be at least 1"),
        ((1, -2), r"ranks\[1\] is -2; it must be at least 1"),
        ((1, 1.5), r"ranks\[1\] is 1.5; an integer"),
        ((1, 2, 3), r"ranks is \(1, 2, 3\); a pair"),
    ],
)
def test_bad_ranks_are_named(ranks: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tucker.tucker2(normal((3, 3, 3)), ranks)


def test_bad_kernels_and_options_are_named() -> None:
    with pytest.raises(ValueError, match="kernel holds NaN or infinity"):
        tucker.tucker2(np.full((2, 2), np.nan), (1, 1))
    with pytest.raises(ValueError, match="kernel has dtype int64"):
        tucker.channel_mode_spectra(np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="sweeps is -1; it must be at least 0"):
        tucker.tucker2(normal((2, 2)), (1, 1), sweeps=-1)
    with pytest.raises(ValueError, match="tol is -1; it must be at least 0"):
        tucker.tucker2(normal((2, 2)), (1, 1), tol=-1)


def positive(size: int, seed: int = 0) -> np.ndarray:
    matrix = np.random.default_rng(seed).standard_normal((size, size)) * 0.8 ** np.arange(size)
    return matrix @ matrix.T + 1e-3 * np.eye(size)


class TestInTheNormOfTheData:
    KERNEL = np.random.default_rng(1).standard_normal((7, 6, 3, 2))
    BASIS = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 3)))[0]

    def error(self, gram: np.ndarray, core: np.ndarray, outer: np.ndarray) -> float:
        rest = (self.KERNEL - tucker.tucker2_kernel(self.BASIS, core, outer)).reshape(7, -1)
        return float(np.sum(rest @ gram * rest))

    @pytest.mark.parametrize("rank", [1, 3, 6])
    def test_both_factors_are_the_best_there_are(self, rank: int) -> None:
        """No alternation over the two, from anywhere, comes lower."""
        gram = positive(36)
        best = self.error(gram, *tucker.tucker2_outputs(self.KERNEL, gram, self.BASIS, rank))
        product = Product.parse("qsij,tq->tsij")
        # With the input factor out of the way the kernel is its own regression on the features.
        lift = np.kron(self.BASIS.T, np.eye(6))
        normal = lift @ gram @ lift.T
        target = np.linalg.solve(normal, lift @ gram @ self.KERNEL.reshape(7, -1).T).T
        floor = self.error(gram, target.reshape(7, 3, 3, 2), np.eye(7))
        for seed in range(3):
            rng = np.random.default_rng(seed)
            start = [rng.standard_normal((rank, 3, 3, 2)), rng.standard_normal((7, rank))]
            factors, _ = refine(
                product, start, target.reshape(7, 3, 3, 2), normal, sweeps=300, tolerance=0
            )
            reached = self.error(gram, *factors)
            assert floor <= best * (1 + 1e-9)
            assert best <= reached * (1 + 1e-6)
            assert reached == pytest.approx(best, rel=0.02)

    @pytest.mark.parametrize("rank", [1, 3, 6])
    def test_errors_of_outputs_may_count_differently(self, rank: int) -> None:
        """Scaling the outputs, solving and scaling back is the same by another way."""
        gram, scales = positive(36), np.geomspace(1, 0.05, 7)
        found = tucker.tucker2_outputs(self.KERNEL, gram, self.BASIS, rank, np.diag(scales**2))
        scaled = self.KERNEL * scales[:, None, None, None]
        core, outer = tucker.tucker2_outputs(scaled, gram, self.BASIS, rank)
        np.testing.assert_allclose(
            tucker.tucker2_kernel(self.BASIS, *found),
            tucker.tucker2_kernel(self.BASIS, core, outer / scales[:, None]),
            atol=1e-9,
        )

    def test_with_no_metric_it_is_a_step_of_hooi(self) -> None:
        core, outer = tucker.tucker2_outputs(self.KERNEL, np.eye(36), self.BASIS, 4)
        half = np.einsum("tsij,sp->tpij", self.KERNEL, self.BASIS).reshape(7, -1)
        values = np.linalg.svd(half, compute_uv=False)
        lost = np.sum(self.KERNEL**2) - np.sum(values[:4] ** 2)
        assert self.error(np.eye(36), core, outer) == pytest.approx(lost)

    def test_inputs_that_do_not_vary_are_no_trouble(self) -> None:
        core, outer = tucker.tucker2_outputs(self.KERNEL, np.zeros((36, 36)), self.BASIS, 4)
        assert np.isfinite(core).all()
        assert np.isfinite(outer).all()
