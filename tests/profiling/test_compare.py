from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import parser

from onnxcp.errors import DataError
from onnxcp.profiling.compare import OutputDifference, accuracy, compare
from onnxcp.profiling.session import infer, open_session

Array = npt.NDArray[Any]


def one(a: Sequence[Array], b: Sequence[Array]) -> OutputDifference:
    """The difference of two streams of one output."""
    batches = [{"k": np.array(k)} for k in range(len(a))]
    (difference,) = compare(
        lambda batch: [a[int(batch["k"])]], lambda batch: [b[int(batch["k"])]], batches, ["y"]
    )
    return difference


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class TestFloats:
    def test_equal(self) -> None:
        a = [normal(4, 10), normal(4, 10, seed=1)]
        assert one(a, a) == OutputDifference(
            "y", max_abs=0.0, mean_abs=0.0, relative=0.0, cosine=1.0, top1_agreement=1.0, kl=0.0
        )

    def test_over_all_batches_together(self) -> None:
        a = [normal(4, 6, seed=1), normal(2, 6, seed=2), normal(7, 6, seed=3)]
        b = [x + 0.5 * normal(*x.shape, seed=9) for x in a]
        x, y = np.concatenate(a).astype(float), np.concatenate(b).astype(float)
        difference = one(a, b)
        assert difference.max_abs == pytest.approx(np.abs(y - x).max())
        assert difference.mean_abs == pytest.approx(np.abs(y - x).mean())
        assert difference.relative == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
        assert difference.relative == difference.error
        cosine = np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y)
        assert difference.cosine == pytest.approx(cosine)
        assert difference.top1_agreement == np.mean(x.argmax(1) == y.argmax(1))

    @pytest.mark.parametrize(
        ("shape", "classification"),
        [
            ((2, 2), True),
            ((2, 100_000), True),
            ((2, 10, 1, 1), True),
            ((2, 1), False),
            ((2, 100_001), False),
            ((2, 10, 2, 1), False),
            ((2, 10, 1), False),
            ((2,), False),
            ((), False),
        ],
    )
    def test_top1_where_there_are_classes(
        self, shape: tuple[int, ...], classification: bool
    ) -> None:
        a = [np.zeros(shape, np.float32)]
        assert one(a, a).top1_agreement == (1.0 if classification else None)

    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    def test_other_floats(self, dtype: Any) -> None:
        a = [np.array([1, 2], dtype)]
        assert one(a, [a[0] + dtype(1)]).mean_abs == 1

    def test_sums_do_not_overflow_in_half_precision(self) -> None:
        a = [np.full((200, 300), 60000, np.float16)]
        difference = one(a, [a[0] / np.float16(2)])
        assert difference.relative == pytest.approx(0.5)
        assert difference.cosine == pytest.approx(1)

    def test_zeros(self) -> None:
        zero, ones = [np.zeros(4)], [np.ones(4)]
        assert one(zero, ones).relative == math.inf
        assert one(zero, ones).cosine == 0
        assert one(zero, zero).relative == 0
        assert one(zero, zero).cosine == 1

    def test_empty(self) -> None:
        empty = [np.zeros((0, 5))]
        assert one(empty, empty).relative == 0
        assert one(empty, empty).top1_agreement is None


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class TestDivergence:
    """KL(p || q) = sum p log(p / q), p of the reference: mean over samples, in nats."""

    def test_of_scores_over_all_batches_together(self) -> None:
        a = [normal(4, 6, seed=1), normal(2, 6, seed=2)]
        b = [x + 0.5 * normal(*x.shape, seed=9) for x in a]
        p, q = (softmax(np.concatenate(each).astype(np.float64)) for each in (a, b))
        expected = np.mean(np.sum(p * np.log(p / q), axis=1))
        assert one(a, b).kl == pytest.approx(expected)
        assert one(a, b).kl != pytest.approx(one(b, a).kl, rel=1e-3)

    def test_of_two_coins(self) -> None:
        a, b = [np.array([[0.5, 0.5]])], [np.array([[0.9, 0.1]])]
        expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
        assert one(a, b).kl == pytest.approx(expected)
        assert one(np.log(a), np.log(b)).kl == pytest.approx(expected)

    @pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
    def test_does_not_depend_on_what_is_added_to_all_scores(self, shift: float) -> None:
        a, b = normal(8, 5, seed=1).astype(float), normal(8, 5, seed=2).astype(float)
        assert one([a + shift], [b - shift]).kl == pytest.approx(one([a], [b]).kl)

    @pytest.mark.parametrize("seed", range(5))
    def test_is_none_of_equals_and_never_negative(self, seed: int) -> None:
        a = normal(3, 10, seed=seed)
        for other in (a, a + np.float32(1), a * np.float32(1 + 1e-6)):
            found = one([a], [other]).kl
            assert found is not None
            assert 0 <= found < 1e-9

    def test_of_the_same_probabilities_as_scores_or_as_they_are(self) -> None:
        a, b = normal(4, 10, seed=1), normal(4, 10, seed=2)
        assert one([softmax(a)], [softmax(b)]).kl == pytest.approx(one([a], [b]).kl, rel=1e-5)

    def test_of_probabilities_that_were_lost_to_rounding(self) -> None:
        sure, other = np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)
        assert one([sure], [sure]).kl == 0
        found = one([sure], [other]).kl
        assert found == pytest.approx(-math.log(np.finfo(np.float32).tiny))

    def test_of_scores_on_the_place_of_pictures(self) -> None:
        a, b = normal(4, 10, seed=1), normal(4, 10, seed=2)
        flat = one([a], [b]).kl
        assert one([a[:, :, None, None]], [b[:, :, None, None]]).kl == flat
        assert one([a[:, :, None]], [b[:, :, None]]).kl is None

    @pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 100_001), (2, 3, 4)])
    def test_there_is_none_without_classes(self, shape: tuple[int, ...]) -> None:
        assert one([np.ones(shape, np.float32)], [np.ones(shape, np.float32)]).kl is None

    def test_in_half_precision(self) -> None:
        a, b = normal(4, 1000, seed=1), normal(4, 1000, seed=2)
        halves = [[each.astype(np.float16)] for each in (a, b)]
        assert one(*halves).kl == pytest.approx(one([a], [b]).kl, rel=1e-2)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("place", [0, 1])
    def test_there_is_none_where_values_are_not_finite(self, value: float, place: int) -> None:
        pair = [normal(4, 3, seed=1), normal(4, 3, seed=2)]
        pair[place][2, 1] = value
        assert one([pair[0]], [pair[1]]).kl is None

    def test_of_a_class_that_is_shut_out(self) -> None:
        """A score of minus infinity is a probability of zero, whose term is zero."""
        a, b = normal(4, 3, seed=1), normal(4, 3, seed=2)
        narrow = one([a[:, :2]], [b[:, :2]]).kl
        a[:, 2] = b[:, 2] = -np.inf
        assert one([a], [b]).kl == pytest.approx(narrow)
        b[:, 2] = 0
        assert one([b], [a]).kl is None


class TestNotFinite:
    def test_alike(self) -> None:
        a = [np.array([1.0, np.nan, np.inf, -np.inf])]
        difference = one(a, a)
        assert (difference.max_abs, difference.relative, difference.cosine) == (0, 0, 1)
        assert not difference.finite_a
        assert not difference.finite_b

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_only_in_one(self, value: float) -> None:
        finite, other = [np.array([1.0, 2.0])], [np.array([1.0, value])]
        difference = one(finite, other)
        assert difference.max_abs == difference.mean_abs == difference.relative == math.inf
        assert difference.error == math.inf
        assert difference.finite_a
        assert not difference.finite_b
        assert difference.cosine == 1
        assert one(other, finite).relative == math.inf

    def test_opposite_infinities(self) -> None:
        assert one([np.array([np.inf])], [np.array([-np.inf])]).max_abs == math.inf


class TestOthers:
    @pytest.mark.parametrize(
        ("a", "b"),
        [
            (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])),
            (np.array([True, True, False, False]), np.array([True, True, False, True])),
            (np.array(["a", "b", "c", ""], object), np.array(["a", "b", "c", "d"], object)),
        ],
    )
    def test_share_of_equal_elements(self, a: Array, b: Array) -> None:
        assert one([a, a], [a, b]) == OutputDifference("y", equal=7 / 8)
        assert one([a], [b]).error == 0.25

    def test_shapes_that_differ(self) -> None:
        difference = one([np.ones((2, 3)), np.ones(1)], [np.ones((2, 4)), np.ones(1)])
        assert difference.problem == (
            "Output 'y' is of shape (2, 3) in one model and (2, 4) in the other."
        )
        assert difference.error == math.inf

    def test_types_that_differ(self) -> None:
        problem = one([np.ones(2)], [np.ones(2, np.int64)]).problem
        assert problem == "Output 'y' is of type float64 in one model and int64 in the other."

    def test_sequences(self) -> None:
        sequence: Any = [[np.ones(2)]]
        assert one(sequence, sequence).problem == (
            "Output 'y' is no tensor, and only tensors are compared."
        )


class TestStreams:
    def test_outputs_are_not_held(self) -> None:
        alive = 0

        class Counted(np.ndarray[Any, Any]):
            def __del__(self) -> None:
                nonlocal alive
                alive -= getattr(self, "counted", False)

        def run(batch: Any) -> list[Array]:
            nonlocal alive
            output = np.ones((2, 3)).view(Counted)
            output.counted = True  # type: ignore[attr-defined]
            alive += 1
            assert alive <= 4
            return [output]

        def batches() -> Iterator[dict[str, Array]]:
            yield from ({} for _ in range(20))

        assert compare(run, run, batches(), ["y"])[0].relative == 0

    def test_no_data(self) -> None:
        with pytest.raises(DataError, match="no data to compare"):
            compare(lambda _: [], lambda _: [], [], [])

    def test_number_of_outputs(self) -> None:
        two, three = [np.ones(1)] * 2, [np.ones(1)] * 3
        with pytest.raises(DataError, match=r"second model has 3 outputs, not the 2 .*: 'y', 'z'"):
            compare(lambda _: two, lambda _: three, [{}], ["y", "z"])

    def test_of_two_sessions(self) -> None:
        def model(factor: float) -> Callable[[Any], list[Array]]:
            session = open_session(
                parser.parse_model(
                    '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y, '
                    f"int64[2] s) <float c = {{{factor}}}> {{ y = Mul(x, c) s = Shape(y) }}"
                ).SerializeToString()
            )
            return lambda batch: infer(session, batch)

        batches = [{"x": normal(4, 3, seed=seed)} for seed in range(3)]
        y, s = compare(model(1), model(1.25), batches, ["y", "s"])
        assert y.relative == pytest.approx(0.25)
        assert y.top1_agreement == 1
        assert s.equal == 1


class TestAccuracy:
    scores = np.array([[1, 0, 0], [0, 2, 1], [0, 3, 4], [5, 0, 1]], np.float32)

    @pytest.mark.parametrize(
        "outputs",
        [
            scores,
            scores[:, :, None, None],
            np.array([0, 1, 2, 0]),
        ],
    )
    def test_share_of_right_samples(self, outputs: Array) -> None:
        def run(batch: Any) -> list[Array]:
            return [np.ones(1), outputs[batch["k"]]]

        batches = [{"k": np.array([0, 1, 2])}, {"k": np.array([3])}]
        assert accuracy(run, batches, np.array([0, 1, 1, 0]), output=1) == 0.75

    @pytest.mark.parametrize("labels", [3, 7, 9])
    def test_labels_must_be_as_many(self, labels: int) -> None:
        with pytest.raises(DataError, match=f"There are {labels} labels for 8 samples"):
            accuracy(lambda _: [self.scores], [{}, {}], np.zeros(labels, int))

    @pytest.mark.parametrize("output", [np.ones((4, 3, 2)), np.ones(4), np.ones((4, 1))])
    def test_needs_classes(self, output: Array) -> None:
        with pytest.raises(DataError, match="Accuracy needs an output of class scores"):
            accuracy(lambda _: [output], [{}], np.zeros(4))

    def test_no_data(self) -> None:
        with pytest.raises(DataError, match="0 labels for 0 samples"):
            accuracy(lambda _: [self.scores], [], np.zeros(0))
