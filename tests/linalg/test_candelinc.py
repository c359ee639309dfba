"""Compression ahead of a CP fit: lossless within its bound, and only where it pays."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcp.linalg.candelinc import compress
from onnxcp.linalg.cp import cp, cp_kernel


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def narrow(shape: tuple[int, ...], rank: int, noise: float = 0.0) -> np.ndarray:
    """A tensor whose first two modes have few dimensions, up to noise."""
    core = normal((rank, rank, *shape[2:]))
    made = np.einsum("ap,bq,pq...->ab...", normal((shape[0], rank)), normal((shape[1], rank)), core)
    made += noise * np.linalg.norm(made) / np.sqrt(made.size) * normal(shape, seed=1)
    return made / np.linalg.norm(made)


def test_a_core_stands_for_its_tensor() -> None:
    tensor = narrow((40, 30, 9), 6, noise=1e-3)
    core = compress(tensor.reshape(40, -1), tensor.shape, 1e-4)
    assert core is not None
    assert core.shape == (6, 6, 9)
    assert core.bases[2] is None
    assert np.linalg.norm(core.unfolded) == pytest.approx(1)
    assert 0 < core.lost < 1e-4
    factors = [normal((dim, 4), seed=dim) for dim in core.shape]
    made = cp_kernel(core.expanded(tuple(factors)))
    inner = np.linalg.norm(core.scale * (cp_kernel(factors) - core.unfolded.reshape(core.shape)))
    outer = np.linalg.norm(made - tensor)
    assert outer**2 == pytest.approx(inner**2 + core.lost, rel=1e-6)


@pytest.mark.parametrize("loss", [1e-4, 1e-2])
def test_no_more_is_lost_than_allowed(loss: float) -> None:
    tensor = narrow((40, 30, 9), 6, noise=0.05)
    core = compress(tensor.reshape(40, -1), tensor.shape, loss)
    assert core is None or core.lost <= loss * (1 + 1e-9)


@pytest.mark.parametrize(
    "tensor", [normal((40, 30, 9)), narrow((15, 12, 9), 3)], ids=["full", "short"]
)
def test_where_it_does_not_pay_there_is_none(tensor: np.ndarray) -> None:
    unit = tensor / np.linalg.norm(tensor)
    assert compress(unit.reshape(len(unit), -1), unit.shape, 1e-4) is None


@pytest.mark.parametrize("shape", [(128, 100, 9), (128, 100, 3, 3)])
def test_a_fit_by_the_core_is_as_good(shape: tuple[int, ...]) -> None:
    tensor = narrow(shape, 6, noise=1e-3)
    direct = cp(tensor, 8, compression=False, sweeps=100)
    assert cp(tensor, 8, sweeps=100).relative_error < 1.02 * direct.relative_error


def test_planted_terms_are_found_through_a_core() -> None:
    tensor = cp_kernel([normal((dim, 5), seed=dim) for dim in (128, 100, 9)])
    assert cp(tensor, 5, sweeps=150).relative_error < 1e-6


def test_channels_that_are_dead_cost_nothing() -> None:
    tensor = normal((128, 100, 9))
    tensor[20:] = 0
    tensor[:, 10:] = 0
    alive = cp(tensor[:20, :10], 12)
    assert cp(tensor, 12).relative_error == pytest.approx(alive.relative_error, rel=0.02)
