from __future__ import annotations

import math

import pytest

from onnxcp import units


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (2_621_904, "2.62 M"), (15.47e9, "15.5 G"),
     (3e12, "3.00 T"), (None, "–")],
)  # fmt: skip
def test_counts(value: float | None, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.5, "1.50 s"), (0.0118, "11.8 ms"), (115e-6, "115 µs"), (0.5e-6, "500 ns"), (None, "–")],
)
def test_seconds(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12 B"), (2048, "2.00 KiB"), (553e6, "527 MiB")])
def test_bytes(value: float, text: str) -> None:
    assert units.nbytes(value) == text


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(0.123, 0, "12 %"), (0.0004, 0, "<1 %"), (0, 0, "0 %"), (0.98765, 2, "98.77 %"),
     (0.00001, 2, "<0.01 %"), (1, 0, "100 %"), (None, 0, "–")],
)  # fmt: skip
def test_shares(value: float | None, decimals: int, text: str) -> None:
    assert units.share(value, decimals) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(6.784, "6.78"), (12.34, "12.3"), (123.4, "123"), (0.5, "0.500"), (0, "0"), (math.inf, "inf")],
)
def test_digits(value: float, text: str) -> None:
    assert units.digits(value) == text


def test_errors_before_and_after() -> None:
    assert units.errors(0.4218, 0.0305) == "0.422 → 0.0305"
    assert units.errors(0.4218, 0.4218) == "0.422"


def test_errors_that_are_not_known() -> None:
    assert units.error(None) == units.error(math.nan) == "–"


def test_scores() -> None:
    assert units.score(0.942) == "94.20 %"
    assert units.score(21.53125, custom=True) == "21.5312"


def test_ratios() -> None:
    assert units.ratio(6.784) == "6.78×"
    assert units.interval(6.7, 6.85) == "6.70 to 6.85"


def test_changes() -> None:
    assert units.change(100, 12) == "−88 %"
    assert units.change(100, 103) == "+3 %"
    assert units.change(None, 3) == units.change(3, None) == units.change(0, 3) == ""
    assert units.points(0.942, 0.936) == "−0.60 points"


@pytest.mark.parametrize(("value", "text"), [((1, 3, 224), "1×3×224"), ((), "scalar"), (None, "–")])
def test_shapes(value: tuple[int, ...] | None, text: str) -> None:
    assert units.shape(value) == text


def test_faster_is_only_what_is() -> None:
    assert units.faster(6.784) == "6.78× faster"
    assert units.faster(0.97) == "0.970× as fast"
    assert units.faster(1.0) == "1.00× as fast"


def test_samples() -> None:
    assert [units.samples(count) for count in (1, 1024)] == ["1 sample", "1,024 samples"]
