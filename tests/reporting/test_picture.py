from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcp.reporting import picture
from onnxcp.reporting.picture import BOTTOM, LEFT, RIGHT, TOP, Dot, Mark, Picture

ORIGINAL = Mark(1.0, 0.0, "original", "original")
MARKS = [ORIGINAL, Mark(4.9, 0.16, "5×"), Mark(2.0, 0.01, "2×"), Mark(3.0, 0.03, "taken", "taken")]


def drawn(*marks: Mark, floor: float | None = 0.0) -> Picture:
    result = picture.draw("error", "output error", marks, "{:.6g}".format, floor=floor)
    assert result is not None
    return result


def box(dot: Dot) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a label, on the safe side."""
    assert dot.label is not None
    width = 6.5 * len(dot.label.text)
    left = dot.label.x - {"start": 0.0, "middle": width / 2, "end": width}[dot.label.anchor]
    return left, dot.label.y - 9, left + width, dot.label.y + 3


def test_dots_stand_where_the_axes_say() -> None:
    result = drawn(*MARKS)
    assert [tick.text for tick in result.across] == ["1×", "2×", "3×", "4×", "5×"]
    assert [tick.text for tick in result.up] == ["0", "0.05", "0.1", "0.15", "0.2"]
    ticks = {tick.text: tick.at for tick in result.across}
    assert [dot.kind for dot in result.dots] == ["original", "plan", "taken", "plan"]
    assert [dot.x for dot in result.dots[:3]] == [ticks["1×"], ticks["2×"], ticks["3×"]]
    assert result.dots[0].y == result.up[0].at == BOTTOM
    assert result.up[-1].at == TOP
    assert (result.across[0].at, result.across[-1].at) == (LEFT, RIGHT)


def test_the_curve_leads_from_the_original_through_what_was_planned() -> None:
    result = drawn(*MARKS)
    line = [tuple(map(float, point.split(","))) for point in result.curve.split()]
    assert line == [(dot.x, dot.y) for dot in result.dots if dot.kind != "taken"]


@pytest.mark.parametrize(
    "marks",
    [
        [],
        [ORIGINAL, Mark(2.0, math.inf, "2×")],
        [ORIGINAL, Mark(2.0, 0.1, "taken", "taken")],
        [Mark(2.0, 0.1, "2×")],
    ],
)
def test_without_a_plan_and_another_network_there_is_no_picture(marks: list[Mark]) -> None:
    assert picture.draw("error", "output error", marks, str) is None


def test_one_value_for_all_has_an_axis_too() -> None:
    result = drawn(Mark(1.0, 0.9, "2×"), Mark(1.0, 0.9, "3×"), floor=None)
    assert len(result.up) >= 2
    assert result.up[0].at >= result.dots[0].y >= result.up[-1].at


def test_dots_in_one_place_share_a_label() -> None:
    marks = [Mark(5.4 + number / 1000, 0.1, f"{6 + number}×") for number in range(3)]
    result = drawn(ORIGINAL, *marks, Mark(5.4, 0.1, "taken", "taken"))
    labels = [dot.label.text for dot in result.dots if dot.label is not None]
    assert labels == ["original", "6×, 7×, 8×", "taken"]


networks = st.builds(
    Mark,
    st.floats(0.5, 50),
    st.floats(0, 1e6, allow_subnormal=False) | st.sampled_from([math.inf, math.nan]),
    st.sampled_from(["1.5×", "2×", "taken", "a score at most 0.01 lower"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(networks, max_size=8))
def test_nothing_leaves_the_field_and_no_label_covers_another(marks: list[Mark]) -> None:
    result = picture.draw("error", "output error", [ORIGINAL, *marks], "{:.6g}".format, floor=0.0)
    if result is None:
        return
    assert all(LEFT <= dot.x <= RIGHT and TOP <= dot.y <= BOTTOM for dot in result.dots)
    for ticks in (result.across, result.up):
        assert 2 <= len(ticks) <= 8
        assert len({tick.text for tick in ticks}) == len(ticks)
    boxes = [box(dot) for dot in result.dots if dot.label is not None]
    for left, top, right, bottom in boxes:
        assert left >= LEFT
        assert top >= TOP
        assert right <= RIGHT
        assert bottom <= BOTTOM
    for one, other in itertools.combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart
