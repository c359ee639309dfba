from __future__ import annotations

import json
import math

import numpy as np

from onnxcp.optimizer import Optimized
from onnxcp.reporting.environment import describe
from onnxcp.reporting.record import SCHEMA, optimized_record, to_json
from tests.reporting.conftest import CALIBRATION, JOB, LABELLED, Make


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
