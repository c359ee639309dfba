"""Where boxes and lines of a small graph go; the template draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxcp.reporting.wiring import Box, Wires

WIDTH, HIGH, LOW = 124, 38, 24  # of a box; with two lines of text and with one
_AIR, _BETWEEN = 18, 10  # from one layer of boxes to the next, and from box to box


@dataclass(frozen=True)
class Placed:
    """A box in its place: its left upper corner and height, in units of the drawing."""

    box: Box
    x: float
    y: float
    height: float


@dataclass(frozen=True)
class Drawing:
    """A small graph, from top to bottom.

    Attributes
    ----------
    width, height
        Of the whole.
    boxes
        The nodes.
    lines
        Paths from one to another, as SVG takes them.
    words
        The same for those who do not see it.
    """

    width: float
    height: float
    boxes: tuple[Placed, ...]
    lines: tuple[str, ...]
    words: str


def lay_out(wires: Wires) -> Drawing:
    """Put every box below all that it reads from, and in one column with the first of these."""
    rows = _rows(wires)
    columns = _columns(wires, rows)
    depth = max(rows, default=0) + 1
    heights = [
        max((_height(box) for box, at in zip(wires.boxes, rows, strict=True) if at == row))
        for row in range(depth)
    ]
    tops = [sum(heights[:row]) + _AIR * row for row in range(depth)]
    placed = tuple(
        Placed(box, column * (WIDTH + _BETWEEN) + 1, tops[row] + 1, _height(box))
        for box, row, column in zip(wires.boxes, rows, columns, strict=True)
    )
    width = (max(columns, default=0) + 1) * (WIDTH + _BETWEEN) - _BETWEEN
    return Drawing(
        width=width + 2,
        height=tops[-1] + heights[-1] + 2,
        boxes=placed,
        lines=tuple(_line(placed[a], placed[b]) for a, b in wires.edges),
        words=", then ".join(_said(box) for box in wires.boxes),
    )


def _rows(wires: Wires) -> list[int]:
    """Return how many boxes stand above each along the longest way to it."""
    rows = [0] * len(wires.boxes)
    for _ in wires.boxes:
        for a, b in wires.edges:
            rows[b] = max(rows[b], rows[a] + 1)
    # What begins in the middle of a graph stands right above what reads it.
    for number in range(len(rows)):
        below = [rows[b] for a, b in wires.edges if a == number]
        if below and not any(b == number for _, b in wires.edges):
            rows[number] = min(below) - 1
    return rows


def _columns(wires: Wires, rows: Sequence[int]) -> list[int]:
    columns = [0] * len(rows)
    taken: set[tuple[int, int]] = set()
    for number in sorted(range(len(rows)), key=lambda each: (rows[each], each)):
        above = [columns[a] for a, b in wires.edges if b == number]
        column = min(above, default=0)
        while (rows[number], column) in taken:
            column += 1
        columns[number] = column
        # Lines to boxes further down pass beside those in between.
        last = max((rows[b] for a, b in wires.edges if a == number), default=rows[number])
        taken |= {(row, column) for row in range(rows[number], max(last, rows[number] + 1))}
    return columns


def _height(box: Box) -> float:
    return HIGH if box.detail else LOW


def _line(start: Placed, end: Placed) -> str:
    x, y = start.x + WIDTH / 2, start.y + start.height
    to_x, to_y = end.x + WIDTH / 2, end.y - 1
    if x == to_x:
        return f"M{x:g} {y:g}V{to_y:g}"
    bend = to_y - _AIR + 2
    return f"M{x:g} {y:g}V{bend:g}C{x:g} {to_y:g} {to_x:g} {bend:g} {to_x:g} {to_y:g}"


def _said(box: Box) -> str:
    return f"{box.text} {box.detail}".replace("→", "to").strip()
