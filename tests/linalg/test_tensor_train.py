"""Tensor trains: as good as tensorly's, better after alternation, exact at full rank."""

from __future__ import annotations

import warnings
from math import prod

import numpy as np
import pytest
import tensorly
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import tensor_train as tensorly_train

from onnxcp.linalg.checks import RankWarning
from onnxcp.linalg.tensor_train import (
    feasible_ranks,
    full_train_ranks,
    tensor_train,
    tensor_train_kernel,
    tensor_train_spectra,
)
from onnxcp.linalg.tucker import tucker2, tucker2_kernel

SHAPES = [(12, 9, 3, 3), (9, 12, 5, 3), (8, 7, 4), (6, 5, 2, 3, 2), (7, 6, 1, 3)]


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def error(kernel: np.ndarray, cores: tuple[np.ndarray, ...]) -> float:
    return float(np.linalg.norm(tensor_train_kernel(cores) - kernel) / np.linalg.norm(kernel))


def half(shape: tuple[int, ...], merged: bool) -> tuple[int, ...]:
    ranks = [max(1, rank // 2) for rank in full_train_ranks(shape, merged=merged)]
    outputs, inputs, *spatial = shape
    return feasible_ranks((outputs, inputs, *([prod(spatial)] if merged else spatial)), ranks)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("sweeps", [0, 3])
def test_full_ranks_are_exact(shape: tuple[int, ...], merged: bool, sweeps: int) -> None:
    kernel = normal(shape)
    ranks = full_train_ranks(shape, merged=merged)
    cores = tensor_train(kernel, ranks, merged=merged, sweeps=sweeps)
    np.testing.assert_allclose(tensor_train_kernel(cores), kernel, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("merged", [False, True])
def test_shapes_are_those_of_a_chain(shape: tuple[int, ...], merged: bool) -> None:
    outputs, inputs, *spatial = shape
    ranks = half(shape, merged)
    first, *middle, last = tensor_train(normal(shape), ranks, merged=merged)
    assert first.shape == (inputs, ranks[0])
    assert last.shape == (ranks[-1], outputs)
    sizes = [tuple(spatial)] if merged else [(size,) for size in spatial]
    expected = [(a, *k, b) for a, k, b in zip(ranks, sizes, ranks[1:], strict=False)]
    assert [core.shape for core in middle] == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("merged", [False, True])
def test_without_sweeps_it_is_tensorlys(shape: tuple[int, ...], merged: bool) -> None:
    kernel, ranks = normal(shape), half(shape, merged)
    tensor = np.moveaxis(kernel, 0, -1)
    if merged:
        tensor = tensor.reshape(len(tensor), -1, tensor.shape[-1])
    found = tensorly_train(tensor, [1, *ranks, 1])
    expected = np.linalg.norm(tensorly.tt_to_tensor(found) - tensor) / np.linalg.norm(tensor)
    ours = error(kernel, tensor_train(kernel, ranks, merged=merged, sweeps=0))
    assert ours == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("merged", [False, True])
def test_alternation_brings_it_closer_and_never_farther(
    shape: tuple[int, ...], merged: bool
) -> None:
    kernel, ranks = normal(shape), half(shape, merged)
    errors = [
        error(kernel, tensor_train(kernel, ranks, merged=merged, sweeps=sweeps, tol=0))
        for sweeps in (0, 1, 2, 8)
    ]
    assert (np.diff(errors) <= 1e-12).all()
    if full_train_ranks(shape, merged=merged) != ranks and len(ranks) > 1:
        assert errors[-1] < errors[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tails_of_the_spectra_bound_the_error(shape: tuple[int, ...]) -> None:
    kernel, ranks = normal(shape), half(shape, merged=False)
    spectra = tensor_train_spectra(kernel)
    assert [len(s) for s in spectra] == [
        min(n, kernel.size // n) for n in np.cumprod([shape[1], *shape[2:]]).tolist()
    ]
    tails = sum(np.sum(s[r:] ** 2) for s, r in zip(spectra, ranks, strict=True))
    cores = tensor_train(kernel, ranks, sweeps=0)
    squared = np.linalg.norm(tensor_train_kernel(cores) - kernel) ** 2
    assert max(np.sum(s[r:] ** 2) for s, r in zip(spectra, ranks, strict=True)) <= squared + 1e-9
    assert squared <= tails * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("ranks", [(2, 3), (5, 4), (9, 2)])
def test_tucker2_is_never_worse_than_three_cores(ranks: tuple[int, int]) -> None:
    kernel = normal((12, 9, 3, 3))
    factors = tucker2(kernel, ranks, sweeps=30, tol=0)
    theirs = np.linalg.norm(tucker2_kernel(*factors) - kernel) / np.linalg.norm(kernel)
    plain = error(kernel, tensor_train(kernel, ranks, merged=True, sweeps=0))
    assert theirs <= plain * (1 + 1e-9)
    # Both alternate over the same subspaces, from starts close to each other.
    assert error(kernel, tensor_train(kernel, ranks, merged=True, sweeps=30, tol=0)) == (
        pytest.approx(theirs, rel=0.02)
    )


def test_errors_fall_with_rank() -> None:
    kernel = normal((12, 9, 3, 3))
    errors = [error(kernel, tensor_train(kernel, (r, r + 2, r))) for r in range(1, 9)]
    assert (np.diff(errors) < 0).all()


def test_all_but_the_last_core_are_orthonormal() -> None:
    *cores, _ = tensor_train(normal((12, 9, 3, 3)), (4, 6, 5))
    for core in cores:
        flat = core.reshape(-1, core.shape[-1])
        np.testing.assert_allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_extreme_scales(scale: float) -> None:
    kernel = normal((8, 7, 3, 3))
    assert error(scale * kernel, tensor_train(scale * kernel, (3, 4, 3))) == pytest.approx(
        error(kernel, tensor_train(kernel, (3, 4, 3)))
    )


def test_zeros() -> None:
    cores = tensor_train(np.zeros((4, 3, 3, 3)), (2, 2, 2))
    assert not tensor_train_kernel(cores).any()


@given(
    shape=st.lists(st.integers(1, 5), min_size=3, max_size=5).map(tuple),
    rank=st.integers(1, 6),
    merged=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_any_shape_and_rank(shape: tuple[int, ...], rank: int, merged: bool) -> None:
    kernel = normal(shape)
    ranks = (rank,) * (2 if merged else len(shape) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        cores = tensor_train(kernel, ranks, merged=merged)
    assert tensor_train_kernel(cores).shape == shape
    assert error(kernel, cores) <= 1 + 1e-12
    if rank >= max(full_train_ranks(shape, merged=merged)):
        assert error(kernel, cores) < 1e-10
    assert all(np.isfinite(core).all() for core in cores)
    assert prod(cores[0].shape) <= shape[1] ** 2


def test_ranks_beyond_full_are_cut_with_a_note() -> None:
    with pytest.warns(RankWarning, match=r"ranks\[0\] is 40; no more than 3"):
        cores = tensor_train(normal((4, 3, 3, 3)), (40, 4, 4))
    assert cores[0].shape == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": (2, 0, 2)}, r"ranks\[1\] is 0; it must be at least 1"),
        ({"ranks": (2, 2)}, r"ranks is \(2, 2\); 3 ranks are needed"),
        ({"merged": True}, r"ranks is \(2, 2, 2\); 2 ranks are needed"),
        ({"sweeps": -1}, "sweeps is -1"),
        ({"tol": np.nan}, "tol is nan"),
        ({"kernel": np.zeros((3, 3))}, "at least 3 axes are needed"),
        ({"kernel": np.full((3, 3, 3, 3), np.nan)}, "kernel holds NaN"),
    ],
)
def test_bad_input_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tensor_train(**({"kernel": normal((4, 3, 3, 3)), "ranks": (2, 2, 2)} | options))
