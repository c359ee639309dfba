"""Tucker-2: a small convolution between two 1x1 convolutions.

The two channel axes of the kernel are projected on subspaces, the spatial axes stay whole::

    K[t, s, k] ~ sum_pq V[t, q] C[q, p, k] U[s, p]

    S --(1x1)--> R_S --(k; strides, pads, dilations)--> R_T --(1x1; bias)--> T

(Kim et al. 2016, equation 4; orthogonal iteration after De Lathauwer et al. 2000.) The first 1x1
convolution has no bias and runs on the input's grid, so zero padding of the core stays exact.
Groups are projected one by one at shared ranks.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcp.factorize import Factors, Floats, Ranks, Unfolding
from onnxcp.graph.chain import Chain, ConvStep
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.site import Site
from onnxcp.linalg.multilinear import Product
from onnxcp.linalg.ranks import rank_for_energy
from onnxcp.linalg.tucker import (
    channel_mode_spectra,
    feasible_ranks,
    tucker2,
    tucker2_outputs,
)
from onnxcp.product import SPATIAL, ProductPass
from onnxcp_passes.padding import padded
from onnxcp_passes.refusals import needs_kernel


@dataclass(frozen=True)
class Tucker2(ProductPass):
    """Projects input and output channels; a rank is a pair (R_S, R_T)."""

    name = "tucker2"
    summary = "1x1 conv S->R_S, k conv R_S->R_T, 1x1 conv R_T->T"

    def applies(self, site: Site) -> Refusal | None:
        """Refuse matrices and 1x1 kernels."""
        return needs_kernel(site, self.name)

    def full_ranks(self, site: Site) -> Ranks:
        """Return the sizes of the channel modes of a group, or less where they cannot be full."""
        inputs, outputs = site.kernel_shape[1], site.outputs // site.group
        size = int(np.prod(site.kernel_shape[2:]))
        return min(inputs, outputs * size), min(outputs, inputs * size)

    def ranks_for_energy(self, site: Site, energy: float) -> Ranks:
        """Return ranks at which both projections together lose at most a share 1 - `energy`."""
        # The losses of the two projections add up at most (De Lathauwer 2000, property 10), so
        # each may lose half.
        share = 1 - (1 - energy) / 2
        pairs = [[rank_for_energy(s, share) for s in group] for group in _spectra(site)]
        return tuple(max(ranks) for ranks in zip(*pairs, strict=True))

    def ranks_on_path(self, site: Site, share: float) -> Ranks:
        """Return ranks that cut the two spectra at the same singular value, not the same share."""
        full = self.full_ranks(site)
        paired = [np.concatenate([spectra[i] for spectra in _spectra(site)]) for i in (0, 1)]
        values = np.sort(np.concatenate(paired))[::-1]
        count = round(share * len(values))
        threshold = values[count - 1] if count else np.inf
        kept = [
            max(int(np.count_nonzero(spectra[i] >= threshold)) for spectra in _spectra(site))
            for i in (0, 1)
        ]
        return max(1, min(kept[0], full[0])), max(1, min(kept[1], full[1]))

    def unfoldings(self, site: Site) -> tuple[list[Unfolding], ...]:
        """Return both channel modes against all else (the rule of Kim et al. 2016)."""
        inputs, outputs = site.kernel_shape[1], site.outputs // site.group
        size = int(np.prod(site.kernel_shape[2:]))
        shapes = (inputs, outputs * size), (outputs, inputs * size)
        return tuple(
            [Unfolding(spectra[mode], shape) for spectra in _spectra(site)]
            for mode, shape in enumerate(shapes)
        )

    def factor_shapes(self, site: Site, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """Return ``(G R_S, S / G, 1...)``, ``(G R_T, R_S, *k)`` and ``(T, R_T, 1...)``."""
        inputs, outputs = ranks
        ones = (1,) * site.spatial_rank
        return (
            (site.group * inputs, site.kernel_shape[1], *ones),
            (site.group * outputs, inputs, *site.kernel_shape[2:]),
            (site.outputs, outputs, *ones),
        )

    def factorize(self, site: Site, ranks: Ranks) -> Factors:
        """Project every group by its own orthogonal iteration.

        What a rank has beyond what the other can feed is filled with zeros.
        """
        inputs, outputs = ranks
        used = feasible_ranks(
            (site.outputs // site.group, *site.kernel_shape[1:]), (inputs, outputs)
        )
        triples = [tucker2(kernel, used) for kernel in site.group_kernels()]
        shapes = self.factor_shapes(site, ranks)
        first = np.concatenate([padded(np.ascontiguousarray(u.T), inputs) for u, _, _ in triples])
        core = np.concatenate([padded(core, outputs, inputs) for _, core, _ in triples])
        last = np.concatenate([padded(v, len(v), outputs) for _, _, v in triples])
        return first.reshape(shapes[0]), core, last.reshape(shapes[2])

    def lower(self, site: Site, factors: Factors) -> Chain:
        """Arrange the factors as three convolutions; the core takes the site's geometry."""
        assert site.geometry is not None
        first, core, last = factors
        mix = Geometry.pointwise(site.spatial_rank)
        return Chain(
            (
                ConvStep(first, mix, site.group),
                ConvStep(core, site.geometry, site.group),
                ConvStep(last, mix, site.group),
            )
        )

    def refine(
        self,
        site: Site,
        factors: Factors,
        targets: Sequence[Floats],
        grams: Sequence[Floats],
        sweeps: int | None = None,
    ) -> Factors:
        """Solve for the core and the output factor at once before all three are fitted in turn."""
        if sweeps == 0:
            return super().refine(site, factors, targets, grams, sweeps)
        first, rank = factors[0], factors[2].shape[1]
        cores, lasts = [], []
        for part, target, gram in zip(np.split(first, site.group), targets, grams, strict=True):
            basis = part.reshape(len(part), -1).T
            inner, outer = tucker2_outputs(target, gram, basis, rank)
            cores.append(inner)
            lasts.append(outer)
        core, last = np.concatenate(cores), np.concatenate(lasts)
        solved = first, core.reshape(factors[1].shape), last.reshape(factors[2].shape)

        def lost(made: Factors) -> float:
            kernels = np.split(self.kernel(site, made), site.group)
            rests = [
                (kernel - target).reshape(len(target), -1).astype(gram.dtype)
                for kernel, target, gram in zip(kernels, targets, grams, strict=True)
            ]
            groups = zip(rests, grams, strict=True)
            return sum(float(np.vdot(rest, rest @ gram)) for rest, gram in groups)

        # Of a fit that is exact but for rounding, solving anew would only leave more of it.
        start = min(factors, solved, key=lost)
        return super().refine(site, start, targets, grams, sweeps)

    def product(self, site: Site) -> Product:
        """Return ``ps,qpij,tq->tsij``, with as many spatial axes as the kernel has."""
        spatial = SPATIAL[: site.spatial_rank]
        return Product(("ps", f"qp{spatial}", "tq"), f"ts{spatial}")


Spectra = tuple[tuple[Floats, Floats], ...]

# A search over ranks asks many times. Weakly, since a site keeps its whole model alive.
_KNOWN: weakref.WeakKeyDictionary[Site, Spectra] = weakref.WeakKeyDictionary()


def _spectra(site: Site) -> Spectra:
    """Return the spectra of both channel modes, group by group."""
    if site not in _KNOWN:
        _KNOWN[site] = tuple(channel_mode_spectra(kernel) for kernel in site.group_kernels())
    return _KNOWN[site]
