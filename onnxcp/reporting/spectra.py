"""Singular values of what was cut, and of what could have been: where ranks come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from onnxcp import units
from onnxcp.errors import PassError
from onnxcp.factorize import Floats, Unfolding
from onnxcp.graph.chain import Chain, step_weight
from onnxcp.planning.option import Decision

WIDTH, HEIGHT = 240, 96
LEFT, RIGHT, TOP, BOTTOM = 8, 232, 6, 76
"""Edges of the field of a picture, in units of the drawing."""

_POINTS = 96  # of a curve: more than a picture shows
_WORK = 3e10  # multiply-adds of a decomposition that a picture is worth


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a kernel as a matrix.

    Attributes
    ----------
    site
        The layer.
    unfolded
        What the matrix is, in words.
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
    unfolded: str
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
        site = decision.site
        if site.parameters * min(site.outputs, site.parameters // site.outputs) > _WORK:
            continue
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
    option, result = decision.option, decision.result
    if option is None or result is None:
        return []
    try:
        unfoldings = option.family.unfoldings(decision.site)
    except PassError:  # there is no matrix of which it is the rank
        return []
    return [
        _spectrum(decision.site.name, groups, rank)
        for groups, rank in zip(unfoldings, result.ranks, strict=True)
    ]


def _of_outputs(decision: Decision) -> Spectrum:
    site = decision.site

    def values() -> Iterator[Unfolding]:
        for kernel in site.group_kernels():
            matrix = kernel.reshape(len(kernel), -1).astype(np.float64)
            thin = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            squares = np.linalg.eigvalsh(thin @ thin.T)[::-1]
            yield Unfolding(np.sqrt(np.maximum(squares, 0)), matrix.shape)

    rank = None if decision.result is None else _last_rank(decision.result.chain)
    return _spectrum(site.name, list(values()), rank, bound=True)


def _last_rank(chain: Chain) -> int | None:
    """Return how many channels the last step of a chain mixes; None where there are more rows."""
    return None if chain.beside else math.prod(step_weight(chain.steps[-1]).shape[1:])


def _spectrum(
    site: str, groups: list[Unfolding], rank: int | None, *, bound: bool = False
) -> Spectrum:
    """Return one spectrum of all groups: root mean squares."""
    squares: Floats = np.mean([np.square(each.spectrum) for each in groups], axis=0)
    total, count = float(squares.sum()), len(squares)
    values = np.sqrt(squares / (squares.max() or 1.0))
    chosen = np.linspace(0, count - 1, min(count, _POINTS))
    rank = None if rank is None else min(rank, count)
    return Spectrum(
        site=site,
        unfolded=f"{units.shape(groups[0].shape)} matrix",
        count=count,
        values=tuple(round(float(v), 4) for v in np.interp(chosen, np.arange(count), values)),
        rank=rank,
        kept=None if rank is None or not total else float(squares[:rank].sum()) / total,
        bound=bound and rank is not None,
    )
