"""The planner: choices for goals, what is expected of them, and what is learnt from them."""

from __future__ import annotations

import itertools
import math

import pytest

from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.planning.goal import Goal
from onnxcp.planning.option import Option
from onnxcp.planning.planner import Choice, Planner
from onnxcp.planning.survey import Surveyed
from tests.plans import CHANNELS, DENSE, REST, SPATIAL, SVD, option, seconds, sites, surveyed

MACS = CHANNELS**2 * 9 * 400


def planner(count: int = 6, **options: object) -> Planner:
    return Planner(surveyed(count, **options), seconds(count))


def saving(choice: Choice) -> float:
    return sum(each.saving for each in choice.options.values())


def ranks(choice: Choice) -> list[int]:
    return [each.ranks[0] for each in choice.options.values()]


class TestSpeed:
    @pytest.mark.parametrize("speedup", [1.01, 1.5, 2.0, 3.0, 5.0])
    def test_is_reached(self, speedup: float) -> None:
        plan = planner(seed=0)
        choice = plan.choose(Goal(speedup=speedup))
        assert choice.reached
        forecast = plan.forecast(choice)
        assert forecast.speedup >= speedup * (1 - 1e-4)
        assert forecast.before == seconds()
        assert forecast.after == pytest.approx(seconds() - saving(choice))

    @pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0])
    def test_is_not_overdone(self, speedup: float) -> None:
        """Options are many and near each other, so what is asked for is met almost to the point."""
        plan = planner(seed=0)
        assert plan.forecast(plan.choose(Goal(speedup=speedup))).speedup < 1.1 * speedup

    def test_costs_the_more_the_higher(self) -> None:
        plan = planner(seed=0)
        losses = [
            plan.forecast(plan.choose(Goal(speedup=each))).distortion for each in (1.5, 2, 3, 4)
        ]
        assert all(a < b for a, b in itertools.pairwise(losses))

    def test_is_another_word_for_latency(self) -> None:
        plan = planner(seed=0)
        by_speed = plan.choose(Goal(speedup=2.0))
        by_latency = plan.choose(Goal(latency=seconds() / 2.0))
        assert by_speed.key() == by_latency.key()

    def test_that_the_network_has_already_changes_nothing(self) -> None:
        choice = planner().choose(Goal(latency=2 * seconds()))
        assert choice.reached
        assert choice.options == {}

    @pytest.mark.parametrize("goal", [Goal(speedup=100), Goal(latency=1e-6)])
    def test_that_is_out_of_reach_is_come_close_to(self, goal: Goal) -> None:
        plan = planner(seed=0)
        choice = plan.choose(goal)
        assert not choice.reached
        assert ranks(choice) == [1] * 6
        assert plan.forecast(choice).speedup == pytest.approx(plan.fastest)

    @pytest.mark.parametrize("seed", range(3))
    def test_is_had_for_the_least_distortion(self, seed: int) -> None:
        """Held against everything that there is."""
        plan = planner(3, ranks=(1, 2, 4, 8, 16), seed=seed)
        choice = plan.choose(Goal(speedup=2.0))
        menus = [(None, *each.options) for each in plan.sites]
        best = min(
            sum(o.distortion for o in chosen if o is not None)
            for chosen in itertools.product(*menus)
            if sum(o.saving for o in chosen if o is not None) >= seconds(3) / 2
        )
        assert plan.forecast(choice).distortion >= best - 1e-12
        assert plan.forecast(choice).distortion <= (1 + 1e-3) * best


class TestSize:
    @pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
    def test_a_share_of_multiply_adds_is_kept_to(self, share: float) -> None:
        plan = planner(seed=0)
        choice = plan.choose(Goal(macs=share))
        chosen = {site.name: o.macs for site, o in choice.options.items()}
        total = sum(chosen.get(each.site.name, MACS) for each in plan.sites)
        assert choice.reached
        assert 0.85 * share < total / (6 * MACS) <= share * (1 + 1e-5)

    @pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
    def test_a_share_of_weights_is_kept_to(self, share: float) -> None:
        plan = planner(seed=0)
        choice = plan.choose(Goal(parameters=share))
        chosen = {site.name: o.parameters for site, o in choice.options.items()}
        total = sum(chosen.get(each.site.name, each.site.parameters) for each in plan.sites)
        whole = sum(each.site.parameters for each in plan.sites)
        assert choice.reached
        assert 0.85 * share < total / whole <= share * (1 + 1e-5)

    @pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
    @pytest.mark.parametrize("measure", ["macs", "parameters"])
    def test_what_is_not_at_the_sites_counts(self, measure: str, share: float) -> None:
        found = surveyed(6)
        sizes = {"macs": 6 * MACS, "parameters": sum(each.site.parameters for each in found)}
        size = sizes[measure]
        plan = Planner(found, seconds(6), **{measure: round(1.25 * size)})
        choice = plan.choose(Goal(**{measure: share}))
        alone = Planner(found, seconds(6)).choose(Goal(**{measure: 1.25 * share - 0.25}))
        assert choice.key() == alone.key()
        assert choice.reached

    @pytest.mark.parametrize("goal", [Goal(macs=0.2), Goal(parameters=0.2)])
    def test_a_share_less_than_what_is_not_at_the_sites_is_out_of_reach(self, goal: Goal) -> None:
        plan = Planner(surveyed(6), seconds(6), macs=8 * MACS, parameters=10**9)
        assert not plan.choose(goal).reached

    @pytest.mark.parametrize("goal", [Goal(macs=0.001), Goal(parameters=0.001)])
    def test_that_is_out_of_reach_is_come_close_to(self, goal: Goal) -> None:
        choice = planner(seed=0).choose(goal)
        assert not choice.reached
        assert ranks(choice) == [1] * 6

    def test_a_site_whose_cost_is_unknown_counts_for_nothing(self) -> None:
        known, unknown = surveyed(2)
        plan = Planner([known, Surveyed(unknown.site, None)], seconds(2))
        choice = plan.choose(Goal(macs=0.5))
        assert choice.reached
        assert list(choice.options) == [known.site]


class TestError:
    @pytest.mark.parametrize("limit", [0.02, 0.1, 0.3, 1.0])
    def test_is_kept_to_with_something_to_spare(self, limit: float) -> None:
        plan = planner(seed=0)
        choice = plan.choose(Goal(max_error=limit))
        assert choice.reached
        assert choice.options
        assert plan.forecast(choice).error <= 0.96 * limit

    def test_is_used_up_for_speed(self) -> None:
        plan = planner(seed=0)
        forecasts = [
            plan.forecast(plan.choose(Goal(max_error=limit))) for limit in (0.02, 0.05, 0.1)
        ]
        for limit, forecast in zip((0.02, 0.05, 0.1), forecasts, strict=True):
            assert forecast.error > 0.8 * limit
        speeds = [forecast.speedup for forecast in forecasts]
        assert speeds == sorted(speeds)
        assert speeds[0] > 1

    def test_that_nothing_keeps_to_leaves_all_as_it_is(self) -> None:
        choice = planner().choose(Goal(max_error=1e-6))
        assert choice.reached
        assert choice.options == {}

    def test_without_a_goal_a_tenth_is_tolerated(self) -> None:
        plan = planner(seed=0)
        assert plan.choose(Goal()).key() == plan.choose(Goal(max_error=0.1)).key()

    def test_is_added_up_from_squares(self) -> None:
        plan = planner()
        picked = {each.site: each.options[k] for k, each in enumerate(plan.sites)}
        forecast = plan.forecast(Choice(picked))
        expected = sum(o.error for o in picked.values())
        assert forecast.error == pytest.approx(math.sqrt(expected))
        assert forecast.distortion == pytest.approx(10 * expected)


class TestLearning:
    @pytest.mark.parametrize("factor", [0.3, 0.8, 1.7])
    def test_the_time_of_the_network_is_what_was_measured(self, factor: float) -> None:
        """Where the machine has become slower since, it has for what is saved as well."""
        plan = planner(seed=0)
        choice = plan.choose(Goal(speedup=2.0))
        for slower in (1.0, 2.0, 2.0):
            after = slower * (seconds() - factor * saving(choice))
            plan.learn_time(choice, slower * seconds(), after)
        forecast = plan.forecast(choice)
        assert forecast.before == plan.seconds == 2 * seconds()
        assert forecast.after == pytest.approx(after)
        other = plan.choose(Goal(speedup=1.3))
        expected = 2 * (seconds() - factor * saving(other))
        assert plan.forecast(other).after == pytest.approx(expected)

    def test_one_slow_moment_leaves_what_is_expected(self) -> None:
        plan = planner(seed=0)
        choice = plan.choose(Goal(speedup=2.0))
        for slower in (1.0, 1.9, 1.0):
            plan.learn_time(choice, slower * seconds(), slower * seconds() / 1.8)
        assert plan.forecast(choice).before == seconds()
        assert plan.forecast(choice).speedup == pytest.approx(1.8)

    @pytest.mark.parametrize("slower", [0.5, 2.0])
    def test_seconds_that_are_wanted_are_those_of_now(self, slower: float) -> None:
        plan = planner(seed=0)
        choice = plan.choose(Goal(speedup=2.0))
        after = slower * (seconds() - 0.9 * saving(choice))
        plan.learn_time(choice, slower * seconds(), after)
        again = plan.choose(Goal(latency=slower * seconds() / 1.5))
        assert again.key() == plan.choose(Goal(speedup=1.5)).key()
        assert plan.forecast(again).after <= slower * seconds() / 1.5

    @pytest.mark.parametrize(("factor", "kept"), [(0.01, 0.2), (-1.0, 0.2), (5.0, 2.0)])
    def test_of_times_that_cannot_be_true_only_so_much_is_believed(
        self, factor: float, kept: float
    ) -> None:
        plan = planner(seed=0)
        choice = plan.choose(Goal(speedup=1.2))
        plan.learn_time(choice, seconds(), seconds() - factor * saving(choice))
        assert plan.forecast(choice).after == pytest.approx(seconds() - kept * saving(choice))

    def test_the_last_that_was_learnt_counts(self) -> None:
        plan = planner(seed=0)
        choice = plan.choose(Goal(speedup=2.0))
        for factor in (0.5, 0.9):
            plan.learn_time(choice, seconds(), seconds() - factor * saving(choice))
        assert plan.forecast(choice).after == pytest.approx(seconds() - 0.9 * saving(choice))

    def test_of_a_machine_that_was_slower_when_sites_were_timed(self) -> None:
        """Together they cannot take longer than the network that they are in."""
        found = planner(seed=0).sites
        alone = sum(each.options[0].timing.before for each in found)
        half = Planner(found, alone / 2)
        choice = half.choose(Goal(speedup=1.5))
        assert half.forecast(choice).after == pytest.approx(alone / 2 - saving(choice) / 2)

    def test_between_two_plans_that_were_timed_both_count(self) -> None:
        """Chains that do worse the more there are: what lies between is met, and no end."""
        plan = planner(seed=0)
        few, many = plan.choose(Goal(speedup=1.3)), plan.choose(Goal(speedup=2.5))
        between = plan.choose(Goal(speedup=1.8))
        for choice, factor in ((few, 1.0), (many, 0.6)):
            plan.learn_time(choice, seconds(), seconds() - factor * saving(choice))
        share = (saving(between) - saving(few)) / (saving(many) - saving(few))
        saved = saving(few) + share * (0.6 * saving(many) - saving(few))
        assert 0.2 < share < 0.8
        assert plan.forecast(between).after == pytest.approx(seconds() - saved)
        again = plan.choose(Goal(speedup=1.6))
        assert again.reached
        assert plan.forecast(again).speedup == pytest.approx(1.6, rel=0.05)

    def test_slower_chains_mean_more_of_them(self) -> None:
        plan = planner(seed=0)
        first = plan.choose(Goal(speedup=2.0))
        plan.learn_time(first, seconds(), seconds() - 0.8 * saving(first))
        second = plan.choose(Goal(speedup=2.0))
        assert saving(second) > saving(first)
        assert plan.forecast(second).speedup >= 2 * (1 - 1e-4)

    @pytest.mark.parametrize("error", [0.01, 0.5])
    def test_the_error_of_a_choice_is_what_was_measured(self, error: float) -> None:
        plan = planner(seed=0)
        choice = plan.choose(Goal(max_error=0.1))
        before = plan.forecast(choice)
        plan.learn_error(choice, error)
        after = plan.forecast(choice)
        assert after.error == pytest.approx(error)
        assert after.distortion == pytest.approx(before.distortion * (error / before.error) ** 2)
        assert plan.forecast(plan.choose(Goal(max_error=0.1))).error <= 0.1

    @pytest.mark.parametrize("error", [0.0, 0.3])
    def test_nothing_is_learnt_from_nothing(self, error: float) -> None:
        plan = planner(seed=0)
        choice = plan.choose(Goal(speedup=2.0))
        before = plan.forecast(choice)
        plan.learn_error(Choice({}), error)
        plan.learn_error(choice, 0.0)
        plan.learn_time(Choice({}), seconds(), seconds() / 2)
        assert plan.forecast(choice) == before


class TestForgetting:
    WHY = Refusal("conv1", Reason.INACCURATE, "terms cancel")

    def test_takes_the_option_and_larger_ones_of_its_family(self) -> None:
        plan = planner(3, ranks=(2, 4, 8), families=(SVD, SPATIAL))
        unfit = plan.sites[1].options[1]
        assert (unfit.family, unfit.ranks) == (SVD, (4,))
        plan.forget(unfit, self.WHY)
        left = [(o.family.name, o.ranks[0]) for o in plan.sites[1].options]
        assert left == [("channel-svd", 2), *(("spatial-svd", rank) for rank in (2, 4, 8))]
        assert plan.sites[1].reasons == (self.WHY,)
        for each in (plan.sites[0], plan.sites[2]):
            assert len(each.options) == 6
            assert each.reasons == ()

    def test_it_is_not_chosen_again(self) -> None:
        plan = planner(seed=0)
        for _ in range(10):
            choice = plan.choose(Goal(speedup=2.0))
            if not choice.reached:
                break
            site, chosen = next(iter(choice.options.items()))
            plan.forget(chosen, Refusal(site.name, Reason.INACCURATE, "unfit"))
            again = plan.choose(Goal(speedup=2.0)).options.get(site)
            assert again is None or again.macs < chosen.macs

    def test_all_of_them_leaves_the_site(self) -> None:
        plan = planner(2)
        for each in plan.sites:
            plan.forget(each.options[0], self.WHY)
        assert plan.choose(Goal(speedup=2.0)).options == {}
        assert not plan.choose(Goal(speedup=2.0)).reached
        assert plan.fastest == 1


class TestFastest:
    def test_is_what_the_fastest_options_make(self) -> None:
        plan = planner(4, ranks=(1, 5))
        best = max(plan.sites[0].options, key=lambda o: o.saving)
        expected = seconds(4) / (REST + 4 * best.timing.after)
        assert plan.fastest == pytest.approx(expected)

    def test_follows_what_is_learnt(self) -> None:
        plan = planner()
        fastest = plan.choose(Goal(speedup=100))
        plan.learn_time(fastest, seconds(), seconds() - 0.5 * saving(fastest))
        assert plan.fastest == pytest.approx(seconds() / (seconds() - 0.5 * saving(fastest)))

    def test_of_nothing_is_one(self) -> None:
        assert Planner((), 1.0).fastest == 1
        assert Planner([Surveyed(sites(1)[0], MACS)], 1.0).fastest == 1


class TestWhatIsNotFinite:
    """An option with which the outputs overflow."""

    def one(self, *options: Option) -> Planner:
        (site,) = {each.site for each in options}
        return Planner([Surveyed(site, MACS, options)], REST + DENSE)

    @pytest.mark.parametrize("bad", [math.inf, math.nan])
    @pytest.mark.parametrize(
        "goal",
        [
            Goal(speedup=1.1),
            Goal(speedup=10),
            Goal(latency=1e-9),
            Goal(macs=0.01),
            Goal(parameters=0.01),
            Goal(max_error=0.5),
        ],
    )
    def test_is_never_chosen(self, goal: Goal, bad: float) -> None:
        (site,) = sites(1)
        plan = self.one(option(site, 2, error=bad, distortion=bad))
        choice = plan.choose(goal)
        assert choice.options == {}
        assert choice.reached == (goal.error is not None)

    @pytest.mark.parametrize("goal", [Goal(speedup=10), Goal(macs=0.01), Goal(parameters=0.01)])
    def test_leaves_the_closest_of_the_others(self, goal: Goal) -> None:
        (site,) = sites(1)
        bad, good = option(site, 1, error=math.inf, distortion=math.inf), option(site, 4)
        choice = self.one(bad, good).choose(goal)
        assert list(choice.options.values()) == [good]
        assert not choice.reached

    def test_makes_nothing_faster(self) -> None:
        (site,) = sites(1)
        bad, good = option(site, 1, error=math.inf, distortion=math.inf), option(site, 4)
        plan = self.one(bad, good)
        assert plan.fastest == pytest.approx(plan.forecast(Choice({site: good})).speedup)


def test_a_choice_is_known_by_sites_families_and_ranks() -> None:
    first, second = sites(2)
    choice = Choice({first: option(first, 3), second: option(second, 4)})
    assert choice.key() == (("conv0", "channel-svd", (3,)), ("conv1", "channel-svd", (4,)))
    same = Choice({first: option(first, 3, error=0.5), second: option(second, 4)}, reached=False)
    assert same.key() == choice.key()
    assert Choice({first: option(first, 3)}).key() != choice.key()
    assert Choice({first: option(first, 2), second: option(second, 4)}).key() != choice.key()


def test_options_stand_in_the_order_of_the_network() -> None:
    choice = planner(seed=3).choose(Goal(speedup=2.0))
    names = [site.name for site in choice.options]
    assert names == sorted(names)


@pytest.mark.parametrize("goal", [Goal(), Goal(macs=0.5), Goal(parameters=0.5)])
def test_of_a_network_without_sites_there_is_nothing_to_choose(goal: Goal) -> None:
    plan = Planner((), 1.0)
    choice = plan.choose(goal)
    assert choice.options == {}
    forecast = plan.forecast(choice)
    assert (forecast.before, forecast.after, forecast.error) == (1, 1, 0)
    assert forecast.speedup == 1


def test_a_speed_is_out_of_reach_of_a_network_without_sites() -> None:
    assert not Planner((), 1.0).choose(Goal(speedup=2.0)).reached
