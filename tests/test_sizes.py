"""Goals of size: smaller files, also where nothing is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from onnxcp import Goal, Settings, make_plan, optimize
from onnxcp.errors import OnnxcpError
from onnxcp.graph.model import Model
from onnxcp.optimizer import NOT_SMALLER, SMALLER, Optimized
from onnxcp.refit import RefitSettings
from tests.cli.conftest import made_up, made_up_turns
from tests.networks import noise
from tests.repeated import repeated, shared

FAMILY = ("coupled-tensor-train",)
WIDTHS = (16,) * 6


@pytest.fixture(autouse=True)
def timings(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes rewritten networks slower than the original; chains alone are twice as fast."""

    def fake(network: float) -> None:
        monkeypatch.setattr("onnxcp.verification.paired", made_up(network))
        monkeypatch.setattr("onnxcp.finishing.paired", made_up(network))
        monkeypatch.setattr("onnxcp.planning.blocks.paired", made_up(1.0))
        monkeypatch.setattr("onnxcp.planning.latency.in_turns", made_up_turns(2.0))

    fake(0.8)
    return fake


def network(widths: tuple[int, ...] = WIDTHS) -> Model:
    return repeated(widths, batch="n")


def sized(model: Model | None = None, *, data: Any = None, **options: Any) -> Optimized:
    settings = Settings(cached=False, **options)
    return optimize(network() if model is None else model, settings, data=data)


def test_a_share_of_the_parameters_is_kept_by_coupling() -> None:
    result = sized(goal=Goal(parameters=0.5), families=FAMILY)
    assert result.improved
    assert result.verdict.startswith(SMALLER)
    assert len(shared(result.model)) == 2
    assert result.after is not None
    assert 0.4 < result.after.parameters / result.before.parameters <= 0.5
    assert result.plan is None, "a plan decides layer by layer"


@pytest.mark.parametrize("size", [0.6, 30_000])
def test_the_file_is_no_larger_than_was_asked_for(size: float) -> None:
    model = network()
    wanted = size * model.file_nbytes if size < 1 else size
    result = sized(model, goal=Goal(size=size), families=FAMILY)
    assert 0.9 * wanted < result.model.file_nbytes <= wanted
    assert len(shared(result.model)) == 2


def test_other_families_come_down_to_a_size_too() -> None:
    model = network((32,) * 4)
    result = sized(model, goal=Goal(size=0.6), families=("channel-svd",))
    assert result.improved
    assert result.model.file_nbytes <= 0.6 * model.file_nbytes
    assert result.planned is not None
    assert result.planned.goal == Goal(size=0.6)


def test_a_pipeline_that_couples_is_judged_by_size() -> None:
    result = sized(passes="coupled-tensor-train{common=4,independent=2}")
    assert result.verdict.startswith(SMALLER)
    larger = sized(passes="coupled-tensor-train{common=16,independent=16}")
    assert larger.verdict.startswith(NOT_SMALLER)
    assert not larger.improved


@pytest.mark.parametrize("metric", ["weights", "data"])
def test_data_bring_outputs_closer_and_factors_stay_shared(metric: str) -> None:
    data = {"x": noise(64, 16, 8, 8, seed=3)}
    text = f"coupled-tensor-train{{common=4,independent=2,partial=false,metric={metric}}}"

    def error(scope: str) -> float:
        result = sized(data=data, passes=text, refit=RefitSettings(scope=scope))
        assert len(shared(result.model)) == 3
        assert result.verification is not None
        return max(each.error for each in result.verification.differences)

    assert error("all") < 0.9 * error("none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": Goal(speedup=2.0)}, "makes files smaller, not networks faster: its goal is"),
        ({"goal": Goal(latency=1e-3)}, "makes files smaller, not networks faster: its goal is"),
        ({}, "makes files smaller, not networks faster: its goal is"),
        ({"macs": 0.5}, "makes files smaller, not networks faster: its goal is"),
        (
            {"goal": Goal(parameters=0.5), "families": (*FAMILY, "cp3")},
            "decides for several layers at once: name no other beside it",
        ),
        ({"goal": Goal(size=10**9)}, "is no larger than 954 MiB as it is"),
        ({"goal": Goal(size=100)}, "cannot come down to 100 B: without weights it has"),
        ({"goal": Goal(parameters=0.01)}, "too few|cannot spare"),
        ({"goal": Goal(parameters=0.5), "nodes": "c0"}, "finds no two layers to couple"),
    ],
)
def test_what_cannot_be_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxcpError, match=message) as caught:
        sized(**{"families": FAMILY, **options})
    assert "\n" not in str(caught.value)


def test_a_plan_cannot_couple() -> None:
    settings = Settings(goal=Goal(parameters=0.5), families=FAMILY, cached=False)
    with pytest.raises(OnnxcpError, match="several layers at once: it is no option of a plan"):
        make_plan(network(), settings)


def test_a_plan_for_a_size_is_one_for_as_many_weights() -> None:
    settings = Settings(goal=Goal(size=0.6), families=("channel-svd",), cached=False)
    plan, _ = make_plan(network((32,) * 4), settings)
    assert any(row.family == "channel-svd" for row in plan.sites)


def test_goals_of_size_exclude_others() -> None:
    with pytest.raises(OnnxcpError, match="parameters and size exclude each other"):
        Goal(parameters=0.5, size=0.5)
