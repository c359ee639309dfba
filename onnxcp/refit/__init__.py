"""Refitting what replaces sites to the user's data, in closed form.

Sites are settled from the first to the last. Each is fitted by least squares so that from what the
already rewritten prefix delivers it makes what the original made there (asymmetric reconstruction,
Zhang et al. 2016, section 3.3), and where its output is added to others', what makes good for their
errors as well. Labels are not looked at, and nothing is trained. What is fitted on one part of the
samples is judged on another, and given up where it is no better there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from onnxcp.calibration.data import Data
from onnxcp.calibration.stream import Stream
from onnxcp.factorize import Factorized
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site
from onnxcp.graph.splice import splice
from onnxcp.profiling.machine import Machine
from onnxcp.progress import Progress, silent
from onnxcp.refit.result import PREFIXES, SCOPES, TARGETS, Refit, RefitSettings
from onnxcp.refit.site import Fitter

__all__ = ["PREFIXES", "SCOPES", "TARGETS", "AsDeployed", "Refit", "RefitSettings", "refit"]

AsDeployed = Callable[[Model, str, Iterator[Mapping[str, Any]]], Model]
"""Given a graph of one layer, the layer's name, and what it reads, batch by batch: the same layer
as it computes where it is deployed."""

_BATCH = 32
_FEWEST_BATCHES = 8


def refit(
    model: Model,
    choices: Mapping[Site, Sequence[Factorized]],
    data: Data,
    machine: Machine,
    settings: RefitSettings,
    *,
    dense: Iterable[Site] = (),
    deployed: AsDeployed | None = None,
    progress: Progress = silent,
) -> dict[Site, Refit]:
    """Choose among the factorisations of every site on data, and refit what was chosen.

    Parameters
    ----------
    model
        The network in which the sites were found.
    choices
        What each site may become, from its weights alone, the closest first.
    data
        Samples.
    machine
        Where to run.
    settings
        How.
    dense
        Sites that stay as they are, but may have other weights where errors of others reach them,
        if the scope of the settings is all.
    deployed
        What layers become before later ones are fitted to what they deliver; None where they are
        deployed as they are.
    progress
        Called with what is being done.

    Returns
    -------
    dict
        For every site of `choices`, and for those of `dense` that errors reach.
    """
    sites = [*choices, *(dense if settings.scope == "all" else ())]
    size = max(1, min(_BATCH, len(data) // _FEWEST_BATCHES))
    fitter = Fitter(model, sites, data.batch_count(size), machine, settings)
    done: dict[Site, Refit] = {}
    with Stream(
        model, sites, data.batches(size), machine, memory_limit=settings.memory_limit
    ) as stream:
        for stop in stream:
            progress(f"{stop.site.name}: refitting", len(done), len(sites))
            found = fitter.fit(stop, choices.get(stop.site, ()))
            if found is not None:
                done[stop.site] = found
            chain = None if found is None else found.chain
            settled = None if chain is None else splice(stop.alone, {stop.alone_site: chain})
            if deployed is not None:
                settled = deployed(settled or stop.alone, stop.site.name, stop.feeds())
            stop.settle(settled)
    return done
