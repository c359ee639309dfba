"""The table of latencies: what is measured, what follows from it, and what is kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.cp import Cp3, Cp4
from onnxcp_passes.spatial_svd import SpatialSvd

from onnxcp.errors import ModelError
from onnxcp.factorize import FactorizePass
from onnxcp.graph.chain import site_macs, step_weight
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.site import Site
from onnxcp.planning import latency
from onnxcp.planning.cache import Cache
from onnxcp.planning.latency import LatencyTable, SiteBench, Timing, timing_of, with_random_weights
from onnxcp.planning.offer import Offer, anchors, ladder
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.timing import Trial
from tests.clockwork import MINIMUM, SECONDS, Clockwork, by_macs, trial
from tests.networks import conv_model, model_of, noise, only_site, onnx_type

MACHINE = Machine(intra_op_num_threads=1)
FAMILIES: tuple[FactorizePass, ...] = (ChannelSvd(), SpatialSvd(), Cp4())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    return Clockwork(monkeypatch)


class Network:
    """A network of one convolution, its site, and ladders for it."""

    def __init__(
        self,
        proto: onnx.ModelProto | None = None,
        families: Sequence[FactorizePass] = FAMILIES,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.model = Model(proto or conv_model(channels=(24, 32), size=(10, 10), pads=(1,) * 4))
        self.site: Site = only_site(self.model)
        given = self.model.proto.graph.input[0].type.tensor_type.shape.dim
        self.shape = shape or tuple(dim.dim_value for dim in given)
        macs = site_macs(self.site, self.shape)
        found = [ladder(self.site, each, self.shape, macs) for each in families]
        self.ladders = [each for each in found if not isinstance(each, Refusal)]
        assert self.ladders

    def table(self, cache: Cache | None = None, machine: Machine = MACHINE) -> LatencyTable:
        return LatencyTable(
            self.model, {self.site.input: self.shape}, machine, cache or Cache(None)
        )

    def timings(
        self, cache: Cache | None = None, machine: Machine = MACHINE
    ) -> dict[Offer, Timing]:
        return self.table(cache, machine).timings(self.site, self.ladders)


def taking(nodes: int, factor: float) -> Callable[[Model, int], float]:
    """Let graphs of so many nodes take longer."""

    def seconds(model: Model, macs: int) -> float:
        slow = len(model.proto.graph.node) == nodes
        return by_macs(model, macs) * (factor if slow else 1.0)

    return seconds


class TestTiming:
    def test_says_what_is_gained(self) -> None:
        timing = Timing(before=3e-3, after=2e-3, low=1.4, high=1.6)
        assert timing.ratio == pytest.approx(1.5)
        assert timing.saving == pytest.approx(1e-3)
        assert timing.measured
        assert str(timing) == "1.50x (1.40 to 1.60)"

    def test_is_what_a_trial_says(self) -> None:
        assert timing_of(trial(3.0, 2.0, 0.1)) == Timing(3.0, 2.0, 1.4, 1.6)


class TestBench:
    def test_times_the_site_against_every_chain(self, clock: Clockwork) -> None:
        network = Network()
        offers = [each[0] for each in network.ladders]
        bench = SiteBench(network.model, network.site, network.shape, MACHINE)
        trials = bench.trials([offer.sketch for offer in offers])
        assert clock.timed == [1 + len(offers)]
        batch, *_ = network.shape
        for found, offer in zip(trials, offers, strict=True):
            assert found.a.median == pytest.approx(
                MINIMUM + SECONDS * site_macs(network.site, network.shape)
            )
            assert found.b.median == pytest.approx(MINIMUM + SECONDS * offer.macs)
        assert batch == 2

    def test_gives_many_chains_more_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        allowed = []

        def in_turns(runs: Sequence[object], **options: Any) -> list[Trial]:
            allowed.append(options["max_seconds"] / (len(runs) - 1))
            return [trial(2.0, 1.0)] * (len(runs) - 1)

        monkeypatch.setattr(latency, "in_turns", in_turns)
        network = Network()
        bench = SiteBench(network.model, network.site, network.shape, MACHINE)
        chains = [offer.sketch for offer in network.ladders[0]]
        for count in (1, 2, 7):
            bench.trials(chains[:count])
        assert allowed == [pytest.approx(allowed[0])] * 3

    def test_really_runs_what_it_times(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def in_turns(runs: Sequence[Callable[[], object]], **_: Any) -> list[Trial]:
            for run in runs:
                run()
            return [trial(2.0, 1.0)] * (len(runs) - 1)

        monkeypatch.setattr(latency, "in_turns", in_turns)
        for network in (Network(), Network(matmul(), (ChannelSvd(),)), Network(gemm(), FAMILIES)):
            assert network.timings()

    def test_what_a_busy_machine_disturbed_is_kept_for_this_run_alone(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        asked = []

        def in_turns(runs: Sequence[object], **_: Any) -> list[Trial]:
            asked.append(len(runs))
            return [replace(trial(2.0, 1.0), clean=len(asked) > 2)] * (len(runs) - 1)

        monkeypatch.setattr(latency, "in_turns", in_turns)
        network, cache = Network(), Cache(tmp_path)
        first = network.timings(cache)
        once = list(asked)
        assert network.timings(cache) == first
        assert asked == once
        for _ in range(2):  # all of it once more, and now it is kept
            assert network.timings(Cache(tmp_path)) == first
            assert asked == 2 * once

    def test_weights_are_ordinary_numbers(self) -> None:
        network = Network()
        for offers in network.ladders:
            chain = with_random_weights(offers[0].sketch)
            for step, sketch in zip(chain.steps, offers[0].sketch.steps, strict=True):
                weight = step_weight(step)
                assert weight.shape == step_weight(sketch).shape
                assert np.isfinite(weight).all()
                assert np.count_nonzero(weight) == weight.size
                fan_in = np.prod(weight.shape[1:])
                assert weight.std() * np.sqrt(fan_in) == pytest.approx(1, abs=0.5)
            again = with_random_weights(offers[0].sketch)
            np.testing.assert_array_equal(step_weight(again.steps[0]), step_weight(chain.steps[0]))
            other = with_random_weights(offers[0].sketch, seed=1)
            assert (step_weight(other.steps[0]) != step_weight(chain.steps[0])).all()


class TestTable:
    def test_measures_at_the_anchors_and_nowhere_else(self, clock: Clockwork) -> None:
        network = Network()
        found = network.timings()
        assert set(found) == {offer for offers in network.ladders for offer in offers}
        measured = {offer for offer, timing in found.items() if timing.measured}
        assert measured == {offer for offers in network.ladders for offer in anchors(offers)}
        # The site itself stands in both rounds: the cheapest of all first, then all the others.
        assert clock.timed == [1 + len(network.ladders), 1 + 2 * len(network.ladders)]

    def test_interpolates_over_multiply_adds(self, clock: Clockwork) -> None:
        """Made-up time grows with them in a line, so that nothing may be lost between anchors."""
        network = Network()
        for offer, timing in network.timings().items():
            assert timing.before == pytest.approx(
                MINIMUM + SECONDS * site_macs(network.site, network.shape)
            )
            assert timing.after == pytest.approx(MINIMUM + SECONDS * offer.macs)

    def test_interpolates_the_interval_around_the_ratio(self, clock: Clockwork) -> None:
        network = Network()
        found = network.timings()
        for offers in network.ladders:
            timings = [found[offer] for offer in offers]
            for timing in timings:
                assert timing.low < timing.ratio < timing.high
            for slower, faster in itertools.pairwise(timings[::-1]):
                assert slower.low < faster.low
                assert slower.high < faster.high

    def test_stays_between_what_was_measured(self, clock: Clockwork) -> None:
        """Also where time goes up in steps."""
        clock.alone = lambda _, macs: MINIMUM + 3e-5 * (1 + macs // 30_000)
        network = Network(families=(ChannelSvd(),))
        found = network.timings()
        (offers,) = network.ladders
        low, middle, high = anchors(offers)
        for offer in offers:
            bounds = (low, middle) if offer.macs <= middle.macs else (middle, high)
            after = [found[each].after for each in bounds]
            assert min(after) <= found[offer].after * (1 + 1e-12)
            assert found[offer].after <= max(after) * (1 + 1e-12)

    @pytest.mark.parametrize("factor", [2.0, 100.0])
    def test_a_family_whose_cheapest_is_no_faster_is_left(
        self, clock: Clockwork, factor: float
    ) -> None:
        network = Network()
        cp4 = network.ladders[2]
        share = cp4[0].macs / site_macs(network.site, network.shape)
        clock.alone = taking(nodes=4, factor=factor / share)
        found = network.timings()
        assert {offer for offer in found if offer.family.name == "cp4"} == {cp4[0]}
        assert found[cp4[0]].measured
        assert found[cp4[0]].ratio < 1
        assert clock.timed == [1 + 3, 1 + 4]
        assert all(offer in found for offers in network.ladders[:2] for offer in offers)

    def test_one_that_is_hardly_faster_is_left_too(self, clock: Clockwork) -> None:
        network = Network(families=(ChannelSvd(),))
        (offers,) = network.ladders
        clock.alone = lambda model, macs: 1.0 if len(model.proto.graph.node) == 1 else 1 / 1.04
        assert list(network.timings()) == [offers[0]]
        clock.alone = lambda model, macs: 1.0 if len(model.proto.graph.node) == 1 else 1 / 1.06
        assert set(network.timings()) == set(offers)

    def test_where_none_is_faster_one_round_is_all(self, clock: Clockwork) -> None:
        network = Network()
        clock.alone = lambda model, macs: float(len(model.proto.graph.node))
        assert set(network.timings()) == {offers[0] for offers in network.ladders}
        assert clock.timed == [4]

    @pytest.mark.parametrize("count", [1, 2])
    def test_short_ladders(self, clock: Clockwork, count: int) -> None:
        network = Network(families=(ChannelSvd(),))
        network.ladders = [network.ladders[0][:count]]
        assert all(timing.measured for timing in network.timings().values())
        assert clock.timed == [2] * count

    def test_what_cannot_run_alone(self) -> None:
        """ONNX Runtime has no convolution of bfloat16 on a CPU."""
        network = Network(
            conv_model(channels=(24, 32), dtype=ml_dtypes.bfloat16, opset=22, ir_version=10)
        )
        with pytest.raises(ModelError, match="'conv' alone"):
            network.timings()


class TestKept:
    def test_another_table_measures_nothing(self, clock: Clockwork, tmp_path: Path) -> None:
        first = Network()
        found = first.timings(Cache(tmp_path))
        assert clock.counts["alone"] == 2
        second = Network()
        again = second.timings(Cache(tmp_path))
        assert clock.counts["alone"] == 2
        assert {str(o): t for o, t in again.items()} == {str(o): t for o, t in found.items()}

    def test_nor_is_a_session_opened(
        self, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network, cache = Network(), Cache(None)
        network.timings(cache)

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("nothing is to be opened")

        monkeypatch.setattr(Machine, "open", refuse)
        assert network.timings(cache)

    def test_what_is_missing_is_measured(self, clock: Clockwork) -> None:
        cache = Cache(None)
        Network(families=(ChannelSvd(),)).timings(cache)
        assert clock.timed == [2, 3]
        Network().timings(cache)
        assert clock.timed == [2, 3, 1 + 2, 1 + 4]

    def test_across_weights_names_and_networks(self, clock: Clockwork) -> None:
        cache = Cache(None)
        Network().timings(cache)
        proto = conv_model(channels=(24, 32), size=(10, 10), pads=(1,) * 4)
        proto.graph.node[0].name = "other"
        proto.graph.initializer[0].CopyFrom(
            onnx.numpy_helper.from_array(noise(32, 24, 3, 3, seed=5), "w")
        )
        Network(proto).timings(cache)
        assert clock.counts["alone"] == 2

    def test_not_where_the_family_stopped_short_of(self, clock: Clockwork) -> None:
        cache, network = Cache(None), Network(families=(ChannelSvd(),))
        clock.alone = lambda model, macs: float(len(model.proto.graph.node))
        first = network.timings(cache)
        clock.alone = by_macs
        assert network.timings(cache) == first
        assert clock.counts["alone"] == 1


def matmul(columns: int = 30) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    return model_of([node], inputs={"x": (2, 5, 40)}, weights={"w": noise(40, columns)})


def gemm(dtype: Any = np.float32, bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    weights = {"w": noise(40, 30, dtype=dtype)} | ({"b": noise(30, dtype=dtype)} if bias else {})
    inputs = ["x", *weights]
    node = helper.make_node("Gemm", inputs, ["y"], name="m", **attributes)
    kind = onnx_type(weights["w"])
    return model_of([node], inputs={"x": (40, 40)}, weights=weights, dtype=kind)


def conv(**options: Any) -> onnx.ModelProto:
    given: dict[str, Any] = {"channels": (24, 32), "size": (12, 12), "pads": (1,) * 4}
    return conv_model(**{**given, **options})


SVD = (ChannelSvd(),)


class TestKey:
    """All that a latency depends on is in it."""

    def measured(self, clock: Clockwork, cache: Cache, network: Network, **options: Any) -> bool:
        before = clock.counts["alone"]
        network.timings(cache, **options)
        return clock.counts["alone"] > before

    @pytest.mark.parametrize(
        "other",
        [
            conv(channels=(25, 32)),
            conv(channels=(24, 33)),
            conv(size=(12, 13)),
            conv(batch=3),
            conv(strides=(2, 1)),
            conv(strides=(1, 2)),
            conv(dilations=(2, 2)),
            conv(pads=(0, 1, 1, 1)),
            conv(pads=(2, 2, 2, 2)),
            conv(group=2),
            conv(bias=False),
            conv(kernel=(3, 1), pads=(1, 0, 1, 0)),
            conv(kernel=(5, 5)),
            conv(op="ConvTranspose"),
            conv(opset=18),
        ],
    )
    def test_of_a_convolution(self, clock: Clockwork, other: onnx.ModelProto) -> None:
        cache = Cache(None)
        clock.alone = lambda *_: 1.0  # so that only the cheapest are looked at
        assert self.measured(clock, cache, Network(conv(), SVD))
        assert not self.measured(clock, cache, Network(conv(), SVD))
        assert self.measured(clock, cache, Network(other, SVD))

    @pytest.mark.parametrize(
        "other",
        [
            gemm(transA=1),
            gemm(alpha=0.5),
            gemm(beta=0.5),
            gemm(bias=False),
            gemm(dtype=np.float64),
            matmul(),
        ],
    )
    def test_of_a_matrix(self, clock: Clockwork, other: onnx.ModelProto) -> None:
        cache = Cache(None)
        clock.alone = lambda *_: 1.0
        assert self.measured(clock, cache, Network(gemm(), SVD))
        assert not self.measured(clock, cache, Network(gemm(), SVD))
        assert self.measured(clock, cache, Network(other, SVD))

    def test_of_a_chain(self, clock: Clockwork) -> None:
        """Chains of other families, and of other ranks, are others."""
        cache, network = Cache(None), Network(families=(Cp3(), Cp4(), SpatialSvd()))
        for offers in network.ladders:
            for offer in offers[:3]:
                network.ladders = [[offer]]
                assert self.measured(clock, cache, network)
                assert not self.measured(clock, cache, network)

    @pytest.mark.parametrize(
        "change",
        [
            {"cpu": "another"},
            {"cores": 1000},
            {"threads": "1000"},
            {"providers": ("another",)},
            {"system": "another"},
            {"versions": {"onnxruntime": "0"}},
        ],
    )
    def test_of_the_place(
        self, clock: Clockwork, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
    ) -> None:
        cache, network = Cache(None), Network(families=SVD)
        assert self.measured(clock, cache, network)
        really = latency.describe
        monkeypatch.setattr(latency, "describe", lambda each: replace(really(each), **change))
        assert self.measured(clock, cache, network)

    def test_of_threads_that_are_asked_for(self, clock: Clockwork) -> None:
        cache, network = Cache(None), Network(families=SVD)
        assert self.measured(clock, cache, network)
        other = Machine(intra_op_num_threads=2)
        assert self.measured(clock, cache, network, machine=other)
