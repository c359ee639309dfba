"""Made-up surveys: sites of a small network, with options whose time and error are formulas."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from onnx import helper
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.spatial_svd import SpatialSvd

from onnxcp.factorize import FactorizePass
from onnxcp.graph.model import load
from onnxcp.graph.site import Site, find_sites
from onnxcp.planning.latency import Timing
from onnxcp.planning.offer import Offer
from onnxcp.planning.option import Option
from onnxcp.planning.survey import Surveyed
from tests.networks import model_of, noise

CHANNELS = 32
SHAPE = (1, CHANNELS, 20, 20)
SVD, SPATIAL = ChannelSvd(), SpatialSvd()

DENSE = 1e-3
"""Seconds of each site by itself."""

REST = 1e-3
"""Seconds of all else in the network."""


@functools.cache
def sites(count: int) -> tuple[Site, ...]:
    """Return the sites of a row of convolutions, ``conv0`` and so on."""
    nodes = [
        helper.make_node(
            "Conv", [f"t{k}", f"w{k}"], [f"t{k + 1}"], name=f"conv{k}", pads=[1, 1, 1, 1]
        )
        for k in range(count)
    ]
    weights = {f"w{k}": noise(CHANNELS, CHANNELS, 3, 3, seed=k) for k in range(count)}
    model = model_of(nodes, inputs={"t0": SHAPE}, outputs=[f"t{count}"], weights=weights)
    return tuple(find_sites(load(model))[0])


def option(
    site: Site,
    rank: int,
    *,
    family: FactorizePass = SVD,
    after: float | None = None,
    error: float | None = None,
    distortion: float | None = None,
    weight: float = 1.0,
) -> Option:
    """Return an option of which time goes with multiply-adds, and the error falls with rank."""
    offer = Offer.of(site, family, (rank,), SHAPE)
    dense = CHANNELS**2 * 9 * 400
    seconds = DENSE * offer.macs / dense if after is None else after
    squared = weight * 0.1 / rank**2 if error is None else error
    ratio = DENSE / seconds
    timing = Timing(DENSE, seconds, ratio - 0.01, ratio + 0.01)
    loss = 10 * squared if distortion is None else distortion
    return Option(site, family, (rank,), offer.macs, timing, distortion=loss, error=squared)


@functools.cache
def surveyed(
    count: int = 6,
    ranks: Sequence[int] = range(1, 20),
    families: Sequence[FactorizePass] = (SVD,),
    seed: int | None = None,
) -> tuple[Surveyed, ...]:
    """Return a row of sites with their options; `seed` lets some matter more than others."""
    weights = np.ones(count)
    if seed is not None:
        weights = np.random.default_rng(seed).lognormal(sigma=1.5, size=count)
    return tuple(
        Surveyed(
            site,
            CHANNELS**2 * 9 * 400,
            tuple(
                option(site, rank, family=family, weight=float(weight))
                for family in families
                for rank in ranks
            ),
        )
        for site, weight in zip(sites(count), weights, strict=True)
    )


def seconds(count: int = 6) -> float:
    """Return what a network of such sites takes."""
    return REST + count * DENSE
