"""Similarity of responses: what a session puts out behind the activation, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.spatial_svd import SpatialSvd

from onnxcp.factorize import FactorizePass
from onnxcp.graph.model import Model, load
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.planning.responses import forms_of_responses
from onnxcp.profiling.machine import Machine
from tests.networks import model_of, noise, run

CHANNELS, OUTPUTS = 8, 12
BATCHES = [{"x": noise(4, CHANNELS, 7, 7, seed=k)} for k in range(3)]
# A response is that of float32 kernels, and the network's is summed in another order.
CLOSE = 1e-5

ACTIVATIONS = {
    "relu": [helper.make_node("Relu", ["h"], ["y"])],
    "leaky": [helper.make_node("LeakyRelu", ["h"], ["y"], alpha=0.1)],
    "none": [helper.make_node("Sigmoid", ["h"], ["y"])],
}


def network(activation: str, group: int = 1, **attributes: Any) -> tuple[Model, Site]:
    conv = helper.make_node(
        "Conv", ["x", "w", "b"], ["h"], name="conv", pads=[1, 1, 1, 1], group=group, **attributes
    )
    weights = {
        "w": noise(OUTPUTS, CHANNELS // group, 3, 3),
        "b": noise(OUTPUTS, seed=1),
    }
    proto = model_of(
        [conv, *ACTIVATIONS[activation]],
        inputs={"x": ("N", CHANNELS, 7, 7)},
        outputs=["y", "h"],
        weights=weights,
    )
    del proto.graph.output[1 if activation != "none" else 0]
    model = load(proto)
    return model, find_sites(model)[0][0]


def cosine(a: Any, b: Any) -> float:
    one, two = (np.asarray(each, np.float64).ravel() for each in (a, b))
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def outputs(proto: onnx.ModelProto) -> Any:
    return np.concatenate([run(proto, batch)[0] for batch in BATCHES])


@pytest.mark.parametrize("family", [ChannelSvd(), SpatialSvd()], ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("activation", "group", "attributes"),
    [
        ("relu", 1, {}),
        ("relu", 2, {"strides": [2, 1]}),
        ("leaky", 1, {"dilations": [2, 2]}),
        ("none", 1, {}),
    ],
)
def test_the_cosine_is_that_of_what_the_networks_put_out(
    family: FactorizePass, activation: str, group: int, attributes: dict[str, Any]
) -> None:
    model, site = network(activation, group, **attributes)
    ranks = np.arange(1, min(family.full_ranks(site)[0], 6) + 1)
    ((form,),) = forms_of_responses(model, {site: [(family, ranks)]}, BATCHES, Machine()).values()
    assert form.ranks.tolist() == ranks.tolist()
    expected = outputs(model.proto)
    for rank, found in zip(form.ranks, form.cosines, strict=True):
        chain = family.apply(site, (int(rank),)).chain
        made = outputs(splice(model, {site: ("chain", chain)}).proto)
        assert found == pytest.approx(cosine(expected, made), abs=CLOSE)


def test_of_many_ranks_some_are_looked_at_the_least_and_the_largest_among_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxcp.planning.responses._RANKS", 4)
    model, site = network("relu")
    ranks = np.arange(1, 12)
    found = forms_of_responses(model, {site: [(ChannelSvd(), ranks)]}, BATCHES, Machine())
    (form,) = found[site]
    assert form.ranks.tolist() == [1, 4, 8, 11]
    assert len(form.cosines) == 4


def test_a_transposed_convolution_is_left_to_its_weights() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up")
    weights = {"w": noise(CHANNELS, OUTPUTS, 3, 3)}
    shape = ("N", CHANNELS, 7, 7)
    model = load(model_of([node], inputs={"x": shape}, weights=weights))
    (site,) = find_sites(model)[0]
    forms = {site: [(ChannelSvd(), np.arange(1, 5))]}
    assert forms_of_responses(model, forms, BATCHES, Machine()) == {}
