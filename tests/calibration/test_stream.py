from __future__ import annotations

import contextlib
import errno
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcp.calibration.stream
from onnxcp.calibration.stream import Stop, Stream
from onnxcp.calibration.values import run_session
from onnxcp.errors import DataError, ModelError, OutputError
from onnxcp.graph.model import Model
from onnxcp.graph.site import find_sites
from onnxcp.graph.splice import replace_kernels
from onnxcp.profiling.machine import Machine
from tests.networks import (
    FLOAT32,
    conv_model,
    difference,
    feeds_for,
    noise,
    only_site,
    run,
)
from tests.peculiar import PECULIAR
from tests.wirings import SHAPE, SUMS, summing, wired

Feeds = dict[str, Any]
MACHINE = Machine(intra_op_num_threads=1)
SCALE = 1.25  # of kernels; a power of two apart, so that it rounds nothing away


def batches_for(proto: onnx.ModelProto) -> list[Feeds]:
    feeds = feeds_for(proto)
    return [feeds, {name: (value / 2).astype(value.dtype) for name, value in feeds.items()}]


def walk(proto: onnx.ModelProto, batches: Sequence[Feeds] | None = None, **options: Any) -> Stream:
    """Walk through a network and stop at all sites."""
    model = Model(proto)
    given = batches_for(proto) if batches is None else batches
    return Stream(model, find_sites(model)[0], given, MACHINE, **options)


def scaled(stop: Stop) -> Model:
    return replace_kernels(stop.alone, {stop.alone_site: stop.alone_site.kernel() * SCALE})


def with_scaled(model: Model, output: str) -> Model:
    """Scale the kernel of the site with some output in the whole network."""
    (site,) = [site for site in find_sites(model)[0] if site.output == output]
    return replace_kernels(model, {site: site.kernel() * SCALE})


def observed(model: Model, names: Sequence[str], feeds: Feeds) -> dict[str, Any]:
    """Run a network and return any of its tensors, as ONNX Runtime computes them."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names)
        if name not in present
    )  # fmt: skip
    return dict(zip([value.name for value in proto.graph.output], run(proto, feeds), strict=True))


def assert_close(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif expected is None or expected.dtype.kind != "f" or not expected.any():
        np.testing.assert_array_equal(found, expected)
    else:
        # Two steps of half precision are 1e-3; only their order is chosen by a walk.
        assert difference(found, expected) < (2e-3 if expected.dtype == np.float16 else FLOAT32)


def check(proto: onnx.ModelProto, batches: Sequence[Feeds] | None = None, **options: Any) -> None:
    """Hold a walk against ONNX Runtime's runs of whole networks, with and without replacements."""
    batches = batches_for(proto) if batches is None else batches
    model = rewritten = Model(proto)
    names = [output.name for output in proto.graph.output]
    with walk(proto, batches, **options) as stream:
        for original, other in stream.outputs():
            for name in names:
                np.testing.assert_equal(original[name], other[name])
    with walk(proto, batches, **options) as stream:
        for stop in stream:
            site = stop.site
            wanted = [site.input, site.output, *stop.partners]
            for feeds, (x, target), original in zip(
                batches, stop.pairs(), stop.originals(), strict=True
            ):
                right, now = (observed(each, wanted, feeds) for each in (model, rewritten))
                work = np.float64 if site.dtype == np.float64 else np.float32
                errors = [right[name].astype(work) - now[name] for name in stop.partners]
                assert_close(x, now[site.input].astype(work))
                assert_close(original, right[site.output].astype(work))
                assert_close(target, sum(errors, right[site.output].astype(work)))
            assert stop.diverged == any(
                not np.array_equal(right[name], now[name]) for name in (site.input, *stop.partners)
            )
            stop.settle(scaled(stop))
            rewritten = with_scaled(rewritten, site.output)
        for feeds, (original, other) in zip(batches, stream.outputs(), strict=True):
            expected = dict(zip(names, run(model, feeds), strict=True))
            for name in names:
                assert_close(original[name], expected[name])
            expected = dict(zip(names, run(rewritten, feeds), strict=True))
            for name in names:
                assert_close(other[name], expected[name])


CONVOLUTIONS: Mapping[str, onnx.ModelProto] = {
    "conv": conv_model(),
    "1-d": conv_model((3,)),
    "3-d": conv_model((3, 1, 2)),
    "strided": conv_model(strides=[2, 1], dilations=[1, 2], pads=[1, 0, 2, 1]),
    "grouped": conv_model(group=2, bias=False),
    "transposed": conv_model(op="ConvTranspose", strides=[2, 2], output_padding=[1, 0]),
    "half": conv_model(dtype=np.float16),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_one_convolution(name: str) -> None:
    check(CONVOLUTIONS[name])


def runs(proto: onnx.ModelProto) -> bool:
    try:
        run(proto)
    except Exception:  # ONNX Runtime has one for every status, and no base for them
        return False
    return True


# Its inputs are no tensors.
@pytest.mark.parametrize("name", [name for name in PECULIAR if name != "of-other-kinds"])
def test_peculiar_networks(name: str) -> None:
    proto = PECULIAR[name]()
    if runs(proto):
        check(proto)
    else:  # A walk may get through: it leaves out nodes that nobody needs.
        with contextlib.suppress(ModelError), walk(proto) as stream:
            list(stream.outputs())


@pytest.mark.parametrize("name", SUMS)
def test_sums(name: str) -> None:
    proto = summing(name)
    check(proto)
    with walk(proto) as stream:
        assert {stop.site.name: stop.partners for stop in stream} == SUMS[name][1]


def test_batches_are_as_they_are_given() -> None:
    batches = [{"x": noise(n, 4, size, 5, seed=n)} for n, size in ((1, 6), (3, 6), (2, 9))]
    proto = wired("a = Conv x", "r = Relu a", "b = Conv r", "y = Add b x")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    check(proto, batches)
    with walk(proto, batches) as stream:
        for stop in stream:
            assert [x.shape for x, _ in stop.pairs()] == [batch["x"].shape for batch in batches]


def test_a_sum_that_broadcasts_has_no_partner() -> None:
    proto = wired("c = Conv x", "m = GlobalAveragePool c", "a = Conv x", "y = Add a m")
    check(proto)
    with walk(proto) as stream:
        assert {stop.site.name: stop.partners for stop in stream} == {"c": (), "a": ()}


def test_nothing_diverges_before_the_first_replacement() -> None:
    proto = wired("a = Conv x", "b = Conv a", "c = Conv b", "d = Conv x", "y = Add c d")
    with walk(proto) as stream:
        seen = {}
        for stop in stream:
            seen[stop.site.name] = stop.diverged
            if stop.site.name == "a":
                stop.settle(scaled(stop))
            elif stop.site.name == "b":
                stop.settle(None)
    assert seen == {"a": False, "b": True, "d": False, "c": True}


def test_targets_equal_originals_where_nothing_diverged() -> None:
    with walk(summing("conv shortcut")) as stream:
        for stop in stream:
            for (_, target), original in zip(stop.pairs(), stop.originals(), strict=True):
                assert target is original


def test_pairs_may_be_read_again() -> None:
    with walk(summing("identity shortcut")) as stream:
        for stop in stream:
            for (x, target), (again, too) in zip(stop.pairs(), stop.pairs(), strict=True):
                np.testing.assert_array_equal(x, again)
                np.testing.assert_array_equal(target, too)


def test_what_is_fed_to_a_replacement_can_be_asked_for() -> None:
    proto = conv_model(dtype=np.float16)
    batches = batches_for(proto)
    with walk(proto, batches) as stream:
        stop = next(iter(stream))
        assert [set(feeds) for feeds in stop.feeds()] == [{"x"}, {"x"}]
        assert next(stop.feeds())["x"] is batches[0]["x"]
        x, target = next(stop.pairs())
        assert x.dtype == target.dtype == np.float32


def test_a_stop_is_settled_once() -> None:
    with walk(conv_model()) as stream:
        for stop in stream:
            stop.settle(None)
            with pytest.raises(AssertionError, match="settled already"):
                stop.settle(None)


def test_outputs_go_on_from_where_the_walk_is() -> None:
    proto = summing("chain of blocks")
    with walk(proto) as stream:
        for stop in stream:
            stop.settle(scaled(stop))
            break
        original, rewritten = next(stream.outputs())
    rewritten_model = with_scaled(Model(proto), "a")
    feeds = batches_for(proto)[0]
    assert_close(original["y"], run(proto, feeds)[0])
    assert_close(rewritten["y"], run(rewritten_model, feeds)[0])


def test_progress_names_the_stops() -> None:
    told: list[tuple[str, int, int]] = []
    with walk(summing("conv shortcut"), progress=lambda *what: told.append(what)) as stream:
        assert len(list(stream)) == 3
    assert told == [("running up to a", 0, 5), ("running up to c", 2, 5), ("running up to b", 3, 5)]


def test_a_walk_without_stops_is_a_run() -> None:
    proto = wired("y = Relu x")
    check(proto)


class TestWhatComesOut:
    def test_intermediates(self) -> None:
        check(wired("a = Conv x", "r = Relu a", "y = Conv r", outputs=["r", "y", "a"]))

    def test_what_comes_in(self) -> None:
        check(wired("y = Conv x", outputs=["x", "y"]))

    def test_only_what_comes_in(self) -> None:
        check(wired("a = Conv x", outputs=["x"]))

    def test_constants(self) -> None:
        check(wired("k = Neg w", "y = Conv x", weights={"w": noise(3)}, outputs=["w", "y", "k"]))

    def test_only_constants(self) -> None:
        check(wired("a = Conv x", weights={"w": noise(3)}, outputs=["w"]))


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


class TestMatrices:
    def test_on_the_right_on_the_left_and_in_double(self) -> None:
        check(wired("a = MatMul x", "b = MatMul l a", "y = Add b a", weights={"l": noise(6, 6)}))
        proto = wired(
            "y = MatMul x w",
            weights={"w": noise(5, 5, dtype=np.float64)},
            dtype=TensorProto.DOUBLE,
        )
        check(proto)
        with walk(proto) as stream:
            stop = next(iter(stream))
            x, target = next(stop.pairs())
            assert x.dtype == target.dtype == np.float64


def test_every_node_runs_once_for_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = 12
    lines = [f"h{i + 1} = Relu s{i}" for i in range(blocks)]
    lines = [
        line
        for i in range(blocks)
        for line in (f"c{i} = Conv h{i}", f"s{i} = Add c{i} h{i}", lines[i])
    ]
    proto = wired("h0 = Relu x", *lines, f"y = Neg h{blocks}")
    sessions: dict[Any, list[str]] = {}  # the nodes in each
    runs: Counter[str] = Counter()
    real_open, real_run = Machine.open, run_session

    def counting_open(self: Machine, model: Model, **options: Any) -> Any:
        session = real_open(self, model, **options)
        sessions[session] = [node.name for node in model.proto.graph.node]
        return session

    def counting_run(session: Any, feeds: Any, label: str) -> Any:
        runs.update(sessions[session])
        return real_run(session, feeds, label)

    monkeypatch.setattr(Machine, "open", counting_open)
    monkeypatch.setattr(onnxcp.calibration.stream, "run_session", counting_run)
    batches = batches_for(proto)
    with walk(proto, batches) as stream:
        for stop in stream:
            list(stop.pairs())
            stop.settle(scaled(stop))
        list(stream.outputs())
    sites = runs.pop("site")
    assert sites == 2 * blocks * len(batches)
    assert runs.pop("h0") == len(batches)  # The networks share it.
    assert set(runs.values()) == {2 * len(batches)}
    assert len(sessions) == 3 * blocks + 1


class TestMemory:
    @pytest.mark.parametrize("limit", [0, 1000, 5000])
    def test_a_limit_changes_nothing_but_where_things_are(self, limit: int, scratch: Path) -> None:
        check(summing("sums in a row"), memory_limit=limit)
        check(summing("chain of blocks"), memory_limit=limit)
        assert not list(scratch.iterdir())

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_walk_that_is_given_up_leaves_no_files(
        self, error: type[BaseException], scratch: Path
    ) -> None:
        with pytest.raises(error), walk(summing("conv shortcut"), memory_limit=0) as stream:
            give_up(stream, error, scratch)
        assert not list(scratch.iterdir())

    def test_one_that_is_left_early_neither(self, scratch: Path) -> None:
        with walk(summing("conv shortcut"), memory_limit=0) as stream:
            for _ in stream:
                break
            assert files(scratch)
        assert not list(scratch.iterdir())

    def test_what_is_not_needed_any_more_goes(self, scratch: Path) -> None:
        lines = [f"c{i + 1} = Conv c{i}" for i in range(8)]
        proto = wired("c0 = Relu x", *lines, "y = Neg c8")
        with walk(proto, memory_limit=0) as stream:
            for stop in stream:
                # Of each of two batches what the site is given, in both networks, and puts out.
                assert len(files(scratch)) <= 2 * (2 + 1)
                stop.settle(scaled(stop))
                assert len(files(scratch)) <= 2 * (2 + 2)
            list(stream.outputs())
            assert len(files(scratch)) == 2 * 2

    def test_a_full_disk_is_a_sentence(
        self, scratch: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(np, "save", full)
        with (
            pytest.raises(OutputError, match=rf"'{scratch}.*No space left.*--memory-limit"),
            walk(summing("conv shortcut"), memory_limit=0) as stream,
        ):
            next(iter(stream))
        assert not list(scratch.iterdir())


def give_up(stream: Stream, error: type[BaseException], scratch: Path) -> None:
    for _ in stream:
        assert files(scratch)
        raise error


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have temporary files made in a folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class TestData:
    def test_there_must_be_samples(self) -> None:
        with pytest.raises(DataError, match="no samples"), walk(conv_model(), []) as stream:
            next(iter(stream))

    @pytest.mark.parametrize(
        ("second", "complaint"),
        [({}, "lacks 'x'"), ({"x": noise(1), "z": noise(1)}, "has 'z' too many")],
    )
    def test_batches_have_the_inputs_of_the_network(self, second: Feeds, complaint: str) -> None:
        proto = conv_model()
        for batches in ([second], [*batches_for(proto), second]):
            with pytest.raises(DataError, match=complaint), walk(proto, batches) as stream:
                next(iter(stream))

    def test_what_onnx_runtime_refuses_is_a_sentence(self) -> None:
        batches = [{"x": noise(1, 3, 9, 9)}]
        proto = conv_model()
        with (
            pytest.raises(ModelError, match="ONNX Runtime cannot run 'conv'"),
            walk(proto, batches) as stream,
        ):
            next(iter(stream))

    def test_batches_are_taken_one_by_one(self) -> None:
        proto = conv_model()

        def endless() -> Iterator[Feeds]:
            yield from batches_for(proto)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), walk(proto, endless()) as stream:
            next(iter(stream))


def test_only_chosen_sites_are_stops() -> None:
    proto = summing("conv shortcut")
    model = Model(proto)
    site = next(site for site in find_sites(model)[0] if site.name == "b")
    with Stream(model, [site], batches_for(proto), MACHINE) as stream:
        (stop,) = stream
        assert stop.site is site
        assert stop.partners == ("c",)
    assert only_site(stop.alone).name == stop.alone_site.name
