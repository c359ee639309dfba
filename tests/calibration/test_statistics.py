"""Rows that a kernel is applied to, held against ONNX Runtime; and the moments of some of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import helper

from onnxcp.calibration import statistics
from onnxcp.calibration.statistics import (
    Observed,
    can_observe,
    input_rows,
    observe,
    observe_outputs,
    output_rows,
)
from onnxcp.graph.site import Site
from tests.convolutions import Case, cases, grid
from tests.networks import FLOAT32, Array, conv_model, difference, model_of, noise, only_site, run

CONVOLUTIONS = [case for case in grid() if case.op == "Conv"]
Pair = tuple[Array, Array]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def joined(rows: Iterator[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    owners, x, t = (np.concatenate(each) for each in zip(*rows, strict=True))
    return owners, x, t


def applied(site: Site, rows: Array) -> Array:
    """Apply a site's kernel to rows of its input, group by group."""
    kernels = (kernel.reshape(len(kernel), -1) for kernel in site.group_kernels())
    parts = zip(np.split(rows, site.group, 1), kernels, strict=True)
    return np.concatenate([part @ kernel.T for part, kernel in parts], axis=1)


def check_rows(proto: onnx.ModelProto, feeds: dict[str, Array], bias: Array | float = 0.0) -> None:
    """Hold all rows times the kernel against what ONNX Runtime puts out."""
    site = only_site(proto)
    (output,) = run(proto, feeds)
    _, rows, targets = joined(input_rows(site, feeds["x"], output, 10**9, generator()))
    assert targets.size == output.size
    found = (site.gain * applied(site, rows) + bias).astype(np.float32)
    assert difference(found, targets) < FLOAT32


def check_convolution(case: Case) -> None:
    proto = case.model()
    feeds = {"x": noise(2, case.channels[0], *case.size, seed=99)}
    bias = noise(case.channels[1], seed=2) if case.bias else 0.0
    check_rows(proto, feeds, bias)


class TestRowsOfAConvolution:
    @pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
    def test_times_the_kernel_are_the_output(self, case: Case) -> None:
        check_convolution(case)

    @given(case=cases().filter(lambda case: case.op == "Conv"))
    @settings(max_examples=100, deadline=None, derandomize=True)
    def test_of_any_kind(self, case: Case) -> None:
        check_convolution(case)

    def test_know_whose_they_are(self) -> None:
        proto = conv_model(batch=3, pads=[1, 1, 1, 1])
        site = only_site(proto)
        x = noise(3, 4, 9, 10)
        x[1] = 0
        owners, rows, _ = joined(input_rows(site, x, run(proto, {"x": x})[0], 10**9, generator()))
        assert (owners == np.repeat(np.arange(3), 90)).all()
        assert not rows[owners == 1].any()
        assert rows[owners != 1].any(axis=1).all()


# Operator, shape of x, shape of the weight, attributes, whether the weight is on the left.
MATRICES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any], bool]] = {
    "Gemm": ("Gemm", (7, 4), (4, 6), {}, False),
    "Gemm, transB": ("Gemm", (7, 4), (6, 4), {"transB": 1}, False),
    "Gemm, transA": ("Gemm", (4, 7), (4, 6), {"transA": 1}, False),
    "Gemm, both": ("Gemm", (4, 7), (6, 4), {"transA": 1, "transB": 1}, False),
    "Gemm, alpha": ("Gemm", (7, 4), (6, 4), {"transB": 1, "alpha": -0.7}, False),
    "Gemm, alpha and beta": ("Gemm", (7, 4), (4, 6), {"alpha": 0.3, "beta": 2.0}, False),
    "MatMul of vectors": ("MatMul", (4,), (4, 6), {}, False),
    "MatMul": ("MatMul", (7, 4), (4, 6), {}, False),
    "MatMul of 3 axes": ("MatMul", (2, 7, 4), (4, 6), {}, False),
    "MatMul of 4 axes": ("MatMul", (2, 3, 7, 4), (4, 6), {}, False),
    "left": ("MatMul", (4, 7), (6, 4), {}, True),
    "left of a vector": ("MatMul", (4,), (6, 4), {}, True),
    "left of 3 axes": ("MatMul", (2, 4, 7), (6, 4), {}, True),
    "left of 4 axes": ("MatMul", (2, 3, 4, 7), (6, 4), {}, True),
}


def matrix_model(name: str, *, bias: bool = False) -> onnx.ModelProto:
    op, shape, weight, attributes, left = MATRICES[name]
    weights = {"w": noise(*weight)} | ({"b": noise(6, seed=1)} if bias else {})
    inputs = ["w", "x"] if left else ["x", "w"]
    node = helper.make_node(op, [*inputs, *(["b"] if bias else [])], ["y"], name="m", **attributes)
    return model_of([node], inputs={"x": shape}, weights=weights)


class TestRowsOfAMatrix:
    @pytest.mark.parametrize("name", MATRICES)
    def test_times_the_kernel_are_the_output(self, name: str) -> None:
        check_rows(matrix_model(name), {"x": noise(*MATRICES[name][1], seed=9)})

    @pytest.mark.parametrize("name", [name for name in MATRICES if "Gemm" in name])
    def test_plus_the_bias(self, name: str) -> None:
        proto = matrix_model(name, bias=True)
        bias = only_site(proto).bias_gain * noise(6, seed=1)
        check_rows(proto, {"x": noise(*MATRICES[name][1], seed=9)}, bias)

    @pytest.mark.parametrize(
        ("name", "owners"),
        [
            ("Gemm", range(7)),
            ("Gemm, transA", range(7)),
            ("MatMul", range(7)),
            ("MatMul of vectors", [0]),
            ("MatMul of 3 axes", [0] * 7 + [1] * 7),
            ("MatMul of 4 axes", [0] * 21 + [1] * 21),
            ("left", range(7)),
            ("left of a vector", [0]),
            ("left of 3 axes", [0] * 7 + [1] * 7),
        ],
    )
    def test_know_whose_they_are(self, name: str, owners: Sequence[int]) -> None:
        proto = matrix_model(name)
        x = noise(*MATRICES[name][1], seed=9)
        (output,) = run(proto, {"x": x})
        site = only_site(proto)
        for rows in (input_rows(site, x, output, 99, generator()),
                     output_rows(site, output, output, 99, generator())):  # fmt: skip
            assert list(joined(rows)[0]) == list(owners)


class TestRowsOfOutputs:
    @pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
    def test_of_a_convolution_have_its_channels(self, op: str) -> None:
        proto = conv_model(op=op)
        (output,) = run(proto)
        owners, one, other = joined(
            output_rows(only_site(proto), output, -output, 10**9, generator())
        )
        np.testing.assert_array_equal(one, -other)
        np.testing.assert_array_equal(one, np.moveaxis(output, 1, -1).reshape(-1, 6))
        assert (owners == np.repeat([0, 1], len(one) // 2)).all()

    @pytest.mark.parametrize("name", ["MatMul of 3 axes", "left of 3 axes"])
    def test_of_a_matrix_too(self, name: str) -> None:
        proto = matrix_model(name)
        x = noise(*MATRICES[name][1], seed=9)
        (output,) = run(proto, {"x": x})
        site = only_site(proto)
        _, outputs, _ = joined(output_rows(site, output, output, 99, generator()))
        _, _, targets = joined(input_rows(site, x, output, 99, generator()))
        np.testing.assert_array_equal(outputs, targets)


class TestDrawing:
    WANTED = 50

    def rows(self, seed: int, wanted: int = WANTED) -> tuple[Array, Array, Array]:
        proto = conv_model(pads=[1, 1, 1, 1])
        x = noise(2, 4, 9, 10)
        (output,) = run(proto, {"x": x})
        return joined(input_rows(only_site(proto), x, output, wanted, generator(seed)))

    def test_is_without_replacement(self) -> None:
        _, rows, targets = self.rows(0)
        assert rows.shape == (self.WANTED, 36)
        assert len(np.unique(rows, axis=0)) == len(np.unique(targets, axis=0)) == self.WANTED

    def test_is_the_same_for_the_same_seed(self) -> None:
        for one, other in zip(self.rows(3), self.rows(3), strict=True):
            np.testing.assert_array_equal(one, other)
        assert not np.array_equal(self.rows(3)[1], self.rows(4)[1])

    def test_takes_all_where_there_are_no_more(self) -> None:
        for wanted in (180, 181, 10**9):
            assert len(self.rows(0, wanted)[0]) == 180

    def test_of_both_samples(self) -> None:
        assert set(self.rows(0)[0]) == {0, 1}

    @pytest.mark.parametrize("block", [1, 5000, 30_000])
    def test_in_blocks_is_the_same(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = self.rows(0)
        monkeypatch.setattr(statistics, "_BLOCK", block)
        for one, other in zip(self.rows(0), whole, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_no_block_is_larger_than_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statistics, "_BLOCK", 5000)
        proto = conv_model(pads=[1, 1, 1, 1])
        x = noise(2, 4, 9, 10)
        (output,) = run(proto, {"x": x})
        blocks = list(input_rows(only_site(proto), x, output, 10**9, generator()))
        assert len(blocks) > 1
        assert all(rows.nbytes <= 5000 for _, rows, _ in blocks)


def pairs_of(proto: onnx.ModelProto, batches: Sequence[Array]) -> list[Pair]:
    return [(x, run(proto, {"x": x})[0]) for x in batches]


def seen(proto: onnx.ModelProto, pairs: Sequence[Pair], **options: Any) -> Observed | None:
    options = {"biased": True, **options}
    return observe(only_site(proto), iter(pairs), len(pairs), **options)


def whole(proto: onnx.ModelProto, pairs: Sequence[Pair]) -> tuple[Array, Array, Array]:
    """All rows of all batches, and the number of the sample that each is of."""
    site, before, parts = only_site(proto), 0, []
    for x, target in pairs:
        owners, rows, targets = joined(input_rows(site, x, target, 10**9, generator()))
        parts.append((owners + before, rows, targets))
        before += owners.max() + 1
    return joined(iter(parts))


class TestHoldingOut:
    @pytest.mark.parametrize(
        ("sizes", "held"),
        [
            ([2], {1}),
            ([1, 1], {1}),
            ([3], {1}),
            ([1] * 5, {1, 3}),
            ([2, 2, 2], {2, 5}),
            ([16], {7, 15}),
            ([1] * 16, {7, 15}),
            ([4] * 5, {7, 15}),
            ([31, 1], {7, 15, 23, 31}),
        ],
    )
    def test_is_of_whole_samples(self, sizes: Sequence[int], held: set[int]) -> None:
        proto = conv_model(batch="n", size=(5, 5))  # type: ignore[arg-type]
        pairs = pairs_of(proto, [noise(n, 4, 5, 5, seed=i) for i, n in enumerate(sizes)])
        owners, rows, _ = whole(proto, pairs)
        found = seen(proto, pairs)
        assert found is not None
        aside = np.isin(owners, list(held))
        for side, chosen in ((found.fit, ~aside), (found.held, aside)):
            (moments,) = side
            assert moments.count == chosen.sum()
            np.testing.assert_allclose(moments.x_mean, rows[chosen].mean(0), atol=1e-6)

    def test_of_a_single_sample_is_of_rows(self) -> None:
        proto = conv_model(batch=1)
        found = seen(proto, pairs_of(proto, [noise(1, 4, 9, 10)]))
        assert found is not None
        assert found.fit[0].count == found.held[0].count == 28

    @pytest.mark.parametrize("block", [1, 1000])
    @pytest.mark.parametrize("batch", [1, 5])
    def test_does_not_depend_on_blocks(
        self, block: int, batch: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proto = conv_model(batch=batch)
        pairs = pairs_of(proto, [noise(batch, 4, 9, 10)])
        expected = seen(proto, pairs)
        monkeypatch.setattr(statistics, "_BLOCK", block)
        found = seen(proto, pairs)
        assert found is not None
        assert expected is not None
        for one, other in zip(found.fit + found.held, expected.fit + expected.held, strict=True):
            assert one.count == other.count
            np.testing.assert_allclose(one.xx, other.xx, atol=1e-5)

    def test_of_a_single_row_there_is_none(self) -> None:
        for proto in (conv_model(size=(3, 3), batch=1), matrix_model("MatMul of vectors")):
            shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
            assert seen(proto, pairs_of(proto, [noise(*shape)])) is None

    @pytest.mark.parametrize("name", MATRICES)
    def test_of_matrices(self, name: str) -> None:
        """Of a few batches of anything, some rows are held out, and most are not."""
        proto = matrix_model(name)
        shape = MATRICES[name][1]
        found = seen(proto, pairs_of(proto, [noise(*shape, seed=n) for n in range(24)]))
        assert found is not None
        total = found.fit[0].count + found.held[0].count
        assert total == 24 * np.prod(shape) / 4
        assert found.held[0].count == pytest.approx(total / 8)

    def test_of_columns_as_many_as_outputs(self) -> None:
        """The first axis of what a weight on the left puts out does not count samples."""
        node = helper.make_node("MatMul", ["w", "x"], ["y"], name="m")
        proto = model_of([node], inputs={"x": (4, 1)}, weights={"w": noise(8, 4)})
        found = seen(proto, pairs_of(proto, [noise(4, 1, seed=n) for n in range(16)]))
        assert found is not None
        assert (found.fit[0].count, found.held[0].count) == (14, 2)


class TestObserved:
    @pytest.mark.parametrize("group", [1, 2])
    @pytest.mark.parametrize("biased", [True, False])
    def test_the_error_is_the_true_one(self, group: int, biased: bool) -> None:
        proto = conv_model(group=group, batch=16)
        pairs = pairs_of(proto, [noise(16, 4, 9, 10, seed=n) + np.float32(3) for n in range(3)])
        found = seen(proto, pairs, biased=biased)
        assert found is not None
        owners, rows, targets = whole(proto, pairs)
        aside = owners % 8 == 7
        site = only_site(proto)
        kernel = site.kernel().reshape(6, -1) + noise(6, 36 // group, seed=8) / 5
        made = applied_kernel(site, kernel, rows)
        bias = (targets - made)[~aside].mean(0) if biased else np.zeros(6)
        if biased:
            np.testing.assert_allclose(found.best_bias(kernel), bias, rtol=1e-4)
        for shift, given_ in ((bias, None), (bias + 1 if biased else bias, bias + float(biased))):
            rest = made[aside] + shift - targets[aside]
            expected = np.sum(rest**2) / np.sum(targets[aside] ** 2)
            assert found.error(kernel, given_) == pytest.approx(expected, rel=1e-4)

    def test_of_the_right_kernel_is_nothing(self) -> None:
        proto = conv_model(batch=16)
        found = seen(proto, pairs_of(proto, [noise(16, 4, 9, 10)]))
        assert found is not None
        kernel = only_site(proto).kernel().reshape(6, -1)
        assert found.error(kernel) < 1e-10
        np.testing.assert_allclose(found.best_bias(kernel), noise(6, seed=2), atol=1e-5)

    def test_of_groups_weighs_each_by_what_it_puts_out(self) -> None:
        """Also one that ought to put out nothing."""
        proto = conv_model(group=2, bias=False, batch=16)
        (x, target), *_ = pairs_of(proto, [noise(16, 4, 9, 10)])
        target[:, 3:] = 0
        found = seen(proto, [(x, target)])
        assert found is not None
        kernel = only_site(proto).kernel().reshape(6, -1)
        _, rows, _ = whole(proto, [(x, target)])
        aside = np.repeat(np.arange(16), 7 * 8) % 8 == 7
        made = applied_kernel(only_site(proto), kernel, rows)[aside]
        expected = np.sum(made[:, 3:] ** 2) / np.sum(made[:, :3] ** 2)
        assert found.error(kernel, np.zeros(6)) == pytest.approx(expected, rel=1e-4)

    def test_the_seed_decides_which_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statistics, "_ROWS", 100)
        monkeypatch.setattr(statistics, "_PER_ENTRY", 1)
        proto = conv_model(batch=16)
        pairs = pairs_of(proto, [noise(16, 4, 9, 10, seed=n) for n in range(3)])
        first, again, other = (seen(proto, pairs, seed=seed) for seed in (0, 0, 1))
        assert first is not None
        assert again is not None
        assert other is not None
        assert first.fit[0].count + first.held[0].count == 3 * 34, "rounded up for every batch"
        np.testing.assert_array_equal(first.fit[0].xx, again.fit[0].xx)
        assert not np.array_equal(first.fit[0].xx, other.fit[0].xx)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("where", [0, 1])
    def test_what_is_not_finite_cannot_be_observed(self, value: float, where: int) -> None:
        proto = conv_model(batch=16)
        pairs = pairs_of(proto, [noise(16, 4, 9, 10, seed=n) for n in range(2)])
        pairs[1][where][3] = value
        assert seen(proto, pairs) is None
        outputs = [(target, target) for _, target in pairs]
        found = observe_outputs(only_site(proto), iter(outputs), 2, biased=True)
        assert (found is None) == (where == 1)

    def test_no_batches_are_nothing(self) -> None:
        assert seen(conv_model(), []) is None


class TestOutputs:
    @pytest.mark.parametrize("group", [1, 2])
    def test_the_error_of_a_mixing_is_the_true_one(self, group: int) -> None:
        proto = conv_model(op="ConvTranspose", group=group, batch=16, size=(5, 5))
        site = only_site(proto)
        (target,) = run(proto, {"x": noise(16, 4, 5, 5)})
        output = target + noise(*target.shape, seed=3) + 1
        found = observe_outputs(site, iter([(output, target)]), 1, biased=True)
        assert found is not None
        mixing = noise(6, 6 // group, seed=4)
        rows, targets = (
            np.moveaxis(each, 1, -1).reshape(16, -1, 6).astype(np.float64)
            for each in (output, target)
        )
        made = applied_kernel(site, mixing, rows.reshape(-1, 6)).reshape(rows.shape)
        aside = np.arange(16) % 8 == 7
        bias = (targets - made)[~aside].mean((0, 1))
        np.testing.assert_allclose(found.best_bias(mixing), bias, rtol=1e-4)
        rest = made[aside] + bias - targets[aside]
        expected = np.sum(rest**2) / np.sum(targets[aside] ** 2)
        assert found.error(mixing) == pytest.approx(expected, rel=1e-4)

    def test_more_than_fit_are_not_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        proto = conv_model(batch=16, group=2, size=(5, 5))
        (target,) = run(proto, {"x": noise(16, 4, 5, 5)})
        for limit, fits in ((2, False), (3, True)):  # three for each group
            monkeypatch.setattr(statistics, "LARGEST_GRAM", limit)
            found = observe_outputs(only_site(proto), iter([(target, target)]), 1, biased=True)
            assert (found is not None) == fits


def applied_kernel(site: Site, kernel: Array, rows: Array) -> Array:
    parts = zip(np.split(rows, site.group, 1), np.split(kernel, site.group), strict=True)
    return np.concatenate([part.astype(np.float64) @ each.T for part, each in parts], axis=1)


class TestWhatCanBeObserved:
    def test_is_all_but_transposed_convolutions_and_very_large_patches(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert can_observe(only_site(conv_model()))
        assert can_observe(only_site(matrix_model("left")))
        assert not can_observe(only_site(conv_model(op="ConvTranspose")))
        monkeypatch.setattr(statistics, "LARGEST_GRAM", 35)
        assert not can_observe(only_site(conv_model()))
        assert can_observe(only_site(conv_model(group=2)))
