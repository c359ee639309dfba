from __future__ import annotations

from pathlib import Path

import pytest

from onnxcp.errors import RecordError
from onnxcp.optimizer import Optimized
from onnxcp.profiling.environment import describe
from onnxcp.reporting.html import render
from onnxcp.reporting.page import page_of
from onnxcp.reporting.record import SCHEMA, optimized_record, planned_record, to_json
from onnxcp.reporting.saved import load_page
from tests.reporting.conftest import JOB, PLAN, SETTINGS, THREE_TIMES, Make


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.json"


@pytest.mark.parametrize("rewritten", [True, False])
def test_a_page_is_the_same_after_a_record(make: Make, file: Path, rewritten: bool) -> None:
    result = make(chain_ratio=3.0 if rewritten else 1.0)
    page = page_of(result, JOB)
    file.write_text(to_json(optimized_record(result, JOB, describe(SETTINGS.machine), page)))
    assert load_page(file) == page
    assert render(load_page(file)) == render(page)


def test_a_page_with_plans_is_the_same_after_a_record(planned: Optimized, file: Path) -> None:
    file.write_text(to_json(optimized_record(planned, JOB, describe(SETTINGS.machine))))
    page = load_page(file)
    assert page.pictures
    assert page.rounds
    assert page.plan.startswith("onnxcp_plan: 1")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no record that `onnxcp optimize --json` printed: Expecting"),
        ("[]", "there is no 'schema' in it"),
        ('{"model": "net.onnx"}', "there is no 'schema' in it"),
        ('{"schema": 1}', f"is a record of schema 1; this onnxcp reads {SCHEMA}"),
        (to_json({}), "there is no 'report' in it"),
        (to_json(planned_record(PLAN, THREE_TIMES, describe(SETTINGS.machine))), "no 'report'"),
        (to_json({"report": {"model": 7}}), "in 'report.model', input should be a valid string"),
        (b"\xff\xfe\x00", "is no record"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_what_is_no_record(file: Path, content: str | bytes, said: str) -> None:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RecordError) as caught:
        load_page(file)
    message = str(caught.value)
    assert said in message
    assert str(file) in message
    assert message.endswith(".")
    assert "\n" not in message


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(RecordError, match=r"There is no file '.*run.json'\."):
        load_page(file)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is a directory"):
        load_page(tmp_path)
