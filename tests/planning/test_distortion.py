"""Errors of options: of their sites, and of what comes out of the network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.cp import Cp3
from onnxcp_passes.spatial_svd import SpatialSvd

from models.builder import GraphBuilder
from onnxcp.calibration.data import load_data
from onnxcp.factorize import FactorizePass
from onnxcp.graph.chain import site_macs
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.planning.cache import Cache
from onnxcp.planning.distortion import Effect, ErrorTable, SiteErrors
from onnxcp.planning.offer import Offer, anchors, ladder
from onnxcp.profiling.inputs import session_inputs
from onnxcp.profiling.machine import Machine
from onnxcp.refit import RefitSettings, refit
from tests.covering import thinned
from tests.networks import Array, noise, run

MACHINE = Machine(intra_op_num_threads=1)
SVDS: tuple[FactorizePass, ...] = (ChannelSvd(), SpatialSvd())
Ladders = dict[Site, list[list[Offer]]]
SIZE = 12


def kernel(outputs: int, inputs: int, seed: int) -> Array:
    """Return a 3x3 kernel whose singular values fall off, as those of trained networks do."""
    rng = np.random.default_rng(seed)
    u, _, v = np.linalg.svd(rng.standard_normal((outputs, inputs * 9)), full_matrices=False)
    values = 0.7 ** np.arange(len(v))
    scale = np.sqrt(2 * outputs / np.sum(values**2))
    return (scale * (u * values) @ v).reshape(outputs, inputs, 3, 3).astype(np.float32)


def classifier(*, softmax: bool = False) -> onnx.ModelProto:
    """Three convolutions and scores of ten classes."""
    g = GraphBuilder("classifier")
    x = g.input("x", ["n", 6, SIZE, SIZE])
    x = g.relu(g.conv(x, 6, 16, 3, name="one", pads=1, weight=kernel(16, 6, 1)))
    x = g.relu(g.conv(x, 16, 24, 3, name="two", pads=1, weight=kernel(24, 16, 2)))
    x = g.relu(g.conv(x, 24, 24, 3, name="three", strides=2, weight=kernel(24, 24, 3)))
    x = g.flatten(g.global_average_pool(x, name="pool"), name="flat")
    y = g.gemm(x, 24, 10, name="scores")
    return g.model([g.node("Softmax", [y], name="classes") if softmax else y])


def picture() -> onnx.ModelProto:
    """Two convolutions, from a picture to a picture; the second has no ReLU behind it."""
    g = GraphBuilder("picture")
    x = g.input("x", ["n", 6, SIZE, SIZE])
    x = g.relu(g.conv(x, 6, 16, 3, name="one", pads=1, weight=kernel(16, 6, 1)))
    return g.model([g.conv(x, 16, 12, 3, name="two", pads=1, weight=kernel(12, 16, 2))])


def ladders_of(model: Model, families: Sequence[FactorizePass] = SVDS, sites: str = "") -> Ladders:
    shapes = infer_shapes(model, {"x": (1, 6, SIZE, SIZE)})
    found: Ladders = {}
    for site in find_sites(model)[0]:
        shape = shapes[site.input]
        each = [ladder(site, family, shape, site_macs(site, shape)) for family in families]
        kept = [offers for offers in each if not isinstance(offers, Refusal)]
        if kept and (not sites or site.name in sites.split()):
            found[site] = kept
    return found


def smooth(n: int, seed: int = 0, *, noisy: bool = True) -> Array:
    """Return samples in which neighbours and channels hang together."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2, SIZE, SIZE))
    for axis in (2, 3):
        x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
    mixing = np.random.default_rng(7).standard_normal((6, 2))
    mixed = np.moveaxis(np.tensordot(mixing, x, (1, 1)), 0, 1) / 4
    return (mixed + 0.1 * noisy * rng.standard_normal(mixed.shape)).astype(np.float32)


BATCHES = [{"x": smooth(16, seed)} for seed in range(4)]
PROBES = np.concatenate([batch["x"] for batch in BATCHES])


def table(
    model: Model,
    *,
    batches: Sequence[Mapping[str, Array]] = BATCHES,
    cache: Cache | None = None,
    from_data: bool = False,
    **options: Any,
) -> ErrorTable:
    return ErrorTable(model, MACHINE, cache or Cache(None), batches, from_data=from_data, **options)


def outputs(model: Model, x: Array = PROBES) -> Array:
    return run(model, {"x": x})[0].astype(np.float64)


def relative(model: Model, changed: Model, x: Array = PROBES) -> float:
    """Return the squared relative error of the outputs of a changed network."""
    expected = outputs(model, x)
    return float(np.sum((outputs(changed, x) - expected) ** 2) / np.sum(expected**2))


def replaced(model: Model, *offers: Offer) -> Model:
    """Put chains in place of sites, decomposed from the weights alone."""
    chains = {o.site: ("it", o.family.apply(o.site, o.ranks).chain) for o in offers}
    return splice(model, chains)


def probe_of(ladders: Sequence[Sequence[Offer]], seen: SiteErrors) -> Offer:
    """Return the offer that was put into the network to see what it does."""
    measured = [offer for offers in ladders for offer in anchors(offers)]
    return min(measured, key=lambda offer: abs(math.log(seen.squared[offer] / 0.03)))


def small(ladders: Sequence[Sequence[Offer]], seen: SiteErrors) -> list[Offer]:
    """Return the offers whose squared error is a few hundredths at most."""
    return [o for offers in ladders for o in offers if seen.squared[o] < 0.05]


def fitted(model: Model, *offers: Offer) -> Model:
    """Put chains in place of sites, refitted one after the other to the data."""
    data = load_data({"x": PROBES}, session_inputs(MACHINE.open(model)))
    choices = {o.site: [o.family.apply(o.site, o.ranks)] for o in offers}
    done = refit(model, choices, data, MACHINE, RefitSettings(scope="factorised"))
    return splice(model, {site: each.chain for site, each in done.items() if each.chain})


CLASSIFIER, PICTURE = Model(classifier()), Model(picture())
both = pytest.mark.parametrize("model", [PICTURE, CLASSIFIER], ids=["picture", "classifier"])


class TestOfSites:
    def test_without_data_are_those_of_the_weights(self) -> None:
        ladders = ladders_of(PICTURE)
        found = table(PICTURE).errors(ladders)
        assert list(found) == list(ladders)
        for site, each in ladders.items():
            for offers in each:
                for offer in anchors(offers):
                    expected = offer.family.apply(site, offer.ranks).error ** 2
                    assert found[site].squared[offer] == pytest.approx(expected, rel=1e-3)

    def test_without_data_need_no_whole_decomposition_where_it_is_a_search(self) -> None:
        """Of random weights, a few sweeps of cp3 come close to what many come to."""
        g = GraphBuilder("random")
        x = g.input("x", ["n", 6, SIZE, SIZE])
        model = Model(g.model([g.conv(x, 6, 16, 3, name="c")]))
        ladders = ladders_of(model, (Cp3(),))
        ((site, (offers,)),) = ladders.items()
        found = table(model).errors(ladders)[site]
        for offer in anchors(offers):
            final = offer.family.apply(site, offer.ranks).error
            assert final * 0.999 <= found.squared[offer] ** 0.5 <= 1.1 * final

    @pytest.mark.parametrize("from_data", [False, True])
    def test_fall_along_every_ladder(self, from_data: bool) -> None:
        found = table(PICTURE, from_data=from_data).errors(ladders_of(PICTURE))
        for site, each in ladders_of(PICTURE).items():
            seen = next(value for other, value in found.items() if other.name == site.name)
            values = list(seen.squared.values())
            start = 0
            for offers in each:
                rungs = values[start : start + len(offers)]
                start += len(offers)
                assert all(a > b for a, b in itertools.pairwise(rungs))

    def test_between_anchors_follow_a_power_of_the_multiply_adds(self) -> None:
        ladders = ladders_of(PICTURE, sites="two")
        ((site, each),) = ladders.items()
        found = table(PICTURE).errors(ladders)[site]
        for offers in each:
            known = anchors(offers)
            for low, high in itertools.pairwise(known):
                power = math.log(found.squared[high] / found.squared[low]) / math.log(
                    high.macs / low.macs
                )
                for offer in offers[offers.index(low) : offers.index(high)]:
                    expected = found.squared[low] * (offer.macs / low.macs) ** power
                    assert found.squared[offer] == pytest.approx(expected)

    def test_between_anchors_come_near_the_truth(self) -> None:
        """In the error itself, not squared: a fifth away where a spectrum falls off evenly."""
        ladders = ladders_of(PICTURE, sites="two")
        ((site, each),) = ladders.items()
        found = table(PICTURE).errors(ladders)[site]
        for offers in each:
            for offer in offers:
                truth = offer.family.apply(site, offer.ranks).error
                assert found.squared[offer] ** 0.5 == pytest.approx(truth, rel=0.2)

    def test_with_data_of_few_patterns_few_ranks_are_enough(self) -> None:
        g = GraphBuilder("random")
        x = g.input("x", ["n", 6, SIZE, SIZE])
        model = Model(g.model([g.conv(x, 6, 16, 1, name="c")]))
        ((site, (offers,)),) = ladders_of(model, (ChannelSvd(),)).items()
        assert [offer.ranks for offer in offers] == [(1,), (2,)]
        batches = [{"x": smooth(16, seed, noisy=False)} for seed in range(4)]
        found = table(model, batches=batches, from_data=True).errors({site: [offers]})[site]
        plain = table(model, batches=batches).errors({site: [offers]})[site]
        assert found.squared[offers[1]] < 1e-6  # but for the ridge of the regression
        assert plain.squared[offers[1]] > 0.1

    def test_with_data_are_met_by_a_fit_on_other_samples(self) -> None:
        """Of the last site: what a refit really leaves of its error in the network's output."""
        ladders = ladders_of(PICTURE, (ChannelSvd(),), sites="two")
        ((site, (offers,)),) = ladders.items()
        found = table(PICTURE, from_data=True).errors(ladders)[site]
        x, fresh = PROBES, smooth(64, seed=99)
        for offer in anchors(offers):
            (rank,) = offer.ranks
            y, other = outputs(PICTURE, x), outputs(PICTURE, fresh)
            mean = y.mean(axis=(0, 2, 3), keepdims=True)
            rows = np.moveaxis(y - mean, 1, -1).reshape(-1, site.outputs)
            # The best of a rank for outputs keeps their leading directions (methods of Eckart,
            # Young, and PCA): what is left of other samples in the directions that are lost.
            _, _, directions = np.linalg.svd(rows, full_matrices=False)
            lost = np.moveaxis(other - mean, 1, -1) @ directions[rank:].T
            expected = np.sum(lost**2) / np.sum((other - mean) ** 2)
            assert found.squared[offer] == pytest.approx(expected, rel=0.25)

    def test_that_cannot_be_observed_are_those_of_the_weights(self) -> None:
        g = GraphBuilder("transposed")
        x = g.input("x", ["n", 6, SIZE, SIZE])
        model = Model(g.model([g.conv_transpose(x, 6, 16, 3, name="up", strides=2)]))
        ladders = ladders_of(model, (ChannelSvd(),))
        ((site, (offers,)),) = ladders.items()
        found = table(model, from_data=True).errors(ladders)[site]
        for offer in anchors(offers):
            expected = offer.family.apply(site, offer.ranks).error ** 2
            assert found.squared[offer] == pytest.approx(expected, rel=1e-3)


class TestOfOutputs:
    @both
    def test_are_those_of_the_probe_where_it_is_the_only_change(self, model: Model) -> None:
        ladders = ladders_of(model)
        found = table(model).errors(ladders)
        for site, each in ladders.items():
            probe = probe_of(each, found[site])
            assert found[site].error(probe) == pytest.approx(
                relative(model, replaced(model, probe)), rel=1e-3
            )

    def test_are_those_of_the_site_where_that_is_the_output(self) -> None:
        """Without a ReLU behind it, and with data: the effect is one, up to the bias."""
        ladders = ladders_of(PICTURE, sites="two")
        ((site, _),) = ladders.items()
        found = table(PICTURE, from_data=True).errors(ladders)[site]
        assert found.effect.classes is None
        mean = outputs(PICTURE).mean(axis=(0, 2, 3), keepdims=True)
        varying = np.sum((outputs(PICTURE) - mean) ** 2) / np.sum(outputs(PICTURE) ** 2)
        assert found.effect.relative == pytest.approx(varying, rel=0.2)

    @both
    def test_grow_with_the_error_of_the_site(self, model: Model) -> None:
        """The model that plans are made with, against what comes of a refit: within three times.

        Of squared errors, that is, and as long as they are small.
        """
        ladders = ladders_of(model, sites="one two three")
        found = table(model, from_data=True).errors(ladders)
        for site, each in ladders.items():
            for offer in small(each, found[site])[::4]:
                assert 1 / 3 < found[site].error(offer) / relative(model, fitted(model, offer)) < 3

    @thinned(
        "model,place",
        itertools.product([PICTURE, CLASSIFIER], [0.0, 0.5, 0.99]),
        shows=lambda model, place: {model.proto.graph.name, place},
        ids=lambda model, place: f"{model.proto.graph.name}-{place}",
    )
    def test_add_up_over_sites(self, model: Model, place: float) -> None:
        """So it is taken, and so it is, within three times."""
        ladders = ladders_of(model, sites="one two three")
        found = table(model, from_data=True).errors(ladders)
        fine = [small(each, found[site]) for site, each in ladders.items()]
        chosen = [offers[int(place * len(offers))] for offers in fine]
        expected = sum(found[offer.site].error(offer) for offer in chosen)
        assert 1 / 3 < expected / relative(model, fitted(model, *chosen)) < 3

    @pytest.mark.parametrize("place", [0.0, 0.5, 0.99])
    def test_add_up_without_data_too(self, place: float) -> None:
        """Where no more than one layer, and its ReLU, comes after."""
        ladders = ladders_of(PICTURE)
        found = table(PICTURE).errors(ladders)
        fine = [small(each, found[site]) for site, each in ladders.items()]
        chosen = [offers[int(place * len(offers))] for offers in fine]
        expected = sum(found[offer.site].error(offer) for offer in chosen)
        assert 1 / 3 < expected / relative(PICTURE, replaced(PICTURE, *chosen)) < 3

    def test_are_small_where_the_site_hardly_matters(self) -> None:
        g = GraphBuilder("two branches")
        x = g.input("x", ["n", 6, SIZE, SIZE])
        weight = noise(16, 6, 3, 3) / 7
        loud = g.conv(x, 6, 16, 3, name="loud", pads=1, weight=weight)
        quiet = g.conv(x, 6, 16, 3, name="quiet", pads=1, weight=weight / 10)
        model = Model(g.model([g.add(loud, quiet, name="sum")]))
        ladders = ladders_of(model)
        effects = [each.effect.relative for each in table(model).errors(ladders).values()]
        assert effects[0] / effects[1] == pytest.approx(100, rel=1e-3)

    def test_are_summed_over_several_outputs(self) -> None:
        g = GraphBuilder("two outputs")
        x = g.input("x", ["n", 6, SIZE, SIZE])
        y = g.conv(x, 6, 16, 3, name="one", pads=1)
        proto = g.model([y, g.relu(y, name="z")])
        sums = []
        for kept in ((0, 1), (0,), (1,)):
            part = onnx.ModelProto.FromString(proto.SerializeToString())
            wanted = [proto.graph.output[each] for each in kept]
            del part.graph.output[:]
            part.graph.output.extend(wanted)
            ((_, seen),) = table(Model(part)).errors(ladders_of(Model(part))).items()
            sums.append(seen.effect.relative)
        assert sums[0] == pytest.approx(sums[1] + sums[2], rel=1e-5)

    def test_of_whole_numbers_count_the_share_of_unequal_ones(self) -> None:
        """A network that gives the class alone: what it does to the class is all there is."""
        proto = classifier()
        proto.graph.node.append(onnx.helper.make_node("ArgMax", ["scores"], ["class"], axis=1))
        del proto.graph.output[:]
        proto.graph.output.append(
            onnx.helper.make_tensor_value_info("class", onnx.TensorProto.INT64, ["n", 1])
        )
        model = Model(proto)
        ((site, (offers,)),) = ladders_of(model, (ChannelSvd(),), sites="two").items()
        probe = offers[0]
        found = table(model).errors({site: [[probe]]})[site]
        changed = np.mean(outputs(model) != outputs(replaced(model, probe)))
        assert changed > 0
        assert found.error(probe) == pytest.approx(changed**2, rel=1e-3)

    def test_that_overflow_rule_a_site_out(self, tmp_path: Path) -> None:
        """Whose root is taken where there was nothing below zero, and now there is."""
        model = fragile()
        ladders = ladders_of(model, (ChannelSvd(),))
        ((site, (offers,)),) = ladders.items()
        assert np.isfinite(outputs(model)).all()
        assert not np.isfinite(outputs(replaced(model, offers[-1]))).all()
        for _ in range(2):
            found = table(model, cache=Cache(tmp_path)).errors(ladders)[site]
            assert all(math.isinf(found.error(offer)) for offer in offers)
            assert all(math.isinf(found.distortion(offer)) for offer in offers)


def fragile() -> Model:
    """Return a network that takes roots of what no weights but its own keep above zero."""
    g = GraphBuilder("fragile")
    x = g.input("x", ["n", 6, SIZE, SIZE])
    weight = np.maximum(noise(16, 6, 3, 3), 0)
    y = g.conv(g.relu(x, name="up"), 6, 16, 3, name="c", weight=weight, bias=False)
    return Model(g.model([g.node("Sqrt", [y], name="root")]))


class TestDistortion:
    @pytest.mark.parametrize("softmax", [False, True])
    def test_of_classes_is_their_divergence(self, softmax: bool) -> None:
        """KL(p || q) = sum p log(p / q), p of the original: mean over samples, in nats."""
        model = Model(classifier(softmax=softmax))
        ladders = ladders_of(model)
        found = table(model).errors(ladders)
        for site, each in ladders.items():
            probe = probe_of(each, found[site])
            p, q = (outputs(m) for m in (model, replaced(model, probe)))
            if not softmax:
                p, q = (np.exp(y) / np.exp(y).sum(axis=1, keepdims=True) for y in (p, q))
            expected = float(np.mean(np.sum(p * np.log(p / q), axis=1)))
            assert found[site].distortion(probe) == pytest.approx(expected, rel=1e-3)
            assert found[site].error(probe) == pytest.approx(
                relative(model, replaced(model, probe)), rel=1e-3
            )

    def test_of_anything_else_is_the_error(self) -> None:
        ladders = ladders_of(PICTURE)
        for site, seen in table(PICTURE).errors(ladders).items():
            for offers in ladders[site]:
                assert all(seen.distortion(offer) == seen.error(offer) for offer in offers)

    def test_is_what_an_effect_makes_of_an_error(self) -> None:
        site = find_sites(PICTURE)[0][0]
        offer = Offer(site, ChannelSvd(), (3,), 100)
        seen = SiteErrors({offer: 0.04}, Effect(2.0, 5.0))
        assert seen.error(offer) == pytest.approx(0.08)
        assert seen.distortion(offer) == pytest.approx(0.2)
        assert SiteErrors({offer: 0.04}, Effect(2.0, 0.0)).distortion(offer) == 0
        assert SiteErrors({offer: 0.04}, Effect(2.0, None)).distortion(offer) == seen.error(offer)


class TestKept:
    @pytest.mark.parametrize("from_data", [False, True])
    def test_another_table_runs_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_data: bool
    ) -> None:
        def found() -> list[list[float]]:
            model = Model(classifier())
            each = table(model, cache=Cache(tmp_path), from_data=from_data)
            return [
                [*map(seen.error, seen.squared), *map(seen.distortion, seen.squared)]
                for seen in each.errors(ladders_of(model)).values()
            ]

        first = found()

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("nothing is to be run")

        monkeypatch.setattr(Machine, "open", refuse)
        monkeypatch.setattr(FactorizePass, "apply", refuse)
        assert found() == first

    def runs(self, monkeypatch: pytest.MonkeyPatch, cache: Cache, **options: Any) -> list[str]:
        """Return which sites were looked at."""
        model, families, sites = (
            options.pop(name, default)
            for name, default in (("model", CLASSIFIER), ("families", SVDS), ("sites", "one two"))
        )
        seen: list[str] = []

        def tell(what: str, done: int, total: int) -> None:
            seen.append(what.partition(":")[0])
            assert 0 <= done < total

        each = table(model, cache=cache, progress=tell, **options)
        each.errors(ladders_of(model, families, sites))
        return seen

    def test_only_what_is_missing_is_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = Cache(None)
        assert self.runs(monkeypatch, cache, sites="one") == ["one"]
        assert self.runs(monkeypatch, cache, sites="one two") == ["two"]
        assert self.runs(monkeypatch, cache, sites="one two") == []

    @pytest.mark.parametrize(
        "change",
        [
            {"model": Model(classifier(softmax=True))},
            {"batches": BATCHES[:3]},
            {"batches": [{"x": batch["x"] * 2} for batch in BATCHES]},
            {"from_data": True},
            {"families": (ChannelSvd(),)},
        ],
        ids=["model", "fewer", "other", "from data", "families"],
    )
    def test_under_all_that_errors_depend_on(
        self, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
    ) -> None:
        cache = Cache(None)
        assert self.runs(monkeypatch, cache) == ["one", "two"]
        assert self.runs(monkeypatch, cache, **change) == ["one", "two"]
        assert self.runs(monkeypatch, cache) == []


def test_nothing_is_run_for_no_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be run")

    monkeypatch.setattr(Machine, "open", refuse)
    assert table(CLASSIFIER).errors({}) == {}
    assert table(CLASSIFIER, from_data=True).errors({}) == {}
