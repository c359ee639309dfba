"""Covariances of what sites read, in a network as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.calibration.data import Data
from onnxcp.calibration.statistics import can_observe
from onnxcp.calibration.stream import Stream
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site
from onnxcp.profiling.machine import Machine
from onnxcp.progress import Progress, silent
from onnxcp.refit.regression import metric
from onnxcp.refit.result import RefitSettings
from onnxcp.refit.stops import observe_stop

Array = npt.NDArray[Any]

_BATCH = 32


def input_grams(
    model: Model,
    sites: Sequence[Site],
    data: Data,
    machine: Machine,
    settings: RefitSettings,
    *,
    progress: Progress = silent,
) -> dict[Site, Array]:
    """Return, for ungrouped sites, the covariance of the rows that the kernel is applied to.

    Sites of which it cannot be had (transposed convolutions, patches with too many entries, values
    that are not finite) are left out.

    Parameters
    ----------
    model
        The network in which the sites were found.
    sites
        The sites.
    data
        Samples.
    machine
        Where to run.
    settings
        How to draw rows, and how much memory intermediate results may take.
    progress
        Called with what is being done.

    Returns
    -------
    dict
        For every site, ``(P, P)``, positive definite.
    """
    seen = [site for site in sites if can_observe(site) and site.group == 1]
    found: dict[Site, Array] = {}
    if not seen:
        return found
    batches, count = data.batches(_BATCH), data.batch_count(_BATCH)
    limit = settings.memory_limit
    with Stream(model, seen, batches, machine, memory_limit=limit) as stream:
        for done, stop in enumerate(stream):
            progress(f"{stop.site.name}: looking at its inputs", done, len(seen))
            observed = observe_stop(stop, count, seed=settings.seed)
            if observed is not None:
                found[stop.site] = np.asarray(metric(observed.fit[0]))
    return found
