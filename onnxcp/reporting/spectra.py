"""Singular values of what was cut, and of what could have been: where ranks come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcp import units
from onnxcp.errors import PassError
from onnxcp.factorize import Floats
from onnxcp.graph.chain import Chain, step_weight
from onnxcp.graph.site import Site
from onnxcp.linalg.svd import channel_energies
from onnxcp.planning.option import Decision
from onnxcp.product import SvdPass

WIDTH, HEIGHT = 240, 96
LEFT, RIGHT, TOP, BOTTOM = 8, 232, 6, 76
"""Edges of the field of a picture, in units of the drawing."""

_POINTS = 96  # of a curve: more than a picture shows
_WORK = 3e10  # multiply-adds that a picture is worth
_SLOW = 5e8  # the same where it takes an SVD and not only a Gram matrix


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a kernel as a matrix.

    Attributes
    ----------
    site
        The layer.
    matrix
        What else there is to say of it: its shape.
    count
        How many values there are.
    values
        Some of them, evenly spread from the first to the last, over the largest.
    rank
        How many are kept; None where the layer stays, or where there is no such number.
    kept
        What these make up of the squared norm.
    bound
        Whether `rank` is not where this matrix was cut, but the highest that what took the place of
        the layer can have.
    """

    site: str
    matrix: str
    count: int
    values: tuple[float, ...]
    rank: int | None = None
    kept: float | None = None
    bound: bool = False


@dataclass(frozen=True)
class Curve:
    """A spectrum as SVG takes it: an area for what is kept, one for the rest, and the cut."""

    kept: str
    rest: str
    cut: float | None


def spectra(decisions: Iterable[Decision]) -> list[Spectrum]:
    """Return the spectra behind decisions, those of a site in the order of its ranks.

    Where a family has several ranks, each is the rank of a matrix of its own. Families that cut no
    matrix (CP) and layers that were left alone show their output channels against all else: in
    this matrix a chain has the rank of its last step at most. Matrices that would take long to
    decompose are left out.
    """
    found: list[Spectrum] = []
    for decision in decisions:
        if _work(decision.site) <= _WORK:
            found += _of_ranks(decision) or [_of_outputs(decision)]
    return found


def curve(spectrum: Spectrum) -> Curve:
    """Lay out a spectrum: the largest value at the upper left, nothing at the bottom."""
    last = max(spectrum.count - 1, 1)
    where = np.linspace(0, spectrum.count - 1, len(spectrum.values))
    cut = None if spectrum.rank is None else min(spectrum.rank - 0.5, last)

    def area(first: float, end: float) -> str:
        inside = [at for at in where if first < at < end]
        at = np.array([first, *inside, end])
        heights = np.interp(at, where, spectrum.values)
        across = LEFT + (RIGHT - LEFT) * at / last
        up = BOTTOM + (TOP - BOTTOM) * heights
        points = [
            (across[0], BOTTOM),
            *zip(across, up, strict=True),
            (across[-1], BOTTOM),
        ]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)

    if cut is None:
        return Curve("", area(0.0, last), None)
    place = round(LEFT + (RIGHT - LEFT) * cut / last, 1)
    return Curve(area(0.0, cut), area(cut, last) if cut < last else "", place)


def _of_ranks(decision: Decision) -> list[Spectrum]:
    """Return the spectra that a family cuts; none where it cuts none, or would take its time."""
    site, option, result = decision.site, decision.option, decision.result
    if option is None or result is None:
        return []
    if isinstance(option.family, SvdPass):
        return [_spectrum(site.name, option.family.energies(site), result.ranks[0])]
    if _work(site) > _SLOW:
        return []
    try:
        unfoldings = option.family.unfoldings(site)
    except PassError:  # there is no matrix of which it is the rank
        return []
    return [
        _spectrum(
            site.name,
            np.sum([np.square(each.spectrum) for each in groups], axis=0),
            rank,
            _matrix(groups[0].shape),
        )
        for groups, rank in zip(unfoldings, result.ranks, strict=True)
    ]


def _of_outputs(decision: Decision) -> Spectrum:
    site = decision.site
    energies = [channel_energies(kernel) for kernel in site.group_kernels()]
    rank = None if decision.result is None else _last_rank(decision.result.chain)
    outputs = site.outputs // site.group
    matrix = _matrix((outputs, site.parameters // site.outputs))
    return _spectrum(site.name, np.sum(energies, axis=0), rank, matrix, bound=True)


def _last_rank(chain: Chain) -> int | None:
    """Return how many channels the last step of a chain mixes; None where there are more rows."""
    return None if chain.beside else math.prod(step_weight(chain.steps[-1]).shape[1:])


def _work(site: Site) -> int:
    """Return the multiply-adds of a Gram matrix of the output channels; the rest costs the same."""
    return site.parameters * min(site.outputs, site.parameters // site.outputs)


def _matrix(shape: Sequence[int]) -> str:
    return f", {units.shape(shape)} matrix"


def _spectrum(
    site: str, energies: Floats, rank: int | None, matrix: str = "", *, bound: bool = False
) -> Spectrum:
    """Return the spectrum of a kernel by its squares, of all groups together."""
    squares = np.maximum(energies, 0.0)
    total, count = float(squares.sum()), len(squares)
    values = np.sqrt(squares / (squares.max() or 1.0))
    chosen = np.linspace(0, count - 1, min(count, _POINTS))
    rank = None if rank is None else min(rank, count)
    return Spectrum(
        site=site,
        matrix=matrix,
        count=count,
        values=tuple(round(float(v), 4) for v in np.interp(chosen, np.arange(count), values)),
        rank=rank,
        kept=None if rank is None or not total else float(squares[:rank].sum()) / total,
        bound=bound and rank is not None,
    )
