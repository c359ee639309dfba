"""Who makes a tensor and who reads it; names that nobody has."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcp.graph.view import GraphView
from onnxcp.graph.walk import Namer, all_nodes, attributes, names_defined, names_read
from tests.networks import noise
from tests.peculiar import branching, every_attribute, overridable, plain, untyped_attributes


class TestView:
    def test_producers_and_initializers(self) -> None:
        view = GraphView(plain().graph)
        assert view.producers == {"h": 0, "y": 1}
        producer = view.producer("h")
        assert producer is not None
        assert producer.name == "conv"
        assert view.producer("x") is view.producer("w") is view.producer("nowhere") is None
        assert set(view.initializers) == {"w", "b"}

    def test_readers_are_counted_wherever_they_are(self) -> None:
        """As an input twice over, as an output, in a nested graph."""
        proto = plain(helper.make_node("Add", ["h", "h"], ["z"]), outputs=["y", "z", "h"])
        assert GraphView(proto.graph).readers["h"] == 4
        readers = GraphView(branching().graph).readers
        assert readers["h"] == 1 + 2, "Relu, and each branch of If"
        assert readers["b4"] == 1
        assert readers["y"] == 1
        assert readers["nowhere"] == 0

    def test_input_names_are_all_those_declared(self) -> None:
        assert GraphView(overridable(8).graph).input_names == {"x", "w", "b"}

    def test_the_shape_of_a_constant_is_known_without_its_values(self) -> None:
        proto = plain(helper.make_node("Identity", ["w"], ["v"]))
        proto.graph.initializer[0].raw_data = b""
        view = GraphView(proto.graph)
        assert view.constant_shape("w") == (6, 4, 3, 3)
        assert view.constant_shape("b") == (6,)
        assert view.constant_shape("x") is None
        with pytest.raises(ValueError, match="'w' holds no data that fit its shape"):
            view.constant("w")

    @pytest.mark.parametrize(
        ("allowzero", "shape", "expected"), [(0, [0, -1], (2, 6)), (1, [0, 3], None)]
    )
    def test_a_zero_in_a_reshape_keeps_or_means_zero(
        self, allowzero: int, shape: list[int], expected: tuple[int, ...] | None
    ) -> None:
        node = helper.make_node("Reshape", ["v", "s"], ["u"], allowzero=allowzero)
        value = noise(2, 3, 2) if expected else noise(0, 5)
        graph = helper.make_graph(
            [node],
            "g",
            [],
            [],
            [numpy_helper.from_array(value, "v"), numpy_helper.from_array(np.array(shape), "s")],
        )
        result = GraphView(graph).constant("u")
        assert result is not None
        assert result.shape == (expected or (0, 3))


class TestWalk:
    def test_nested_nodes_are_visited(self) -> None:
        names = [node.name for node in all_nodes(branching().graph.node)]
        assert {"conv", "conv_in_then", "then", "else", "in_loop", "loop"} <= set(names)
        names = [node.op_type for node in all_nodes(every_attribute().graph.node)]
        assert names.count("Neg") == 3, "in a graph and in a list of graphs"

    def test_names_of_nested_graphs_count(self) -> None:
        graph = branching().graph
        assert {"h", "b4", "then_w", "carried", "z"} <= names_read(graph)
        assert {"x", "w", "then_w", "then_c", "t", "carried", "i"} <= names_defined(graph)
        assert "" not in names_read(graph) | names_defined(graph)

    def test_attributes_without_a_type_are_read_from_their_field(self) -> None:
        untyped, typed = (
            attributes(build().graph.node[0]) for build in (untyped_attributes, plain)
        )
        assert untyped == typed == {"pads": [1, 1, 1, 1]}
        attribute = onnx.AttributeProto(name="nothing")
        assert attributes(onnx.NodeProto(attribute=[attribute])) == {"nothing": None}

    def test_a_namer_gives_no_name_twice(self) -> None:
        namer = Namer(branching().graph)
        assert [namer("new") for _ in range(3)] == ["new", "new_2", "new_3"]
        assert namer("then_w") == "then_w_2", "a tensor of a nested graph"
        assert namer("conv_in_then") == "conv_in_then_2", "a node of a nested graph"
        assert namer("new_2") == "new_2_2"
