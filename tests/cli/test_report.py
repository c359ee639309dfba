from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, snapshot
from tests.cli.test_optimize import QUICK


@pytest.fixture
def record(onnxcp: Run, model: Path, tmp_path: Path) -> Path:
    done = onnxcp("optimize", model, *QUICK, "--json", "--report", tmp_path / "first.html")
    path = tmp_path / "run.json"
    path.write_text(done.out)
    return path


def test_it_is_the_page_that_optimize_wrote(onnxcp: Run, record: Path) -> None:
    done = onnxcp("report", record)
    assert done.code == 0
    assert done.out == ""
    assert "Wrote the report to" in done.err
    assert record.with_suffix(".html").read_text() == record.with_name("first.html").read_text()


def test_it_needs_no_model(onnxcp: Run, record: Path, model: Path) -> None:
    model.unlink()
    assert onnxcp("report", record, "-o", record.with_name("other.html")).code == 0
    assert "2.00× faster" in record.with_name("other.html").read_text()


def test_it_replaces_nothing_unless_asked_to(onnxcp: Run, record: Path) -> None:
    page = record.with_name("first.html")
    page.write_text("mine")
    done = onnxcp("report", record, "-o", page)
    assert done.code == 2
    assert "exists; name another file, or replace it with --force" in done.err
    assert page.read_text() == "mine"
    assert onnxcp("report", record, "-o", page, "--force").code == 0
    assert page.read_text() != "mine"


def test_it_is_not_written_over_the_record(onnxcp: Run, record: Path) -> None:
    before = snapshot(record.parent)
    done = onnxcp("report", record, "-o", record, "--force")
    assert done.code == 2
    assert "it is the record" in done.err
    assert snapshot(record.parent) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "There is no file"), ("{}", "is no record"), ("net", "is no record")],
)
def test_what_is_no_record(onnxcp: Run, tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    before = snapshot(tmp_path)
    done = onnxcp("report", path)
    assert done.code == 2
    assert done.err.startswith("onnxcp: ")
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_name_of_no_file(onnxcp: Run, name: str) -> None:
    done = onnxcp("report", name)
    assert done.code == 2
    assert "directory" in done.err or "There is no file" in done.err


def test_numbers_that_contradict_each_other(onnxcp: Run, record: Path) -> None:
    content = json.loads(record.read_text())
    content["report"]["times"] = [0, 0]
    record.write_text(json.dumps(content))
    done = onnxcp("report", record)
    assert done.code == 2
    assert "its report cannot be drawn (" in done.err
    assert not record.with_suffix(".html").exists()
