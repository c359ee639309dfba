from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from onnxcp.cli.terminal import Terminal
from onnxcp.progress import Progress
from tests.cli.conftest import Run
from tests.cli.test_optimize import QUICK


@pytest.mark.parametrize(
    ("command", "stages"),
    [
        ("inspect", ["loading", "running", "timing nodes"]),
        ("profile", ["loading", "finding shapes", "looking at the machine", "timing"]),
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


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
def test_what_is_piped_is_plain_and_tables_fit_80_columns(
    onnxcp: Run, model: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    said = onnxcp("optimize", model, *QUICK, "--dry-run").err
    assert "\x1b" not in said
    tables = [line for line in said.splitlines() if "  " in line or "──" in line]
    assert len(tables) > 15
    assert max(map(len, tables)) <= 80
