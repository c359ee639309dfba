"""The rows that a gate keeps of many show all that the many show."""

from __future__ import annotations

import itertools
from collections import Counter

from tests.covering import covering, thinned


def test_each_value_of_a_product_is_kept_and_evenly() -> None:
    rows = list(itertools.product("abcdef", (1, 2)))
    kept = list(itertools.compress(rows, covering(rows)))
    assert Counter(letter for letter, _ in kept) == dict.fromkeys("abcdef", 1)
    assert Counter(number for _, number in kept) == {1: 3, 2: 3}


def test_pairs_are_kept_where_they_are_what_a_row_shows() -> None:
    rows = list(itertools.product("ab", (1, 2), "xyz"))
    kept = itertools.compress(rows, covering(rows, lambda a, n, x: {(a, n), x}))
    pairs, last = zip(*((row[:2], row[2]) for row in kept), strict=True)
    assert sorted(pairs) == sorted(itertools.product("ab", (1, 2)))
    assert set(last) == set("xyz")


def test_rows_that_show_nothing_new_wait_for_the_night() -> None:
    _, parameters = thinned("a,b", [(1, 1), (1, 2), (2, 1), (2, 2)]).mark.args
    marks = {each.id: [mark.name for mark in each.marks] for each in parameters}
    assert marks == {"1-1": [], "1-2": ["nightly"], "2-1": ["nightly"], "2-2": []}
