"""A walk through a network stops at each site with what it is given and should put out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxcp.calibration.stream import Stream
from onnxcp.errors import DataError, ModelError
from onnxcp.graph.model import Model
from onnxcp.graph.site import find_sites
from tests.networks import conv_model, noise, only_site, run
from tests.peculiar import PECULIAR
from tests.walks import MACHINE, Feeds, assert_close, batches_for, check, scaled, walk, with_scaled
from tests.wirings import SUMS, summing, wired

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
