"""What a walk costs: every node runs once, and no more is kept than a limit allows."""

from __future__ import annotations

import errno
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcp.calibration.stream
from onnxcp.calibration.stream import Stream
from onnxcp.calibration.values import run_session
from onnxcp.errors import OutputError
from onnxcp.graph.model import Model
from onnxcp.profiling.machine import Machine
from tests.walks import batches_for, check, scaled, walk
from tests.wirings import summing, wired


def test_every_node_runs_once_for_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = 12
    lines = [f"h{i + 1} = Relu s{i}" for i in range(blocks)]
    lines = [
        line
        for i in range(blocks)
        for line in (f"c{i} = Conv h{i}", f"s{i} = Add c{i} h{i}", lines[i])
    ]
    proto = wired("h0 = Relu x", *lines, f"y = Neg h{blocks}")
    sessions: dict[Any, list[str]] = {}  # the nodes in each
    runs: Counter[str] = Counter()
    real_open, real_run = Machine.open, run_session

    def counting_open(self: Machine, model: Model, **options: Any) -> Any:
        session = real_open(self, model, **options)
        sessions[session] = [node.name for node in model.proto.graph.node]
        return session

    def counting_run(session: Any, feeds: Any, label: str) -> Any:
        runs.update(sessions[session])
        return real_run(session, feeds, label)

    monkeypatch.setattr(Machine, "open", counting_open)
    monkeypatch.setattr(onnxcp.calibration.stream, "run_session", counting_run)
    batches = batches_for(proto)
    with walk(proto, batches) as stream:
        for stop in stream:
            list(stop.pairs())
            stop.settle(scaled(stop))
        list(stream.outputs())
    sites = runs.pop("site")
    assert sites == 2 * blocks * len(batches)
    assert runs.pop("h0") == len(batches)  # The networks share it.
    assert set(runs.values()) == {2 * len(batches)}
    assert len(sessions) == 3 * blocks + 1


class TestMemory:
    @pytest.mark.parametrize("limit", [0, 1000, 5000])
    def test_a_limit_changes_nothing_but_where_things_are(self, limit: int, scratch: Path) -> None:
        check(summing("sums in a row"), memory_limit=limit)
        check(summing("chain of blocks"), memory_limit=limit)
        assert not list(scratch.iterdir())

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_walk_that_is_given_up_leaves_no_files(
        self, error: type[BaseException], scratch: Path
    ) -> None:
        with pytest.raises(error), walk(summing("conv shortcut"), memory_limit=0) as stream:
            give_up(stream, error, scratch)
        assert not list(scratch.iterdir())

    def test_one_that_is_left_early_neither(self, scratch: Path) -> None:
        with walk(summing("conv shortcut"), memory_limit=0) as stream:
            for _ in stream:
                break
            assert files(scratch)
        assert not list(scratch.iterdir())

    def test_what_is_not_needed_any_more_goes(self, scratch: Path) -> None:
        lines = [f"c{i + 1} = Conv c{i}" for i in range(8)]
        proto = wired("c0 = Relu x", *lines, "y = Neg c8")
        with walk(proto, memory_limit=0) as stream:
            for stop in stream:
                # Of each of two batches what the site is given, in both networks, and puts out.
                assert len(files(scratch)) <= 2 * (2 + 1)
                stop.settle(scaled(stop))
                assert len(files(scratch)) <= 2 * (2 + 2)
            list(stream.outputs())
            assert len(files(scratch)) == 2 * 2

    def test_a_full_disk_is_a_sentence(
        self, scratch: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(np, "save", full)
        with (
            pytest.raises(OutputError, match=rf"'{scratch}.*No space left.*--memory-limit"),
            walk(summing("conv shortcut"), memory_limit=0) as stream,
        ):
            next(iter(stream))
        assert not list(scratch.iterdir())


def give_up(stream: Stream, error: type[BaseException], scratch: Path) -> None:
    for _ in stream:
        assert files(scratch)
        raise error


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have temporary files made in a folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
