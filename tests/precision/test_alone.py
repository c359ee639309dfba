"""Graphs of one layer as they run within a network of a precision."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcp import OnnxcpError
from onnxcp.cli.options import PRECISIONS as OFFERED
from onnxcp.graph.alone import INPUT, isolate
from onnxcp.graph.model import Model, load
from onnxcp.graph.splice import splice
from onnxcp.passes import find_pass
from onnxcp.planning.latency import SiteBench, with_random_weights
from onnxcp.precision.alone import at_precision, open_end, random_input
from onnxcp.precision.amend import label_nodes
from onnxcp.precision.qdq import quantize, raise_opset
from onnxcp.precision.ranges import assumed
from onnxcp.profiling.machine import PRECISIONS, Machine
from tests.networks import conv_model, only_site, operators, run

SHAPE = (2, 8, 9, 10)


def alone(family: str | None = None, **options: object) -> Model:
    """Return one convolution in a graph of its own, or what a family makes of it."""
    model = load(conv_model(channels=(8, 12), **options))
    made, site = isolate(model, only_site(model), SHAPE)
    if family is None:
        return made
    kind = find_pass(family)()
    chain = with_random_weights(kind.sketch(site, (4,)))
    return splice(made, {site: ("chain", chain)})


def quantized(model: Model) -> Model:
    proto = raise_opset(model)
    label_nodes(proto)
    named = model.with_proto(onnx.shape_inference.infer_shapes(proto))
    return quantize(named, assumed(named))


@pytest.mark.parametrize("family", [None, "channel-svd", "spatial-svd", "cp3", "cp4"])
def test_int8_hands_integers_on(family: str | None) -> None:
    made = at_precision(alone(family), "int8")
    kinds = operators(made.proto)
    convs = kinds.count("Conv")
    assert kinds[0] == "DequantizeLinear", "the input is quantized by what makes it"
    assert kinds.count("QuantizeLinear") == convs, "one after each convolution"
    values = random_input(made, SHAPE)
    assert values.dtype == np.uint8
    (result,) = run(made, {INPUT: values})
    assert result.dtype == np.uint8
    assert result.shape == (2, 12, 7, 8)


@pytest.mark.parametrize("family", [None, "channel-svd"])
def test_an_open_end_hands_on_what_it_made_unrounded(family: str | None) -> None:
    whole = quantized(alone(family))
    made = open_end(whole)
    values = {INPUT: np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)}
    (rounded,), (exact,) = run(whole, values), run(made, values)
    assert operators(made.proto)[-1] == "Conv"
    assert len(np.unique(rounded)) <= 256 < len(np.unique(exact))
    step = np.diff(np.unique(rounded)).min()
    inside = (rounded > rounded.min()) & (rounded < rounded.max())
    assert np.abs(rounded - exact)[inside].max() <= 0.51 * step


def test_what_is_not_quantized_has_its_end_open() -> None:
    made = alone()
    assert open_end(made) is made


def test_fp16_is_float16_throughout() -> None:
    made = at_precision(alone(), "fp16")
    assert operators(made.proto) == ["Conv"]
    values = random_input(made, SHAPE)
    assert values.dtype == np.float16
    assert run(made, {INPUT: values})[0].dtype == np.float16


def test_fp32_and_what_is_not_float32_stay() -> None:
    one, half = alone(), alone(dtype=np.float16)
    assert at_precision(one, "fp32") is one
    assert at_precision(half, "int8") is half


@pytest.mark.parametrize("opset", [9, 11])
def test_old_opsets_are_raised(opset: int) -> None:
    assert at_precision(alone(opset=opset), "int8").opset == 13


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bench_times_in_the_precision_of_its_machine(precision: str) -> None:
    model = load(conv_model(channels=(8, 12)))
    site = only_site(model)
    bench = SiteBench(model, site, SHAPE, Machine(precision=precision))
    (trial,) = bench.trials([find_pass("channel-svd")().sketch(site, (4,))], 0.05)
    assert trial.a.median > 0


def test_a_precision_that_is_none_is_named() -> None:
    with pytest.raises(OnnxcpError, match="no precision 'int4'; there are: fp32, fp16, int8"):
        Machine(precision="int4")


def test_the_command_line_offers_what_machines_know() -> None:
    assert OFFERED == PRECISIONS
