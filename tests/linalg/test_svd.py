"""Channel and spatial SVD: exact at full rank, optimal below, sound at the edges."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcp.linalg import svd
from onnxcp.linalg.checks import RankWarning
from onnxcp.linalg.svd import channel_svd, spatial_svd
from onnxcp.linalg.tucker import tucker2

# Ranks beyond full are asked for on purpose; one test sees to the note.
pytestmark = pytest.mark.filterwarnings("ignore::onnxcp.linalg.checks.RankWarning")

SHAPES = [
    (6, 4, 3, 3),
    (4, 6, 3, 1),
    (5, 7, 2, 3, 4),
    (8, 3, 5),
    (5, 9),
    (7, 7, 1, 1),
    (1, 1, 3, 3),
]


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def splits(shape: tuple[int, ...]) -> range:
    return range(len(shape) - 1)


def test_singular_values_are_numpys() -> None:
    matrix = normal((6, 9))
    expected = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(svd.singular_values(matrix), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("excess", [0, 100])
def test_channel_svd_at_full_rank_is_the_kernel(shape: tuple[int, ...], excess: int) -> None:
    kernel = normal(shape)
    full = min(shape[0], prod(shape[1:]))
    first, last = svd.channel_svd(kernel, full + excess)
    assert first.shape == (full, *shape[1:])
    assert last.shape == (shape[0], full)
    np.testing.assert_allclose(svd.channel_kernel(first, last), kernel, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_spatial_svd_at_full_rank_is_the_kernel(shape: tuple[int, ...]) -> None:
    kernel = normal(shape)
    for split in splits(shape):
        first, last = svd.spatial_svd(kernel, 10_000, split)
        full = min(prod(shape[1 : 2 + split]), shape[0] * prod(shape[2 + split :]))
        assert first.shape == (full, *shape[1 : 2 + split])
        assert last.shape == (shape[0], full, *shape[2 + split :])
        np.testing.assert_allclose(svd.spatial_kernel(first, last), kernel, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_that_of_eckart_and_young(shape: tuple[int, ...]) -> None:
    kernel = normal(shape)
    for rank in (1, 2, 4):
        first, last = svd.channel_svd(kernel, rank)
        error = np.linalg.norm(svd.channel_kernel(first, last) - kernel)
        tail = np.linalg.norm(svd.channel_spectrum(kernel)[rank:])
        assert error == pytest.approx(tail, rel=1e-10, abs=1e-12)
        for split in splits(shape):
            error = np.linalg.norm(
                svd.spatial_kernel(*svd.spatial_svd(kernel, rank, split)) - kernel
            )
            tail = np.linalg.norm(svd.spatial_spectrum(kernel, split)[rank:])
            assert error == pytest.approx(tail, rel=1e-10, abs=1e-12)


def test_splitting_after_all_spatial_axes_is_the_channel_svd() -> None:
    kernel = normal((6, 4, 3, 3))
    by_space = svd.spatial_kernel(*svd.spatial_svd(kernel, 3, split=2))
    by_channel = svd.channel_kernel(*svd.channel_svd(kernel, 3))
    np.testing.assert_allclose(by_space, by_channel, atol=1e-13)


def test_the_two_halves_have_equal_scale() -> None:
    kernel = normal((6, 4, 3, 3))
    for first, last in (svd.channel_svd(kernel, 5), svd.spatial_svd(kernel, 5)):
        norms_first = np.linalg.norm(first.reshape(5, -1), axis=1)
        norms_last = np.linalg.norm(np.moveaxis(last, 1, 0).reshape(5, -1), axis=1)
        np.testing.assert_allclose(norms_first, norms_last, rtol=1e-12)


def test_a_kernel_of_low_rank_is_found_exactly() -> None:
    first, last = normal((2, 5, 3, 1)), normal((7, 2, 1, 3), seed=1)
    kernel = svd.spatial_kernel(first[..., 0], last[:, :, 0])
    rebuilt = svd.spatial_kernel(*svd.spatial_svd(kernel, 2))
    np.testing.assert_allclose(rebuilt, kernel, atol=1e-13)
    assert svd.spatial_spectrum(kernel)[2] < 1e-13


@pytest.mark.parametrize("shape", [(3, 2000), (2000, 3), (1, 500), (500, 1, 1, 1)])
def test_very_rectangular_kernels(shape: tuple[int, ...]) -> None:
    kernel = normal(shape)
    np.testing.assert_allclose(
        svd.channel_kernel(*svd.channel_svd(kernel, 3)), kernel, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_results_are_float64(dtype: type) -> None:
    kernel = normal((4, 3, 3, 3)).astype(dtype)
    for factor in (*svd.channel_svd(kernel, 2), *svd.spatial_svd(kernel, 2)):
        assert factor.dtype == np.float64
        assert factor.flags.c_contiguous


def test_a_zero_kernel_has_zero_factors() -> None:
    first, last = svd.channel_svd(np.zeros((4, 3, 3, 3)), 2)
    assert not svd.channel_kernel(first, last).any()


def test_divide_and_conquer_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    original = scipy.linalg.svd

    def svd_without_gesdd(*args: object, **options: object) -> object:
        if options["lapack_driver"] == "gesdd":
            raise scipy.linalg.LinAlgError("SVD did not converge")
        return original(*args, **options)

    monkeypatch.setattr(scipy.linalg, "svd", svd_without_gesdd)
    kernel = normal((6, 4, 3, 3))
    np.testing.assert_allclose(svd.channel_kernel(*svd.channel_svd(kernel, 6)), kernel, atol=1e-13)
    assert svd.channel_spectrum(kernel).shape == (6,)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_shape_rank_and_split(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=5)))
    rank = data.draw(st.integers(1, 40))
    split = data.draw(st.integers(0, len(shape) - 2))
    kernel = normal(shape)
    for rebuilt, spectrum in (
        (svd.channel_kernel(*svd.channel_svd(kernel, rank)), svd.channel_spectrum(kernel)),
        (
            svd.spatial_kernel(*svd.spatial_svd(kernel, rank, split)),
            svd.spatial_spectrum(kernel, split),
        ),
    ):
        assert rebuilt.shape == shape
        error = np.linalg.norm(rebuilt - kernel)
        assert error == pytest.approx(np.linalg.norm(spectrum[rank:]), rel=1e-9, abs=1e-11)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (np.zeros((3, 0, 3, 3)), r"kernel has shape \(3, 0, 3, 3\); no axis may be empty"),
        (np.zeros(3), r"kernel has shape \(3,\); at least 2 axes are needed"),
        (np.zeros((3, 3), int), "kernel has dtype int64; a floating-point dtype is needed"),
        (np.full((3, 3), np.nan), "kernel holds NaN or infinity; all values must be finite"),
        (np.full((3, 3), np.inf), "kernel holds NaN or infinity; all values must be finite"),
    ],
)
def test_bad_kernels_are_named(kernel: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        svd.channel_svd(kernel, 1)
    with pytest.raises(ValueError, match=message):
        svd.channel_spectrum(kernel)
    with pytest.raises(ValueError, match=message):
        svd.spatial_svd(kernel, 1, 0)
    with pytest.raises(ValueError, match=message):
        svd.spatial_spectrum(kernel, 0)


@pytest.mark.parametrize(
    ("rank", "message"),
    [(0, "rank is 0; it must be at least 1"), (2.0, "rank is 2.0; an integer"), (True, "rank is")],
)
def test_bad_ranks_are_named(rank: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        svd.channel_svd(normal((3, 3)), rank)
    with pytest.raises(ValueError, match=message):
        svd.spatial_svd(normal((3, 3, 3)), rank)


@pytest.mark.parametrize("split", [-1, 3])
def test_bad_splits_are_named(split: int) -> None:
    with pytest.raises(ValueError, match=f"split is {split}; it must be from 0 to 2"):
        svd.spatial_svd(normal((3, 3, 3, 3)), 1, split)


def test_singular_values_want_a_matrix() -> None:
    with pytest.raises(ValueError, match=r"matrix has shape \(2, 2, 2\); two axes are needed"):
        svd.singular_values(np.zeros((2, 2, 2)))


@pytest.mark.parametrize(
    "decompose",
    [lambda k: channel_svd(k, 40), lambda k: spatial_svd(k, 40), lambda k: tucker2(k, (2, 40))],
    ids=["channel", "spatial", "tucker2"],
)
def test_a_rank_beyond_full_is_cut_with_a_note(decompose: Callable[..., object]) -> None:
    kernel = np.random.default_rng(0).standard_normal((6, 5, 3, 3))
    with pytest.warns(RankWarning, match=r"is 40; no more than \d+ is of any use here"):
        decompose(kernel)


@pytest.mark.parametrize("split", [0, 1, 2])
@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (40, 2, 3, 1), (4, 30, 1, 2)])
def test_energies_are_the_squares_of_the_singular_values(
    shape: tuple[int, ...], split: int
) -> None:
    kernel = np.random.default_rng(0).standard_normal(shape)
    pairs = [
        (svd.channel_energies(kernel), svd.channel_spectrum(kernel)),
        (svd.spatial_energies(kernel, split), svd.spatial_spectrum(kernel, split)),
    ]
    for energies, spectrum in pairs:
        # Rounding of the largest eigenvalue, times the sums over at most 120 entries.
        np.testing.assert_allclose(energies, spectrum**2, rtol=0, atol=1e-13 * spectrum[0] ** 2)


def test_no_energy_is_below_zero() -> None:
    kernel = np.outer(np.arange(1.0, 9), np.arange(1.0, 9)).reshape(8, 8, 1)
    assert (svd.channel_energies(kernel) >= 0).all()
