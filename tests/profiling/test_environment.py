from __future__ import annotations

from pathlib import Path

import pytest

from onnxcp.profiling.environment import cpu_name, describe
from onnxcp.profiling.machine import Machine


def test_this_machine() -> None:
    here = describe(Machine())
    assert here.cpu
    assert here.cores >= 1
    assert here.providers == ("cpu",)
    assert here.threads == "chosen by ONNX Runtime"
    assert {"onnxcp", "Python", "onnxruntime", "onnx", "numpy"} <= here.versions.keys()


def test_threads_that_were_asked_for() -> None:
    assert describe(Machine(intra_op_num_threads=3)).threads == "3"


def test_several_ways_to_run() -> None:
    ways = [Machine(names, threads) for names in (("cpu",), ("cuda", "cpu")) for threads in (1, 2)]
    here = describe(*ways)
    assert here.providers == ("cpu", "cuda")
    assert here.threads == "1, 2"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor\t: 0\nmodel name\t: Fast  CPU @ 2 GHz\n", "Fast CPU @ 2 GHz"),
        ("Hardware\t: BCM2835\n", "BCM2835"),
    ],
)
def test_the_name_of_the_processor(tmp_path: Path, content: str, name: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(content)
    assert cpu_name(path) == name


def test_a_processor_without_a_name(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "none")
