from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from onnxcp.cli.terminal import Terminal
from onnxcp.progress import Progress
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("command", "stages"),
    [
        ("inspect", ["loading", "running", "timing nodes"]),
        ("profile", ["loading", "timing", "timing nodes"]),
        ("compare", ["loading", "comparing"]),
    ],
)
def test_progress(
    onnxcp: Run, sound: Path, monkeypatch: pytest.MonkeyPatch, command: str, stages: list[str]
) -> None:
    told: list[str] = []

    @contextmanager
    def progress(_: Terminal) -> Iterator[Progress]:
        yield lambda what, *_: told.append(what)

    monkeypatch.setattr(Terminal, "progress", progress)
    options: dict[str, list[Any]] = {
        "profile": ["--per-node", "--iterations", "1"],
        "compare": [sound],
    }
    assert onnxcp(command, sound, *options.get(command, [])).code == 0
    assert list(dict.fromkeys(told)) == stages
