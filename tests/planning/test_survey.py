"""The survey: what is looked at, what is timed, what is tried on data, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import onnx
import pytest
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.cp import Cp3
from onnxcp_passes.spatial_svd import SpatialSvd

from models.builder import GraphBuilder
from onnxcp.graph.chain import site_macs
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.site import Site, find_sites
from onnxcp.planning.cache import Cache
from onnxcp.planning.distortion import Effect, SiteErrors
from onnxcp.planning.latency import LatencyTable, Timing
from onnxcp.planning.menu import Menu
from onnxcp.planning.offer import Offer, ladder
from onnxcp.planning.survey import Surveyed, survey
from onnxcp.profiling.machine import Machine
from tests.clockwork import Clockwork, by_macs
from tests.networks import conv_model
from tests.plans import SVD, option, sites

MACHINE = Machine(intra_op_num_threads=1)
FAMILIES = (ChannelSvd(), SpatialSvd(), Cp3())


def network() -> onnx.ModelProto:
    """Three convolutions, the second of 1x1, and a classifier that is too small to pay."""
    g = GraphBuilder("small")
    x = g.input("x", [1, 8, 24, 24])
    x = g.relu(g.conv(x, 8, 24, 3, name="one", pads=1))
    x = g.relu(g.conv(x, 24, 32, 1, name="two"))
    x = g.relu(g.conv(x, 32, 32, 3, name="three", pads=1))
    x = g.flatten(g.global_average_pool(x, name="pool"), name="flat")
    return g.model([g.gemm(x, 32, 10, name="scores")])


class Errors:
    """Takes the place of the table of errors: a tenth of an offer's share of multiply-adds."""

    def __init__(self) -> None:
        self.asked: list[Mapping[Site, Sequence[Sequence[Offer]]]] = []

    def errors(self, ladders: Mapping[Site, Sequence[Sequence[Offer]]]) -> dict[Site, SiteErrors]:
        self.asked.append(ladders)
        return {
            site: SiteErrors({o: 100 / o.macs for each in ladder for o in each}, Effect(2.0, 5.0))
            for site, ladder in ladders.items()
        }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    return Clockwork(monkeypatch)


class Survey:
    """A survey of a network, with made-up times and errors."""

    def __init__(self, proto: onnx.ModelProto | None = None, **options: Any) -> None:
        self.model = Model(proto or network())
        self.sites = find_sites(self.model)[0]
        self.shapes = infer_shapes(self.model)
        self.menu = Menu(**{"families": FAMILIES, **options})
        self.errors = Errors()
        self.told: list[tuple[str, int, int]] = []

    def run(self) -> dict[str, Surveyed]:
        latencies = LatencyTable(self.model, self.shapes, MACHINE, Cache(None))
        found = survey(
            self.sites,
            self.menu,
            self.shapes,
            latencies,
            self.errors,  # type: ignore[arg-type]
            lambda *what: self.told.append(what),
        )
        assert [each.site for each in found] == self.sites
        return {each.site.name: each for each in found}


class TestOptions:
    def test_are_all_that_is_offered_and_faster(self, clock: Clockwork) -> None:
        it = Survey()
        for name, found in it.run().items():
            if name == "scores":
                continue
            shape = it.shapes[found.site.input]
            macs = site_macs(found.site, shape)
            assert found.macs == macs
            offered = [ladder(found.site, each, shape, macs) for each in FAMILIES]
            expected = {
                (o.family.name, o.ranks)
                for offers in offered
                if not isinstance(offers, Refusal)
                for o in offers
                if by_macs(it.model, macs) >= 1.05 * by_macs(it.model, o.macs)
            }
            assert {(o.family.name, o.ranks) for o in found.options} == expected
            assert expected

    def test_know_their_time_and_their_errors(self, clock: Clockwork) -> None:
        it = Survey()
        for found in it.run().values():
            for each in found.options:
                assert each.site is found.site
                assert each.timing.after == pytest.approx(by_macs(it.model, each.macs))
                assert each.saving > 0
                assert each.error == pytest.approx(2.0 * 100 / each.macs)
                assert each.distortion == pytest.approx(5.0 * 100 / each.macs)

    def test_are_of_the_menus_own_families(self, clock: Clockwork) -> None:
        """The very objects: by them results are told apart."""
        found = Survey().run()
        assert all(any(o.family is f for f in FAMILIES) for o in found["three"].options)

    def test_have_rounded_ranks(self, clock: Clockwork) -> None:
        found = Survey(families=(ChannelSvd(),), round_to=8).run()
        assert [o.ranks for o in found["three"].options] == [(8,), (16,)]

    def test_errors_are_looked_for_once_and_only_of_what_is_faster(self, clock: Clockwork) -> None:
        it = Survey()
        found = it.run()
        (asked,) = it.errors.asked
        assert {site.name for site in asked} == {"one", "two", "three"}
        for site, ladders in asked.items():
            names = [(o.family.name, o.ranks) for each in ladders for o in each]
            assert names == [(o.family.name, o.ranks) for o in found[site.name].options]


class TestReasons:
    def of(self, found: Surveyed) -> list[tuple[Reason, str]]:
        return [(each.reason, each.detail) for each in found.reasons]

    def test_of_a_family_that_does_not_apply(self, clock: Clockwork) -> None:
        reasons = Survey().run()["two"].reasons
        assert {each.reason for each in reasons} == {Reason.INEXPRESSIBLE}
        assert len(reasons) == 2

    def test_of_a_site_that_is_not_wanted(self, clock: Clockwork) -> None:
        found = Survey(nodes="one two", exclude="two").run()
        assert found["one"].options
        for name in ("two", "three", "scores"):
            assert self.of(found[name]) == [
                (Reason.EXCLUDED, "it is not among the nodes to rewrite")
            ]
            assert found[name].options == ()

    def test_of_a_site_that_is_too_small(self, clock: Clockwork) -> None:
        found = Survey().run()["scores"]
        ((reason, detail),) = self.of(found)
        assert reason is Reason.TOO_SMALL
        assert detail == "it makes up 0.00% of the MACs, too few to pay"
        assert found.macs == 320

    def test_of_a_site_whose_input_is_unknown(self, clock: Clockwork) -> None:
        it = Survey()
        del it.shapes["one.relu"]
        found = it.run()
        ((reason, detail),) = self.of(found["two"])
        assert reason is Reason.SHAPE_UNKNOWN
        assert detail == "the shape of its input is not known; give input shapes"
        assert found["two"].macs is None
        assert found["one"].options
        assert found["three"].options

    def test_of_a_family_that_is_not_faster(self, clock: Clockwork) -> None:
        """Chains of four are slow here; the cheapest of them stands for the family."""
        clock.alone = lambda model, macs: (
            by_macs(model, macs) * (100 if len(model.proto.graph.node) == 3 else 1)
        )
        found = Survey().run()["three"]
        assert {o.family.name for o in found.options} == {"channel-svd", "spatial-svd"}
        ((reason, detail),) = self.of(found)
        assert reason is Reason.NOT_FASTER
        cheapest = ladder(found.site, FAMILIES[2], (1, 32, 24, 24), found.macs or 0)
        assert not isinstance(cheapest, Refusal)
        assert detail.startswith(f"{cheapest[0]} is not faster: 0.")

    def test_of_a_site_at_which_nothing_is_faster(self, clock: Clockwork) -> None:
        clock.alone = lambda model, macs: float(len(model.proto.graph.node))
        it = Survey()
        found = it.run()["three"]
        assert found.options == ()
        assert [each.reason for each in found.reasons] == [Reason.NOT_FASTER] * 3
        assert it.errors.asked == [{}]

    def test_of_an_option_that_is_not_faster_for_certain(
        self, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many times faster it seems."""

        def timings(
            table: LatencyTable, site: Site, ladders: Sequence[Sequence[Offer]]
        ) -> dict[Offer, Timing]:
            return {o: Timing(2.0, 1.0, 0.99, 4.0) for offers in ladders for o in offers}

        monkeypatch.setattr(LatencyTable, "timings", timings)
        found = Survey(families=(ChannelSvd(),)).run()["three"]
        assert found.options == ()
        ((reason, detail),) = self.of(found)
        assert reason is Reason.NOT_FASTER
        assert detail.endswith("is not faster: 2.00x (0.99 to 4.00)")

    def test_of_a_site_that_cannot_be_run_alone(self) -> None:
        """ONNX Runtime has no convolution of bfloat16 on a CPU."""
        proto = conv_model(channels=(24, 32), dtype=ml_dtypes.bfloat16, opset=22, ir_version=10)
        found = Survey(proto).run()["conv"]
        assert found.options == ()
        (only,) = found.reasons
        assert only.reason is Reason.UNSUPPORTED
        assert only.detail.startswith("it cannot be run alone: ONNX Runtime cannot load")

    def test_of_a_matrix(self, clock: Clockwork) -> None:
        """Whatever is for convolutions only says so; nothing has to be timed for it."""
        g = GraphBuilder("matrix")
        x = g.input("x", [4, 64])
        found = Survey(g.model([g.gemm(x, 64, 64, name="m")])).run()["m"]
        assert {o.family.name for o in found.options} == {"channel-svd"}
        assert {each.reason for each in found.reasons} == {Reason.INEXPRESSIBLE}


def test_progress_is_told_site_by_site(clock: Clockwork) -> None:
    it = Survey()
    it.run()
    assert it.told == [
        ("one: timing chains", 0, 4),
        ("two: timing chains", 1, 4),
        ("three: timing chains", 2, 4),
    ]


def test_no_sites_are_no_findings() -> None:
    it = Survey()
    it.sites = []
    assert it.run() == {}


def test_options_can_be_taken_off() -> None:
    (site,) = sites(1)
    options = tuple(option(site, rank) for rank in (1, 2, 3))
    why = Refusal(site.name, Reason.INACCURATE, "terms cancel")
    first = Refusal(site.name, Reason.NOT_FASTER, "slow")
    found = Surveyed(site, 100, options, (first,)).without(options[1:], why)
    assert found.options == options[:1]
    assert found.reasons == (first, why)
    assert found.site is site
    assert found.macs == 100
    assert options[0].family is SVD
    assert math.isfinite(options[0].error)


class TestMenu:
    """Which sites are looked at."""

    @pytest.mark.parametrize(
        ("share", "looked"), [(0.5, True), (0.0021, True), (0.0019, False), (0.0, False)]
    )
    def test_from_a_share_of_the_multiply_adds_on(self, share: float, looked: bool) -> None:
        (site,) = sites(1)
        refusal = Menu(FAMILIES).refusal(site, round(share * 1_000_000), 1_000_000)
        assert (refusal is None) == looked
        assert refusal is None or refusal.reason is Reason.TOO_SMALL

    @pytest.mark.parametrize(
        ("nodes", "exclude", "looked"),
        [
            ("*", "", True),
            ("conv*", "", True),
            ("other conv0", "", True),
            ("other", "", False),
            ("*", "conv?", False),
            ("*", "conv1", True),
        ],
    )
    def test_by_name(self, nodes: str, exclude: str, looked: bool) -> None:
        (site,) = sites(1)
        refusal = Menu(FAMILIES, nodes=nodes, exclude=exclude).refusal(site, 100, 100)
        assert (refusal is None) == looked
        assert refusal is None or refusal.reason is Reason.EXCLUDED
