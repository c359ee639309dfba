"""Command lines that choose nothing: what a report says to do it again by."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from onnxcp.cli.goals import settled_by
from onnxcp.cli.optimize import optimize
from tests.cli.conftest import Run

SHAPE = ("--input-shapes", "x:4,16,12,12")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("onnxcp optimize m.onnx --macs 0.5", "onnxcp optimize m.onnx"),
        ("onnxcp optimize m.onnx o.onnx --macs=0.5 -v", "onnxcp optimize m.onnx o.onnx -v"),
        ("onnxcp optimize --dry-run 'a b.onnx' --json", "onnxcp optimize 'a b.onnx'"),
        ("onnxcp optimize --plan p.yaml m --force", "onnxcp optimize m --force"),
        (
            "onnxcp optimize m --families cp3 --calibration-data d.npz --frontier 2,3",
            "onnxcp optimize m --calibration-data d.npz",
        ),
    ],
)
def test_what_chooses_goes(command: str, expected: str) -> None:
    assert settled_by(command, "--plan plan.yaml") == f"{expected} --plan plan.yaml"


def test_every_option_goes_with_its_value_and_no_other_does() -> None:
    kept = set()
    for each in optimize.params:
        name = each.opts[-1]
        if not name.startswith("--"):
            continue
        words = [name] if getattr(each, "is_flag", False) else [name, "value"]
        left = shlex.split(settled_by(shlex.join(["onnxcp", *words, "end"]), "--x"))
        assert left in (["onnxcp", "end", "--x"], ["onnxcp", *words, "end", "--x"])
        kept |= {name} if len(left) > 3 else set()
    assert {"--input-shapes", "--calibration-data", "--providers", "--refit", "--precision"} <= kept
    assert not kept & {"--macs", "--energy", "--target-speedup", "--preset", "--cosine-of"}
    assert not kept & {"--families", "--round-to", "--passes", "--plan", "--save-plan", "--report"}


def test_the_commands_of_a_report_make_the_same_network(
    onnxcp: Run, model: Path, calibration: Path, tmp_path: Path
) -> None:
    output, report = tmp_path / "o.onnx", tmp_path / "r.html"
    done = onnxcp(
        "optimize", model, output, "--macs", "0.5", *SHAPE, "--calibration-data", calibration,
        "--report", report, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    page, first = json.loads(done.out)["report"], output.read_bytes()
    (tmp_path / "plan.yaml").write_text(page["plan"])
    words = [each.replace("plan.yaml", f"{tmp_path}/plan.yaml") for each in _words(page, 1)]
    assert onnxcp(*words, "--force").code == 0
    assert output.read_bytes() == first
    # Passes are refitted all together, where a plan's were chosen to be: no bytes to compare.
    words = [each.replace("$(cat recipe.txt)", page["recipe"]) for each in _words(page, 0)]
    done = onnxcp(*words, "--force")
    assert done.code == 0, done.err
    assert "The rewritten network is faster" in done.err


def _words(page: dict[str, list[str]], which: int) -> list[str]:
    _, *words = shlex.split(page["again"][which])
    return words
