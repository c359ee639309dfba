"""Targets behind a ReLU."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcp.linalg.rectified import rectified_error, rectified_targets


@pytest.mark.parametrize("penalty", [0.01, 0.2, 1.0, 30.0])
def test_no_other_target_is_cheaper(penalty: float) -> None:
    rng = np.random.default_rng(0)
    wanted, made = rng.standard_normal((2, 500))
    found = rectified_targets(wanted, made, penalty)

    def cost(z: np.ndarray) -> np.ndarray:
        behind = (np.maximum(wanted, 0) - np.maximum(z, 0)) ** 2
        return behind + penalty * (z - made) ** 2

    for other in np.linspace(-4, 4, 801):
        assert (cost(found) <= cost(np.full(500, other)) + 1e-12).all()


def test_what_is_off_below_zero_is_let_be() -> None:
    wanted, made = np.array([-1.0, -3.0, 2.0]), np.array([-2.0, -0.5, 2.0])
    np.testing.assert_array_equal(rectified_targets(wanted, made, 0.1), made)
    assert rectified_error(wanted, made) == 0


def test_a_strict_penalty_leaves_what_is_made() -> None:
    wanted, made = np.random.default_rng(1).standard_normal((2, 50))
    np.testing.assert_allclose(rectified_targets(wanted, made, 1e9), made, atol=1e-6)


def test_the_error_is_relative_to_what_comes_out() -> None:
    wanted, made = np.array([3.0, -5.0]), np.array([0.0, -1.0])
    assert rectified_error(wanted, made) == 1
    assert rectified_error(np.array([-1.0]), np.array([-2.0])) == 0
