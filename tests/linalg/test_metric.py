"""Whitening: the norm of the data becomes the Frobenius norm, and what is found there a start."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcp.linalg.metric import Whitening
from onnxcp.linalg.moments import reduced_rank
from onnxcp.linalg.multilinear import Product, refine
from onnxcp.linalg.svd import channel_svd, spatial_svd
from onnxcp.linalg.tucker import tucker2

CHANNEL = Product.parse("rsij,tr->tsij")
SPATIAL = Product.parse("rsi,trj->tsij")
TUCKER = Product.parse("ps,qpij,tq->tsij")
CP3 = Product.parse("rs,rij,tr->tsij")
CP4 = Product.parse("rs,ri,rj,tr->tsij")
SHAPE = (7, 5, 3, 2)


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def positive(size: int, seed: int) -> np.ndarray:
    matrix = normal((size, size), seed) * 0.5 ** np.arange(size)
    return matrix @ matrix.T + 0.05 * np.eye(size)


def norm(kernel: np.ndarray, gram: np.ndarray) -> float:
    flat = kernel.reshape(len(kernel), -1)
    return float(np.sum(flat @ gram * flat))


def separable(*groups: np.ndarray) -> np.ndarray:
    made = np.ones((1, 1))
    for each in groups:
        made = np.kron(made, each)
    return made


@pytest.mark.parametrize(
    ("product", "gram"),
    [
        (CHANNEL, positive(30, 1)),
        (SPATIAL, separable(positive(15, 1), positive(2, 2))),
        (TUCKER, separable(positive(5, 1), positive(6, 2))),
        (CP3, separable(positive(5, 1), positive(6, 2))),
        (CP4, separable(positive(5, 1), positive(3, 2), positive(2, 3))),
    ],
    ids=str,
)
def test_the_norm_becomes_frobenius_where_it_is_separable(
    product: Product, gram: np.ndarray
) -> None:
    roots = Whitening.of(product, gram, SHAPE)
    ratios = [
        np.sum(roots.whiten(kernel) ** 2) / norm(kernel, gram)
        for kernel in (normal(SHAPE, seed) for seed in range(3))
    ]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)


def test_errors_of_outputs_count_what_they_are_said_to() -> None:
    gram, outputs = positive(30, 1), positive(7, 5)
    roots = Whitening.of(CHANNEL, gram, SHAPE, outputs)
    for seed in range(3):
        kernel = normal(SHAPE, seed)
        flat = kernel.reshape(7, -1)
        counted = np.trace(outputs @ flat @ gram @ flat.T)
        assert np.sum(roots.whiten(kernel) ** 2) == pytest.approx(counted)
    kernel = normal(SHAPE)
    found = roots.undo(channel_svd(roots.whiten(kernel), 3))
    exact = reduced_rank(kernel.reshape(7, -1), gram, 3, outputs)
    np.testing.assert_allclose(
        CHANNEL.multiply(found).reshape(7, -1), exact[1] @ exact[0], atol=1e-6
    )


@pytest.mark.parametrize("outputs", [None, positive(7, 5)], ids=["alike", "by-a-metric"])
@pytest.mark.parametrize("product", [CHANNEL, SPATIAL, TUCKER, CP3, CP4], ids=str)
def test_undoing_is_the_inverse(product: Product, outputs: np.ndarray | None) -> None:
    sizes = {"t": 7, "s": 5, "i": 3, "j": 2, "r": 4, "p": 3, "q": 4}
    factors = [
        normal(tuple(sizes[letter] for letter in letters), seed=n)
        for n, letters in enumerate(product.operands)
    ]
    roots = Whitening.of(product, positive(30, 1), SHAPE, outputs)
    made = product.multiply(roots.undo(factors))
    np.testing.assert_allclose(roots.whiten(made), product.multiply(factors), atol=1e-7)


def test_a_channel_svd_is_then_the_best_there_is() -> None:
    kernel, gram = normal(SHAPE), positive(30, 1)
    roots = Whitening.of(CHANNEL, gram, SHAPE)
    found = CHANNEL.multiply(roots.undo(channel_svd(roots.whiten(kernel), 3)))
    first, last = reduced_rank(kernel.reshape(7, -1), gram, 3)
    best = norm(kernel - (last @ first).reshape(SHAPE), gram)
    assert norm(kernel - found, gram) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("family", ["spatial", "tucker2"])
def test_a_whitened_start_is_nearer_than_a_plain_one(family: str) -> None:
    """With a metric that is nearly separable, before anything is fitted and after."""
    product = SPATIAL if family == "spatial" else TUCKER
    parts = (
        (positive(15, 1), positive(2, 2))
        if family == "spatial"
        else (positive(5, 1), positive(6, 2))
    )
    gram = separable(*parts)
    gram += 0.02 * np.trace(gram) / 30 * positive(30, 4)
    kernel = normal(SHAPE)

    def factorize(values: np.ndarray) -> list[np.ndarray]:
        if family == "spatial":
            return list(spatial_svd(values, 4))
        inner, core, outer = tucker2(values, (3, 3))
        return [inner.T, core, outer]

    roots = Whitening.of(product, gram, SHAPE)
    plain = factorize(kernel)
    white = roots.undo(factorize(roots.whiten(kernel)))
    for sweeps in (0, 1):
        errors = [
            refine(product, start, kernel, gram, sweeps=sweeps)[1][-1] for start in (plain, white)
        ]
        assert errors[1] < errors[0]


def test_inputs_that_never_vary_are_no_trouble() -> None:
    gram = np.zeros((30, 30))
    roots = Whitening.of(TUCKER, gram, SHAPE)
    white = roots.whiten(normal(SHAPE))
    assert np.isfinite(white).all()
    assert all(
        np.isfinite(each).all()
        for each in roots.undo([normal((3, 5)), normal((4, 3, 3, 2)), normal((7, 4))])
    )
