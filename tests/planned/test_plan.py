"""The plan that comes of planning, what it tells, and that it can be carried out again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from onnxcp import OnnxcpError, Optimized
from onnxcp.errors import PlanError
from onnxcp.graph.digest import model_digest
from onnxcp.graph.model import Model
from onnxcp.optimizer import make_plan
from onnxcp.planning.goal import Goal
from onnxcp.planning.plan import Plan, Row, load_plan, save_plan
from onnxcp.refit import RefitSettings
from onnxcp.work import Work
from tests.clockwork import Clockwork
from tests.planned.conftest import (
    DATA,
    NAMES,
    SIZE,
    chosen,
    data_or_none,
    error,
    made,
    network,
    penalty,
    planned,
    rows,
    serialized,
    settings,
)


class TestAPlan:
    """What every site became: carried out again, it makes the same network to the byte."""

    @data_or_none
    @pytest.mark.parametrize("goal", [Goal(max_error=0.1), Goal(speedup=2.0)], ids=str)
    def test_makes_the_same_network(
        self, clock: Clockwork, tmp_path: Path, data: Any, goal: Goal
    ) -> None:
        first = made(goal, data is not None)
        assert first.improved
        assert first.plan is not None
        save_plan(first.plan, tmp_path / "plan.yaml")
        again = planned(data, plan=load_plan(tmp_path / "plan.yaml"))
        assert chosen(again) == chosen(first)
        assert serialized(again) == serialized(first)
        assert again.planned is None

    @pytest.mark.parametrize(
        "refit",
        [RefitSettings(), RefitSettings(scope="factorised"), RefitSettings(scope="none")],
        ids=["all", "factorised", "none"],
    )
    def test_whatever_is_refitted(self, clock: Clockwork, refit: RefitSettings) -> None:
        first = planned(DATA, goal=Goal(speedup=1.5), refit=refit)
        again = planned(DATA, plan=first.plan, refit=refit)
        assert serialized(again) == serialized(first)

    def test_whose_refit_was_given_up(
        self, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is not made again, however it would come out; where layers are given back, too."""
        with monkeypatch.context() as patch:
            errors = itertools.cycle([2.0, 1.0])  # with the refit, and without
            patch.setattr("onnxcp.rewriting.total_error", lambda _: next(errors))
            first = planned(DATA, goal=Goal(speedup=1.5))
        assert first.improved
        assert first.plan is not None
        assert first.plan.refitted is False
        again = planned(DATA, plan=first.plan)
        assert serialized(again) == serialized(first)
        assert again.plan is not None
        assert again.plan.refitted is False
        assert "given up when the plan was made" in again.told
        refitted = planned(DATA, plan=first.plan.model_copy(update={"refitted": None}))
        assert serialized(refitted) != serialized(first)
        clock.verified = penalty(("three",))
        fewer = planned(DATA, plan=first.plan)
        assert chosen(first).keys() == {"three", "four"}
        assert chosen(fewer).keys() == {"four"}
        assert all(each.refit is None for each in fewer.decisions)

    def test_tells_where_samples_are_missing_that_it_was_made_with(self, clock: Clockwork) -> None:
        plan = made(Goal(speedup=2.0), True).plan
        assert plan is not None
        assert plan.refitted
        missing = "What the plan was saved from was refitted to samples; without them this is not."
        assert planned(plan=plan).told == missing
        assert planned(DATA, plan=plan).told == ""
        plan = made(Goal(speedup=2.0)).plan
        assert plan is not None
        assert plan.refitted is None
        assert planned(plan=plan).told == ""

    def test_tells_where_the_network_is_another(self, clock: Clockwork) -> None:
        plan = made(Goal(speedup=2.0)).plan
        assert plan is not None
        other = network()
        other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
        assert planned(None, other, plan=plan).told == (
            f"The plan was made for another network, '{plan.model.name}': its layers were found "
            "by their names."
        )

    def test_leaves_what_was_excluded_alone(self, clock: Clockwork) -> None:
        """What is not to be touched is not refitted either; the plan knows."""
        first = planned(DATA, goal=Goal(speedup=1.5), exclude="three")
        original = network()
        for tensor in original.graph.initializer:
            if tensor.name.startswith("three"):
                assert weights(first, "three")[tensor.name] == tensor.raw_data
        again = planned(DATA, plan=first.plan)
        assert serialized(again) == serialized(first)

    def test_of_families_that_search(self, clock: Clockwork) -> None:
        first = planned(goal=Goal(macs=0.8), families=("cp3",), nodes="two")
        assert list(chosen(first)) == ["two"]
        again = planned(plan=first.plan, families=())
        assert serialized(again) == serialized(first)

    @pytest.mark.parametrize(
        "goal", [Goal(speedup=2.0), Goal(macs=0.5), Goal(parameters=0.5)], ids=str
    )
    def test_of_families_of_which_a_refit_chose(self, clock: Clockwork, goal: Goal) -> None:
        families = ("channel-svd", "spatial-svd", "tucker2")
        first = planned(DATA, goal=goal, families=families)
        rivals = [each for each in first.decisions if len(each.candidates) > 1]
        assert rivals
        for each in rivals:
            names = [candidate.option.family.name for candidate in each.candidates]
            assert len(set(names)) == len(names)
        again = planned(DATA, plan=first.plan, families=())
        assert chosen(again) == chosen(first)
        assert serialized(again) == serialized(first)

    def test_of_a_fixed_batch(self, clock: Clockwork) -> None:
        first = planned(DATA, network(batch=2), goal=Goal(speedup=1.5))
        assert first.improved
        again = planned(DATA, network(batch=2), plan=first.plan)
        assert serialized(again) == serialized(first)

    def test_of_sites_decided_on_one_by_one(self, clock: Clockwork) -> None:
        first = planned(DATA, macs=0.3)
        assert first.planned is None
        again = planned(DATA, plan=first.plan)
        assert serialized(again) == serialized(first)

    def test_of_sites_that_were_given_back(self, clock: Clockwork) -> None:
        clock.verified = penalty(("one",))
        first = planned(goal=Goal(macs=0.3))
        assert first.improved
        assert "one" not in chosen(first)
        again = planned(plan=first.plan)
        assert serialized(again) == serialized(first)

    def test_tells_what_was_expected_and_what_came(self, clock: Clockwork) -> None:
        result = made(Goal(speedup=2.0), True)
        plan = result.plan
        assert plan is not None
        assert result.planned is not None
        assert result.planned.kept is not None
        assert result.verification is not None
        assert plan.goal == "2 times faster"
        assert plan.model.digest == model_digest(Model(network()))
        assert plan.made_on["providers"] == "cpu"
        assert plan.made_on["precision"] == "fp32"
        assert "device" not in plan.made_on
        assert {"cpu", "cores", "threads", "system", "onnxruntime"} <= plan.made_on.keys()
        trial, forecast = result.verification.trial, result.planned.kept.forecast
        assert plan.measured.before_ms == pytest.approx(1e3 * trial.a.median, rel=1e-3)
        assert plan.measured.after_ms == pytest.approx(1e3 * trial.b.median, rel=1e-3)
        assert plan.measured.error == pytest.approx(error(result), rel=1e-3)
        assert plan.predicted.before_ms == pytest.approx(1e3 * forecast.before, rel=1e-3)
        assert plan.predicted.after_ms == pytest.approx(1e3 * forecast.after, rel=1e-3)
        assert plan.predicted.error == pytest.approx(forecast.error, rel=1e-3)

    def test_has_a_row_for_every_site(self, clock: Clockwork) -> None:
        result = planned(goal=Goal(speedup=1.3), exclude="three")
        found = rows(result.plan)
        assert list(found) == [each.site.name for each in result.decisions]
        assert found["three"].keep == "it is not among the nodes to rewrite"
        assert found["scores"].keep is not None
        assert "too few to pay" in found["scores"].keep
        for name, (family, ranks) in chosen(result).items():
            row = found[name]
            assert (row.family, row.ranks, row.keep) == (family, ranks, None)
            assert row.before_ms is not None
            assert row.after_ms is not None
            assert row.before_ms > row.after_ms
            assert row.error is not None
            assert row.error > 0
            assert row.distortion is not None
            assert row.distortion > 0

    def test_says_why_a_site_is_not_needed(self, clock: Clockwork) -> None:
        result = planned(goal=Goal(max_error=0.005))
        kept = [row.keep for row in rows(result.plan).values() if row.keep]
        options = [each for each in kept if each.startswith("the goal needs none of its")]
        assert options
        assert all("(fastest: channel-svd " in each for each in options)

    def test_of_another_network_is_refused(self, clock: Clockwork) -> None:
        plan = Plan(sites=(Row(site="tow", family="channel-svd", ranks=(3,)),))
        with pytest.raises(PlanError, match=r"row 1, 'tow': .* no such site; .* 'two'"):
            planned(plan=plan)

    def test_that_names_no_site_changes_nothing(self, clock: Clockwork) -> None:
        result = planned(plan=Plan(sites=()))
        assert not result.improved
        assert result.model.proto is result.original.proto
        reasons = {each.refusals[0].detail for each in result.decisions}
        assert reasons == {"the plan does not name it"}

    def test_that_is_no_faster_hands_back_the_original(self, clock: Clockwork) -> None:
        clock.verified = penalty(NAMES)
        plan = Plan(sites=(Row(site="two", family="channel-svd", ranks=(3,)),))
        result = planned(plan=plan)
        assert not result.improved
        assert result.model.proto is result.original.proto

    def test_is_carried_out_where_shapes_are_unknown(self, clock: Clockwork) -> None:
        plan = Plan(sites=(Row(site="two", family="channel-svd", ranks=(3,)),))
        result = planned(plan=plan, input_shapes={"image": (3, 8, SIZE, SIZE)})
        assert chosen(result) == {"two": ("channel-svd", (3,))}


def weights(result: Optimized, prefix: str) -> dict[str, bytes]:
    return {
        t.name: t.raw_data
        for t in result.model.proto.graph.initializer
        if t.name.startswith(prefix)
    }


class TestMakePlan:
    @pytest.mark.parametrize(
        ("goal", "data"),
        [(Goal(speedup=2.0), None), (Goal(speedup=2.0), DATA), (Goal(macs=0.3), None)],
        ids=["speed", "speed, data", "size"],
    )
    def test_is_what_optimize_would_build(self, clock: Clockwork, data: Any, goal: Goal) -> None:
        plan, found = make_plan(network(), settings(goal=goal), data=data)
        result = made(goal, data is not None)
        expected = rows(result.plan)
        assert rows(plan) == expected
        assert result.plan is not None
        assert plan.predicted == result.plan.predicted
        assert (plan.model, plan.made_on, plan.goal) == (
            result.plan.model,
            result.plan.made_on,
            result.plan.goal,
        )
        assert plan.measured.after_ms is None
        assert found.kept is not None
        assert found.kept.error is None
        assert found.shortfall == ""
        again = planned(data, plan=plan)
        assert serialized(again) == serialized(result)

    def test_builds_nothing(self, clock: Clockwork, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("nothing is to be built")

        monkeypatch.setattr("onnxcp.planned.settled", refuse)
        monkeypatch.setattr("onnxcp.building.settled", refuse)
        monkeypatch.setattr(Work, "differences", refuse)
        plan, _ = make_plan(network(), settings(), data=DATA)
        assert any(row.family for row in plan.sites)
        assert clock.counts["verify"] == 0
        assert clock.counts["whole"] == 3  # sessions to time one plan in

    def test_out_of_reach_is_said(self, clock: Clockwork) -> None:
        plan, found = make_plan(network(), settings(goal=Goal(speedup=1000)))
        assert found.shortfall.startswith("No plan makes it 1000 times faster")
        assert sum(row.family is not None for row in plan.sites) == 4

    def test_a_drop_of_accuracy_is_refused(self, clock: Clockwork) -> None:
        with pytest.raises(OnnxcpError, match="shows only in a network that was built"):
            make_plan(network(), settings(goal=Goal(max_accuracy_drop=0.01)))

    def test_can_be_written_and_read(self, clock: Clockwork, tmp_path: Path) -> None:
        plan, _ = make_plan(network(), settings(goal=Goal(speedup=1.5)))
        save_plan(plan, tmp_path / "plan.yaml")
        assert load_plan(tmp_path / "plan.yaml") == plan


class TestKept:
    def test_another_run_times_no_chain_again(self, clock: Clockwork, tmp_path: Path) -> None:
        options = {"cache_dir": tmp_path, "goal": Goal(speedup=1.5)}
        first = planned(DATA, **options)
        count = clock.counts["alone"]
        assert count > 0
        again = planned(DATA, **options)
        assert clock.counts["alone"] == count
        assert serialized(again) == serialized(first)
        assert {path.name for path in tmp_path.iterdir()} == {"latency", "errors"}

    def test_nothing_is_written_where_nothing_is_to_be(
        self, clock: Clockwork, tmp_path: Path
    ) -> None:
        planned(cached=False, cache_dir=tmp_path, goal=Goal(speedup=1.5))
        assert list(tmp_path.iterdir()) == []
