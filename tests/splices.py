"""Rewrites of whole models by channel SVD, and what to run them on."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper
from onnxcp_passes.channel_svd import ChannelSvd

from onnxcp.graph.model import Model
from onnxcp.graph.site import find_sites
from onnxcp.graph.splice import splice
from tests.networks import FLOAT32, difference, model_of, noise, run


def rewritten(model: Model, names: Sequence[str] | None = None, rank: int | None = None) -> Model:
    """Factorise the sites of some names, or all, by channel SVD at full rank or another."""
    family = ChannelSvd()
    chains = {}
    for site in find_sites(model)[0]:
        if names is None or site.name in names:
            ranks = family.full_ranks(site) if rank is None else (rank,)
            chains[site] = ("channel-svd", family.apply(site, ranks).chain)
    return splice(model, chains)


def check_equal(result: Model, original: Model) -> None:
    for one, other in zip(run(result, FEEDS), run(original, FEEDS), strict=True):
        assert difference(one, other) < FLOAT32


FEEDS = {"x": noise(1, 4, 7, 8, seed=9)}


def two_convs(second: str = "w") -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y0"], name="first"),
        helper.make_node("Conv", ["x", second], ["y1"], name="second", pads=[1, 1, 1, 1]),
    ]
    weights = {name: noise(6, 4, 3, 3) for name in {"w", second}}
    return model_of(nodes, inputs={"x": (1, 4, 7, 8)}, outputs=["y0", "y1"], weights=weights)
