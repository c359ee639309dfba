from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
from onnxcp_passes.cp import Cp3

from onnxcp import Context, load
from onnxcp.graph.origins import KEY
from onnxcp.tuning.operators.registry import CHECKS, OPERATORS
from tests.networks import conv_model

DOCS = (Path(__file__).parents[2] / "docs" / "torch.md").read_text(encoding="utf-8")


def rows() -> dict[str, list[str]]:
    """Return the table of operators: names by kind, which is the module."""
    _, _, table = DOCS.partition("| kind | operators | refused where they have |")
    lines = [line.strip("|").split("|") for line in table.split("\n\n")[0].splitlines()[2:]]
    return {kind.strip(): [each.strip() for each in names.split(",")] for kind, names, _ in lines}


def test_the_table_of_operators_is_that_of_the_registry() -> None:
    expected: dict[str, list[str]] = {"constant": ["Constant"]}
    for name, function in OPERATORS.items():
        kind = function.__module__.rpartition(".")[2]
        expected.setdefault(kind, []).append(f"{name}*" if name in CHECKS else name)
    assert {kind: sorted(names) for kind, names in rows().items()} == {
        kind: sorted(names) for kind, names in expected.items()
    }


def test_operators_said_to_be_refused_are_operators_and_are() -> None:
    text = re.search(r"which are: (.*?), those that draw", DOCS, re.DOTALL)
    assert text is not None
    names = set(re.split(r",\s+", text[1]))
    assert names <= {schema.name for schema in onnx.defs.get_all_schemas()}
    assert not names & OPERATORS.keys()


def test_the_note_on_factors_has_the_fields_that_are_described() -> None:
    model = Cp3(rank=3).run(load(conv_model()), Context()).model
    (entry,) = model.proto.metadata_props
    assert f"`{entry.key}`" in DOCS
    assert entry.key == KEY
    (chain,) = json.loads(entry.value)["chains"]
    assert all(f'"{field}": ' in DOCS for field in chain)
