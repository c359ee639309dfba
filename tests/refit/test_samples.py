"""Refits to samples that are few, of many shapes, or of no use."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import helper

from onnxcp.calibration.data import load_data
from onnxcp.graph.model import Model
from onnxcp.graph.site import find_sites
from onnxcp.profiling.inputs import session_inputs
from onnxcp.refit import RefitSettings, refit
from tests.networks import FLOAT32, initializers, model_of, noise
from tests.refits import (
    FAMILIES,
    MACHINE,
    SAMPLES,
    SITES,
    VALUES,
    at_rank,
    choices_for,
    conv,
    error,
    fit,
    fitted,
    named,
    opened,
    plainly,
    samples_for,
    smooth,
)
from tests.wirings import CHANNELS, wired


class TestLeftAlone:
    @pytest.mark.parametrize("name", ["conv", "grouped", "Gemm, alpha and beta", "MatMul"])
    @pytest.mark.parametrize("family", ["channel-svd", "spatial-svd", "tucker2"])
    def test_what_is_exact_already_stays_exact(self, name: str, family: str) -> None:
        proto, model = SITES[name], Model(SITES[name])
        choices = {
            site: [FAMILIES[family].apply(site, FAMILIES[family].full_ranks(site))]
            for site in find_sites(model)[0]
            if FAMILIES[family].applies(site) is None
        }
        done = fit(proto, choices, samples_for(proto))
        assert error(fitted(model, done), model, samples_for(proto, seed=1)) < FLOAT32

    def test_sites_of_one_weight(self) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["h"], name="a", pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["h", "w"], ["y"], name="b", pads=[1, 1, 1, 1]),
        ]
        proto = model_of(nodes, inputs={"x": ("n", 8, 6, 7)}, weights={"w": noise(8, 8, 3, 3) / 6})
        model, values = Model(proto), smooth(SAMPLES, 8, 6, 7)
        choices = choices_for(model, "channel-svd")
        done = fit(proto, choices, values)
        assert all(found.result is choices[site][0] for site, found in done.items())
        # Of one that is on its own only its own node changes.
        first = next(iter(choices))
        (found,) = (done := fit(proto, {first: choices[first]}, values)).values()
        assert found.improved
        rewritten = fitted(model, done)
        np.testing.assert_array_equal(
            initializers(rewritten.proto)["w"], initializers(proto)["w"]
        )  # fmt: skip

    def test_the_network_that_it_is_found_in(self) -> None:
        proto = conv()
        before = proto.SerializeToString()
        fit(proto, choices_for(Model(proto), "cp3"), samples_for(proto))
        assert proto.SerializeToString() == before

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_data_that_do_not_vary_teach_nothing(self, value: float) -> None:
        """But what they make is right."""
        proto = conv()
        model = Model(proto)
        values = np.full((SAMPLES, 8, 6, 7), value, np.float32)
        choices = choices_for(model, "cp3", "channel-svd")
        done = fit(proto, choices, values)
        (found,) = done.values()
        assert found.result is not None
        assert error(fitted(model, done), model, values) < FLOAT32
        # Elsewhere it is as good as the weights alone, but for a constant.
        fresh = samples_for(proto)
        assert error(fitted(model, done), model, fresh) < 1.5 * error(
            plainly(model, choices), model, fresh
        )


class TestFewSamples:
    @pytest.mark.parametrize("name", ["conv", "transposed", "Gemm", "MatMul of 3 axes"])
    def test_are_better_than_none(self, name: str) -> None:
        proto, model = SITES[name], Model(SITES[name])
        choices = choices_for(model, "channel-svd")
        done = fit(proto, choices, samples_for(proto, 16))
        assert all(found.improved for found in done.values())
        fresh = samples_for(proto, seed=1)
        plain, better = (
            error(each, model, fresh) for each in (plainly(model, choices), fitted(model, done))
        )
        assert better < 0.95 * plain

    @pytest.mark.parametrize("count", [5, 2, 1])
    @pytest.mark.parametrize("name", ["conv", "transposed", "Gemm", "MatMul of 3 axes"])
    def test_are_split_all_the_same(self, name: str, count: int) -> None:
        proto = SITES[name]
        choices = choices_for(Model(proto), "channel-svd")
        ((site, found),) = fit(proto, choices, samples_for(proto, count)).items()
        if name == "Gemm" and count == 1:  # a single row
            assert found.result is choices[site][0]
            assert math.isnan(found.before)
        else:
            assert found.after <= found.before < 1

    def test_in_batches_of_one(self) -> None:
        proto, open_batch = conv(batch=1), conv()
        model, values = Model(proto), samples_for(open_batch)
        choices = choices_for(model, "spatial-svd")
        (one,) = fit(proto, choices, values).values()
        (other,) = fit(open_batch, choices_for(Model(open_batch), "spatial-svd"), values).values()
        assert one.improved
        assert one.after == pytest.approx(other.after, rel=1e-3)

    def test_that_do_not_fill_a_batch_are_left_out(self) -> None:
        proto = conv(batch=3)
        (found,) = fit(
            proto, choices_for(Model(proto), "tucker2"), samples_for(conv(), 16)
        ).values()
        assert found.improved


class TestManyShapes:
    def test_samples_of_several_sizes_serve_as_they_come(self) -> None:
        proto = conv(pads=[1, 1, 1, 1])
        for axis in (2, 3):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
            proto.graph.output[0].type.tensor_type.shape.dim[axis].Clear()
        model = Model(proto)
        batches = [
            {"x": smooth(n, 8, *size, seed=n)}
            for n, size in [(20, (6, 7)), (9, (8, 5)), (1, (12, 12)), (16, (5, 5))]
        ]
        data = load_data(lambda: iter(batches), session_inputs(MACHINE.open(model)))
        assert len(data.parts) == 4
        choices = choices_for(model, "cp3")
        done = refit(model, choices, data, MACHINE, RefitSettings())
        fresh = smooth(SAMPLES, 8, 9, 9, seed=1)
        plain, better = (
            error(each, model, fresh) for each in (plainly(model, choices), fitted(model, done))
        )
        assert better < 0.9 * plain

    def test_samples_of_several_inputs(self) -> None:
        proto = opened(wired("s = Add x z", "a = Conv s", "y = Relu a", inputs=("x", "z")))
        model = Model(proto)
        values = {"x": VALUES, "z": smooth(SAMPLES, CHANNELS, 6, 5, seed=3)}
        data = load_data(values, session_inputs(MACHINE.open(model)))
        choices = at_rank(1, *named(model, "a"))
        done = refit(model, choices, data, MACHINE, RefitSettings())
        assert all(found.improved for found in done.values())


def test_values_that_are_not_finite_leave_the_weights_alone() -> None:
    nodes = [
        helper.make_node("Log", ["x"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["y"], name="conv"),
    ]
    proto = model_of(nodes, inputs={"x": ("n", 8, 6, 7)}, weights={"w": noise(8, 8, 3, 3)})
    choices = choices_for(Model(proto), "channel-svd")
    values = np.abs(smooth(SAMPLES, 8, 6, 7))
    values[3, 2, 1] = 0
    with np.errstate(all="ignore"):
        ((site, found),) = fit(proto, choices, values).items()
    assert found.result is choices[site][0]
