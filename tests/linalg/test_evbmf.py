"""EVBMF: signal is told from noise, whatever the orientation and the scale."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcp.linalg.evbmf import rank_by_evbmf


def spectrum(shape: tuple[int, int], rank: int, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    return np.linalg.svd(signal + noise * rng.standard_normal(shape), compute_uv=False)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (32, 288), (288, 32), (50, 50)])
@pytest.mark.parametrize("rank", [1, 5, 12])
@pytest.mark.parametrize("noise", [0.01, 0.3, 1.0])
def test_signal_is_told_from_noise(shape: tuple[int, int], rank: int, noise: float) -> None:
    assert rank_by_evbmf(spectrum(shape, rank, noise), shape) == rank


@pytest.mark.parametrize("shape", [(40, 60), (30, 300)])
@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_has_no_rank_but_never_zero(shape: tuple[int, int], seed: int) -> None:
    assert rank_by_evbmf(spectrum(shape, 0, 1.0, seed), shape) == 1


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_scale_and_orientation_do_not_matter(scale: float) -> None:
    values = spectrum((24, 90), 6, 0.5)
    assert rank_by_evbmf(scale * values, (24, 90)) == rank_by_evbmf(values, (90, 24)) == 6


def test_weak_signal_drowns() -> None:
    values = [rank_by_evbmf(spectrum((40, 60), 8, noise), (40, 60)) for noise in (0.1, 3, 6, 30)]
    assert (np.diff(values) <= 0).all()
    assert values[0] == 8
    assert values[-1] == 1


@pytest.mark.parametrize("values", [[1.0], [0.0], [0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
def test_small_and_peculiar_spectra(values: list[float]) -> None:
    shape = (len(values), len(values) + 2)
    assert 1 <= rank_by_evbmf(np.array(values), shape) <= len(values)


def test_an_exact_rank_is_found() -> None:
    assert rank_by_evbmf(spectrum((20, 30), 4, 0.0), (20, 30)) == 4


@pytest.mark.parametrize(
    ("values", "shape", "message"),
    [
        ([1.0, 0.5], (3, 4), r"spectrum has shape \(2,\); a matrix of shape \(3, 4\) has 3"),
        ([0.5, 1.0], (2, 4), "negative or rising"),
        ([1.0, -0.5], (2, 4), "negative or rising"),
        ([1.0], (1, 0), "shape is 0; it must be at least 1"),
        ([np.nan, 1.0], (2, 2), "NaN"),
    ],
)
def test_bad_input_is_named(values: list[float], shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_by_evbmf(np.array(values), shape)
