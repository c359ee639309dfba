"""Where what was planned is not faster, or nothing can be: sites, or all of it, are given back."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from models.builder import GraphBuilder
from onnxcp import Optimized
from onnxcp.graph.refusal import Reason
from onnxcp.optimizer import make_plan
from onnxcp.planning.goal import Goal
from onnxcp.planning.plan import Plan, Row
from onnxcp.refit import RefitSettings
from onnxcp.verification import SESSIONS
from tests.clockwork import Clockwork
from tests.planned.conftest import (
    DATA,
    NAMES,
    chosen,
    data_or_none,
    made,
    network,
    penalty,
    planned,
    rows,
    serialized,
    settings,
)

WHY = "with it, the whole network was measured to be no faster"


class TestGivenBack:
    """Where the whole is not faster, sites that gain least for certain go first."""

    def gains(self, result: Optimized) -> dict[str, float]:
        return {
            name: row.before_ms - row.after_ms
            for name, row in rows(result.plan).items()
            if row.before_ms is not None and row.after_ms is not None
        }

    @data_or_none
    def test_the_doubtful_first(self, clock: Clockwork, data: Any) -> None:
        goal = Goal(macs=0.15)
        whole = made(goal, data is not None)
        gains = self.gains(whole)
        assert set(gains) == set(NAMES)
        least = sorted(gains, key=lambda name: gains[name])
        clock.verified = penalty(tuple(least[:1]))
        result = planned(data, goal=goal)
        assert result.improved
        # Half of them, the slowest among these.
        assert set(chosen(result)) == set(least[2:])
        assert {name: chosen(whole)[name] for name in least[2:]} == chosen(result)
        for each in result.decisions:
            if each.site.name in least[:2]:
                assert each.refusals[-1].reason is Reason.NOT_FASTER
                assert each.refusals[-1].detail == WHY
        assert {rows(result.plan)[name].keep for name in least[:2]} == {WHY}
        assert result.verification is not None
        assert result.verification.trial.faster

    def test_half_after_half(self, clock: Clockwork) -> None:
        goal = Goal(macs=0.15)
        gains = self.gains(made(goal))
        *others, best = sorted(gains, key=lambda name: gains[name])
        clock.counts.clear()
        clock.verified = penalty(tuple(others))
        result = planned(goal=goal)
        assert result.improved
        assert list(chosen(result)) == [best]
        assert clock.counts["verify"] == 3 * SESSIONS

    def test_in_the_end_the_original(self, clock: Clockwork) -> None:
        source = network()
        clock.verified = penalty(NAMES)
        result = planned(None, source, goal=Goal(macs=0.15))
        assert not result.improved
        assert result.model.proto is source
        assert "not faster" in result.verdict
        assert clock.counts["verify"] == 3 * SESSIONS
        assert result.verification is not None
        assert not result.verification.trial.faster

    @pytest.mark.parametrize("goal", [Goal(macs=0.15), Goal(speedup=4.0)], ids=str)
    def test_a_goal_that_is_missed_for_it_is_told(self, clock: Clockwork, goal: Goal) -> None:
        """What was planned would have reached it; what is left of the plan does not."""
        assert made(goal).planned is not None
        assert made(goal).planned.shortfall == ""
        clock.verified = penalty(("one",))
        result = planned(goal=goal)
        assert len(chosen(result)) < len(chosen(made(goal)))
        assert result.planned is not None
        assert result.planned.shortfall

    def test_what_is_left_is_fitted_anew(self, clock: Clockwork) -> None:
        """As if those that were given back had never been chosen."""
        settings = {"goal": Goal(macs=0.15), "refit": RefitSettings(scope="factorised")}
        clock.verified = penalty(("one",))
        result = planned(DATA, **settings)
        found = chosen(result)
        assert 0 < len(found) < 4
        rows = [Row(site=name, family=f, ranks=ranks) for name, (f, ranks) in found.items()]
        again = planned(DATA, plan=Plan(sites=tuple(rows)), refit=settings["refit"])
        assert serialized(again) == serialized(result)

    def test_not_where_the_outputs_overflow(self, clock: Clockwork, monkeypatch: Any) -> None:
        monkeypatch.setattr("onnxcp.proving.Proven.broken", True)
        clock.verified = penalty(NAMES)
        result = planned(goal=Goal(macs=0.15))
        assert not result.improved
        assert len(chosen(result)) == 4

    def test_of_sites_decided_on_one_by_one(self, clock: Clockwork) -> None:
        clock.verified = penalty(("one",))
        result = planned(macs=0.15)
        assert result.improved
        assert "one" not in chosen(result)


class TestNothingToReplace:
    def relu(self) -> onnx.ModelProto:
        g = GraphBuilder("relu")
        return g.model([g.relu(g.input("x", [1, 4]), name="y")])

    def depthwise(self) -> onnx.ModelProto:
        g = GraphBuilder("depthwise")
        x = g.input("image", [1, 8, 16, 16])
        return g.model([g.conv(x, 8, 8, 3, name="thin", pads=1, group=8)])

    @pytest.mark.parametrize("kind", ["relu", "depthwise"])
    @pytest.mark.parametrize("goal", [Goal(), Goal(macs=0.5), Goal(speedup=2)], ids=str)
    def test_hands_back_the_original(self, clock: Clockwork, kind: str, goal: Goal) -> None:
        source = getattr(self, kind)()
        result = planned(None, source, goal=goal, frontier=(2.0,))
        assert not result.improved
        assert result.model.proto is source
        assert result.verification is None
        assert result.verdict.startswith("Nothing was worth rewriting")
        assert result.decisions == ()
        assert [r.reason for r in result.refusals] == [Reason.DEPTHWISE] * (kind == "depthwise")
        assert result.plan is not None
        assert result.plan.sites == ()
        assert result.planned is not None
        assert result.planned.rounds == ()
        assert clock.counts["alone"] == clock.counts["whole"] == 0

    @pytest.mark.parametrize("kind", ["relu", "depthwise"])
    def test_is_a_shortfall_of_a_speed(self, clock: Clockwork, kind: str) -> None:
        result = planned(None, getattr(self, kind)(), goal=Goal(speedup=2))
        assert result.planned is not None
        assert result.planned.shortfall.startswith("No plan makes it 2 times faster")

    @pytest.mark.parametrize("kind", ["relu", "depthwise"])
    @pytest.mark.parametrize("goal", [Goal(), Goal(speedup=2)], ids=str)
    def test_makes_an_empty_plan(self, clock: Clockwork, kind: str, goal: Goal) -> None:
        plan, found = make_plan(getattr(self, kind)(), settings(goal=goal))
        assert plan.sites == ()
        assert found.rounds == ()
        assert bool(found.shortfall) == (goal.speedup is not None)
        assert not planned(None, getattr(self, kind)(), plan=plan).improved

    def test_where_nothing_is_faster_alone(self, clock: Clockwork) -> None:
        clock.alone = lambda model, macs: float(len(model.proto.graph.node))
        result = planned(DATA, goal=Goal(max_error=0.2), cached=False)
        assert not result.improved
        assert chosen(result) == {}
        reasons = {each.site.name: each.refusals[-1].reason for each in result.decisions}
        assert reasons["two"] is Reason.NOT_FASTER
        assert clock.counts["whole"] == clock.counts["verify"] == 0

    def test_where_nothing_is_accurate_enough(self, clock: Clockwork) -> None:
        result = planned(goal=Goal(max_error=1e-6))
        assert not result.improved
        reasons = {each.site.name: each.refusals[-1].reason for each in result.decisions}
        assert reasons["two"] is Reason.NOT_NEEDED
        assert result.planned is not None
        assert result.planned.rounds == ()


def test_options_whose_terms_cancel_are_done_without(
    clock: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows only when they are decomposed and run."""
    monkeypatch.setattr("onnxcp.building.tolerable", lambda site, _: site.name != "two")
    result = planned(goal=Goal(max_error=0.2))
    assert result.improved
    assert "two" not in chosen(result)
    two = next(each for each in result.decisions if each.site.name == "two")
    unfit = [each for each in two.reasons if each.reason is Reason.INACCURATE]
    assert unfit
    assert "holds terms that cancel: rounding alone costs" in unfit[0].detail
