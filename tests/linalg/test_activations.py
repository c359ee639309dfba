"""Activations, and their proximal maps against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcp.linalg.activations import (
    Maxout,
    Piecewise,
    clip,
    identity,
    leaky_relu,
    relative_error,
    relu,
)

SLOPES = np.array([0.25, -0.5, 0.0, 2.0])
PIECEWISE = {
    "identity": (identity(), lambda m: m),
    "relu": (relu(), lambda m: np.maximum(m, 0)),
    "leaky": (leaky_relu(0.1), lambda m: np.where(m < 0, 0.1 * m, m)),
    "prelu": (leaky_relu(SLOPES), lambda m: np.where(m < 0, SLOPES * m, m)),
    "relu6": (clip(0, 6), lambda m: np.clip(m, 0, 6)),
    "from-below": (clip(-1, np.inf), lambda m: np.maximum(m, -1)),
    "from-above": (clip(-np.inf, 2), lambda m: np.minimum(m, 2)),
}
each = pytest.mark.parametrize(("kind", "plain"), PIECEWISE.values(), ids=PIECEWISE.keys())
RHOS = [0.05, 1.0, 7.0]


def values(scale: float = 3.0, *, seed: int = 0, width: int = 4) -> Any:
    return scale * np.random.default_rng(seed).standard_normal((50, width))


@each
def test_applied(kind: Piecewise, plain: Any) -> None:
    made = values(5.0)
    made[:3] = [[0.0] * 4, [6.0] * 4, [-1.0] * 4]
    np.testing.assert_allclose(kind(made), plain(made), atol=1e-12)
    assert kind(made.astype(np.float32)).dtype == np.float32


@each
@pytest.mark.parametrize("rho", RHOS)
def test_no_grid_holds_anything_better(kind: Piecewise, plain: Any, rho: float) -> None:
    wanted, made = values(seed=1), values(seed=2)

    def cost(aim: Any) -> Any:
        return (wanted - plain(aim)) ** 2 + rho * (aim - made) ** 2

    aim = kind.prox(wanted, made, rho)
    grid = np.linspace(-60, 60, 12_001)
    least = np.min([cost(np.full_like(made, level)) for level in grid], axis=0)
    assert (cost(aim) <= least + 1e-9).all()


def test_what_is_off_below_zero_is_let_be() -> None:
    wanted, made = np.array([[-1.0, -3.0, 2.0]]), np.array([[-2.0, -0.5, 2.0]])
    np.testing.assert_array_equal(relu().prox(np.maximum(wanted, 0), made, 0.1), made)
    assert relative_error(relu(), wanted, made) == 0


@each
def test_a_strict_penalty_leaves_what_is_made(kind: Piecewise, plain: Any) -> None:
    wanted, made = values(seed=8), values(seed=9)
    np.testing.assert_allclose(kind.prox(plain(wanted), made, 1e9), made, atol=1e-6)


def test_the_error_is_relative_to_what_comes_out() -> None:
    wanted, made = np.array([[3.0, -5.0]]), np.array([[0.0, -1.0]])
    assert relative_error(relu(), wanted, made) == 1
    assert relative_error(relu(), np.array([[-1.0]]), np.array([[-2.0]])) == 0


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("width", [1, 2, 3])
def test_of_a_maxout(width: int, rho: float) -> None:
    def parts(channels: Any) -> Any:
        return np.stack(np.split(channels, width, axis=1), axis=2)

    kind, made = Maxout(width), values(seed=5, width=6)
    np.testing.assert_array_equal(kind(made), parts(made).max(axis=2))
    wanted = values(seed=6, width=6 // width)

    def cost(aim: Any) -> Any:
        off = np.square(parts(aim - made)).sum(axis=2)
        return (wanted - kind(aim)) ** 2 + rho * off

    best = cost(kind.prox(wanted, made, rho))
    rng = np.random.default_rng(7)
    for size in (1e-3, 1e-2, 0.1, 1.0, 3.0):
        for _ in range(60):
            step = size * rng.standard_normal(made.shape)
            assert (best <= cost(kind.prox(wanted, made, rho) + step) + 1e-12).all()
    # And against all of the levels that a maximum may have.
    for level in np.linspace(-15, 15, 1501):
        aim = np.minimum(made, level)
        top = parts(made).argmax(axis=2)[..., None]
        raised = parts(aim)
        np.put_along_axis(raised, top, level, axis=2)
        aim = np.concatenate(np.moveaxis(raised, 2, 0), axis=1)
        assert (best <= cost(aim) + 1e-9).all()


def test_ends_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match="low is 6 and high is 0; low must not be above"):
        clip(6, 0)
