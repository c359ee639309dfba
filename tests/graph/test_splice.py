"""A chain in the place of a site, and everything else as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.cp import Cp4

from onnxcp.graph.chain import Chain, ConvStep, MatrixStep, PickStep, with_kernel
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.model import Model, load
from onnxcp.graph.origins import KEY
from onnxcp.graph.site import find_sites
from onnxcp.graph.splice import replace_kernels, splice
from onnxcp.graph.walk import all_nodes, names_defined
from tests.networks import (
    FLOAT32,
    Array,
    conv_model,
    difference,
    feeds_for,
    initializers,
    model_of,
    noise,
    only_site,
    operators,
    run,
)
from tests.peculiar import PECULIAR, annotated, branching, overridable, plain, trained

Build = Callable[[], onnx.ModelProto]
each_peculiar = pytest.mark.parametrize("build", PECULIAR.values(), ids=PECULIAR.keys())


def rewritten(model: Model, names: Sequence[str] | None = None, rank: int | None = None) -> Model:
    """Factorise the sites of some names, or all, by channel SVD at full rank or another."""
    family = ChannelSvd()
    chains = {}
    for site in find_sites(model)[0]:
        if names is None or site.name in names:
            ranks = family.full_ranks(site) if rank is None else (rank,)
            chains[site] = ("channel-svd", family.apply(site, ranks).chain)
    return splice(model, chains)


def check_equal(result: Model, original: Model) -> None:
    for one, other in zip(run(result, FEEDS), run(original, FEEDS), strict=True):
        assert difference(one, other) < FLOAT32


FEEDS = {"x": noise(1, 4, 7, 8, seed=9)}
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


def two_convs(second: str = "w") -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y0"], name="first"),
        helper.make_node("Conv", ["x", second], ["y1"], name="second", pads=[1, 1, 1, 1]),
    ]
    weights = {name: noise(6, 4, 3, 3) for name in {"w", second}}
    return model_of(nodes, inputs={"x": (1, 4, 7, 8)}, outputs=["y0", "y1"], weights=weights)


class TestSharedWeights:
    def test_each_site_gets_a_chain_and_equal_factors_are_stored_once(self) -> None:
        original = load(two_convs())
        result = rewritten(original)
        assert operators(result.proto) == ["Conv"] * 4
        assert list(initializers(result.proto)) == ["w/channel-svd/0", "w/channel-svd/1"]
        check_equal(result, original)

    def test_two_weights_of_equal_content_share_too(self) -> None:
        original = load(two_convs("v"))
        result = rewritten(original)
        assert len(result.proto.graph.initializer) == 2
        check_equal(result, original)

    def test_factors_of_other_ranks_are_stored_apart(self) -> None:
        model, family = load(two_convs()), ChannelSvd()
        first, second = find_sites(model)[0]
        chains = {
            first: ("channel-svd", family.apply(first, (6,)).chain),
            second: ("channel-svd", family.apply(second, (2,)).chain),
        }
        result = splice(model, chains)
        assert {name: value.shape for name, value in initializers(result.proto).items()} == {
            "w/channel-svd/0": (6, 4, 3, 3),
            "w/channel-svd/1": (6, 6, 1, 1),
            "w/channel-svd/0_2": (2, 4, 3, 3),
            "w/channel-svd/1_2": (6, 2, 1, 1),
        }
        assert difference(run(result, FEEDS)[0], run(model, FEEDS)[0]) < FLOAT32

    def test_the_weight_stays_for_the_site_that_is_left_alone(self) -> None:
        original = load(two_convs())
        result = rewritten(original, ["second"])
        assert operators(result.proto) == ["Conv"] * 3
        assert result.proto.graph.initializer[0] == original.proto.graph.initializer[0]
        check_equal(result, original)

    def test_replacing_a_kernel_concerns_only_the_sites_named(self) -> None:
        original = load(two_convs())
        _, second = find_sites(original)[0]
        result = replace_kernels(original, {second: 3 * second.kernel()})
        (a, b), (c, d) = run(result, FEEDS), run(original, FEEDS)
        np.testing.assert_array_equal(a, c)
        assert difference(b, 3 * d) < FLOAT32

    def test_the_weight_stays_for_other_readers(self) -> None:
        proto = plain(
            helper.make_node("Neg", ["w"], ["n"]),
            outputs=["y", "n"],
        )
        result = rewritten(load(proto))
        assert "w" in initializers(result.proto)
        check_equal(result, load(proto))

    def test_the_weight_stays_for_an_output_of_the_graph(self) -> None:
        proto = plain(outputs=["y", "w"])
        result = rewritten(load(proto))
        assert "w" in initializers(result.proto)
        check_equal(result, load(proto))

    def test_the_weight_stays_for_a_nested_graph(self) -> None:
        body = helper.make_graph(
            [helper.make_node("Neg", ["w"], ["inner"])],
            "body",
            [],
            [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
        )
        proto = plain(
            helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body),
            weights={"yes": np.array(True)},
            outputs=["y", "z"],
        )
        result = rewritten(load(proto))
        assert "w" in initializers(result.proto)
        check_equal(result, load(proto))


class TestOverridableWeights:
    @pytest.mark.parametrize("ir_version", [3, 4, 8])
    def test_their_input_goes_with_them(self, ir_version: int) -> None:
        original = load(overridable(ir_version))
        result = rewritten(original)
        onnx.checker.check_model(result.proto)
        inputs = [value.name for value in result.proto.graph.input]
        factors = ["w/channel-svd/0", "w/channel-svd/1"] if ir_version == 3 else []
        assert inputs == ["x", "b", *factors]
        check_equal(result, original)


WEIGHT = noise(6, 4, 3, 3, seed=3)


def constant(name: str, value: Array) -> onnx.NodeProto:
    node = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
    node.name = f"make_{name}"
    return node


PRODUCERS = {
    "Constant": ([constant("w", WEIGHT)], {}),
    "Identity": ([helper.make_node("Identity", ["v"], ["w"])], {"v": WEIGHT}),
    "Transpose": (
        [helper.make_node("Transpose", ["v"], ["w"])],
        {"v": np.ascontiguousarray(WEIGHT.T)},
    ),
    "Reshape": (
        [constant("s", np.array([6, 4, 3, 3])), helper.make_node("Reshape", ["v", "s"], ["w"])],
        {"v": WEIGHT.reshape(-1)},
    ),
    "Cast": (
        [
            constant("d", WEIGHT.astype(np.float64)),
            helper.make_node("Cast", ["d"], ["w"], to=TensorProto.FLOAT),
        ],
        {},
    ),
    "ConstantOfShape": (
        [
            helper.make_node(
                "ConstantOfShape", ["s"], ["w"], value=helper.make_tensor("", 1, [1], [0.5])
            )
        ],
        {"s": np.array([6, 4, 3, 3])},
    ),
}


class TestWeightsThatNodesMake:
    def model(self, kind: str, *extra: onnx.NodeProto, outputs: Sequence[str] = ("y",)) -> Model:
        producers, weights = PRODUCERS[kind]
        conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
        return load(
            model_of(
                [*producers, conv, *extra],
                inputs={"x": (1, 4, 7, 8)},
                outputs=outputs,
                weights=weights,
            )
        )

    @pytest.mark.parametrize("kind", PRODUCERS)
    def test_leave_nothing_behind(self, kind: str) -> None:
        original = self.model(kind)
        result = rewritten(original)
        assert operators(result.proto) == ["Conv", "Conv"]
        assert list(initializers(result.proto)) == ["w/channel-svd/0", "w/channel-svd/1"]
        check_equal(result, original)

    @pytest.mark.parametrize("kind", PRODUCERS)
    def test_leave_nothing_behind_when_replaced(self, kind: str) -> None:
        original = self.model(kind)
        site = only_site(original)
        result = replace_kernels(original, {site: site.kernel()})
        assert operators(result.proto) == ["Conv"]
        assert list(initializers(result.proto)) == ["w/replaced"]
        np.testing.assert_array_equal(run(result, FEEDS)[0], run(original, FEEDS)[0])

    @pytest.mark.parametrize("kind", PRODUCERS)
    def test_stay_where_something_else_reads_them(self, kind: str) -> None:
        original = self.model(kind, helper.make_node("Neg", ["w"], ["n"]), outputs=["y", "n"])
        result = rewritten(original)
        kept = operators(original.proto)
        kept.remove("Conv")
        rest = operators(result.proto)
        rest.remove("Conv")
        rest.remove("Conv")
        assert rest == kept
        check_equal(result, original)

    def test_go_when_the_last_of_several_sites_is_rewritten(self) -> None:
        second = helper.make_node("Conv", ["x", "w"], ["z"], name="second")
        original = self.model("Cast", second, outputs=["y", "z"])
        assert operators(rewritten(original).proto) == ["Conv"] * 4
        one = rewritten(original, ["conv"])
        assert operators(one.proto) == ["Constant", "Cast", "Conv", "Conv", "Conv"]
        check_equal(one, original)


class TestTypes:
    @pytest.mark.parametrize(
        "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=str
    )
    def test_factors_are_stored_in_the_type_of_the_weight(self, dtype: Any) -> None:
        original = load(conv_model(dtype=dtype, opset=22, ir_version=10))
        for result in (
            rewritten(original),
            replace_kernels(original, {only_site(original): only_site(original).kernel()}),
        ):
            values = initializers(result.proto)
            assert {value.dtype for value in values.values()} == {np.dtype(dtype)}
            onnx.checker.check_model(result.proto, full_check=True)

    @pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
    @pytest.mark.parametrize("group", [1, 2])
    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
    def test_a_kernel_replaced_by_itself_is_bit_by_bit_the_same(
        self, op: str, group: int, dtype: Any
    ) -> None:
        proto = conv_model((2, 3), op=op, group=group, dtype=dtype)
        site = only_site(proto)
        result = replace_kernels(load(proto), {site: site.kernel()})
        was, now = initializers(proto)["w"], initializers(result.proto)["w/replaced"]
        assert was.tobytes() == now.tobytes()

    def test_a_factor_is_stored_as_it_is_given(self) -> None:
        """Whatever its memory layout."""
        model = load(conv_model((1, 1)))
        site = only_site(model)
        assert site.geometry is not None
        kernel = noise(4, 6, 1, 1).transpose(1, 0, 2, 3)
        result = splice(model, {site: ("given", Chain((ConvStep(kernel, site.geometry),)))})
        np.testing.assert_array_equal(initializers(result.proto)["w/given"], kernel)


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


# Operator, attributes, whether it has a bias, opset.
BIASED: dict[str, tuple[str, dict[str, Any], bool, int]] = {
    "Conv": ("Conv", {"group": 2}, True, 17),
    "Conv without": ("Conv", {}, False, 17),
    "ConvTranspose": ("ConvTranspose", {"group": 2, "strides": [2, 2]}, True, 17),
    "ConvTranspose without": ("ConvTranspose", {}, False, 17),
    "Gemm": ("Gemm", {"alpha": 0.5, "beta": -2.0, "transB": 1}, True, 17),
    "Gemm without": ("Gemm", {"transA": 1}, False, 17),
    "Gemm of old": ("Gemm", {}, True, 9),
}


class TestBias:
    """That of a chain takes the place of the site's."""

    BIAS = noise(6, seed=8)

    def model(self, name: str, *extra: onnx.NodeProto) -> Model:
        op, attributes, biased, opset = BIASED[name]
        group = attributes.get("group", 1)
        if op == "Gemm":
            shape: tuple[int, ...] = (6, 4) if attributes.get("transB") else (4, 6)
            x: tuple[int, ...] = (4, 5) if attributes.get("transA") else (5, 4)
        else:
            shape = (4, 6 // group, 3, 3) if op == "ConvTranspose" else (6, 4 // group, 3, 3)
            x = (2, 4, 7, 8)
        weights = {"w": noise(*shape)} | ({"b": noise(6, seed=1)} if biased else {})
        node = helper.make_node(op, ["x", *weights], ["y"], name="site", **attributes)
        outputs = ["y", *(each.output[0] for each in extra)]
        return load(
            model_of([node, *extra], inputs={"x": x}, outputs=outputs, weights=weights, opset=opset)
        )

    def expected(self, model: Model) -> Array:
        """What the site puts out with the other bias."""
        site = only_site(model)
        (output, *_) = run(model)
        channels = (6, *(1,) * (output.ndim - 2))
        old = initializers(model.proto).get("b", np.zeros(6, np.float32))
        return output + np.float32(site.bias_gain) * (self.BIAS - old).reshape(channels)

    @pytest.mark.parametrize("name", BIASED)
    @pytest.mark.parametrize("steps", [1, 2])
    def test_is_added_by_the_last_step(self, name: str, steps: int) -> None:
        model = self.model(name)
        site = only_site(model)
        full = ChannelSvd().full_ranks(site)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, full).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", replace(chain, bias=self.BIAS))})
        onnx.checker.check_model(result.proto, full_check=True)
        assert len(result.proto.graph.node) == steps
        assert difference(run(result)[0], self.expected(model)) < FLOAT32
        values = initializers(result.proto)
        last = result.proto.graph.node[-1].input[2]
        assert last == ("b/refit/bias" if "b" in initializers(model.proto) else "w/refit/bias")
        np.testing.assert_array_equal(values[last], self.BIAS)
        assert "b" not in values
        assert "w" not in values

    @pytest.mark.parametrize("name", BIASED)
    @pytest.mark.parametrize("steps", [1, 2])
    def test_is_the_old_one_unless_given(self, name: str, steps: int) -> None:
        model = self.model(name)
        site = only_site(model)
        full = ChannelSvd().full_ranks(site)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, full).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", chain)})
        assert difference(run(result)[0], run(model)[0]) < FLOAT32
        inputs = list(result.proto.graph.node[-1].input[2:])
        assert inputs == (["b"] if "b" in initializers(model.proto) else [])

    @pytest.mark.parametrize("steps", [1, 2])
    def test_the_old_one_stays_where_something_else_reads_it(self, steps: int) -> None:
        model = self.model("Conv", helper.make_node("Neg", ["b"], ["n"]))
        site = only_site(model)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, (3,)).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", replace(chain, bias=self.BIAS))})
        assert {"b", "b/refit/bias"} <= initializers(result.proto).keys()
        np.testing.assert_array_equal(run(result)[1], run(model)[1])

    @pytest.mark.parametrize("steps", [1, 2])
    def test_what_computed_the_old_one_goes(self, steps: int) -> None:
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[0, 2, 3], keepdims=0),
            helper.make_node("Conv", ["x", "w", "m"], ["y"], name="conv"),
        ]
        model = load(
            model_of(nodes, inputs={"x": (1, 6, 7, 8)}, weights={"w": noise(6, 6, 3, 3)})
        )  # fmt: skip
        site = only_site(model)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, (6,)).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", replace(chain, bias=self.BIAS))})
        assert operators(result.proto) == ["Conv"] * steps

    @pytest.mark.parametrize("steps", [1, 2])
    def test_may_be_absent_by_an_empty_name(self, steps: int) -> None:
        model = self.model("Conv without")
        model.proto.graph.node[0].input.append("")
        site = only_site(model)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, (6,)).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", replace(chain, bias=self.BIAS))})
        assert result.proto.graph.node[-1].input[2] == "w/refit/bias"
        assert difference(run(result)[0], self.expected(model)) < FLOAT32

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
    @pytest.mark.parametrize("steps", [1, 2])
    def test_is_stored_in_the_type_of_the_weight(self, dtype: Any, steps: int) -> None:
        model = load(conv_model(dtype=dtype, opset=22, ir_version=10))
        site = only_site(model)
        chain = {1: with_kernel(site, site.kernel()), 2: ChannelSvd().apply(site, (3,)).chain}[
            steps
        ]
        result = splice(model, {site: ("refit", replace(chain, bias=self.BIAS))})
        assert {each.dtype for each in initializers(result.proto).values()} == {np.dtype(dtype)}
        onnx.checker.check_model(result.proto, full_check=True)


class TestOneStep:
    """Leaves a node where it is, with another weight."""

    @pytest.mark.parametrize("left", [False, True])
    def test_of_a_product_of_matrices(self, left: bool) -> None:
        weights = {"w": noise(6, 4) if left else noise(4, 6)}
        inputs, x = (["w", "x"], (4, 5)) if left else (["x", "w"], (5, 4))
        node = helper.make_node("MatMul", inputs, ["y"], name="product")
        model = load(model_of([node], inputs={"x": x}, weights=weights))
        site, kernel = only_site(model), noise(6, 4, seed=5)
        result = splice(model, {site: ("refit", with_kernel(site, kernel))})
        assert result.proto.graph.node[0].name == "product"
        stored = initializers(result.proto)["w/refit"]
        np.testing.assert_array_equal(stored, kernel if left else kernel.T)
        (output,), feeds = run(result), feeds_for(model.proto)
        expected = kernel @ feeds["x"] if left else feeds["x"] @ kernel.T
        assert difference(output, expected) < FLOAT32

    def test_keeps_all_attributes(self) -> None:
        model = load(conv_model(strides=[2, 1], dilations=[1, 2], auto_pad="VALID", group=2))
        site = only_site(model)
        result = splice(model, {site: ("refit", with_kernel(site, 2 * site.kernel()))})
        (before,), (after,) = model.proto.graph.node, result.proto.graph.node
        assert after.attribute == before.attribute
        assert (after.name, after.output) == (before.name, before.output)

    def test_of_one_weight_of_two_concerns_only_the_sites_named(self) -> None:
        model = load(two_convs())
        _, second = find_sites(model)[0]
        chain = with_kernel(second, 3 * second.kernel(), np.ones(6, np.float32))
        result = splice(model, {second: ("refit", chain)})
        (a, b), (c, d) = run(result, FEEDS), run(model, FEEDS)
        np.testing.assert_array_equal(a, c)
        assert difference(b, 3 * d + 1) < FLOAT32


def test_annotations_of_the_old_weight_are_gone() -> None:
    result = rewritten(load(annotated())).proto
    said = [annotation.tensor_name for annotation in result.graph.quantization_annotation]
    assert said == ["h", "y"]


def test_training_information_is_passed_on_untouched() -> None:
    assert rewritten(load(trained())).proto.training_info == trained().training_info


def test_depthwise_steps_are_emitted_with_their_groups() -> None:
    model, family = load(conv_model((3, 3), group=2, channels=(4, 8))), Cp4()
    site = only_site(model)
    result = splice(model, {site: ("cp4", family.apply(site, (5,)).chain)})
    groups = [helper.get_node_attr_value(node, "group") for node in result.proto.graph.node]
    assert groups == [2, 10, 10, 2]


class TestRows:
    """Chains of several rows, which are summed."""

    @staticmethod
    def chain(pick: bool = False) -> Chain:
        kernel, small, mix = noise(2, 4, 3, 3), noise(6, 4, 1, 1, seed=1), noise(6, 2, 1, 1, seed=2)
        geometry = Geometry((3, 3), (1, 2), (1, 1, 1, 1), (1, 1))
        low = ConvStep(kernel, geometry), ConvStep(mix, Geometry.pointwise(2))
        beside = replace(geometry, kernel=(1, 1), pads=(0, 0, 0, 0))
        if pick:
            channels = PickStep(np.array([3, 1]))
            return Chain(low, beside=((channels, ConvStep(small[:, :2], beside)),))
        return Chain(low, beside=((ConvStep(small, beside),),))

    @staticmethod
    def model(**options: Any) -> Model:
        return load(conv_model(pads=(1, 1, 1, 1), strides=(1, 2), **options))

    @pytest.mark.parametrize("pick", [False, True])
    def test_are_added_and_the_bias_once(self, pick: bool) -> None:
        model, chain = self.model(), self.chain(pick)
        result = splice(model, {only_site(model): ("sum", chain)})
        onnx.checker.check_model(result.proto, full_check=True)
        low, beside = chain.rows
        first, last = (step.kernel for step in low if isinstance(step, ConvStep))
        kernel = np.einsum("trab,rsij->tsij", last, first)
        (small,) = (step.kernel for step in beside if isinstance(step, ConvStep))
        kernel[:, [3, 1] if pick else slice(None), 1:2, 1:2] += small
        whole = replace_kernels(model, {only_site(model): kernel})
        assert difference(run(result)[0], run(whole)[0]) < FLOAT32

    def test_stand_where_the_site_stood_and_end_in_the_sum(self) -> None:
        model = self.model()
        proto = splice(model, {only_site(model): ("sum", self.chain(pick=True))}).proto
        named = [(node.op_type, node.name) for node in proto.graph.node]
        assert named == [
            ("Conv", "conv/sum/0"),
            ("Conv", "conv/sum/1"),
            ("Gather", "conv/sum/2"),
            ("Conv", "conv/sum/3"),
            ("Add", "conv/sum/sum"),
        ]
        *_, total = proto.graph.node
        assert list(total.output) == list(model.proto.graph.node[0].output)
        assert [len(node.input) for node in proto.graph.node] == [2, 3, 2, 2, 2]
        np.testing.assert_array_equal(initializers(proto)["w/sum/2"], [3, 1])
        assert initializers(proto)["w/sum/2"].dtype == np.int64

    def test_of_three_are_added_one_by_one(self) -> None:
        model, chain = self.model(), self.chain()
        again = replace(chain, beside=chain.beside * 2)
        result = splice(model, {only_site(model): ("sum", again)})
        assert operators(result.proto) == ["Conv", "Conv", "Conv", "Add", "Conv", "Add"]
        once = splice(model, {only_site(model): ("sum", chain)})
        without = splice(model, {only_site(model): ("low", replace(chain, beside=()))})
        one, two, none = (run(each)[0] for each in (once, result, without))
        assert difference(two - one, one - none) < FLOAT32

    def test_of_one_step_each_are_no_site_with_another_weight(self) -> None:
        model = self.model()
        site = only_site(model)
        (twice,) = with_kernel(site, noise(6, 4, 3, 3)).steps
        chain = Chain((twice,), beside=((twice,),))
        result = splice(model, {site: ("sum", chain)})
        assert operators(result.proto) == ["Conv", "Conv", "Add"]
        whole = replace_kernels(model, {site: 2 * noise(6, 4, 3, 3)})
        assert difference(run(result)[0], run(whole)[0]) < FLOAT32

    @pytest.mark.parametrize("opset", [9, 13])
    def test_of_products_have_gains_of_their_own(self, opset: int) -> None:
        node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="g", alpha=0.5, beta=2.0)
        weights = {"w": noise(4, 6), "c": noise(6, seed=1)}
        model = load(model_of([node], inputs={"x": (3, 4)}, weights=weights, opset=opset))
        one, other = noise(6, 4, seed=2), noise(6, 4, seed=3)
        chain = Chain((MatrixStep(one),), beside=((MatrixStep(other),),))
        site = only_site(model)
        result = splice(model, {site: ("sum", chain)})
        whole = replace_kernels(model, {site: one + other})
        assert difference(run(result)[0], run(whole)[0]) < FLOAT32
