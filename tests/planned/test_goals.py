"""Goals of a plan, and of scores: what was asked for is reached, or said to be missed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import onnxcp.planned
from onnxcp import optimize
from onnxcp.errors import OnnxcpError
from onnxcp.graph.chain import Chain
from onnxcp.graph.refusal import Reason
from onnxcp.planning.goal import Goal
from onnxcp.planning.latency import with_random_weights
from onnxcp.reporting import facts
from tests.clockwork import MINIMUM, SECONDS, Clockwork, by_macs
from tests.planned.conftest import (
    DATA,
    chosen,
    data_or_none,
    error,
    macs_of,
    made,
    network,
    planned,
    run,
    serialized,
    settings,
    smooth,
)


class TestGoals:
    @data_or_none
    @pytest.mark.parametrize(("speedup", "gain"), [(1.4, 1.0), (2.0, 0.8)])
    def test_a_speed_is_reached(
        self, clock: Clockwork, data: Any, speedup: float, gain: float
    ) -> None:
        """Also where chains save less in the network than alone."""
        whole = MINIMUM + SECONDS * macs_of(network())
        clock.whole = lambda model, macs: whole - gain * (whole - by_macs(model, macs))
        result = planned(data, goal=Goal(speedup=speedup))
        assert result.improved
        assert result.planned is not None
        assert result.planned.shortfall == ""
        assert result.verification is not None
        # Beyond by no more than a rank of one of four sites can do.
        assert 0.98 <= result.verification.trial.ratio / speedup <= 1.1
        last = result.planned.kept
        assert last is not None
        assert last.sites == len(chosen(result))
        assert last.error == pytest.approx(error(result))
        assert last.after == pytest.approx(result.verification.trial.b.median)

    def test_networks_are_timed_with_weights_of_their_own(
        self, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Equal ones become one in ONNX Runtime, and may be run otherwise."""
        seeds: list[int] = []

        def noted(chain: Chain, seed: int) -> Chain:
            seeds.append(seed)
            return with_random_weights(chain, seed)

        monkeypatch.setattr("onnxcp.building.with_random_weights", noted)
        result = planned(goal=Goal(speedup=2.0))
        assert result.planned is not None
        (sites,) = {each.sites for each in result.planned.rounds}
        assert sites > 1
        assert set(seeds) == set(range(sites))

    def test_a_latency_is_reached(self, clock: Clockwork) -> None:
        goal = 0.6 * (MINIMUM + SECONDS * macs_of(network()))
        result = made(Goal(latency=goal))
        assert result.improved
        assert result.verification is not None
        assert result.verification.trial.b.median <= goal / 0.98

    @pytest.mark.parametrize("share", [0.3, 0.6])
    def test_a_share_of_multiply_adds_is_kept_to(self, clock: Clockwork, share: float) -> None:
        result = made(Goal(macs=share))
        assert result.improved
        assert result.after is not None
        assert result.before.macs is not None
        assert result.after.macs is not None
        assert 0.8 * share < result.after.macs / result.before.macs <= share * (1 + 1e-5)

    def test_a_share_is_that_of_the_network_whatever_is_left_out(self, clock: Clockwork) -> None:
        result = planned(goal=Goal(macs=0.6), exclude="three")
        assert result.improved
        assert result.after is not None
        assert result.before.macs is not None
        assert result.after.macs is not None
        assert 0.5 < result.after.macs / result.before.macs <= 0.6 * (1 + 1e-5)

    def test_a_share_of_weights_is_kept_to(self, clock: Clockwork) -> None:
        result = planned(goal=Goal(parameters=0.4))
        assert result.improved
        assert result.after is not None
        assert 0.3 < result.after.parameters / result.before.parameters <= 0.4 * (1 + 1e-5)

    @pytest.mark.parametrize(("limit", "with_data"), [(0.03, False), (0.1, False), (0.1, True)])
    def test_an_error_is_kept_to(self, clock: Clockwork, limit: float, with_data: bool) -> None:
        result = made(Goal(max_error=limit), with_data)
        assert result.improved
        assert 0.4 * limit < error(result) <= limit
        assert result.planned is not None
        assert result.planned.kept is not None
        assert result.planned.kept.error == pytest.approx(error(result))

    def test_without_any_a_tenth_of_error_is_tolerated(self, clock: Clockwork) -> None:
        result = planned()
        assert serialized(result) == serialized(made(Goal(max_error=0.1)))
        assert result.plan is not None
        assert result.plan.goal == "a relative error of the outputs of at most 0.1"

    def test_out_of_reach_is_said_and_come_close_to(self, clock: Clockwork) -> None:
        result = made(Goal(speedup=1000))
        assert result.improved
        assert result.planned is not None
        assert result.verification is not None
        reached = f"{result.verification.trial.ratio:.2f} times faster"
        assert result.planned.shortfall.startswith("No plan makes it 1000 times faster")
        assert reached in result.planned.shortfall


class TestScores:
    def test_a_drop_is_kept_to(self, clock: Clockwork) -> None:
        """Scored by how near outputs are: what is lost is known to be bought by speed."""
        image = smooth(16, seed=5)
        right = run(network(), image)

        def evaluate(session: ort.InferenceSession) -> float:
            made = session.run(None, {"image": image})[0]
            return 1.0 - float(np.linalg.norm(made - right) / np.linalg.norm(right))

        results = [
            optimize(network(), settings(goal=Goal(max_accuracy_drop=drop)), evaluate=evaluate)
            for drop in (0.02, 0.2)
        ]
        for drop, result in zip((0.02, 0.2), results, strict=True):
            assert result.improved
            assert result.verification is not None
            before, after = result.verification.accuracy or (0, 0)
            assert before == 1.0
            assert after >= 1 - drop
        few, many = (each.verification.trial.ratio for each in results if each.verification)
        assert few < many

    def test_what_is_scored_on_has_no_say_in_the_plan(self, clock: Clockwork) -> None:
        """Options are expected to cost what they do where there are no data at all."""
        scored = {"image": smooth(40, seed=5), "label": np.zeros(40, np.int64)}
        goal = settings(goal=Goal(macs=0.3))
        results = [optimize(network(), goal, labelled=each) for each in (None, scored)]
        alone, beside = (
            [(o.error, o.distortion) for site in r.planned.sites for o in site.options]
            for r in results
            if r.planned is not None
        )
        assert alone == beside != []

    def test_of_labelled_data(self, clock: Clockwork) -> None:
        image = smooth(40, seed=5)
        label = run(network(), image).argmax(axis=1)
        result = optimize(
            network(),
            settings(goal=Goal(max_accuracy_drop=0.3)),
            labelled={"image": image, "label": label},
        )
        assert result.improved
        assert result.verification is not None
        assert result.verification.accuracy is not None
        assert result.verification.accuracy[1] >= 0.7
        assert result.planned is not None
        assert result.planned.kept is not None
        assert result.planned.kept.score == result.verification.accuracy[1]

    def test_that_nothing_keeps_hand_back_the_original(self, clock: Clockwork) -> None:
        scores = itertools.chain([1.0], itertools.repeat(0.0))
        result = optimize(
            network(),
            settings(goal=Goal(max_accuracy_drop=0.1)),
            evaluate=lambda _: next(scores),
        )
        assert not result.improved
        assert result.model.proto is result.original.proto
        assert chosen(result) == {}
        reasons = {each.site.name: each.refusals[-1].reason for each in result.decisions}
        assert reasons["two"] is Reason.NOT_NEEDED


class TestFrontier:
    def test_is_measured_besides(self, clock: Clockwork) -> None:
        alone = made(Goal(speedup=2.0))
        result = planned(goal=Goal(speedup=2.0), frontier=(1.6, 2.5, 1000.0))
        assert serialized(result) == serialized(alone)
        assert [each.goal for each in result.frontier] == [
            Goal(speedup=speed) for speed in (1.6, 2.5, 1000.0)
        ]
        kept = [each.kept for each in result.frontier]
        assert all(each is not None for each in kept)
        speeds = [each.before / each.after for each in kept if each and each.after and each.before]
        assert speeds[:2] == pytest.approx([1.6, 2.5], rel=0.1)
        errors = [each.error for each in kept if each and each.error]
        assert errors == sorted(errors)
        shortfalls = [bool(each.shortfall) for each in result.frontier]
        assert shortfalls == [False, False, True]

    def test_a_plan_of_it_makes_the_network_that_was_measured(self, clock: Clockwork) -> None:
        (point,) = planned(DATA, goal=Goal(speedup=1.3), frontier=(2.0,)).frontier
        assert point.plan is not None
        assert point.kept is not None
        assert point.plan.goal == "2 times faster"
        assert point.plan.measured.error == pytest.approx(point.kept.error, rel=1e-3)
        assert point.plan.measured.after_ms == pytest.approx(
            1e3 * (point.kept.after or 0), rel=1e-3
        )
        again = planned(DATA, plan=point.plan)
        assert serialized(again) == serialized(made(Goal(speedup=2.0), True))

    def test_what_fails_there_does_not_lose_the_job(
        self, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone = made(Goal(speedup=2.0))
        search = onnxcp.planned.search

        def fails(planner: Any, goal: Goal, *rest: Any) -> Any:
            if goal.speedup == 3.0:
                raise OnnxcpError("The machine is out of memory.")
            return search(planner, goal, *rest)

        monkeypatch.setattr("onnxcp.planned.search", fails)
        result = planned(goal=Goal(speedup=2.0), frontier=(3.0, 1.6))
        assert serialized(result) == serialized(alone)
        failed, other = result.frontier
        assert (failed.kept, failed.plan) == (None, None)
        assert failed.shortfall == "The machine is out of memory."
        assert other.kept is not None
        assert "For 3×: The machine is out of memory." in facts.notes(result)

    def test_asks_for_no_time_alone_again(self, clock: Clockwork) -> None:
        planned(goal=Goal(speedup=1.3), cached=False)
        first = clock.counts["alone"]
        assert first > 0
        planned(goal=Goal(speedup=1.3), cached=False, frontier=(1.5,))
        assert clock.counts["alone"] == 2 * first

    def test_is_empty_unless_asked_for(self, clock: Clockwork) -> None:
        assert made(Goal(speedup=2.0)).frontier == ()


def test_progress_is_told(clock: Clockwork) -> None:
    told: list[str] = []

    def tell(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        told.append(what)

    optimize(network(), settings(cached=False), data=DATA, progress=tell)
    phases = ["loading", "timing the network", "one: timing chains", "one: errors of its options",
              "four: decomposing", "four: refitting", "timing the planned network",
              "verifying"]  # fmt: skip
    places = [told.index(phase) for phase in phases]
    assert places == sorted(places)
    assert "comparing outputs" in told
