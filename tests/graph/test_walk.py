from __future__ import annotations

from onnx import helper

from onnxcp.graph.walk import names_captured
from tests.networks import noise
from tests.peculiar import branching


def test_a_node_captures_what_its_graphs_do_not_make_themselves() -> None:
    captured = {node.name: names_captured(node) for node in branching().graph.node}
    assert captured == {"conv": set(), "relu": set(), "if": {"h"}, "loop": {"b4"}}


def test_deeper_graphs_capture_from_all_around_them() -> None:
    inner = helper.make_graph(
        [helper.make_node("Sum", ["far", "near", "mine"], ["s"])],
        "inner",
        [],
        [helper.make_empty_tensor_value_info("s")],
        [helper.make_tensor("mine", 1, [1], noise(1))],
    )
    choose = helper.make_node("If", ["which"], ["t"], then_branch=inner, else_branch=inner)
    outer = helper.make_graph(
        [helper.make_node("Neg", ["before"], ["near"]), choose],
        "outer",
        [helper.make_empty_tensor_value_info("which")],
        [helper.make_empty_tensor_value_info("t"), helper.make_empty_tensor_value_info("beside")],
    )
    node = helper.make_node("Loop", ["n", "go"], ["u"], body=outer)
    assert names_captured(node) == {"far", "before", "beside"}


def test_a_name_that_is_made_after_it_is_read_comes_from_around() -> None:
    body = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["a"])],
        "body",
        [],
        [helper.make_empty_tensor_value_info("a")],
    )
    assert names_captured(helper.make_node("If", ["q"], ["y"], then_branch=body)) == {"a"}
