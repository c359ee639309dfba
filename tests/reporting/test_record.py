from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxcp.optimizer import Optimized
from onnxcp.planning.goal import Goal
from onnxcp.planning.plan import Plan
from onnxcp.profiling.environment import describe
from onnxcp.reporting.record import SCHEMA, optimized_record, planned_record, to_json
from onnxcp.settings import Settings
from tests.reporting.conftest import (
    CALIBRATION,
    JOB,
    LABELLED,
    PLAN,
    SETTINGS,
    SHORT,
    THREE_TIMES,
    Make,
)


def test_the_schema_comes_first() -> None:
    assert next(iter(json.loads(to_json({"a": 1})).items())) == ("schema", SCHEMA)


def test_json_is_strict() -> None:
    record = {"a": [math.inf, -math.inf, math.nan, 1.5], "b": {"c": (math.nan, None)}}
    read = json.loads(to_json(record), parse_constant=lambda name: name)
    assert read["a"] == [None, None, None, 1.5]
    assert read["b"] == {"c": [None, None]}


def test_every_outcome_can_be_written(make: Make) -> None:
    environment = describe(JOB.settings.machine)
    for result in (make(), make(chain_ratio=1.0), make(network_ratio=1.0, labelled=LABELLED)):
        read = json.loads(to_json(optimized_record(result, JOB, environment)))
        assert read["improved"] is result.improved
        assert read["verdict"] == result.verdict


def test_what_is_recorded_is_what_was_measured(make: Make) -> None:
    result = make(labelled=LABELLED)
    record = optimized_record(result, JOB, describe(JOB.settings.machine))
    assert record["latency"]["before"]["median"] == 2e-3
    assert record["latency"]["after"]["median"] == 1e-3
    assert result.verification is not None
    assert tuple(record["accuracy"].values()) == result.verification.accuracy
    chosen = record["sites"][0]["chosen"]
    assert chosen["alone"]["ratio"] == 3.0
    assert np.prod(record["sites"][0]["kernel_shape"]) > chosen["parameters"]


class TestRefit:
    def test_is_recorded(self, make: Make) -> None:
        result = make(data=CALIBRATION)
        record = optimized_record(result, JOB, describe(JOB.settings.machine))
        (conv, fc) = record["sites"]
        for site, dense in ((conv, False), (fc, True)):
            assert set(site["refit"]) == {"before", "after", "dense"}
            assert site["refit"]["after"] < site["refit"]["before"]
            assert site["refit"]["dense"] is dense
        assert [each["name"] for each in record["unfitted"]] == ["y"]
        assert record["unfitted"][0]["relative"] == result.unfitted[0].relative

    def test_errors_that_are_not_known_are_null(self, unknown: Optimized) -> None:
        record = optimized_record(unknown, JOB, describe(JOB.settings.machine))
        (conv, fc) = json.loads(to_json(record))["sites"]
        assert conv["refit"] == {"before": None, "after": None, "dense": False}
        assert fc["refit"] is None

    def test_is_null_where_there_was_none(self, make: Make) -> None:
        record = optimized_record(make(), JOB, describe(JOB.settings.machine))
        assert record["unfitted"] is None
        assert {site["refit"] for site in record["sites"]} == {None}


class TestPlans:
    def test_are_recorded(self, planned: Optimized) -> None:
        record = read(planned)
        assert Plan.model_validate(record["plan"]) == PLAN
        assert record["planning"]["goal"]["speedup"] == 3
        assert record["planning"]["goal"]["text"] == "3 times faster"
        assert record["planning"]["shortfall"] is None
        first, second = record["planning"]["rounds"]
        assert first["forecast"] == {
            "before": 8e-3, "after": 8e-3 / 3, "error": 0.0387, "distortion": 0.0387**2,
        }  # fmt: skip
        assert (first["before"], first["after"], first["error"]) == (8e-3, 8e-3 / 2.61, None)
        assert (second["error"], second["score"], second["kept"]) == (0.0351, 0.9412, True)

    def test_for_several_goals(self, planned: Optimized) -> None:
        nothing, reached, short = read(planned)["frontier"]
        assert [each["goal"]["speedup"] for each in (nothing, reached, short)] == [2, 3, 8]
        assert nothing["kept"] is None
        assert reached["kept"] == read(planned)["planning"]["rounds"][1]
        assert short["shortfall"] == SHORT.shortfall

    def test_are_null_where_there_are_none(self, make: Make) -> None:
        record = read(replace(make(), plan=None))
        assert (record["plan"], record["planning"], record["frontier"]) == (None, None, [])

    def test_without_a_goal_the_tolerated_error_is_one(self, planned: Optimized) -> None:
        goal = read(replace(planned, planned=replace(THREE_TIMES, goal=Goal())))["planning"]["goal"]
        assert goal["max_error"] == 0.1
        assert goal["text"] == "a relative error of the outputs of at most 0.1"

    def test_of_which_nothing_was_built(self) -> None:
        record = planned_record(PLAN, THREE_TIMES, describe(SETTINGS.machine))
        assert list(record) == ["plan", "planning", "environment"]
        assert Plan.model_validate(json.loads(to_json(record))["plan"]) == PLAN

    def test_that_were_really_made(self, make: Make) -> None:
        settings = replace(SETTINGS, macs=None, goal=Goal(speedup=1.5), frontier=(2.0,))
        result = make(settings=settings)
        record = read(result, settings)
        assert record["plan"]["sites"][0]["family"] == record["sites"][0]["chosen"]["family"]
        assert sum(each["kept"] for each in record["planning"]["rounds"]) == 1
        assert [each["goal"]["speedup"] for each in record["frontier"]] == [2.0]


class TestSettings:
    def test_are_recorded_whole(self, make: Make) -> None:
        record = read(make())["settings"]
        assert set(record) == {each.name for each in fields(Settings)}
        assert record["macs"] == 0.5
        assert record["goal"]["speedup"] is None
        assert (record["plan"], record["cache_dir"], record["cached"]) == (None, None, False)

    def test_paths_are_text(self, make: Make) -> None:
        settings = replace(SETTINGS, cache_dir=Path("some") / "where")
        assert read(make(), settings)["settings"]["cache_dir"] == str(Path("some") / "where")

    def test_a_plan_is_not_recorded_twice(self, planned: Optimized) -> None:
        given = read(planned, replace(SETTINGS, plan=PLAN))["settings"]["plan"]
        assert given["goal"] == "3 times faster"
        assert "sites" not in given


def read(result: Optimized, settings: Settings = SETTINGS) -> Any:
    job = replace(JOB, settings=settings)
    return json.loads(to_json(optimized_record(result, job, describe(settings.machine))))
