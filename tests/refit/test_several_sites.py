"""Refits of several sites, each to what those before it leave to be made good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcp.calibration import statistics
from onnxcp.calibration.stream import Stop
from onnxcp.errors import OnnxcpError
from onnxcp.graph.chain import step_weight
from onnxcp.graph.model import Model
from onnxcp.refit import RefitSettings, refit
from tests.networks import FLOAT32, Array, difference, model_of, noise
from tests.refits import (
    FAMILIES,
    FRESH,
    MACHINE,
    SAMPLES,
    VALUES,
    at_rank,
    choices_for,
    data_for,
    error,
    fit,
    fitted,
    named,
    opened,
    plainly,
    smooth,
    two_convs,
    weights_of,
)
from tests.wirings import CHANNELS, summing, wired


class TestPrefix:
    def test_a_later_site_is_fitted_to_what_it_is_given(self) -> None:
        proto = two_convs()
        model = Model(proto)
        a, b = named(model, "a", "b")
        choices = at_rank(2, a, b)
        together = fit(proto, choices, VALUES)
        apart = {site: fit(proto, {site: choices[site]}, VALUES)[site] for site in (a, b)}
        assert weights_of({a: together[a]}) == weights_of({a: apart[a]})
        assert weights_of({b: together[b]}) != weights_of({b: apart[b]})
        plain, one, other = (
            error(each, model, FRESH)
            for each in (plainly(model, choices), fitted(model, apart), fitted(model, together))
        )
        assert other < 0.98 * one < plain

    def test_what_is_deployed_is_what_later_sites_are_fitted_behind(self) -> None:
        proto = two_convs(relu=False)
        model = Model(proto)
        a, b = named(model, "a", "b")
        seen = {}

        def doubled(part: Model, name: str, feeds: Iterator[Mapping[str, Array]]) -> Model:
            seen[name] = sum(len(batch["x"]) for batch in feeds)
            proto = onnx.ModelProto()
            proto.CopyFrom(part.proto)
            for each in proto.graph.initializer:
                each.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(each), each.name))
            return part.with_proto(proto)

        done = fit(proto, {}, VALUES, dense=[a, b], deployed=doubled)
        assert seen == {"a": SAMPLES, "b": SAMPLES}
        assert a not in done, "nothing before it has changed"
        chain = done[b].chain
        assert chain is not None
        (step,) = chain[1].steps
        assert difference(step_weight(step).astype(np.float32), b.kernel() / 2) < 0.01

    @pytest.mark.parametrize("scope", ["all", "factorised"])
    def test_a_site_that_stays_makes_good_for_those_before_it(self, scope: str) -> None:
        proto = two_convs(relu=False)
        model = Model(proto)
        a, b = named(model, "a", "b")
        # In front of the second one, the first one's output is seen through a kernel.
        done = fit(proto, at_rank(2, a), VALUES, dense=[b], scope=scope)
        assert set(done) == ({a, b} if scope == "all" else {a})
        if scope == "factorised":
            return
        found = done[b]
        assert found.result is None
        assert found.dense is not None
        assert found.improved
        assert found.chain == ("refit", found.dense)
        rewritten = fitted(model, done)
        assert [node.name for node in rewritten.proto.graph.node if "b" in node.name[0]] == ["b"]
        before = error(fitted(model, {a: done[a]}), model, FRESH)
        assert error(rewritten, model, FRESH) < 0.98 * before
        assert found.before == pytest.approx(
            error(fitted(model, {a: done[a]}), model, VALUES[7::8]), rel=1e-3
        )
        assert found.after == pytest.approx(error(rewritten, model, VALUES[7::8]), rel=1e-3)

    def test_a_site_that_no_error_reaches_is_not_touched(self) -> None:
        proto = opened(wired("a = Conv x", "b = Conv x", "y = Mul a b"))
        a, b = named(Model(proto), "a", "b")
        assert set(fit(proto, at_rank(2, b), VALUES, dense=[a])) == {b}
        assert set(fit(proto, at_rank(2, a), VALUES, dense=[b])) == {a}
        assert fit(proto, {}, VALUES, dense=[a, b]) == {}

    def test_a_site_of_which_nothing_more_is_to_be_had_keeps_its_weights(self) -> None:
        """All that the second one is given is a multiple of what it was."""
        proto = two_convs(relu=False)
        model = Model(proto)
        a, b = named(model, "a", "b")
        exact = {a: [FAMILIES["channel-svd"].apply(a, (CHANNELS,))]}
        found = fit(proto, exact, VALUES, dense=[b]).get(b)
        assert found is None or (found.dense is None and found.before == found.after < FLOAT32)

    @pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
    def test_of_what_comes_before_a_transposed_convolution(self, op: str) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "u"], ["h"], name="a", pads=[1, 1, 1, 1]),
            helper.make_node(op, ["h", "v"], ["y"], name="b"),
        ]
        weights = {"u": noise(8, 8, 3, 3) / 6, "v": noise(8, 8, 3, 3, seed=1) / 6}
        proto = model_of(nodes, inputs={"x": ("n", 8, 6, 7)}, weights=weights)
        model, values = Model(proto), smooth(SAMPLES, 8, 6, 7)
        choices = at_rank(3, *named(model, "a", "b"))
        together = fit(proto, choices, values)
        apart = {site: fit(proto, {site: each}, values)[site] for site, each in choices.items()}
        fresh = smooth(SAMPLES, 8, 6, 7, seed=1)
        one, other = (error(fitted(model, each), model, fresh) for each in (apart, together))
        assert other < one


class TestSums:
    @pytest.mark.parametrize("wiring", ["conv shortcut", "conv shortcut that comes first"])
    def test_the_last_one_makes_good_for_the_others(
        self, wiring: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proto = opened(summing(wiring))
        model = Model(proto)
        choices = at_rank(2, *named(model, "a", "b", "c"))
        aware = error(fitted(model, fit(proto, choices, VALUES)), model, FRESH)

        def without_partners(self: Stop) -> Iterator[tuple[Array, Array]]:
            self.partners = ()
            yield from real(self)

        real = Stop.pairs
        monkeypatch.setattr(Stop, "pairs", without_partners)
        blind = error(fitted(model, fit(proto, choices, VALUES)), model, FRESH)
        assert aware < 0.97 * blind

    def test_also_one_that_stays(self) -> None:
        proto = opened(summing("conv shortcut"))
        model = Model(proto)
        a, b, c = named(model, "a", "b", "c")
        done = fit(proto, at_rank(2, c), VALUES, dense=[a, b])
        assert set(done) == {b, c}
        assert done[b].dense is not None
        before = error(fitted(model, {c: done[c]}), model, FRESH)
        assert error(fitted(model, done), model, FRESH) < 0.98 * before


class TestSameAgain:
    def test_for_the_same_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statistics, "_ROWS", 800)
        monkeypatch.setattr(statistics, "_PER_ENTRY", 1)
        proto = two_convs()
        choices = choices_for(Model(proto), "spatial-svd", "cp3")
        first, again, other = (
            weights_of(fit(proto, choices, VALUES, seed=seed)) for seed in (3, 3, 4)
        )
        assert first == again
        assert first != other

    def test_whatever_the_memory(self) -> None:
        proto = two_convs()
        choices = choices_for(Model(proto), "tucker2")
        plenty, none = (
            weights_of(fit(proto, choices, VALUES, memory_limit=limit)) for limit in (2**31, 0)
        )
        assert plenty == none

    def test_progress_is_told_of_every_site(self) -> None:
        proto = two_convs()
        heard: list[str] = []
        refit(
            Model(proto),
            choices_for(Model(proto), "channel-svd"),
            data_for(proto, VALUES),
            MACHINE,
            RefitSettings(),
            progress=lambda what, done, total: heard.append(f"{what} {done}/{total}"),
        )
        assert heard == ["a: refitting 0/2", "b: refitting 1/2"]


class TestSettings:
    def test_an_unknown_scope_is_a_sentence(self) -> None:
        with pytest.raises(OnnxcpError) as caught:
            RefitSettings(scope="some")
        assert str(caught.value) == (
            "There is no refit 'some'; there are: all, factorised, none."
        )  # fmt: skip
