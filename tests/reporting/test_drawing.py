from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from onnxcp.reporting.drawing import HIGH, LOW, WIDTH, Placed, lay_out
from onnxcp.reporting.wiring import Box, Wires


def boxes(count: int) -> tuple[Box, ...]:
    return tuple(
        Box(f"Op{n}", "4 → 6" if n % 2 else "", "layer" if n % 3 else "near") for n in range(count)
    )


@st.composite
def graphs(draw: st.DrawFn) -> Wires:
    """Boxes, and lines from earlier to later ones."""
    count = draw(st.integers(1, 8))
    pairs = list(itertools.combinations(range(count), 2))
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return Wires(boxes(count), tuple(edges))


def overlap(one: Placed, other: Placed) -> bool:
    return (
        one.x < other.x + WIDTH
        and other.x < one.x + WIDTH
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


@given(graphs())
def test_boxes_lie_below_what_they_read_within_the_drawing_and_apart(wires: Wires) -> None:
    drawn = lay_out(wires)
    assert [each.box for each in drawn.boxes] == list(wires.boxes)
    for a, b in wires.edges:
        assert drawn.boxes[a].y + drawn.boxes[a].height < drawn.boxes[b].y
    for one, other in itertools.combinations(drawn.boxes, 2):
        assert not overlap(one, other)
    for each in drawn.boxes:
        assert each.x > 0
        assert each.y > 0
        assert each.x + WIDTH < drawn.width
        assert each.y + each.height < drawn.height


def test_a_chain_is_one_column_of_straight_lines() -> None:
    drawn = lay_out(Wires(boxes(3), ((0, 1), (1, 2))))
    assert [each.x for each in drawn.boxes] == [1, 1, 1]
    assert [each.height for each in drawn.boxes] == [LOW, HIGH, LOW]
    assert all("C" not in line for line in drawn.lines)
    assert drawn.width == WIDTH + 2


def test_branches_stand_side_by_side() -> None:
    drawn = lay_out(Wires(boxes(4), ((0, 1), (0, 2), (1, 3), (2, 3))))
    _, left, right, last = drawn.boxes
    assert left.y == right.y
    assert left.x + WIDTH < right.x
    assert last.x == left.x


def test_a_line_past_a_box_does_not_cross_it() -> None:
    drawn = lay_out(Wires(boxes(4), ((0, 1), (0, 3), (1, 2), (2, 3))))
    first, *between, _ = drawn.boxes
    assert all(each.x > first.x + WIDTH for each in between)


def test_it_can_be_read_aloud() -> None:
    assert lay_out(Wires(boxes(2), ((0, 1),))).words == "Op0, then Op1 4 to 6"
