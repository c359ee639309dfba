"""The last passes of a rewrite: decided on by the clock, kept in the plan, and ahead of nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models.builder import GraphBuilder
from onnxcp import OnnxcpError, Optimized, Settings, optimize
from onnxcp.graph.model import Model
from onnxcp.optimizer import make_plan
from onnxcp.planning.goal import Goal
from onnxcp.planning.plan import load_plan, save_plan
from onnxcp.reporting.facts import notes
from onnxcp.training import Training
from tests.clockwork import MINIMUM, SECONDS, Clockwork
from tests.networks import Array, operators

SPARED = 0.2  # of the time of the network, by writing its maxout another way


def network() -> onnx.ModelProto:
    """Return a maxout of two and a convolution that is worth cutting."""
    g = GraphBuilder("maxout")
    x = g.input("image", ["N", 4, 8, 8])
    x = g.conv(x, 4, 32, 3, name="one", pads=1)
    x = g.node("Max", g.split(x, 2, name="split"), name="max")
    rng = np.random.default_rng(0)
    low = rng.standard_normal((24, 4)) @ rng.standard_normal((4, 16 * 9)) / 24
    x = g.conv(x, 16, 24, 3, name="two", pads=1, weight=low.reshape(24, 16, 3, 3).astype("f4"))
    return g.model([g.relu(x, name="y")])


DATA = {"image": np.random.default_rng(1).standard_normal((16, 4, 8, 8)).astype(np.float32)}
FULL = 64 * 9 * (4 * 32 + 16 * 24)  # multiply-adds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    """Return made-up time in which a Max costs a share of what the network takes."""
    made = Clockwork(monkeypatch)
    made.whole = with_max(SPARED)
    return made


def with_max(share: float) -> Any:
    """Return a clock by which a Max takes a share of the time of the original."""

    def seconds(model: Model, macs: int) -> float:
        spent = SECONDS * (macs + share / (1 - share) * FULL * ("Max" in operators(model.proto)))
        return MINIMUM + spent

    return seconds


def optimized(data: Any = None, **options: Any) -> Optimized:
    usual = {"round_to": 1, "cached": False, "families": ("channel-svd",), "nodes": "two"}
    return optimize(network(), Settings(**{**usual, **options}), data=data)


def has_max(result: Optimized) -> bool:
    return "Max" in operators(result.model.proto)


def outputs(model: Model) -> Array:
    from tests.networks import run

    return run(model, DATA)[0]


class TestByTheClock:
    def test_ends_the_rewrite_where_it_is_faster(self, clock: Clockwork) -> None:
        result = optimized(goal=Goal(macs=0.5))
        assert result.improved
        assert not has_max(result)
        assert [each.text for each in result.records if each.changed] == ["split-maxout"]
        assert result.verification is not None
        (ending,) = result.endings
        assert ending in result.records
        assert any("split-maxout came last: 1 maxout split." in each for each in notes(result))
        assert max(each.error for each in result.verification.differences) < 1e-5

    def test_is_done_without_where_it_is_slower(self, clock: Clockwork) -> None:
        clock.whole = lambda model, macs: (
            SECONDS * (macs + 0.1 * FULL * ("Max" not in operators(model.proto)))
        )
        result = optimized(goal=Goal(macs=0.5))
        assert result.improved
        assert has_max(result)
        assert result.plan is not None
        assert result.plan.finish == ""

    def test_pays_where_nothing_else_does(self, clock: Clockwork) -> None:
        clock.alone = lambda model, macs: float(len(model.proto.graph.node))
        result = optimized(goal=Goal(max_error=0.1))
        assert result.improved
        assert all(each.option is None for each in result.decisions)
        assert not has_max(result)
        np.testing.assert_allclose(
            outputs(result.model), outputs(result.original), rtol=0, atol=1e-5
        )

    def test_pays_where_all_sites_are_given_back(self, clock: Clockwork) -> None:
        sites = {"Conv": 3}  # two of the maxout, one of the site that was given back

        def verified(model: Model, macs: int) -> float:
            count = operators(model.proto).count("Conv")
            return with_max(SPARED)(model, macs) + (count > sites["Conv"])

        clock.verified = verified
        result = optimized(goal=Goal(macs=0.5))
        assert result.improved
        assert all(each.option is None for each in result.decisions)

    def test_is_part_of_what_is_expected(self, clock: Clockwork) -> None:
        result = optimized(goal=Goal(speedup=1.5))
        assert result.planned is not None
        first = result.planned.rounds[0]
        assert first.before is not None
        assert first.after is not None
        assert first.forecast.speedup == pytest.approx(first.before / first.after, rel=1e-2)

    def test_can_reach_a_speed_alone(self, clock: Clockwork) -> None:
        result = optimized(goal=Goal(speedup=0.99 / (1 - SPARED)))
        assert result.improved
        assert result.planned is not None
        assert result.planned.shortfall == ""
        assert all(each.option is None for each in result.decisions)


class TestInAPlan:
    def test_comes_again(self, clock: Clockwork, tmp_path: Path) -> None:
        first = optimized(goal=Goal(macs=0.5))
        assert first.plan is not None
        assert first.plan.finish == "split-maxout"
        save_plan(first.plan, tmp_path / "p.yaml")
        again = optimized(plan=load_plan(tmp_path / "p.yaml"), nodes="*", families=())
        assert again.model.proto.SerializeToString() == first.model.proto.SerializeToString()

    def test_is_what_the_plan_says_and_not_the_clock(self, clock: Clockwork) -> None:
        plan = optimized(goal=Goal(macs=0.5)).plan
        assert plan is not None
        again = optimized(plan=plan.model_copy(update={"finish": ""}), nodes="*", families=())
        assert has_max(again)

    def test_is_in_the_outline(self, clock: Clockwork) -> None:
        usual = {"round_to": 1, "cached": False, "families": ("channel-svd",)}
        plan, _ = make_plan(network(), Settings(goal=Goal(speedup=1.5), **usual))
        assert plan.finish == "split-maxout"

    def test_must_be_known(self, clock: Clockwork) -> None:
        plan = optimized(goal=Goal(macs=0.5)).plan
        assert plan is not None
        with pytest.raises(OnnxcpError, match="There is no pass 'polish'"):
            optimized(plan=plan.model_copy(update={"finish": "polish"}), nodes="*", families=())


def test_given_passes_are_all_there_is(clock: Clockwork) -> None:
    result = optimized(passes="channel-svd{macs=0.5}", nodes="*", families=())
    assert has_max(result)


def test_what_it_did_not_end_stays_without_it_in_training(clock: Clockwork) -> None:
    g = GraphBuilder("alike")
    x = g.input("image", ["N", 4, 8, 8])
    x = g.conv(x, 4, 32, 3, name="one", pads=1)
    x = g.node("Max", g.split(x, 2, name="split"), name="max")
    x = g.conv(g.relu(x), 16, 16, 3, name="two", pads=1)
    proto = g.model([g.conv(g.relu(x), 16, 16, 3, name="three", pads=1)])
    settings = Settings(
        goal=Goal(parameters=0.7),
        families=("coupled-tensor-train",),
        cached=False,
        training=Training(epochs=1, batch=8, rate=1e-4),
    )
    result = optimize(proto, settings, data=DATA)
    assert result.improved
    assert result.endings == ()
    assert has_max(result)


def test_training_sees_the_network_ahead_of_it(
    clock: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxcp.tuning

    seen: list[Model] = []
    really = onnxcp.tuning.finetune

    def finetune(model: Model, *arguments: Any, **options: Any) -> Any:
        seen.append(model)
        return really(model, *arguments, **options)

    monkeypatch.setattr(onnxcp.tuning, "finetune", finetune)
    training = Training(epochs=1, batch=8, rate=1e-3)
    result = optimized(DATA, goal=Goal(macs=0.5), training=training)
    (trained,) = seen
    assert "Max" in operators(trained.proto)
    assert result.improved
    assert not has_max(result)
    assert result.finetuned is not None
    np.testing.assert_allclose(
        outputs(result.model), outputs(result.finetuned.model), rtol=0, atol=1e-4
    )
