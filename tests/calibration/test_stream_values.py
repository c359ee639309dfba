"""Whatever passes from node to node gets through a walk: values of all kinds, shapes, constants."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcp.errors import DataError
from onnxcp.graph.model import Model
from onnxcp.graph.splice import replace_kernels
from tests.networks import difference, noise, run
from tests.peculiar import PECULIAR
from tests.walks import assert_close, batches_for, check, observed, scaled, walk, with_scaled
from tests.wirings import SHAPE, wired


def sequence_of(kind: int) -> onnx.TypeProto:
    return helper.make_sequence_type_proto(helper.make_tensor_type_proto(kind, None))


class TestValuesOfAllKinds:
    """Each is made before a stop and read after it, in both networks."""

    def test_sequences(self) -> None:
        proto = wired(
            "a = Conv x", "s = SequenceConstruct a a x", "b = Conv a", "t = SequenceInsert s b",
            "y = ConcatFromSequence t",
        )  # fmt: skip
        proto.graph.node[-1].attribute.append(helper.make_attribute("axis", 0))
        check(proto)

    def test_sequences_that_are_empty(self) -> None:
        proto = wired(
            "e = SequenceConstruct x", "s = SequenceErase e k", "b = Conv x",
            "t = SequenceInsert s b", "y = ConcatFromSequence t", weights={"k": np.array(0)},
        )  # fmt: skip
        proto.graph.node[-1].attribute.append(helper.make_attribute("axis", 0))
        check(proto)

    def test_sequences_as_outputs(self) -> None:
        proto = wired("a = Conv x", "s = SequenceConstruct a x", "y = Conv a", outputs=["y"])
        proto.graph.output.append(helper.make_value_info("s", sequence_of(TensorProto.FLOAT)))
        check(proto)

    @pytest.mark.parametrize(
        "kind", ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT16", "INT8", "STRING"]
    )
    def test_types(self, kind: str) -> None:
        proto = wired("a = Conv x", "c = Cast a", "b = Conv a", "d = Cast c", "y = Add b d",
                      opset=19, ir_version=9)  # fmt: skip
        to = (TensorProto.DataType.Value(kind), TensorProto.FLOAT)
        for node, number in zip((proto.graph.node[1], proto.graph.node[3]), to, strict=True):
            node.attribute.append(helper.make_attribute("to", number))
        batches = batches_for(proto)
        with walk(proto, batches, memory_limit=0) as stream:
            for stop in stream:
                stop.settle(scaled(stop) if stop.site.name == "a" else None)
            rewritten = with_scaled(Model(proto), "a")
            for feeds, (original, other) in zip(batches, stream.outputs(), strict=True):
                # What is rounded coarsely falls on the other side now and then.
                assert difference(original["y"], run(proto, feeds)[0]) < 1e-2
                assert difference(other["y"], run(rewritten, feeds)[0]) < 1e-2

    def test_missing_ones(self) -> None:
        kind = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
        none = helper.make_node("Optional", [], ["none"], name="none", type=kind)
        some = helper.make_node("Optional", ["x"], ["some"], name="some")
        branches = [
            helper.make_graph([node], name, [], [helper.make_value_info(node.output[0], optional)])
            for optional in [helper.make_optional_type_proto(kind)]
            for name, node in (("some", some), ("none", none))
        ]
        choose = helper.make_node(
            "If", ["q"], ["o"], name="o", then_branch=branches[0], else_branch=branches[1]
        )
        proto = wired(
            "m = ReduceMax x", "q = Less m k", "a = Conv x",
            "h = OptionalHasElement o", "g = Cast h", "y = Mul a g",
            weights={"k": np.full(1, 3, np.float32)}, opset=18,
        )  # fmt: skip
        proto.graph.node[4].attribute.append(helper.make_attribute("to", 1))
        proto.graph.node.insert(2, choose)
        inner = [{"x": noise(*SHAPE)}, {"x": 9 * noise(*SHAPE)}]
        check(proto, inner)


class TestShapesThatDependOnData:
    def test_rows_that_are_counted_at_run_time(self) -> None:
        """Where the networks count differently, a pair comes from the original alone."""
        proto = wired(
            "a = Conv x", "r = Relu a", "n = NonZero r", "t = Transpose n", "f = Cast t",
            "m = MatMul f w", weights={"w": noise(4, 3)}, outputs=["m"],
        )  # fmt: skip
        proto.graph.node[3].attribute.append(helper.make_attribute("perm", [1, 0]))
        proto.graph.node[4].attribute.append(helper.make_attribute("to", 1))
        batches = batches_for(proto)
        with walk(proto, batches) as stream:
            for stop in stream:
                if stop.site.name == "a":
                    negated = replace_kernels(
                        stop.alone, {stop.alone_site: -stop.alone_site.kernel()}
                    )
                    stop.settle(negated)
                    continue
                for feeds, (x, target) in zip(batches, stop.pairs(), strict=True):
                    right = observed(Model(proto), ["f", "m"], feeds)
                    assert len(x) == len(target)
                    np.testing.assert_array_equal(x, right["f"])
                    assert_close(target, right["m"])

    def test_a_branch_that_is_not_taken_need_not_fit(self) -> None:
        def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
            made = helper.make_empty_tensor_value_info(nodes[-1].output[0])
            return helper.make_graph(list(nodes), "branch", [], [made])

        wants_more = helper.make_node("Squeeze", ["a", "nine"], ["t"])
        choose = helper.make_node(
            "If",
            ["q"],
            ["i"],
            then_branch=branch(wants_more),
            else_branch=branch(helper.make_node("Neg", ["a"], ["e"])),
        )
        proto = wired(
            "m = ReduceMax x", "q = Less k m", "a = Conv x", "y = Conv i",
            weights={"k": np.full(1, 99, np.float32), "nine": np.full(1, 9, np.int64)}, opset=18,
        )  # fmt: skip
        proto.graph.node.insert(3, choose)
        proto.graph.input[0].type.tensor_type.ClearField("shape")
        del proto.graph.output[0].type.tensor_type.shape.dim[:]
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        check(proto, [{"x": noise(*SHAPE)}])


class TestRandomNumbers:
    def test_are_drawn_once_for_both_networks(self) -> None:
        draw = helper.make_node("RandomNormal", [], ["n"], name="n", shape=SHAPE)
        proto = wired("a = Conv x", "b = Add a n", "c = Conv b", "y = Add c n")
        proto.graph.node.insert(0, draw)
        with walk(proto) as stream:
            for stop in stream:
                same = replace_kernels(stop.alone, {stop.alone_site: stop.alone_site.kernel()})
                stop.settle(same)
            for original, rewritten in stream.outputs():
                assert original["y"] is not rewritten["y"]
                np.testing.assert_array_equal(original["y"], rewritten["y"])

    def test_are_the_same_where_what_they_are_like_is_not(self) -> None:
        proto = wired("a = Conv x", "n = RandomNormalLike a", "m = Mul n k", "y = Add a m",
                      weights={"k": noise(1)})  # fmt: skip
        with walk(proto, batches_for(proto) * 2) as stream:
            for stop in stream:
                stop.settle(scaled(stop))
            outputs = list(stream.outputs())
        noises = [original["y"] for original, _ in outputs]
        assert not np.array_equal(noises[0], noises[2])
        rewritten = with_scaled(Model(proto), "a")
        for feeds, (original, other) in zip(batches_for(proto) * 2, outputs, strict=True):
            right = original["y"] - observed(Model(proto), ["a"], feeds)["a"]
            wrong = other["y"] - observed(rewritten, ["a"], feeds)["a"]
            np.testing.assert_allclose(right, wrong, atol=1e-5)


class TestConstants:
    def test_computed_ones_are_constants_on_both_sides_of_a_stop(self) -> None:
        """Axes of Unsqueeze must be."""
        proto = wired(
            "n = Neg k", "u = Unsqueeze x n", "s = Squeeze u n", "a = Conv s", "y = Unsqueeze a n",
            weights={"k": np.ones(1, np.int64)},
        )  # fmt: skip
        check(proto)

    def test_sparse_ones(self) -> None:
        values = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "s")
        indices = numpy_helper.from_array(np.array([1, 4], np.int64), "s_indices")
        proto = wired("a = Conv x", "b = Conv a", "y = Mul b s")
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [5]))
        check(proto)

    def test_a_bias_that_is_not_constant_goes_to_the_site(self) -> None:
        proto = wired(
            "a = Conv x", "f = Flatten a", "g = MatMul f u", "h = Gemm f u g", "y = Relu h",
            weights={"u": noise(120, 120) / np.float32(11)},
        )  # fmt: skip
        check(proto)
        with walk(proto) as stream:
            inputs = {stop.site.name: set(next(stop.feeds())) for stop in stream}
        assert inputs == {"a": {"x"}, "g": {"x"}, "h": {"x", "b"}}

    def test_a_bias_that_is_computed_of_constants_does(self) -> None:
        check(wired("n = Neg v", "y = Conv x w n", weights={"w": noise(3, 4, 1, 1), "v": noise(3)}))

    def test_a_bias_may_be_fed(self) -> None:
        proto = PECULIAR["overridable-ir8"]()
        batches = [feeds | {"b": noise(6, seed=9)} for feeds in batches_for(proto)]
        check(proto, batches)

    def test_a_weight_may_not(self) -> None:
        proto = PECULIAR["overridable-ir8"]()
        batches = [feeds | {"w": noise(6, 4, 3, 3)} for feeds in batches_for(proto)]
        with (
            pytest.raises(DataError, match="feed 'w', the weight of 'conv'"),
            walk(proto, batches) as stream,
        ):
            next(iter(stream))
