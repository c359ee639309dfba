"""How similar the responses of sites are, behind their activations, at which rank.

What is compared is what a chain of factors of the weights makes of the site's own inputs with what
the site makes of them, on samples of the user's data (Zhang, Liu & Weng 2023, on feature maps).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.calibration.statistics import sample
from onnxcp.calibration.stream import Stop, Stream
from onnxcp.factorize import Factors
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site
from onnxcp.linalg.activations import Activation, identity
from onnxcp.linalg.ranks import response_cosines
from onnxcp.planning.cosine import Form
from onnxcp.product import SvdPass
from onnxcp.profiling.compare import Batch
from onnxcp.profiling.machine import Machine
from onnxcp.progress import Progress, silent
from onnxcp.refit.activation import activations_behind
from onnxcp.refit.stops import bias_of, pairs_of

Array = npt.NDArray[Any]
Cuttable = Mapping[Site, Sequence[tuple[SvdPass, npt.NDArray[np.int64]]]]

_WORK = 2**24  # entries of the rows that are compared, where they are wide,
_ROWS = 1000  # but so many rows at least
_RANKS = 32  # that are looked at, of each family; what is asked for is rounded up to one of them


def forms_of_responses(
    model: Model,
    sites: Cuttable,
    batches: Sequence[Batch],
    machine: Machine,
    *,
    memory_limit: int = 2**31,
    progress: Progress = silent,
) -> dict[Site, tuple[Form, ...]]:
    """Return the forms of sites, compared by what comes out of them.

    Parameters
    ----------
    model
        The network.
    sites
        For each site, families and the ranks that are worth it.
    batches
        Samples.
    machine
        Where to run.
    memory_limit
        Bytes of intermediate results to keep in memory.
    progress
        Called with what is being done.

    Returns
    -------
    dict
        Without sites whose responses cannot be taken apart: of a transposed convolution, of a bias
        that is not constant.
    """
    fitting = [s for s in sites if s.geometry is None or not s.geometry.transposed]
    behind = activations_behind(model, fitting)
    found = {}
    with Stream(model, fitting, batches, machine, memory_limit=memory_limit) as stream:
        for done, stop in enumerate(stream):  # none is settled: the network stays what it is
            site = stop.site
            progress(f"{site.name}: comparing responses", done, len(fitting))
            taken = _taken(stop, len(batches))
            if taken is not None:
                activation = behind.get(site, identity())
                found[site] = tuple(_form(site, *each, *taken, activation) for each in sites[site])
    return found


def _taken(stop: Stop, batches: int) -> tuple[Array, Array, Array] | None:
    """Return rows of a site's input and output, and its bias; None where they cannot be had."""
    bias = bias_of(stop)
    drawn = None if bias is None else sample(stop.site, pairs_of(stop), batches)
    if bias is None or drawn is None:
        return None
    most = max(_ROWS, _WORK // drawn.x.shape[1])
    rows = np.linspace(0, len(drawn.x) - 1, min(most, len(drawn.x))).astype(int)
    return drawn.x[rows], drawn.target[rows], bias.astype(drawn.x.dtype)


def _form(
    site: Site,
    family: SvdPass,
    ranks: npt.NDArray[np.int64],
    x: Array,
    target: Array,
    bias: Array,
    activation: Activation,
) -> Form:
    """Compare a family with a site at some of the ranks, from the least to the largest."""
    places = np.linspace(0, len(ranks) - 1, min(_RANKS, len(ranks))).round().astype(int)
    looked = ranks[np.unique(places)]
    factors = family.factorize(site, (int(looked[-1]),))
    made = (activation(y + bias) for y in _products(site, family, factors, looked, x))
    return Form(family, looked, response_cosines(activation(target), made))


def _products(
    site: Site,
    family: SvdPass,
    factors: Factors,
    ranks: npt.NDArray[np.int64],
    x: Array,
) -> Iterator[Array]:
    """Yield what comes of rows ``(n, S prod(k))`` at each rank, ``(n, T)``, without the bias."""
    inputs = np.split(x, site.group, axis=1)
    for rank in ranks:
        kernel = family.kernel(site, family.truncated(site, factors, int(rank)))
        matrices = np.split(kernel.reshape(site.outputs, -1).astype(x.dtype), site.group)
        yield np.concatenate(
            [part @ matrix.T for part, matrix in zip(inputs, matrices, strict=True)], axis=1
        )
