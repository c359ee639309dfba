"""`optimize --also-on`: where else the result may not be slower."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from onnxcp import Machine
from onnxcp.cli.options import machine_list
from tests.cli.conftest import QUICK, Run


@pytest.mark.parametrize(
    ("text", "machines"),
    [
        ("", ()),
        ("cpu:1", (Machine(intra_op_num_threads=1),)),
        ("cuda+cpu,cpu:2", (Machine(("cuda", "cpu")), Machine(intra_op_num_threads=2))),
        ("cuda{device_id=1}:4", (Machine(("cuda{device_id=1}",), 4),)),
        ("cpu,cpu", (Machine(),)),
    ],
)
def test_machines_are_read(text: str, machines: tuple[Machine, ...]) -> None:
    assert machine_list(text) == machines


def test_too_many_threads_are_refused() -> None:
    with pytest.raises(click.BadParameter, match="'cpu:9999': there are at most 1024"):
        machine_list("cpu:9999")


def test_the_table_and_the_record_tell_of_each(onnxcp: Run, model: Path) -> None:
    done = onnxcp("optimize", model, *QUICK, "--also-on", "cpu:1,cpu")
    assert done.code == 0
    assert "median on cpu with 1 thread" in done.err
    done = onnxcp("optimize", model, *QUICK, "--also-on", "cpu:1,cpu", "--force", "--json")
    record = json.loads(done.out)
    (there,) = record["latency_elsewhere"]  # where it is planned for counts once
    assert (there["providers"], there["threads"]) == (["cpu"], 1)
    assert there["latency"]["ratio"] == pytest.approx(2)
    (answer,) = [a for a in record["report"]["answers"] if a["question"] == "How much faster?"]
    assert any(text.startswith("on cpu with 1 thread: 2.00×") for text in answer["lines"])


@pytest.mark.parametrize("text", ["nowhere", "cpu,,cpu:1"])
def test_what_is_none_is_one_sentence(onnxcp: Run, model: Path, text: str) -> None:
    done = onnxcp("optimize", model, *QUICK, "--also-on", text)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert not model.with_name("net.optimized.onnx").exists()
