"""The allocation, held against trying out everything."""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcp.planning.allocate import MEASURES, Weighed, allocate, nearest, undominated

Sites = Sequence[Sequence[Weighed]]

# What the solver may be off by: on limits 1e-6 of the largest number of a measure, and on the
# objective, besides, the gap that it is content with.
SLACK = 1e-5
GAP = 1e-3

DENSE = Weighed(seconds=0.0, macs=100.0, parameters=100.0, distortion=0.0, error=0.0)


def weighed(cost: float, loss: float) -> Weighed:
    """Return an option that is cheap in every way, and costs in every way."""
    return Weighed(cost - 100.0, cost, cost, loss, loss)


def total(sites: Sites, chosen: Sequence[int], measure: str) -> float:
    return sum(getattr(site[each], measure) for site, each in zip(sites, chosen, strict=True))


def exhaustive(
    sites: Sites, objective: str, limits: Mapping[str, float], among: Sequence[Sequence[int]]
) -> float | None:
    """Return the least objective within the limits over all there is, or None."""
    fitting = [
        total(sites, chosen, objective)
        for chosen in itertools.product(*among)
        if all(total(sites, chosen, each) <= limit for each, limit in limits.items())
    ]
    return min(fitting, default=None)


def ladders(*, sites: int, rungs: int, seed: int) -> list[list[Weighed]]:
    """Return sites of all sizes with options that lose the more the less they cost."""
    rng = np.random.default_rng(seed)
    found = []
    for size in rng.uniform(0.1, 10, sites):
        costs = size * np.sort(rng.uniform(0.05, 0.9, rungs))
        losses = rng.uniform(0.1, 10) * (size / costs - 1)
        options = [Weighed(c - size, c, c, d, d) for c, d in zip(costs, losses, strict=True)]
        found.append([Weighed(0.0, size, size, 0.0, 0.0), *options])
    return found


numbers = st.integers(0, 1000).map(lambda n: n / 10)


@st.composite
def networks(draw: st.DrawFn) -> list[list[Weighed]]:
    """Draw a few sites; of each there is the site itself, and options that cost less and lose."""
    sites = []
    for _ in range(draw(st.integers(1, 4))):
        options = draw(st.lists(st.tuples(numbers, numbers), max_size=4))
        sites.append([DENSE, *(weighed(cost, loss) for cost, loss in options)])
    return sites


class TestAgainstEverything:
    @given(networks(), st.floats(0, 1))
    @settings(max_examples=60, deadline=None)
    def test_least_distortion_within_a_time(self, sites: Sites, share: float) -> None:
        self.check(sites, "distortion", "seconds", share)

    @given(networks(), st.floats(0, 1))
    @settings(max_examples=60, deadline=None)
    def test_least_time_within_an_error(self, sites: Sites, share: float) -> None:
        self.check(sites, "seconds", "error", share)

    @given(networks(), st.floats(0, 1))
    @settings(max_examples=60, deadline=None)
    def test_least_distortion_within_multiply_adds(self, sites: Sites, share: float) -> None:
        self.check(sites, "distortion", "macs", share)

    def check(self, sites: Sites, objective: str, measure: str, share: float) -> None:
        """With a limit anywhere between what is least and what is most."""
        most = sum(max(getattr(each, measure) for each in options) for options in sites)
        low = least(sites, measure)
        limit = low + share * (most - low)
        chosen = allocate(sites, objective, {measure: limit})
        scales = {
            each: max(abs(getattr(one, each)) for site in sites for one in site) or 1.0
            for each in (objective, measure)
        }
        fronts = [undominated(options, objective, measure) for options in sites]
        slack = SLACK * scales[measure]
        best = exhaustive(sites, objective, {measure: limit - slack}, fronts)
        if chosen is None:
            assert best is None
            return
        assert all(each in kept for each, kept in zip(chosen, fronts, strict=True))
        assert total(sites, chosen, measure) <= limit + slack
        if best is not None:
            found = total(sites, chosen, objective)
            assert found <= best + GAP * abs(found) + SLACK * scales[objective]

    @pytest.mark.parametrize("seed", range(20))
    def test_within_several_limits(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        sites = [
            [DENSE, *(Weighed(-s, m, p, d, d) for s, m, p, d in rng.uniform(1, 100, (3, 4)))]
            for _ in range(4)
        ]
        limits = {"seconds": -80.0, "macs": 330.0, "parameters": 330.0}
        fronts = [undominated(options, "distortion", "seconds") for options in sites]
        best = exhaustive(sites, "distortion", limits, fronts)
        chosen = allocate(sites, "distortion", limits)
        assert (chosen is None) == (best is None)
        if chosen is not None:
            assert total(sites, chosen, "distortion") == pytest.approx(best, rel=2 * GAP)
            for measure, limit in limits.items():
                assert total(sites, chosen, measure) <= limit + SLACK * 100

    def test_of_a_large_network(self) -> None:
        """As many sites as any network has, with a ladder each; greedy by slopes is close here."""
        sites = ladders(sites=60, rungs=30, seed=0)
        limit = 0.5 * sum(options[0].macs for options in sites)
        chosen = allocate(sites, "distortion", {"macs": limit})
        assert chosen is not None
        found = total(sites, chosen, "distortion")
        assert total(sites, chosen, "macs") <= limit * (1 + SLACK)
        # Weak duality: whatever a unit is priced at, no choice comes below.
        bounds = [
            sum(min(o.distortion + price * o.macs for o in options) for options in sites)
            - price * limit
            for price in np.geomspace(1e-3, 1e3, 400)
        ]
        assert max(bounds) <= found * (1 + SLACK) <= max(bounds) * 1.01


class TestLimits:
    @pytest.mark.parametrize("measure", MEASURES)
    def test_that_cannot_be_met(self, measure: str) -> None:
        sites = [[DENSE, weighed(40.0, 2.0)], [DENSE, weighed(10.0, 3.0)]]
        low = least(sites, measure)
        assert allocate(sites, "distortion", {measure: low - 1.0}) is None

    def test_that_are_met_to_the_point(self) -> None:
        sites = [[DENSE, weighed(40.0, 2.0)], [DENSE, weighed(10.0, 3.0)]]
        assert allocate(sites, "distortion", {"macs": 50.0}) == [1, 1]
        assert allocate(sites, "distortion", {"macs": 110.0}) == [0, 1]
        assert allocate(sites, "distortion", {"macs": 200.0}) == [0, 0]

    def test_without_any_the_objective_alone_counts(self) -> None:
        sites = [[DENSE, weighed(40.0, 2.0), weighed(10.0, 3.0)]]
        assert allocate(sites, "distortion", {}) == [0]
        assert allocate(sites, "macs", {}) == [2]

    def test_of_no_sites(self) -> None:
        assert allocate([], "distortion", {"macs": 1.0}) == []
        assert allocate([], "seconds", {}) == []
        assert allocate([], "distortion", {"seconds": -1.0}) is None

    def test_where_there_is_only_the_site_itself(self) -> None:
        assert allocate([[DENSE], [DENSE]], "distortion", {"seconds": 0.0}) == [0, 0]
        assert allocate([[DENSE], [DENSE]], "distortion", {"seconds": -1.0}) is None

    @pytest.mark.parametrize("unit", [1e-9, 1.0, 1e12])
    def test_do_not_depend_on_units(self, unit: float) -> None:
        def option(cost: float, loss: float) -> Weighed:
            each = weighed(cost, loss)
            return Weighed(each.seconds * unit, each.macs, each.parameters, loss / unit, loss)

        sites = [
            [DENSE, *(option(cost, row + 100.0 / cost) for cost in (5.0, 20.0, 60.0))]
            for row in range(3)
        ]
        chosen = allocate(sites, "distortion", {"seconds": -150.0 * unit})
        assert chosen == [2, 2, 0]

    def test_where_the_objective_is_the_same_the_faster_is_taken(self) -> None:
        """A share of multiply-adds that several meet without any distortion."""
        sites = [
            [DENSE, Weighed(-10.0, 50.0, 50.0, 1.0, 1.0), Weighed(-20.0, 49.0, 49.0, 1.0, 1.0)]
        ]
        assert allocate(sites, "distortion", {"macs": 60.0}) == [2]

    def test_of_two_that_are_the_same_otherwise_the_faster_is_taken(self) -> None:
        slow, fast = Weighed(-10.0, 50.0, 50.0, 1.0, 1.0), Weighed(-20.0, 50.0, 50.0, 1.0, 1.0)
        assert allocate([[DENSE, slow, fast]], "distortion", {"macs": 60.0}) == [2]
        assert allocate([[DENSE, fast, slow]], "distortion", {"macs": 60.0}) == [1]


class TestUndominated:
    def of(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        options = [weighed(x, y) for x, y in points]
        kept = [options[each] for each in undominated(options, "distortion", "macs")]
        return [(each.macs, each.distortion) for each in kept]

    def test_goes_from_the_cheapest_to_the_least_objective(self) -> None:
        assert self.of((4, 0), (1, 9), (2, 4), (3, 1)) == [(1, 9), (2, 4), (3, 1), (4, 0)]

    def test_leaves_out_what_is_dearer_and_no_better(self) -> None:
        assert self.of((1, 5), (2, 5), (3, 6), (4, 1)) == [(1, 5), (4, 1)]

    def test_keeps_what_lies_above_a_line(self) -> None:
        assert self.of((0, 10), (1, 9.5), (2, 0)) == [(0, 10), (1, 9.5), (2, 0)]

    @pytest.mark.parametrize("bad", [math.inf, math.nan])
    def test_leaves_out_what_is_not_finite(self, bad: float) -> None:
        assert self.of((1, bad), (bad, 0), (2, 3)) == [(2, 3)]

    def test_of_one_and_of_equals(self) -> None:
        assert self.of((1, 2)) == [(1, 2)]
        assert self.of((1, 2), (1, 2), (1, 3)) == [(1, 2)]

    @given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30))
    @settings(max_examples=100, deadline=None)
    def test_nothing_is_cheaper_and_as_good(self, points: list[tuple[float, float]]) -> None:
        kept = self.of(*points)
        assert kept[0] == min(points)
        assert kept[-1][1] == min(y for _, y in points)
        assert all(a < c and b > d for (a, b), (c, d) in itertools.pairwise(kept))
        assert all(any(a <= x and b <= y for a, b in kept) for x, y in points)


def test_the_nearest_has_the_least_of_each() -> None:
    """Of those that are the same there the least objective; what is not finite does not count."""
    sites = [
        [DENSE, weighed(40.0, 2.0)],
        [DENSE],
        [weighed(20.0, 1.0), weighed(10.0, 3.0)],
        [weighed(10.0, 3.0), weighed(10.0, 2.0), weighed(5.0, math.inf)],
    ]
    assert nearest(sites, "distortion", "macs") == [1, 0, 1, 1]
    assert nearest([], "distortion", "macs") == []


def least(sites: Sites, measure: str) -> float:
    return float(sum(min(getattr(each, measure) for each in options) for options in sites))


@pytest.mark.parametrize("seed", [0, 4])
def test_nothing_is_printed(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Stdout is for results; for these two some versions of HiGHS have something to say."""
    sites = ladders(sites=8, rungs=12, seed=seed)
    limit = 0.5 * sum(options[0].macs for options in sites)
    assert allocate(sites, "distortion", {"macs": limit}) is not None
    if sys.platform != "win32":
        ctypes.CDLL(None).fflush(None)  # what C prints is held back where it is not to a screen
    assert capfd.readouterr().out == ""
