"""The block that ranks cost in, with made-up time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxcp.planning import blocks
from onnxcp.planning.blocks import rank_block
from onnxcp.planning.cache import Cache
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.timing import Trial
from tests.clockwork import trial

MACHINE = Machine(intra_op_num_threads=1)
Set = Callable[[Trial], list[int]]


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Set what a comparison of 72 filters with 80 gives; the list grows with every one."""

    def set_to(result: Trial) -> list[int]:
        asked: list[int] = []

        def paired(run_a: Callable[[], None], run_b: Callable[[], None], **_: Any) -> Trial:
            run_a()
            run_b()
            asked.append(1)
            return result

        monkeypatch.setattr(blocks, "paired", paired)
        return asked

    return set_to


@pytest.mark.parametrize(
    ("seconds", "block"), [(72.0, 8), (74.0, 8), (80.0, 16), (79.0, 16), (85.0, 16)]
)
def test_is_fine_where_fewer_filters_cost_less(timing: Set, seconds: float, block: int) -> None:
    timing(trial(seconds, 80.0))
    assert rank_block(MACHINE, Cache(None)) == block


def test_is_found_once(timing: Set, tmp_path: Path) -> None:
    asked = timing(trial(72.0, 80.0))
    assert [rank_block(MACHINE, Cache(tmp_path)) for _ in range(3)] == [8, 8, 8]
    assert len(asked) == 1


def test_is_found_for_each_number_of_threads(timing: Set, tmp_path: Path) -> None:
    asked = timing(trial(72.0, 80.0))
    rank_block(MACHINE, Cache(tmp_path))
    rank_block(Machine(intra_op_num_threads=2), Cache(tmp_path))
    assert len(asked) == 2


def test_of_a_machine_too_busy_to_tell_is_coarse_and_not_kept(timing: Set, tmp_path: Path) -> None:
    busy = timing(replace(trial(72.0, 80.0), clean=False))
    assert [rank_block(MACHINE, Cache(tmp_path)) for _ in range(2)] == [16, 16]
    assert len(busy) == 2
    timing(trial(72.0, 80.0))
    assert rank_block(MACHINE, Cache(tmp_path)) == 8
