from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.cli.conftest import Run


@pytest.fixture
def layers(onnxcp: Run, model: Path) -> dict[str, dict[str, Any]]:
    done = onnxcp("inspect", model, "--json", "--input-shapes", "2,16,12,12")
    record = json.loads(done.out)
    assert record["untimed"] == ""
    assert record["seconds"] > 0
    return {layer["name"]: layer for layer in record["layers"]}


def test_one_row_for_each_layer_in_order(layers: dict[str, dict[str, Any]]) -> None:
    assert list(layers) == ["conv", "depthwise", "fc"]


def test_what_a_layer_is_and_costs(layers: dict[str, dict[str, Any]]) -> None:
    conv = layers["conv"]
    assert conv["op"] == "Conv"
    assert conv["kernel_shape"] == [24, 16, 3, 3]
    assert conv["input_shape"] == [2, 16, 12, 12]
    assert conv["macs"] == 24 * 16 * 9 * 144
    assert conv["seconds"] >= 0
    assert conv["eligible"] is True
    assert "tucker2" in conv["families"]


def test_why_a_layer_is_not_eligible(layers: dict[str, dict[str, Any]]) -> None:
    depthwise = layers["depthwise"]
    assert depthwise["group"] == 24
    assert depthwise["eligible"] is False
    assert depthwise["refusal"]["reason"] == "depthwise"
    assert depthwise["macs"] == 24 * 9 * 100


def test_the_table(onnxcp: Run, model: Path) -> None:
    done = onnxcp("inspect", model, "--input-shapes", "2,16,12,12")
    assert (done.code, done.out) == (0, "")
    for words in ("24×16×3×3", "24 groups", "2×16×12×12", "498 k", "it is depthwise"):
        assert words in done.err
    assert max(map(len, done.err.splitlines())) <= 80


def test_what_was_factorised_already(onnxcp: Run, model: Path, tmp_path: Path) -> None:
    whole = onnxcp("inspect", model, "--no-time", "--json")
    assert json.loads(whole.out)["factorised"] == []
    assert "factorised" not in whole.err
    faster = tmp_path / "faster.onnx"
    assert onnxcp("optimize", model, faster, "--passes", 'cp3{rank=4,nodes="conv"}').code == 0
    done = onnxcp("inspect", faster, "--no-time", "--json")
    assert re.search(r"factorised already +as +\n[─ ]+\nconv +cp3, rank 4\n", done.err)
    record = json.loads(done.out)
    factors = [f"w/cp3/{n}" for n in range(3)]
    assert record["factorised"] == [
        {"site": "conv", "family": "cp3", "ranks": [4], "factors": factors, "middle": factors[1:2]}
    ]
    names = [layer["name"] for layer in record["layers"]]
    assert names == ["conv/cp3/0", "conv/cp3/1", "conv/cp3/2", "depthwise", "fc"]


def test_a_chain_of_several_rows_is_one(onnxcp: Run, model: Path, tmp_path: Path) -> None:
    faster, pipeline = tmp_path / "faster.onnx", 'sparse-low-rank{macs=0.5,nodes="conv"}'
    assert onnxcp("optimize", model, faster, "--passes", pipeline).code == 0
    done = onnxcp("inspect", faster, "--no-time", "--json")
    assert [each["site"] for each in json.loads(done.out)["factorised"]] == ["conv", "conv"]
    assert len(re.findall("conv +sparse-low-rank, rank", done.err)) == 1


def test_without_time(onnxcp: Run, model: Path) -> None:
    record = json.loads(onnxcp("inspect", model, "--no-time", "--json", "-q").out)
    assert record["seconds"] is None
    assert all(layer["seconds"] is None for layer in record["layers"])
    assert all(layer["macs"] for layer in record["layers"])


def test_a_model_that_does_not_run_is_still_shown(onnxcp: Run, model: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(proto, model)
    done = onnxcp("inspect", model, "--json", "--input-shapes", "x:2,16,12,12")
    assert done.code == 0
    assert "No times were taken: ONNX Runtime cannot load" in done.err
    conv = json.loads(done.out)["layers"][0]
    assert conv["macs"] == 24 * 16 * 9 * 144


def test_nodes_without_names(onnxcp: Run, model: Path) -> None:
    proto = onnx.load(model)
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, model)
    record = json.loads(onnxcp("inspect", model, "--json", "-q").out)
    assert [layer["name"] for layer in record["layers"]] == ["h", "s", "y"]
    assert all(layer["seconds"] is not None for layer in record["layers"])


def test_a_model_without_layers(onnxcp: Run, tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), path)
    done = onnxcp("inspect", path)
    assert done.code == 0
    assert "In relu.onnx is no Conv" in done.err


def test_layers_in_bodies_are_named(onnxcp: Run, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[1,2,4,4] x, float[2,2,1,1] w) => (float[1,2,4,4] y) {
        [branch] y = If(c) <then_branch = t () => (float[1,2,4,4] a) { [inner] a = Conv(x, w) },
                            else_branch = e () => (float[1,2,4,4] b) { b = Relu(x) }>
    }"""
    path = tmp_path / "if.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    (layer,) = json.loads(onnxcp("inspect", path, "--json", "-q").out)["layers"]
    assert layer["name"] == "inner"
    assert layer["refusal"]["reason"] == "in a subgraph"


def test_open_extents_are_found_by_running(onnxcp: Run, sound: Path) -> None:
    record = json.loads(onnxcp("inspect", sound, "--json", "-q").out)
    (layer,) = record["layers"]
    assert record["untimed"] == ""
    assert layer["input_shape"] == [1, 2, 64]


def test_layers_of_one_name_in_bodies_are_all_listed(onnxcp: Run, tmp_path: Path) -> None:
    """Both branches hold a `same`, and so does the main graph, where it is refused otherwise."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[1,2,4,4] x, float[2,2,1,1] w) => (float[1,2,4,4] y) {
        [same] z = Conv(x, w)
        [if] y = If(c) <then_branch = t () => (float[1,2,4,4] a) { [same] a = Conv(z, w) },
                        else_branch = e () => (float[1,2,4,4] b) { [same] b = Conv(z, w) }>
    }"""
    path = tmp_path / "if.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    layers = json.loads(onnxcp("inspect", path, "--json", "-q").out)["layers"]
    assert [(layer["name"], layer["op"], layer["refusal"]["reason"]) for layer in layers] == [
        ("same", "Conv", "weight not constant"),
        ("same", "", "in a subgraph"),
        ("same", "", "in a subgraph"),
    ]


def test_a_layer_in_a_body_is_not_taken_for_a_node_of_the_main_graph(
    onnxcp: Run, tmp_path: Path
) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[1,2,4,4] x, float[2,2,1,1] w) => (float[1,2,4,4] y) {
        [same] z = Relu(x)
        [if] y = If(c) <then_branch = t () => (float[1,2,4,4] a) { [same] a = Conv(z, w) },
                        else_branch = e () => (float[1,2,4,4] b) { b = Neg(z) }>
    }"""
    path = tmp_path / "if.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    (layer,) = json.loads(onnxcp("inspect", path, "--json", "-q").out)["layers"]
    assert (layer["op"], layer["refusal"]["reason"]) == ("", "in a subgraph")
