"""Whatever an edit leaves alone is, field by field, what it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper, numpy_helper
from onnx_graphsurgeon.logger import G_LOGGER

from onnxcp.errors import ModelError
from onnxcp.graph.edit import edit, remove_dead_producers
from onnxcp.graph.model import Model, load
from tests.networks import initializers, noise
from tests.peculiar import (
    PECULIAR,
    annotated,
    branching,
    documented,
    every_attribute,
    every_type,
    overridable,
    plain,
    with_functions,
)

each_peculiar = pytest.mark.parametrize("build", PECULIAR.values(), ids=PECULIAR.keys())
Build = Callable[[], onnx.ModelProto]


def node_named(graph: gs.Graph, name: str) -> gs.Node:
    return next(node for node in graph.nodes if node.name == name)


def without(graph: onnx.GraphProto, *fields: str) -> onnx.GraphProto:
    """Return a copy of a graph without some fields."""
    result = onnx.GraphProto()
    result.CopyFrom(graph)
    for field in fields:
        result.ClearField(field)
    return result


@each_peculiar
class TestNothing:
    def test_no_change_changes_nothing(self, build: Build) -> None:
        original = build()
        before = original.SerializeToString()
        edited = edit(load(original), lambda _: None).proto
        assert edited == build()
        assert edited.SerializeToString() == before

    def test_looking_changes_nothing(self, build: Build) -> None:
        """graphsurgeon loads the values of constants when they are looked at."""

        def look(graph: gs.Graph) -> None:
            for tensor in graph.tensors().values():
                if isinstance(tensor, gs.Constant) and tensor.name not in ("s", "of_STRING"):
                    assert tensor.values is not None

        assert edit(load(build()), look).proto == build()

    def test_the_original_is_left_as_it_is(self, build: Build) -> None:
        original = build()

        def change(graph: gs.Graph) -> None:
            for node in graph.nodes:
                node.name += "_"
                node.attrs.clear()
            for tensor in graph.tensors().values():
                if isinstance(tensor, gs.Constant) and tensor.name != "s":
                    tensor.name += "_"
            graph.nodes.reverse()

        edit(load(original), change)
        assert original == build()

    def test_a_node_that_is_renamed_keeps_all_else(self, build: Build) -> None:
        def change(graph: gs.Graph) -> None:
            for node in graph.nodes:
                node.name += "_"

        expected = build()
        for node in expected.graph.node:
            node.name += "_"
        assert edit(load(build()), change).proto == expected


def test_the_result_remembers_how_it_was_stored_but_is_no_longer_the_file() -> None:
    model = Model(plain(), load(plain()).path, frozenset({"w"}))
    edited = edit(model, lambda _: None)
    assert edited.external == {"w"}
    assert edited.path is None
    assert edited.proto is not model.proto


class TestNodes:
    def test_only_the_attribute_that_was_set_changes(self) -> None:
        def change(graph: gs.Graph) -> None:
            odd = node_named(graph, "odd")
            odd.attrs["ints"] = [3]
            odd.attrs["new"] = 1.5
            del odd.attrs["f"]

        was, now = (
            {attribute.name: attribute for attribute in proto.graph.node[-1].attribute}
            for proto in (every_attribute(), edit(load(every_attribute()), change).proto)
        )
        assert list(now) == [*(name for name in was if name != "f"), "new"]
        assert now["ints"] == helper.make_attribute("ints", [3])
        assert now["new"] == helper.make_attribute("new", 1.5)
        assert all(now[name] == was[name] for name in now.keys() - {"ints", "new"})

    def test_a_change_inside_a_nested_graph_is_kept(self) -> None:
        def change(graph: gs.Graph) -> None:
            body = node_named(graph, "if").attrs["then_branch"]
            node_named(body, "then").op = "Mul"

        edited = edit(load(branching()), change).proto
        branches = {a.name: a.g for a in edited.graph.node[2].attribute}
        assert [node.op_type for node in branches["then_branch"].node] == ["Conv", "Mul"]
        assert branches["else_branch"] == branching().graph.node[2].attribute[0].g

    def test_a_new_domain_is_imported_once(self) -> None:
        def change(graph: gs.Graph) -> None:
            relu = node_named(graph, "relu")
            relu.domain = "org.other"
            node_named(graph, "call").domain = "org.example"
            node_named(graph, "conv").domain = "ai.onnx"

        model = load(with_functions())
        edited = edit(model, change).proto
        assert [(o.domain, o.version) for o in edited.opset_import] == [
            ("", 17),
            ("org.example", 1),
            ("org.other", 1),
        ]
        assert edited.functions == model.proto.functions

    def test_errors_of_the_change_come_through_and_the_log_level_comes_back(self) -> None:
        severity = G_LOGGER.severity

        def change(_: gs.Graph) -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            edit(load(plain()), change)
        assert G_LOGGER.severity == severity


class TestTensors:
    def test_a_renamed_initializer_is_another(self) -> None:
        def change(graph: gs.Graph) -> None:
            graph.tensors()["w"].name = "weight"

        original = plain(weights={"unread": noise(2)})
        edited = edit(load(original), change).proto
        assert [tensor.name for tensor in original.graph.initializer] == ["w", "b", "unread"]
        assert [tensor.name for tensor in edited.graph.initializer] == ["b", "unread", "weight"]
        assert list(edited.graph.node[0].input) == ["x", "weight", "b"]
        np.testing.assert_array_equal(initializers(edited)["weight"], initializers(original)["w"])

    def test_a_new_value_takes_the_place_of_the_old(self) -> None:
        def change(graph: gs.Graph) -> None:
            graph.tensors()["w"].values = noise(6, 4, 1, 1)

        edited = edit(load(plain()), change).proto
        assert [tensor.name for tensor in edited.graph.initializer] == ["w", "b"]
        np.testing.assert_array_equal(initializers(edited)["w"], noise(6, 4, 1, 1))
        assert edited.graph.initializer[1] == plain().graph.initializer[1]

    def test_what_is_no_longer_read_goes_with_all_that_is_said_of_it(self) -> None:
        def change(graph: gs.Graph) -> None:
            conv, relu = graph.nodes
            relu.inputs = [conv.inputs[0]]
            conv.outputs.clear()
            graph.nodes.remove(conv)

        edited = edit(load(annotated()), change).proto
        assert list(initializers(edited)) == ["scale", "zero"], "nobody read these before either"
        assert [a.tensor_name for a in edited.graph.quantization_annotation] == ["y"]
        edited = edit(load(documented()), change).proto
        assert "h" not in [value.name for value in edited.graph.value_info]
        assert [value.name for value in edited.graph.input] == ["x"]

    @pytest.mark.parametrize("ir_version", [3, 8])
    def test_an_input_whose_default_is_gone_goes_too(self, ir_version: int) -> None:
        def change(graph: gs.Graph) -> None:
            graph.nodes[0].inputs[1] = gs.Constant("v", noise(6, 4, 1, 1))

        edited = edit(load(overridable(ir_version)), change).proto
        assert list(initializers(edited)) == ["b", "v"]
        declared = ["x", "b", "v"] if ir_version == 3 else ["x", "b"]
        assert [value.name for value in edited.graph.input] == declared
        assert edited.graph.input[1] == overridable(ir_version).graph.input[2]

    def test_a_constant_for_a_nested_graph_alone_is_kept(self) -> None:
        edited = edit(load(branching()), lambda graph: graph.nodes.pop(1)).proto
        assert "b4" in initializers(edited)

    def test_inputs_and_outputs_may_come_and_go(self) -> None:
        def change(graph: gs.Graph) -> None:
            more = gs.Variable("more", np.float32, (1, 6, 7, 8))
            sum_ = gs.Variable("sum", np.float32, None)
            graph.nodes.append(gs.Node("Add", inputs=[*graph.outputs, more], outputs=[sum_]))
            graph.inputs.append(more)
            graph.outputs = [sum_]

        edited = edit(load(documented()), change).proto
        assert [value.name for value in edited.graph.input] == ["x", "more"]
        assert [value.name for value in edited.graph.output] == ["sum"]
        assert edited.graph.input[0] == documented().graph.input[0]
        fields = ("node", "input", "output")
        assert without(edited.graph, *fields) == without(documented().graph, *fields)

    def test_weights_of_other_types_come_out_as_they_went_in(self) -> None:
        def change(graph: gs.Graph) -> None:
            graph.nodes[0].inputs[1] = gs.Constant("v", noise(6, 4, 1, 1))

        edited = edit(load(every_type()), change).proto
        expected = [tensor for tensor in every_type().graph.initializer if tensor.name != "w"]
        assert list(edited.graph.initializer)[:-1] == expected

    def test_what_graphsurgeon_cannot_hold_is_refused_in_a_sentence(self) -> None:
        proto = plain()
        proto.graph.initializer[0].data_type = 0
        with pytest.raises(ModelError, match=r"^tiny cannot be edited by graphsurgeon: "):
            edit(load(proto), lambda _: None)


class TestDeadProducers:
    """Constant, then Cast, make ``c``, which Add reads until the edit."""

    def model(self, *extra: onnx.NodeProto, outputs: tuple[str, ...] = ("y", "z")) -> Model:
        values = numpy_helper.from_array(noise(6, 1, 1).astype(np.float64))
        nodes = [
            helper.make_node("Constant", [], ["d"], value=values),
            helper.make_node("Cast", ["d"], ["c"], to=onnx.TensorProto.FLOAT, name="cast"),
            helper.make_node("Add", ["y", "c"], ["z"], name="add"),
        ]
        return load(plain(*nodes, *extra, outputs=outputs))

    def left(self, model: Model) -> list[str]:
        def change(graph: gs.Graph) -> None:
            add = node_named(graph, "add")
            constant = add.inputs[1]
            add.inputs[1] = gs.Constant("new", noise(6, 1, 1))
            remove_dead_producers(graph, constant)

        return [node.op_type for node in edit(model, change).proto.graph.node]

    def test_go_with_their_last_reader(self) -> None:
        assert self.left(self.model()) == ["Conv", "Relu", "Add"]

    def test_stay_for_another_reader(self) -> None:
        other = helper.make_node("Neg", ["c"], ["n"])
        all_ = ["Conv", "Relu", "Constant", "Cast", "Add", "Neg"]
        assert self.left(self.model(other, outputs=("y", "z", "n"))) == all_

    def test_go_as_far_as_nobody_else_reads_them(self) -> None:
        other = helper.make_node("Identity", ["d"], ["n"])
        kept = ["Conv", "Relu", "Constant", "Add", "Identity"]
        assert self.left(self.model(other)) == kept

    def test_stay_for_an_output(self) -> None:
        assert self.left(self.model(outputs=("y", "z", "c")))[2:4] == ["Constant", "Cast"]

    def test_stay_for_a_nested_graph(self) -> None:
        body = helper.make_graph(
            [helper.make_node("Identity", ["c"], ["inner"])],
            "body",
            [],
            [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
        )
        other = helper.make_node("If", ["yes"], ["n"], then_branch=body, else_branch=body)
        assert self.left(self.model(other))[2:4] == ["Constant", "Cast"]
