from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

import onnxcp as package
from onnxcp.linalg.cp import DegenerateWarning
from tests.cli.conftest import Run

COMMANDS = (
    *("optimize", "plan", "inspect", "profile", "compare", "report", "passes", "demo"),
    *("finetune", "export-torch", "import-torch"),
)
HEAVY = ("onnx", "onnxruntime", "onnx_graphsurgeon", "numpy", "scipy", "rich", "jinja2", "torch")


def test_the_version(onnxcp: Run) -> None:
    assert onnxcp("--version").out == f"onnxcp {package.__version__}\n"


@pytest.mark.parametrize("arguments", [("-h",), ("--help",)])
def test_help_lists_the_commands(onnxcp: Run, arguments: tuple[str, ...]) -> None:
    done = onnxcp(*arguments)
    assert done.code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.out
    assert "70 a fault of onnxcp itself" in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(onnxcp: Run, command: str) -> None:
    done = onnxcp(command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: onnxcp {command}")


def test_help_tells_what_samples_are_for(onnxcp: Run) -> None:
    asked = {name: onnxcp(name, "--help").out for name in ("optimize", "compare")}
    texts = {name: " ".join(text.split()) for name, text in asked.items()}
    assert "Samples to refit chains to and to compare outputs on" in texts["optimize"]
    assert "Without them nothing is refitted" in texts["optimize"]
    assert "Samples to compare outputs on" in texts["compare"]
    assert "refit" not in texts["compare"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["optimize", "--help"]])
def test_help_is_quick(arguments: list[str]) -> None:
    """Nothing heavy is imported: it is not needed to print a text."""
    code = (
        "import sys; from onnxcp.cli.main import main; "
        f"main({arguments!r}); print(*sorted({set(HEAVY)!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


def test_an_unknown_command(onnxcp: Run) -> None:
    done = onnxcp("optimise")
    assert done.code == 2
    assert "No such command 'optimise'" in done.err


@pytest.mark.parametrize(
    ("category", "shown"),
    [
        (DegenerateWarning, "onnxcp: Note that the 3 terms grew.\n"),
        (RuntimeWarning, "somewhere.py:7: RuntimeWarning: the 3 terms grew\n"),
    ],
)
def test_a_warning_is_a_line(
    onnxcp: Run, monkeypatch: pytest.MonkeyPatch, category: type[Warning], shown: str
) -> None:
    """One of ours a sentence; of others also where it comes from."""

    def warned(**_: object) -> None:
        warnings.warn_explicit("the 3 terms grew", category, "somewhere.py", 7)

    monkeypatch.setattr("onnxcp.cli.passes.passes.callback", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        done = onnxcp("passes")
    assert done.code == 0
    assert done.err == shown
