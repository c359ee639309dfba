"""A chain in the place of a site, and everything else as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcp.graph.model import load
from onnxcp.graph.origins import KEY
from onnxcp.graph.site import find_sites
from onnxcp.graph.splice import replace_kernels, splice
from onnxcp.graph.walk import all_nodes, names_defined
from tests.networks import (
    FLOAT32,
    conv_model,
    difference,
    initializers,
    model_of,
    noise,
    operators,
    run,
)
from tests.peculiar import PECULIAR, annotated, branching, plain, trained
from tests.splices import FEEDS, check_equal, rewritten

Build = Callable[[], onnx.ModelProto]
each_peculiar = pytest.mark.parametrize("build", PECULIAR.values(), ids=PECULIAR.keys())
# Those of the peculiar models that ONNX Runtime runs.
RUNS = [
    "plain", "documented", "annotated", "trained", "branching", "overridable-ir3",
    "overridable-ir8", "typed-fields", "stale", "distributed", "ir4", "ir10",
]  # fmt: skip


class TestEverythingElse:
    @each_peculiar
    @pytest.mark.parametrize("label", ["splice", "replace_kernels"])
    def test_stays_as_it_was(self, build: Build, label: str) -> None:
        original = load(build())
        site = next(site for site in find_sites(original)[0] if site.name == "conv")
        if label == "splice":
            proto = rewritten(original, ["conv"], rank=2).proto
        else:
            proto = replace_kernels(original, {site: 2 * site.kernel()}).proto
        before, after = build().graph, proto.graph

        # The nodes: byte by byte, in their order; the new ones stand where the old one stood.
        kept = [node for node in before.node if node.name != "conv"]
        inserted = len(after.node) - len(kept)
        assert inserted == (2 if label == "splice" else 1)
        found = [*after.node[: site.index], *after.node[site.index + inserted :]]
        assert [n.SerializeToString() for n in found] == [n.SerializeToString() for n in kept]
        assert after.node[site.index + inserted - 1].output == before.node[site.index].output

        # The weights: all but the one replaced, in their order, then the new ones.
        gone = "w" if "w" not in {output.name for output in before.output} else None
        weights = [tensor for tensor in before.initializer if tensor.name != gone]
        assert list(after.initializer[: len(weights)]) == weights
        assert len(after.initializer) == len(weights) + inserted

        # What is said of the old weight is gone; in IR version 3 all weights are inputs.
        declared = [value for value in before.input if value.name != gone]
        assert list(after.input[: len(declared)]) == declared
        new = [t.name for t in after.initializer[len(weights) :]] if proto.ir_version == 3 else []
        assert [value.name for value in after.input[len(declared) :]] == new
        for field, name in [("value_info", "name"), ("quantization_annotation", "tensor_name")]:
            said = [v for v in getattr(before, field) if getattr(v, name) != gone]
            assert list(getattr(after, field)) == said

        # Of metadata there is a note on the new weights, and nothing else.
        notes = [each for each in proto.metadata_props if each.key == KEY]
        assert len(notes) == (1 if label == "splice" else 0)
        for each in notes:
            proto.metadata_props.remove(each)

        expected = build()
        for each in (expected, proto):
            for field in ("node", "initializer", "input", "value_info", "quantization_annotation"):
                each.graph.ClearField(field)
        assert proto == expected

    @pytest.mark.parametrize("name", RUNS)
    def test_runs_in_onnx_runtime_with_the_same_result(self, name: str) -> None:
        original = load(PECULIAR[name]())
        check_equal(rewritten(original), original)

    @each_peculiar
    def test_is_left_alone_in_the_original(self, build: Build) -> None:
        original = build()
        rewritten(load(original))
        assert original == build()

    def test_no_sites_no_change(self) -> None:
        assert splice(load(plain()), {}).proto == plain()


class TestNodes:
    def test_are_named_after_the_site_and_the_label(self) -> None:
        model = load(plain())
        graph = rewritten(model).proto.graph
        assert [(node.op_type, node.name) for node in graph.node] == [
            ("Conv", "conv/channel-svd/0"),
            ("Conv", "conv/channel-svd/1"),
            ("Relu", "relu"),
        ]
        assert [list(node.input) for node in graph.node] == [
            ["x", "w/channel-svd/0"],
            ["conv/channel-svd/0/out", "w/channel-svd/1", "b"],
            ["h"],
        ]
        assert list(graph.node[0].output) == ["conv/channel-svd/0/out"]
        assert list(graph.node[1].output) == ["h"]

    def test_stand_in_topological_order_for_several_sites(self) -> None:
        convs = [
            helper.make_node("Conv", [f"x{n}", f"w{n}"], [f"x{n + 1}"], name=f"conv{n}")
            for n in range(3)
        ]
        relus = [helper.make_node("Relu", ["x1"], ["r"]), helper.make_node("Neg", ["x3"], ["y"])]
        nodes = [convs[0], relus[0], convs[1], convs[2], relus[1]]
        proto = model_of(
            nodes,
            inputs={"x0": (1, 4, 5, 5)},
            outputs=["y", "r"],
            weights={f"w{n}": noise(4, 4, 2, 2, seed=n) for n in range(3)},
        )
        result = rewritten(load(proto), ["conv2", "conv0"])
        onnx.checker.check_model(result.proto, full_check=True)
        assert operators(result.proto) == ["Conv", "Conv", "Relu", "Conv", "Conv", "Conv", "Neg"]
        for one, other in zip(run(result), run(proto), strict=True):
            assert difference(one, other) < FLOAT32

    def test_write_a_graph_output_under_its_name(self) -> None:
        proto = conv_model()
        result = rewritten(load(proto))
        assert [output.name for output in result.proto.graph.output] == ["y"]
        assert difference(run(result)[0], run(proto)[0]) < FLOAT32

    def test_feed_a_nested_graph_under_the_old_name(self) -> None:
        """In `branching`, the bodies read what the site makes."""
        check_equal(rewritten(load(branching())), load(branching()))

    def test_keep_a_bias_that_is_computed(self) -> None:
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[0, 2, 3], keepdims=0),
            helper.make_node("Conv", ["x", "w", "m"], ["y"], name="conv"),
        ]
        proto = model_of(nodes, inputs={"x": (1, 4, 7, 8)}, weights={"w": noise(4, 4, 3, 3)})
        result = rewritten(load(proto))
        assert result.proto.graph.node[-1].input[2] == "m"
        assert difference(run(result)[0], run(proto)[0]) < FLOAT32

    def test_can_be_rewritten_again(self) -> None:
        original = load(conv_model((3, 3), channels=(4, 6)))
        model = original
        for _ in range(3):
            model = rewritten(model)
        assert len(model.proto.graph.node) == 8
        names = [node.name for node in model.proto.graph.node]
        assert len(set(names)) == 8
        onnx.checker.check_model(model.proto, full_check=True)
        assert difference(run(model)[0], run(original)[0]) < FLOAT32


def check_names(proto: onnx.ModelProto) -> None:
    """Check that no tensor is defined twice, nested graphs included, and no node name is double."""
    nodes = list(all_nodes(proto.graph.node))
    defined = Counter(tensor.name for tensor in proto.graph.initializer)
    defined.update(name for node in nodes for name in node.output if name)
    inputs = {value.name for value in proto.graph.input} - initializers(proto).keys()
    defined.update(inputs)
    assert [name for name, count in defined.items() if count > 1] == []
    assert defined.keys() <= names_defined(proto.graph)
    named = Counter(node.name for node in nodes if node.name)
    assert [name for name, count in named.items() if count > 1] == []


class TestNames:
    WANTED = (
        "conv/channel-svd/0",
        "conv/channel-svd/0/out",
        "conv/channel-svd/1",
        "w/channel-svd/0",
        "w/channel-svd/1",
    )

    @pytest.mark.parametrize("taken", WANTED)
    @pytest.mark.parametrize("kind", ["node", "tensor", "weight", "input", "value_info", "nested"])
    def test_that_are_taken_are_not_taken_again(self, taken: str, kind: str) -> None:
        proto = plain(weights={"yes": np.array(True)})
        graph = proto.graph
        if kind == "node":
            graph.node.append(helper.make_node("Neg", ["y"], ["unread"], name=taken))
        elif kind == "tensor":
            graph.node.append(helper.make_node("Neg", ["y"], [taken]))
        elif kind == "weight":
            graph.initializer.append(numpy_helper.from_array(noise(2), taken))
        elif kind == "input":
            graph.input.append(helper.make_tensor_value_info(taken, TensorProto.FLOAT, [1]))
        elif kind == "value_info":
            # A shape that would be wrong for the new tensor, which ONNX Runtime would believe.
            graph.value_info.append(helper.make_tensor_value_info(taken, TensorProto.INT64, [7]))
        else:
            out = [helper.make_tensor_value_info(taken, TensorProto.FLOAT, None)]
            inner = helper.make_node("Neg", ["y"], [taken], name=taken)
            body = helper.make_graph([inner], "body", [], out)
            graph.node.append(
                helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body)
            )
        original = load(proto)
        result = rewritten(original)
        new = {tensor.name for tensor in result.proto.graph.initializer}
        new |= {node.name for node in result.proto.graph.node[:2]}
        new |= set(result.proto.graph.node[0].output)
        assert taken not in new or kind == "weight"
        assert f"{taken}_2" in new
        if kind != "nested":  # whose two branches define the same names, as they may
            check_names(result.proto)
        feeds = FEEDS | ({taken: noise(1)} if kind == "input" else {})
        for one, other in zip(run(result, feeds), run(original, feeds), strict=True):
            assert difference(one, other) < FLOAT32

    @pytest.mark.parametrize("names", [["", ""], ["a", "a"], ["a", ""], ["", "y0"]])
    def test_of_sites_without_their_own_do_not_clash(self, names: list[str]) -> None:
        nodes = [
            helper.make_node("Conv", ["x", f"w{n}"], [f"y{n}"], name=name)
            for n, name in enumerate(names)
        ]
        weights = {f"w{n}": noise(6, 4, 3, 3, seed=n) for n in range(2)}
        proto = model_of(nodes, inputs={"x": (1, 4, 7, 8)}, outputs=["y0", "y1"], weights=weights)
        result = rewritten(load(proto))
        check_names(result.proto)
        for node in proto.graph.node:
            node.name = ""  # ONNX Runtime refuses double names
        check_equal(result, load(proto))


class TestGemmBeforeItsBiasWasOptional:
    def test_two_of_one_rank_share_their_zeros(self) -> None:
        nodes = [
            helper.make_node("Gemm", ["x", "w0", "b"], ["h"], name="first"),
            helper.make_node("Gemm", ["h", "w1", "b"], ["y"], name="second"),
        ]
        weights = {"w0": noise(8, 8), "w1": noise(8, 8, seed=1), "b": noise(8, seed=2)}
        proto = model_of(nodes, inputs={"x": (3, 8)}, weights=weights, opset=9)
        result = rewritten(load(proto), rank=8)
        onnx.checker.check_model(result.proto, full_check=True)
        zeros = [name for name in initializers(result.proto) if "zeros" in name]
        assert zeros == ["w0/channel-svd/zeros"]
        assert difference(run(result)[0], run(proto)[0]) < FLOAT32


def test_annotations_of_the_old_weight_are_gone() -> None:
    result = rewritten(load(annotated())).proto
    said = [annotation.tensor_name for annotation in result.graph.quantization_annotation]
    assert said == ["h", "y"]


def test_training_information_is_passed_on_untouched() -> None:
    assert rewritten(load(trained())).proto.training_info == trained().training_info
