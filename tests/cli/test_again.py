"""Command lines that choose nothing: what a report says to do it again by."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import onnx
import pytest

from onnxcp.cli.again import settled_by
from onnxcp.cli.optimize import optimize
from tests.cli.conftest import Run

SHAPE = ("--input-shapes", "x:4,16,12,12")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("m.onnx --macs 0.5", "m.onnx"),
        ("m.onnx o.onnx --macs=0.5 -v", "m.onnx o.onnx -v"),
        ("--dry-run 'a b.onnx' --json", "'a b.onnx'"),
        ("--plan p.yaml m --force", "m --force"),
        ("m --families cp3 --calibration-data d.npz --frontier 2,3", "m --calibration-data d.npz"),
        ("--exclude= m.onnx", "m.onnx"),
        ("--macs 0.5 -- -m.onnx", "-- -m.onnx"),
    ],
)
def test_what_chooses_goes(command: str, expected: str) -> None:
    made = settled_by(f"onnxcp optimize {command}", "--plan plan.yaml")
    assert made == f"onnxcp optimize --plan plan.yaml {expected}"


def test_what_is_typed_ahead_of_the_command_stays_there() -> None:
    made = settled_by("onnxcp -q optimize m.onnx --macs 0.5", "--plan plan.yaml")
    assert made == "onnxcp -q optimize --plan plan.yaml m.onnx"


def test_every_option_goes_with_its_value_and_no_other_does() -> None:
    kept = set()
    for each in optimize.params:
        name = each.opts[-1]
        if not name.startswith("--"):
            continue
        words = [name] if getattr(each, "is_flag", False) else [name, "value"]
        left = shlex.split(settled_by(shlex.join(["onnxcp", "optimize", *words, "end"]), "--x"))
        assert left[:3] == ["onnxcp", "optimize", "--x"]
        assert left[3:] in (["end"], [*words, "end"])
        kept |= {name} if len(left) > 4 else set()
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
    recipe = page["recipe"].replace("\n", "")
    words = [each.replace("$(cat recipe.txt)", recipe) for each in _words(page, 0)]
    done = onnxcp(*words, "--force")
    assert done.code == 0, done.err
    assert _shapes(output.read_bytes()) == _shapes(first)
    assert _shapes(first) != _shapes(model.read_bytes())


def test_a_lower_precision_is_said_by_passes_and_plans(
    onnxcp: Run, model: Path, tmp_path: Path
) -> None:
    output, report = tmp_path / "o.onnx", tmp_path / "r.html"
    done = onnxcp(
        "optimize", model, output, "--macs", "0.5", *SHAPE, "--precision", "fp16",
        "--report", report, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    record, first = json.loads(done.out), output.read_bytes()
    page = record["report"]
    (tmp_path / "plan.yaml").write_text(page["plan"])
    for number, (old, new) in enumerate(
        [("$(cat recipe.txt)", page["recipe"]), ("plan.yaml", f"{tmp_path}/plan.yaml")]
    ):
        words = [each.replace(old, new) for each in _words(page, number)]
        done = onnxcp(*words, "--force")
        assert done.code == 0, done.err
        assert _shapes(output.read_bytes()) == _shapes(first)


def test_a_goal_of_size_is_in_no_plan(onnxcp: Run, model: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.html"
    done = onnxcp(
        "optimize", model, tmp_path / "o.onnx", "--target-size", "0.8", *SHAPE,
        "--families", "channel-svd", "--report", report, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["report"]["again"] == ["", ""]


def _words(page: dict[str, list[str]], which: int) -> list[str]:
    _, *words = shlex.split(page["again"][which])
    return words


def _shapes(model: bytes) -> list[tuple[int, tuple[int, ...]]]:
    weights = onnx.load_model_from_string(model).graph.initializer
    return sorted((each.data_type, tuple(each.dims)) for each in weights)
