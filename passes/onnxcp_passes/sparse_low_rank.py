"""Sparse plus low rank: a channel SVD, and beside it a small dense convolution, summed.

The kernel K is taken for the sum of one of low rank and one that is zero but for a box of kernel
positions and for some input channels::

    K[t, s, k] ~ sum_r U[t, r] V[r, s, k]  +  A[t, s, k]   (A: s in J, k in the box)

    S --(k; strides, pads, dilations)--> R --(1x1; bias)--> T --+
    S --(Gather J)--> |J| --(box; strides, moved pads, dilations)--> T --(Add)--

(Ma et al. 2019: structured sparsity and low rank in one model; rank and support are given here and
not relaxed, see `onnxcp.linalg.sparse_low_rank`.) A box of one position is a 1x1 convolution, one
of a row 1 x k. The box is the middle of the kernel as far as pads allow: a smaller kernel reads the
same places if its pads are smaller too, and where there are none to take away, it stays as long as
the kernel. That goes for transposed convolutions and for SAME pads ahead of a stride, which depend
on the input's size. All filters are in A: leaving some out gives nothing that the channel SVD of a
rank larger by as many does not have. Groups are fitted one by one, at shared ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from onnxcp.errors import PassError
from onnxcp.factorize import FactorizePass, Factors, Floats, Ranks, mixed_outputs
from onnxcp.graph.chain import Chain, ConvStep, PickStep, Row
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.linalg.ranks import round_rank
from onnxcp.linalg.sparse_low_rank import choose_groups, sparse_low_rank
from onnxcp_passes.refusals import needs_kernel

Columns = npt.NDArray[np.intp]
Parts = tuple[Floats, Floats, Floats, Floats, float]

SUPPORTS = ("centre", "row", "column", "inputs")


@dataclass(frozen=True)
class SparseLowRank(FactorizePass):
    """Sums a channel SVD and a small dense convolution; ranks are (R, input channels, box).

    Attributes
    ----------
    support
        What the convolution beside the channel SVD sees: the ``"centre"`` of the kernel, a
        ``"row"`` (its last axis), a ``"column"`` (its first), or all of it in some ``"inputs"``.
        Where `rank` is given, its second and further numbers say so instead.
    """

    support: str = "centre"

    name = "sparse-low-rank"
    summary = "k conv S->R, 1x1 conv R->T; beside it a smaller conv S->T; summed"
    named_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.support not in SUPPORTS:
            raise PassError(
                f"Option 'support' of pass '{self.name}' is '{self.support}', "
                f"not one of {', '.join(SUPPORTS)}."
            )

    def applies(self, site: Site) -> Refusal | None:
        """Refuse matrices and 1x1 kernels, and supports that are another one's or everything."""
        refusal = needs_kernel(site, self.name)
        if refusal is None and self.support in ("row", "column"):
            box = self._support(site)
            if box in (self._box(site, (1,) * site.spatial_rank)[1], site.kernel_shape[2:]):
                detail = f"a {self.support} of its kernel is its centre or all that pads allow"
                return Refusal(site.name, Reason.INEXPRESSIBLE, f"{self.name}: {detail}")
        return refusal

    def forms(self) -> tuple[FactorizePass, ...]:
        """Return the family with each support."""
        return tuple(replace(self, support=support) for support in SUPPORTS)

    def full_ranks(self, site: Site) -> Ranks:
        """Return the full rank of the channel SVD, all input channels, and the whole kernel."""
        per_group, columns = site.outputs // site.group, prod(site.kernel_shape[1:])
        return (min(per_group, columns), *site.kernel_shape[1:])

    def rounded(self, site: Site, ranks: Ranks, multiple: int, *, up: bool) -> Ranks:
        """Round the rank and the number of input channels; the box is what it is."""
        full = self.full_ranks(site)
        widths = (
            round_rank(rank, multiple, limit, up=up)
            for rank, limit in zip(ranks[:2], full[:2], strict=True)
        )
        return (*widths, *ranks[2:])

    def ranks_on_path(self, site: Site, share: float) -> Ranks:
        """Return a rank that grows with `share` beside the support, input channels with it."""
        rank, inputs, *_ = self.full_ranks(site)
        if self.support == "inputs":
            inputs = max(1, int(share * inputs))
        return max(1, int(share * rank)), inputs, *self._support(site)

    def ranks_for_energy(self, site: Site, energy: float) -> Ranks:
        """Return the first ranks on the path that keep a share of every group's squared norm."""
        kernels = site.group_kernels()
        full = self.full_ranks(site)[0]
        low, high = 0, full
        while high - low > 1:
            middle = (low + high) // 2
            ranks = self.ranks_on_path(site, middle / full)
            losses = (self._fit(site, k, ranks)[-1] for k in kernels)
            power = (float(np.vdot(kernel, kernel)) for kernel in kernels)
            if all(lost <= (1 - energy) * all_ for lost, all_ in zip(losses, power, strict=True)):
                high = middle
            else:
                low = middle
        return self.ranks_on_path(site, high / full)

    def factor_shapes(self, site: Site, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """Return those of a channel SVD, ``(T, s, *box)``, and ``(G s,)`` where s < S / G."""
        rank, inputs, *box = ranks
        _, extents = self._box(site, box)
        ones = (1,) * site.spatial_rank
        shapes: tuple[tuple[int, ...], ...] = (
            (site.group * rank, *site.kernel_shape[1:]),
            (site.outputs, rank, *ones),
            (site.outputs, inputs, *extents),
        )
        return shapes if inputs == site.kernel_shape[1] else (*shapes, (site.group * inputs,))

    def factorize(self, site: Site, ranks: Ranks) -> Factors:
        """Fit both parts at once; input channels are those worth most in the weights."""
        parts = [self._fit(site, kernel, ranks) for kernel in site.group_kernels()]
        return self._joined(site, ranks, parts)

    def lower(self, site: Site, factors: Factors) -> Chain:
        """Arrange the first two factors as a channel SVD, and the others as a row beside it."""
        assert site.geometry is not None
        first, last, small = factors[:3]
        mix = Geometry.pointwise(site.spatial_rank)
        low = ConvStep(first, site.geometry, site.group), ConvStep(last, mix, site.group)
        beside: Row = (ConvStep(small, self._within(site, small.shape[2:]), site.group),)
        if len(factors) > 3:
            per_group = site.kernel_shape[1]
            starts = np.repeat(np.arange(site.group) * per_group, len(factors[3]) // site.group)
            beside = (PickStep(_numbers(factors[3], per_group) + starts), *beside)
        return Chain(low, beside=(beside,))

    def kernel(self, site: Site, factors: Factors) -> Floats:
        """Add up the two parts."""
        made = []
        for parts in self._split(site, factors):
            first, last, small = parts[:3]
            whole = np.tensordot(last.reshape(*last.shape[:2]), first, axes=1)
            chosen = self._chosen(site, parts)
            offsets, extents = self._box(site, small.shape[2:])
            inside = tuple(slice(o, o + e) for o, e in zip(offsets, extents, strict=True))
            for number, channel in enumerate(chosen):
                whole[(slice(None), channel, *inside)] += small[:, number]
            made.append(whole)
        return np.concatenate(made)

    def refine(
        self,
        site: Site,
        factors: Factors,
        targets: Sequence[Floats],
        grams: Sequence[Floats],
        sweeps: int | None = None,
    ) -> Factors:
        """Return the best factors there are for their support; with sweeps, choose that as well."""
        ranks = len(factors[0]) // site.group, *factors[2].shape[1:]
        found = []
        groups = zip(self._split(site, factors), targets, grams, strict=True)
        for parts, target, gram in groups:
            chosen = self._chosen(site, parts)
            again = sweeps is None or sweeps > 0
            found.append(self._fit(site, target, ranks, gram, chosen, again=again))
        return self._joined(site, ranks, found)

    def mixed(self, site: Site, factors: Factors, mixing: Floats) -> Factors:
        """Mix what ends each of the two rows."""
        first, last, small, *chosen = factors
        ends = (mixed_outputs(each, mixing, site.group) for each in (last, small))
        return (first, *ends, *chosen)

    def _support(self, site: Site) -> tuple[int, ...]:
        """Return the extents of the box that the option `support` stands for."""
        n, kernel = site.spatial_rank, site.kernel_shape[2:]
        long = {"centre": (), "row": (n - 1,), "column": (0,), "inputs": range(n)}[self.support]
        wanted = [size if axis in long else 1 for axis, size in enumerate(kernel)]
        return self._box(site, wanted)[1]

    def _box(self, site: Site, wanted: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return where a box lies in the kernel, and its extents: those wanted, or what pads ask.

        Begin b and end e of an axis of dilation d leave room for ``b // d`` positions to be taken
        away before the box, and ``e // d`` behind it.
        """
        kernel, geometry = site.kernel_shape[2:], site.geometry
        room = _room(geometry) if geometry is not None else None
        if room is None:
            return (0,) * len(kernel), kernel
        offsets, extents = [], []
        for size, extent, (before, behind) in zip(kernel, wanted, room, strict=True):
            length = min(size, max(1, extent, size - before - behind))
            offset = (size - length) // 2
            offsets.append(min(max(offset, size - length - behind, 0), before, size - length))
            extents.append(length)
        return tuple(offsets), tuple(extents)

    def _within(self, site: Site, extents: tuple[int, ...]) -> Geometry:
        """Return the geometry of a box of the kernel, which reads what the kernel reads there."""
        geometry = site.geometry
        assert geometry is not None
        if extents == geometry.kernel:
            return geometry
        offsets, _ = self._box(site, extents)
        n = geometry.rank
        pads = _explicit_pads(geometry)
        assert pads is not None, "a box is the whole kernel where pads are not known"
        moved = zip(geometry.kernel, offsets, extents, geometry.dilations, strict=True)
        taken = [(o * d, (k - e - o) * d) for k, o, e, d in moved]
        begins = (pads[axis] - taken[axis][0] for axis in range(n))
        ends = (pads[axis + n] - taken[axis][1] for axis in range(n))
        return replace(geometry, kernel=extents, pads=(*begins, *ends), auto_pad="NOTSET")

    def _fit(
        self,
        site: Site,
        kernel: Floats,
        ranks: Ranks,
        gram: Floats | None = None,
        chosen: Columns | None = None,
        *,
        again: bool = True,
    ) -> Parts:
        """Fit the parts of one group: first, last, small, channels, and the squared error."""
        rank, count, *box = ranks
        groups = self._columns(site, box)
        weight = np.asarray(kernel, np.float64).reshape(len(kernel), -1)
        if chosen is None or again:
            chosen = choose_groups(weight, groups, count, rank, gram, chosen)
        fit = sparse_low_rank(weight, groups[chosen].reshape(-1), rank, gram)
        _, extents = self._box(site, box)
        small = fit.sparse.reshape(len(weight), count, *extents)
        first = fit.first.reshape(-1, *site.kernel_shape[1:])
        return first, fit.last, small, chosen.astype(np.float64), fit.lost

    def _columns(self, site: Site, box: Sequence[int]) -> Columns:
        """Return, for each input channel of a group, the columns of the box in it."""
        numbers = np.arange(prod(site.kernel_shape[1:])).reshape(site.kernel_shape[1:])
        offsets, extents = self._box(site, box)
        inside = tuple(slice(o, o + e) for o, e in zip(offsets, extents, strict=True))
        return np.ascontiguousarray(numbers[(slice(None), *inside)]).reshape(len(numbers), -1)

    def _joined(
        self,
        site: Site,
        ranks: Ranks,
        parts: Sequence[Parts],
    ) -> Factors:
        """Put the groups together."""
        shapes = self.factor_shapes(site, ranks)
        firsts, lasts, smalls, chosen, _ = zip(*parts, strict=True)
        factors = [np.concatenate(each) for each in (firsts, lasts, smalls, chosen)]
        return tuple(each.reshape(shape) for each, shape in zip(factors, shapes, strict=False))

    def _split(self, site: Site, factors: Factors) -> list[tuple[Floats, ...]]:
        return list(zip(*(np.split(factor, site.group) for factor in factors), strict=True))

    def _chosen(self, site: Site, parts: Sequence[Floats]) -> Columns:
        channels = site.kernel_shape[1]
        return _numbers(parts[3], channels) if len(parts) > 3 else np.arange(channels)


def _numbers(chosen: Floats, channels: int) -> Columns:
    """Read the numbers of channels, which as factors are stored as floats; they go round."""
    return np.asarray(chosen, np.intp) % channels


def _explicit_pads(geometry: Geometry) -> tuple[int, ...] | None:
    """Return the pads of a convolution whatever its input's size, or None if they depend on it."""
    if not geometry.auto_pad.startswith("SAME"):
        return geometry.pads
    if any(s > 1 and k > 1 for s, k in zip(geometry.strides, geometry.kernel, strict=True)):
        return None
    return geometry.pads_for(geometry.kernel)


def _room(geometry: Geometry) -> list[tuple[int, int]] | None:
    """Return how many positions pads let a kernel lose at both ends of each axis, if at all."""
    pads = None if geometry.transposed else _explicit_pads(geometry)
    if pads is None:
        return None
    n = geometry.rank
    around = zip(pads[:n], pads[n:], geometry.dilations, strict=True)
    return [(begin // d, end // d) for begin, end, d in around]
