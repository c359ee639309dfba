"""The user's function neither spoils stdout nor ends the program."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from onnxcp import verification
from onnxcp.errors import OnnxcpError


def test_what_it_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    def evaluate(session: Any) -> float:
        print("scoring")
        return 0.5

    assert verification._evaluated(evaluate, None) == 0.5
    assert capsys.readouterr() == ("", "scoring\n")


def test_its_exit_is_an_error() -> None:
    def evaluate(session: Any) -> float:
        sys.exit(3)

    with pytest.raises(OnnxcpError, match=r"^The evaluation function failed: SystemExit: 3\.$"):
        verification._evaluated(evaluate, None)
