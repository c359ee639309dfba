"""The second plan: by what a refit showed of the families, or of one family alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from onnxcp.graph.site import Site
from onnxcp.planning.goal import Goal
from onnxcp.planning.option import Option
from onnxcp.planning.planner import Choice, Planner
from onnxcp.planning.search import Attempt, learn, search
from onnxcp.planning.survey import Surveyed
from tests.plans import DENSE, SPATIAL, SVD, option, seconds, sites
from tests.workshop import COUNT, Workshop, kept


class Mistaken(Workshop):
    """A workshop in which a mixture has so many times the error that is expected of it."""

    def __init__(self, penalty: float) -> None:
        super().__init__()
        self.penalty = penalty

    def error(self, choice: Choice) -> float:
        return super().error(choice) * (self.penalty if len(families(choice)) > 1 else 1)


def planner(near: float = 1.1) -> Planner:
    """Return sites of which either family is expected to be the better at one half."""
    found = []
    for number, site in enumerate(sites(COUNT)):
        options = [
            option(
                site,
                rank,
                family=family,
                after=DENSE * rank / 20,
                weight=1.0 if (family is SVD) is bool(number % 2) else near**2,
            )
            for family in (SVD, SPATIAL)
            for rank in range(1, 20)
        ]
        found.append(Surveyed(site, options[0].macs, tuple(options)))
    return Planner(found, seconds(COUNT))


def families(choice: Choice) -> set[str]:
    return {each.family.name for each in choice.options.values()}


def test_is_taken_where_it_turns_out_to_be_closer() -> None:
    shop = Mistaken(2.0)
    outcome = search(planner(), Goal(speedup=2.0), shop)
    assert outcome.attempt is not None
    assert len(families(outcome.attempt.made)) == 1
    assert [len(families(each)) for each in shop.built] == [2, 1]
    assert kept(outcome).error == outcome.attempt.error
    assert [each.kept for each in outcome.rounds] == [False, True]


def test_is_not_taken_where_it_is_not() -> None:
    shop = Mistaken(1.0)
    outcome = search(planner(), Goal(speedup=2.0), shop)
    assert outcome.attempt is not None
    assert len(families(outcome.attempt.made)) == 2
    assert len(shop.built) == 2
    assert [each.kept for each in outcome.rounds] == [True, False]


class Flattered(Mistaken):
    """A workshop in which a mixture is only closer to what it was fitted to."""

    def build(self, choice: Choice, planner: Planner, *, compete: bool = True) -> Attempt[Choice]:
        attempt = super().build(choice, planner, compete=compete)
        return replace(attempt, held=attempt.error * (3 if len(families(choice)) > 1 else 1))


def test_is_judged_by_what_nothing_was_fitted_to() -> None:
    shop = Flattered(1.0)
    outcome = search(planner(), Goal(speedup=2.0), shop)
    assert outcome.attempt is not None
    assert len(families(outcome.attempt.made)) == 1
    assert kept(outcome).error == outcome.attempt.error


def test_is_not_built_where_it_is_expected_to_be_far_off() -> None:
    shop = Mistaken(2.0)
    search(planner(near=4.0), Goal(speedup=2.0), shop)
    assert len(shop.built) == 1


def test_is_not_tried_where_the_goal_is_missed() -> None:
    shop = Mistaken(2.0)
    outcome = search(planner(), Goal(speedup=30.0), shop)
    assert outcome.shortfall
    assert len(shop.built) == 1


class Taught(Workshop):
    """A workshop in which one family is worse than expected, which a refit shows."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def error(self, choice: Choice) -> float:
        true = {SVD: 1 / self.factor, SPATIAL: self.factor}
        return math.sqrt(sum(true[o.family] * o.error for o in choice.options.values()))

    def build(self, choice: Choice, planner: Planner, *, compete: bool = True) -> Attempt[Choice]:
        attempt = super().build(choice, planner, compete=compete)
        if self.factor == 1:
            return replace(attempt, lessons={SVD: 1.0, SPATIAL: 1.0})
        first = len(self.built) == 1
        lessons = {SVD: 1 / self.factor, SPATIAL: self.factor}
        return replace(attempt, lessons=lessons if first else {})


def test_what_a_refit_shows_of_families_makes_another_plan() -> None:
    shop = Taught(3.0)
    outcome = search(planner(), Goal(speedup=2.0), shop)
    assert outcome.attempt is not None
    before, after = shop.built
    assert families(before) == {SVD.name, SPATIAL.name}
    assert families(after) == {SVD.name}
    assert shop.error(after) < shop.error(before)
    assert outcome.attempt.made is not before
    assert kept(outcome).error == shop.error(outcome.attempt.choice)


class Misled(Taught):
    """A workshop in which a mixture is worse than a refit shows, too."""

    def error(self, choice: Choice) -> float:
        return super().error(choice) * (3.0 if len(families(choice)) > 1 else 1.0)


def test_of_one_family_is_built_besides_where_lessons_still_leave_a_mixture() -> None:
    shop = Misled(1.05)
    outcome = search(planner(), Goal(speedup=2.0), shop)
    assert [len(families(each)) for each in shop.built] == [2, 2, 1]
    assert outcome.attempt is not None
    assert families(outcome.attempt.made) == {SVD.name}
    assert [each.kept for each in outcome.rounds] == [False, False, True]
    assert kept(outcome).error == shop.error(outcome.attempt.choice)


def test_of_one_family_is_not_built_where_the_second_was_just_that() -> None:
    """Also where the clock made another plan of it than was chosen at first."""
    shop = Taught(3.0)
    shop.speed = lambda number: 0.8 if number > 0 else 1.0
    search(planner(), Goal(speedup=2.0), shop)
    keys = [each.key() for each in shop.built]
    assert len(set(keys)) == len(keys) == 2


def test_of_one_family_is_not_taken_where_the_mixture_is_closer() -> None:
    shop = Taught(1.02)
    outcome = search(planner(), Goal(speedup=2.0), shop)
    assert [len(families(each)) for each in shop.built] == [2, 2, 1]
    assert outcome.attempt is not None
    errors = [shop.error(each) for each in shop.built]
    assert kept(outcome).error == min(errors) == errors[1]


def test_that_changes_nothing_is_no_other_plan() -> None:
    shop = Taught(1.0)
    outcome = search(planner(near=4.0), Goal(speedup=2.0), shop)
    assert len(shop.built) == len(outcome.rounds) == 1
    # Where one family comes near, it is built besides; the mixture is not built again.
    shop = Taught(1.0)
    search(planner(), Goal(speedup=2.0), shop)
    assert [len(families(each)) for each in shop.built] == [2, 1]


def test_a_small_plan_foretells_no_network_of_no_time() -> None:
    whole = planner()
    choice = whole.choose(Goal(speedup=1.1))
    whole.learn_time(choice, seconds(COUNT), 0.5 * seconds(COUNT))
    kept = 1 / 20  # of the time of sites, by their cheapest options
    assert 1 < whole.fastest <= 1.001 / (0.2 * kept)


def test_what_was_measured_is_what_is_expected_of_it_after_a_lesson() -> None:
    """A factor that is the same for all of a plan says nothing new of its error."""
    whole, goal = planner(), Goal(speedup=2.0)
    choice = whole.choose(goal)
    lessons = {SVD: 0.5, SPATIAL: 0.5}
    learn(whole, Attempt(choice, choice, 0.3, lessons=lessons), {})
    again = whole.choose(goal)
    assert again.key() == choice.key()
    assert whole.forecast(again).error == pytest.approx(0.3)


def test_a_plan_that_lessons_leave_as_it_was_is_not_built_again() -> None:
    """Also where competition made something else of it."""

    class Swapping(Workshop):
        def build(
            self, choice: Choice, planner: Planner, *, compete: bool = True
        ) -> Attempt[Choice]:
            attempt = super().build(choice, planner, compete=compete)
            return replace(attempt, lessons={SVD: 1.001, SPATIAL: 0.999})

    shop = Swapping(closer=lambda option: replace(option, family=SPATIAL))
    search(planner(near=3.0), Goal(speedup=2.0), shop)
    assert len(shop.built) == 1


def test_lessons_are_factors_of_expected_errors() -> None:
    whole = planner()
    (before, *_) = (each.options for each in whole.sites)
    whole.learn_options({SVD: 2.0}, {}, Choice({}))
    (after, *_) = (each.options for each in whole.sites)
    for old, new in zip(before, after, strict=True):
        factor = 2.0 if old.family is SVD else 1.0
        assert (new.error, new.distortion) == (factor * old.error, factor * old.distortion)
        assert (new.site, new.family, new.ranks, new.timing) == (
            old.site, old.family, old.ranks, old.timing,
        )  # fmt: skip


def test_lessons_of_sites_are_factors_of_what_they_add() -> None:
    whole, goal = planner(), Goal(speedup=2.0)
    choice, before = whole.choose(goal), whole.sites
    worse = next(iter(choice.options))

    def corrected(option: Option) -> float:
        factor = 0.5 if option.family is SVD else 1.0
        return factor * (4.0 if option.site is worse else 1.0) * option.error

    known = whole.learn_options({SVD: 0.5}, {worse: 4.0}, choice)
    for site, each in choice.options.items():
        assert known.options[site].error == corrected(each)
    for old, new in zip(before, whole.sites, strict=True):
        assert [each.error for each in new.options] == list(map(corrected, old.options))


def test_a_site_that_turns_out_to_add_more_is_given_more_time() -> None:
    class Surprised(Workshop):
        def site_lessons(self, attempt: Attempt[Choice]) -> dict[Site, float]:
            return {next(iter(attempt.choice.options)): 4.0}

    shop = Surprised()
    search(planner(), Goal(speedup=2.0), shop)
    before, after = shop.built[:2]
    worse = next(iter(before.options))
    left = after.options.get(worse)
    assert left is None or left.timing.after > before.options[worse].timing.after


def test_what_is_built_of_it_competes_with_all_families() -> None:
    whole = planner()
    alone = whole.only(SVD.name)
    for each in alone.sites:
        assert {option.family for option in each.options} == {SVD}
        assert {option.family for option in alone.rivals(each.site)} == {SVD, SPATIAL}
        assert {option.family for option in whole.rivals(each.site)} == {SVD, SPATIAL}
    assert alone.only(SVD.name).rivals(alone.sites[0].site) == whole.rivals(alone.sites[0].site)
