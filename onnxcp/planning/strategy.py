"""Which layers are decomposed at all, and how far: greedy acceptance with few trials.

Options of sites come in levels, from cautious to bold; a single level is the strategy of Zhang, Liu
& Weng 2023, by which layers are accepted one after the other as long as the network loses no more
than is allowed. Trials of networks are dear. If a network that loses too much still does so with
more layers decomposed, accepting layers one by one gives the same as accepting all of them where
that is allowed, and else one half and then the other: a layer that is refused is found in about
``log2(n)`` trials, and others are never tried by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

Place = TypeVar("Place", bound=Hashable)
Option = TypeVar("Option")

Chosen = Mapping[Place, Option]


def accept(
    levels: Sequence[Chosen[Place, Option]],
    within: Callable[[Chosen[Place, Option]], bool],
) -> tuple[dict[Place, Option], dict[Place, Option]]:
    """Take as bold an option for every place as is allowed.

    First all places go down together, as far as they may, which is found by bisection over the
    levels. From there they go on level by level; a place that is refused stays where it is.

    Parameters
    ----------
    levels
        From cautious to bold, the options of places; those to be accepted first come first. A place
        without an option at a level is not in it.
    within
        Whether a choice is allowed.

    Returns
    -------
    accepted
        The choice; it is allowed, or empty.
    refused
        The option of every place that was not, at the first level where it was not.
    """
    state: dict[Place, Option] = {}
    low, high = 0, len(levels)  # levels[:low] are allowed as a whole, levels[high] is not
    while low < high:
        middle = (low + high) // 2
        if within(levels[middle]):
            low = middle + 1
        else:
            high = middle
    if low:
        state = dict(levels[low - 1])
    refused: dict[Place, Option] = {}
    for level in levels[low:]:
        bolder = [(place, option) for place, option in level.items() if place not in refused]
        # Only the first of the levels is known to be too bold as a whole.
        state = _take(state, bolder, within, refused)
    return state, refused


def _take(
    state: dict[Place, Option],
    group: Sequence[tuple[Place, Option]],
    within: Callable[[Chosen[Place, Option]], bool],
    refused: dict[Place, Option],
) -> dict[Place, Option]:
    """Add to a choice what is allowed of a group, and to `refused` what is not."""
    added = {**state, **dict(group)}
    if added == state or within(added):
        return added
    if len(group) == 1:
        refused.update(group)
        return state
    half = len(group) // 2
    state = _take(state, group[:half], within, refused)
    return _take(state, group[half:], within, refused)
