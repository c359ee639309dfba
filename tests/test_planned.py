"""Planning for the whole network from end to end, with made-up time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models.builder import GraphBuilder
from onnxcp import OnnxcpError, Optimized, Settings, optimize
from onnxcp.errors import PlanError
from onnxcp.graph.digest import model_digest
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Reason
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.summary import summarize
from onnxcp.optimizer import make_plan
from onnxcp.planning import offer
from onnxcp.planning.goal import Goal
from onnxcp.planning.plan import Plan, Row, load_plan, save_plan
from onnxcp.refit import RefitSettings
from onnxcp.rewriting import Work
from tests.clockwork import MINIMUM, SECONDS, Clockwork, by_macs
from tests.networks import Array

LINEAR = RefitSettings(target="linear")
NAMES = ("one", "two", "three", "four")
SIZE = 8
WHY = "with it, the whole network was measured to be no faster"


def kernel(outputs: int, inputs: int, seed: int) -> Array:
    """Return a 3x3 kernel whose singular values fall off, as those of trained networks do."""
    rng = np.random.default_rng(seed)
    u, _, v = np.linalg.svd(rng.standard_normal((outputs, inputs * 9)), full_matrices=False)
    values = 0.8 ** np.arange(len(v))
    scale = np.sqrt(2 * outputs / np.sum(values**2))
    return (scale * (u * values) @ v).reshape(outputs, inputs, 3, 3).astype(np.float32)


def network(batch: int | str = "N") -> onnx.ModelProto:
    """Four convolutions, of which the last has BatchNormalization, and a small classifier."""
    g = GraphBuilder("small")
    x = g.input("image", [batch, 8, SIZE, SIZE])
    x = g.relu(g.conv(x, 8, 16, 3, name="one", pads=1, weight=kernel(16, 8, 1)))
    x = g.relu(g.conv(x, 16, 24, 3, name="two", pads=1, weight=kernel(24, 16, 2)))
    x = g.relu(g.conv(x, 24, 32, 3, name="three", pads=1, weight=kernel(32, 24, 3)))
    x = g.conv(x, 32, 40, 3, name="four", pads=1, weight=kernel(40, 32, 4))
    x = g.relu(g.batch_norm(x, 40, name="norm"))
    x = g.flatten(g.global_average_pool(x, name="pool"), name="flat")
    return g.model([g.gemm(x, 40, 10, name="scores")])


def smooth(n: int, seed: int = 0) -> Array:
    """Return samples in which neighbours and channels hang together."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 8, SIZE, SIZE))
    for axis in (2, 3):
        x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
    x += 2 * x.mean(axis=1, keepdims=True)
    return (x / 10).astype(np.float32)


DATA = {"image": smooth(32)}
data_or_none = pytest.mark.parametrize("data", [None, DATA], ids=["no data", "data"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    """Return made-up time; half as many ranks as usual are offered, which is quicker."""
    monkeypatch.setattr(offer, "SHARES", offer.SHARES[::2])
    return Clockwork(monkeypatch)


class Shared:
    """What the tests here measure of one network: once, since it is the same for all of them."""

    folder: Path | None = None


@pytest.fixture(scope="module", autouse=True)
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    Shared.folder = tmp_path_factory.mktemp("cache")
    yield
    Shared.folder = None


def settings(**options: Any) -> Settings:
    """Return settings of the family that is quickest to decompose."""
    usual = {
        "round_to": 1,
        "families": ("channel-svd",),
        "refit": LINEAR,
        "cache_dir": Shared.folder,
    }
    assert Shared.folder is not None
    return Settings(**{**usual, **options})


def planned(data: Any = None, proto: onnx.ModelProto | None = None, **options: Any) -> Optimized:
    return optimize(proto or network(), settings(**options), data=data)


@functools.cache
def made(goal: Goal, with_data: bool = False) -> Optimized:
    """Return what comes of a goal where time is by multiply-adds everywhere."""
    return planned(DATA if with_data else None, goal=goal)


def serialized(result: Optimized) -> bytes:
    return result.model.proto.SerializeToString(deterministic=True)


def chosen(result: Optimized) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        each.site.name: (each.option.family.name, each.option.ranks)
        for each in result.decisions
        if each.option is not None
    }


def rows(plan: Plan | None) -> dict[str, Row]:
    assert plan is not None
    return {row.site: row for row in plan.sites}


def error(result: Optimized) -> float:
    assert result.verification is not None
    return sum(each.error**2 for each in result.verification.differences) ** 0.5


def penalty(names: tuple[str, ...], factor: float = 10.0) -> Callable[[Model, int], float]:
    """Let a network take much longer as soon as chains of certain sites are in it."""

    def seconds(model: Model, macs: int) -> float:
        prefixes = tuple(f"{name}/" for name in names)
        slow = any(node.name.startswith(prefixes) for node in model.proto.graph.node)
        return by_macs(model, macs) * (factor if slow else 1.0)

    return seconds


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


def macs_of(proto: onnx.ModelProto) -> int:
    model = Model(proto)
    macs = summarize(model, infer_shapes(model, {"image": (1, 8, SIZE, SIZE)})).macs
    assert macs is not None
    return macs


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


def run(model: onnx.ModelProto, image: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"image": image})[0]
    return found


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
        options = [each for each in kept if each.startswith("the plan needs none of its")]
        assert options
        assert all(each.endswith("the fastest") for each in options)

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
        assert clock.counts["verify"] == 3

    def test_in_the_end_the_original(self, clock: Clockwork) -> None:
        source = network()
        clock.verified = penalty(NAMES)
        result = planned(None, source, goal=Goal(macs=0.15))
        assert not result.improved
        assert result.model.proto is source
        assert "not faster" in result.verdict
        assert clock.counts["verify"] == 3
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
        monkeypatch.setattr("onnxcp.optimizer._broken", lambda _: True)
        clock.verified = penalty(NAMES)
        result = planned(goal=Goal(macs=0.15))
        assert not result.improved
        assert len(chosen(result)) == 4

    def test_of_sites_decided_on_one_by_one(self, clock: Clockwork) -> None:
        clock.verified = penalty(("one",))
        result = planned(macs=0.15)
        assert result.improved
        assert "one" not in chosen(result)


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

    def test_asks_for_no_time_alone_again(self, clock: Clockwork) -> None:
        planned(goal=Goal(speedup=1.3), cached=False)
        first = clock.counts["alone"]
        assert first > 0
        planned(goal=Goal(speedup=1.3), cached=False, frontier=(1.5,))
        assert clock.counts["alone"] == 2 * first

    def test_is_empty_unless_asked_for(self, clock: Clockwork) -> None:
        assert made(Goal(speedup=2.0)).frontier == ()


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
    monkeypatch.setattr("onnxcp.planned.tolerable", lambda site, _: site.name != "two")
    result = planned(goal=Goal(max_error=0.2))
    assert result.improved
    assert "two" not in chosen(result)
    two = next(each for each in result.decisions if each.site.name == "two")
    unfit = [each for each in two.reasons if each.reason is Reason.INACCURATE]
    assert unfit
    assert "holds terms that cancel: rounding alone costs" in unfit[0].detail


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
