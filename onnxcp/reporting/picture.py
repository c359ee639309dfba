"""What networks lose over how much faster they are, laid out; the template draws it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 388, 14, 200
"""Edges of the field inside the axes, in units of the drawing; so are all places here."""

Kind = Literal["original", "plan", "taken"]

_TICKS = 5
_LETTER, _LINE = 6.5, 12.0  # width and height that text of 12 units takes, on the safe side
_REACH = 6.0  # of a dot, with some air


@dataclass(frozen=True)
class Mark:
    """A network: how many times faster it is, what it loses or scores, and what to call it."""

    speedup: float
    value: float
    label: str
    kind: Kind = "plan"


@dataclass(frozen=True)
class Tick:
    """A number at an axis, and its place along it."""

    at: float
    text: str


@dataclass(frozen=True)
class Label:
    """A text, its baseline, and which end of it is given: ``start``, ``middle`` or ``end``."""

    text: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Dot:
    """A network in its place; without a label where there is no room for one."""

    x: float
    y: float
    kind: Kind
    label: Label | None


@dataclass(frozen=True)
class Picture:
    """Networks over their speed-up.

    Attributes
    ----------
    name
        A word to make ids of.
    title
        What it shows.
    value
        What is on the vertical axis.
    across, up
        Ticks of the axes.
    curve
        Points from the original through what was planned, as SVG takes them.
    dots
        The networks.
    """

    name: str
    title: str
    value: str
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    curve: str
    dots: tuple[Dot, ...]


def draw(
    name: str,
    value: str,
    marks: Sequence[Mark],
    text: Callable[[float], str],
    *,
    floor: float | None = None,
) -> Picture | None:
    """Lay out a picture; None if nothing planned is to be seen, or nothing else beside it.

    Parameters
    ----------
    name, value
        A word to make ids of, and what is on the vertical axis.
    marks
        The networks; those whose place is not finite are left out.
    text
        Writes a value.
    floor
        Where the vertical axis begins, at the latest.
    """
    seen = [each for each in marks if math.isfinite(each.speedup) and math.isfinite(each.value)]
    if len(seen) < 2 or not any(each.kind == "plan" for each in seen):
        return None
    seen.sort(key=lambda mark: mark.speedup)
    across = _ticks([1.0, *(mark.speedup for mark in seen)])
    up = _ticks([*([] if floor is None else [floor]), *(mark.value for mark in seen)])
    places = [
        (_place(mark.speedup, across, LEFT, RIGHT), _place(mark.value, up, BOTTOM, TOP))
        for mark in seen
    ]
    line = [place for mark, place in zip(seen, places, strict=True) if mark.kind != "taken"]
    return Picture(
        name=name,
        title=f"Speed-up and {value}",
        value=value,
        across=tuple(Tick(_place(at, across, LEFT, RIGHT), f"{at:g}×") for at in across),
        up=tuple(Tick(_place(at, up, BOTTOM, TOP), text(at)) for at in up),
        curve=" ".join(f"{x:g},{y:g}" for x, y in line),
        dots=tuple(_dots(seen, places)),
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers from below the least to above the largest."""
    low, high = min(values), max(values)
    rough = ((high - low) or abs(high) or 1.0) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    # A hair is taken off, so that 0.3 is no more than three times 0.1.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(number * step, digits) for number in range(first, max(last, first + 1) + 1)]


def _place(value: float, ticks: Sequence[float], first: float, last: float) -> float:
    return round(first + (last - first) * (value - ticks[0]) / (ticks[-1] - ticks[0]), 1)


def _dots(marks: Sequence[Mark], places: Sequence[tuple[float, float]]) -> Iterator[Dot]:
    """Give every dot a label that covers no other, if there is room."""
    taken = [(x - _REACH, y - _REACH, x + _REACH, y + _REACH) for x, y in places]
    rising = places[-1][1] < places[0][1]
    texts = _texts(marks, places)
    for number, (mark, (x, y)) in enumerate(zip(marks, places, strict=True)):
        found = None
        for label in _labels(texts.get(number, ""), x, y, rising=rising):
            box = _box(label)
            if label.text and _inside(box) and not any(_overlap(box, each) for each in taken):
                found = label
                taken.append(box)
                break
        yield Dot(x, y, mark.kind, found)


def _texts(marks: Sequence[Mark], places: Sequence[tuple[float, float]]) -> dict[int, str]:
    """Call dots that lie on each other by all of their names, at the first of them."""
    names: dict[int, list[str]] = {}
    for number, (x, y) in enumerate(places):
        first = next(
            each
            for each in (*names, number)
            if marks[each].kind == marks[number].kind
            and max(abs(places[each][0] - x), abs(places[each][1] - y)) <= _REACH
        )
        names.setdefault(first, []).append(marks[number].label)
    return {first: ", ".join(dict.fromkeys(each)) for first, each in names.items()}


def _labels(text: str, x: float, y: float, *, rising: bool) -> Iterator[Label]:
    """Yield the places for a label around a dot, those that are off the curve first."""
    side = ("end", -1) if rising else ("start", 1)
    other = ("start", 1) if rising else ("end", -1)
    for (anchor, sign), down in ((side, -7), (other, 16), (other, -7), (side, 16)):
        yield Label(text, x + 7 * sign, y + down, anchor)
    yield Label(text, x, y - 11, "middle")
    yield Label(text, x, y + 21, "middle")


def _box(label: Label) -> tuple[float, float, float, float]:
    width = _LETTER * len(label.text)
    left = label.x - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    return left, label.y - 0.75 * _LINE, left + width, label.y + 0.25 * _LINE


def _inside(box: tuple[float, float, float, float]) -> bool:
    left, top, right, bottom = box
    return left >= LEFT and top >= TOP and right <= RIGHT and bottom <= BOTTOM


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
