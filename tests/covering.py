"""Parametrisations of which every gate runs enough to see all there is, and a night the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import pytest


def values_of(*row: Hashable) -> set[Hashable]:
    """Return what a row shows if nothing else is said: each of its values in its place."""
    return set(enumerate(row))


def covering(
    rows: Iterable[Sequence[Any]], shows: Callable[..., set[Hashable]] = values_of
) -> list[bool]:
    """Tell which rows to keep so that all that any of them shows is shown.

    Greedily the row that shows most that is new; of several, one of what was shown least often, so
    that the values of a full product come evenly.
    """
    showing = [shows(*row) for row in rows]
    missing = set[Hashable]().union(*showing)
    often: Counter[Hashable] = Counter()
    kept = [False] * len(showing)
    while missing:
        best = max(
            range(len(showing)),
            key=lambda n: (len(showing[n] & missing), -sum(often[each] for each in showing[n])),
        )
        kept[best] = True
        missing -= showing[best]
        often.update(showing[best])
    return kept


def thinned(
    names: str,
    rows: Iterable[Sequence[Any]],
    shows: Callable[..., set[Hashable]] = values_of,
    ids: Callable[..., str] = lambda *row: "-".join(map(str, row)),
) -> pytest.MarkDecorator:
    """Parametrise a test with all rows, those that show nothing new for `make nightly` only."""
    rows = list(rows)
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(*row, id=ids(*row), marks=[] if kept else [pytest.mark.nightly])
            for row, kept in zip(rows, covering(rows, shows), strict=True)
        ],
    )
