"""What a stop of the walk says about the product of its site: no gain, no bias of before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.calibration.statistics import Observed, observe
from onnxcp.calibration.stream import Stop
from onnxcp.graph.site import Site
from onnxcp.graph.view import GraphView

Array = npt.NDArray[Any]


def pairs_of(stop: Stop) -> Iterator[tuple[Array, Array]]:
    """Yield, for every batch, what the site is given and what it ought to make, over its gain."""
    gain = np.float32(stop.site.gain)
    return ((x, t if gain == 1 else t / gain) for x, t in stop.pairs())


def observe_stop(
    stop: Stop, batches: int, *, seed: int = 0, rows: int | None = None
) -> Observed | None:
    """Gather the moments of a stop's input rows and of what its product ought to make of them.

    As `onnxcp.calibration.statistics.observe`.
    """
    site = stop.site
    biased = site.bias_gain != 0
    return observe(site, pairs_of(stop), batches, biased=biased, seed=seed, rows=rows)


def bias_of(stop: Stop) -> Array | None:
    """Return what a site adds to its product, over its gain: zeros where it adds nothing.

    None where that is not known beforehand, or no vector of one entry per output channel.
    """
    site, alone = stop.site, stop.alone_site
    if not site.gain:
        return None
    if alone.bias is None:
        return np.zeros(site.outputs)
    value = GraphView(stop.alone.proto.graph).constant(alone.bias)
    if value is None:
        return None
    row = np.asarray(value, np.float64) * (site.bias_gain / site.gain)
    if row.size == 1:
        return np.full(site.outputs, row.reshape(-1)[0])
    if row.ndim == 0 or row.shape[-1] != site.outputs or row.size != site.outputs:
        return None
    return row.reshape(-1)


def stored_bias(site: Site, bias: Array) -> Array | None:
    """Return the tensor that makes a site's operator add `bias` times its gain."""
    if not site.bias_gain:
        return None
    return np.asarray(bias * (site.gain / site.bias_gain))
