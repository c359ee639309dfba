"""What kernels have in common, and what they have for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxcp.linalg.coupled_ranks import coupled_parameters, fit_within, splits, train_parameters
from onnxcp.linalg.coupled_tensor_train import Coupled, Train, coupled_tensor_train
from onnxcp.linalg.tucker import tucker2, tucker2_kernel

Array = npt.NDArray[Any]
Pair = tuple[int, int]

SMALL = 1e-6  # subspaces are eigenvectors of Gram matrices: the root of the rounding unit, squared


def noise(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def train(outputs: int, inputs: int, kernel: Sequence[int], ranks: Pair, seed: int) -> Train:
    p, q = ranks
    return Train(
        noise(inputs, p, seed=seed),
        noise(q, p, *kernel, seed=seed + 1),
        noise(outputs, q, seed=seed + 2),
    )


def planted(count: int, kernel: Sequence[int] = (3, 3)) -> list[Array]:
    common = train(12, 10, kernel, (3, 2), 0).kernel
    return [common + train(12, 10, kernel, (1, 1), 10 * n + 5).kernel for n in range(count)]


def planted_partially(inputs: Sequence[int]) -> list[Array]:
    core, last = noise(3, 4, 3, 3, seed=0), noise(12, 3, seed=1)
    made = []
    for n, width in enumerate(inputs):
        common = tucker2_kernel(noise(width, 4, seed=n + 50), core, last)
        made.append(common + train(12, width, (3, 3), (1, 1), 10 * n + 5).kernel)
    return made


def loss(kernels: Sequence[Array], fit: Coupled, weights: Sequence[float] | None = None) -> float:
    counts = weights or [1.0] * len(kernels)
    pairs = list(zip(counts, kernels, fit.kernels, strict=True))
    lost = sum(w * np.sum((kernel - made) ** 2) for w, kernel, made in pairs)
    return float(lost / sum(w * np.sum(kernel**2) for w, kernel, _ in pairs))


@pytest.mark.parametrize("kernel", [(5,), (3, 3), (2, 3, 1)])
def test_a_planted_sum_is_found(kernel: tuple[int, ...]) -> None:
    kernels = planted(4, kernel)
    fit = coupled_tensor_train(kernels, (3, 2), (1, 1), sweeps=400, tol=0)
    assert loss(kernels, fit) < SMALL
    assert all(common is fit.common[0] for common in fit.common)
    assert [each.core.shape[:2] for each in fit.independent] == [(1, 1)] * 4


def test_a_planted_sum_is_found_where_input_channels_differ() -> None:
    kernels = planted_partially((10, 7, 10))
    fit = coupled_tensor_train(kernels, (4, 3), (1, 1), partial=True, sweeps=400, tol=0)
    assert loss(kernels, fit) < SMALL
    first, *others = fit.common
    assert all(each.core is first.core and each.last is first.last for each in others)
    assert [each.first.shape for each in fit.common] == [(10, 4), (7, 4), (10, 4)]


def test_kernels_of_one_low_rank_need_a_single_turn_partially_coupled() -> None:
    """Of the published code, which stacks without a transpose, the error here is above one."""
    core, last = noise(3, 4, 3, 3, seed=0), noise(12, 3, seed=1)
    kernels = [tucker2_kernel(noise(s, 4, seed=s), core, last) for s in (8, 16)]
    fit = coupled_tensor_train(kernels, (4, 3), (1, 1), partial=True, sweeps=0)
    assert fit.errors[0] < 1e-14


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("data", [False, True])
def test_the_objective_never_rises_and_is_what_is_said(
    partial: bool, weighted: bool, data: bool
) -> None:
    kernels = [noise(8, 6, 3, 3, seed=n) for n in range(3)]
    weights = [0.5, 1.0, 4.0] if weighted else None
    grams = [half @ half.T for n in range(3) if (half := noise(54, 60, seed=n + 9)) is not None]
    fit = coupled_tensor_train(
        kernels,
        (4, 4),
        (2, 2),
        partial=partial,
        weights=weights,
        grams=grams if data else None,
        sweeps=8,
        tol=0,
    )
    assert len(fit.errors) > 3
    assert all(late <= soon * (1 + 1e-12) for soon, late in pairwise(fit.errors))
    if not data:
        assert fit.errors[-1] == pytest.approx(loss(kernels, fit, weights), rel=1e-9)


@pytest.mark.parametrize("partial", [False, True])
def test_a_metric_of_the_data_makes_outputs_closer(partial: bool) -> None:
    kernels = [noise(8, 6, 3, 3, seed=n) for n in range(3)]
    # What goes in has channels of very unequal power, of a layer each its own.
    powers = [10.0 ** np.random.default_rng(n).uniform(-1, 1, 6) for n in range(3)]
    grams = [np.kron(np.diag(power), np.eye(9)) for power in powers]

    def lost(fit: Coupled) -> float:
        rests = [(k - made).reshape(8, -1) for k, made in zip(kernels, fit.kernels, strict=True)]
        return sum(float(np.sum(rest @ g * rest)) for rest, g in zip(rests, grams, strict=True))

    plain = coupled_tensor_train(kernels, (3, 3), (2, 2), partial=partial)
    aware = coupled_tensor_train(kernels, (3, 3), (2, 2), partial=partial, grams=grams)
    assert lost(aware) < lost(plain)
    power = sum(
        float(np.sum((flat := k.reshape(8, -1)) @ g * flat))
        for k, g in zip(kernels, grams, strict=True)
    )
    assert aware.errors[-1] == pytest.approx(lost(aware) / power, rel=1e-6)


def test_a_kernel_that_counts_more_is_closer() -> None:
    kernels = [noise(8, 6, 3, 3, seed=n) for n in range(2)]

    def first(weight: float) -> float:
        fit = coupled_tensor_train(kernels, (4, 4), (1, 1), weights=[weight, 1.0])
        return float(np.linalg.norm(fit.kernels[0] - kernels[0]))

    assert first(100.0) < first(1.0) < first(0.01)


def test_equal_kernels_are_shared_whole() -> None:
    kernel = tucker2_kernel(noise(6, 3, seed=1), noise(3, 3, 3, 3, seed=2), noise(8, 3, seed=3))
    fit = coupled_tensor_train([kernel] * 3, (3, 3), (1, 1), sweeps=2)
    assert fit.errors[0] < 1e-14
    own = max(float(np.linalg.norm(each.kernel)) for each in fit.independent)
    assert own < 1e-6 * float(np.linalg.norm(kernel))


@pytest.mark.parametrize(
    ("shapes", "partial", "message"),
    [
        ([(4, 4, 3)], False, "two at least"),
        ([(4, 4, 3), (4, 5, 3)], False, "shapes of coupled kernels"),
        ([(4, 4, 3), (5, 4, 3)], True, "output channels and spatial axes"),
        ([(4, 4, 3), (4, 4, 5)], True, "output channels and spatial axes"),
    ],
)
def test_what_cannot_be_coupled(shapes: list[tuple[int, ...]], partial: bool, message: str) -> None:
    kernels = [noise(*shape, seed=0) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        coupled_tensor_train(kernels, (2, 2), (1, 1), partial=partial)


class TestSplits:
    def test_weights_are_counted_once_where_they_are_shared(self) -> None:
        shapes = [(8, 6, 3, 3)] * 4
        one = 6 * 2 + 9 * 2 * 3 + 3 * 8
        assert train_parameters(shapes[0], (2, 3)) == one
        own = train_parameters(shapes[0], (1, 1))
        assert coupled_parameters(shapes, (2, 3), (1, 1), partial=False) == one + 4 * own
        assert coupled_parameters(shapes, (2, 3), (1, 1), partial=True) == (
            4 * 6 * 2 + 9 * 2 * 3 + 3 * 8 + 4 * own
        )

    @pytest.mark.parametrize("partial", [False, True])
    def test_no_split_has_more_weights_than_there_may_be(self, partial: bool) -> None:
        shapes = [(32, 16, 3, 3), *[(32, 32, 3, 3)] * 4] if partial else [(32, 32, 3, 3)] * 5
        total = sum(int(np.prod(shape)) for shape in shapes)
        for share in (0.1, 0.25, 0.5):
            found = list(splits(shapes, share * total, partial=partial))
            assert found
            sizes = [coupled_parameters(shapes, *ranks, partial=partial) for ranks in found]
            assert max(sizes) <= share * total
            assert max(sizes) > 0.85 * share * total

    @pytest.mark.parametrize("partial", [False, True])
    def test_the_split_is_the_best_there_is(self, partial: bool) -> None:
        kernels = planted(4)
        budget = 0.4 * sum(kernel.size for kernel in kernels)
        fit, common, independent = fit_within(kernels, budget, partial=partial)
        shapes = [kernel.shape for kernel in kernels]
        others = [
            coupled_tensor_train(kernels, *ranks, partial=partial, sweeps=3).errors[-1]
            for ranks in splits(shapes, budget, partial=partial)
        ]
        assert len(others) > 2
        assert fit.errors[-1] <= min(others) * (1 + 1e-9)
        assert coupled_parameters(shapes, common, independent, partial=partial) <= budget

    def test_kernels_with_much_in_common_are_closer_coupled_than_each_alone(self) -> None:
        kernels = [k + 0.1 * noise(*k.shape, seed=n + 77) for n, k in enumerate(planted(6))]
        budget = 0.2 * sum(kernel.size for kernel in kernels)
        fit, *_ = fit_within(kernels, budget)
        alone = max(
            (r, r) for r in range(1, 12) if train_parameters(kernels[0].shape, (r, r)) <= budget / 6
        )
        lost = sum(np.sum((k - tucker2_kernel(*tucker2(k, alone))) ** 2) for k in kernels)
        power = sum(np.sum(k**2) for k in kernels)
        assert fit.errors[-1] < 0.5 * lost / power

    def test_too_few_weights(self) -> None:
        with pytest.raises(ValueError, match="10 weights are too few"):
            fit_within([noise(8, 6, 3, 3, seed=n) for n in range(2)], 10)
