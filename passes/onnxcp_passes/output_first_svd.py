"""Output-first SVD: a 1x1 convolution with few filters, then the whole kernel on what it makes.

The kernel K, as a matrix of S rows and T * |k| columns, is cut after R singular values::

    K[t, s, k] ~ sum_r H[t, r, k] V[r, s]

    S --(1x1)--> R --(k; strides, pads, dilations; bias)--> T

The twin of `channel-svd`, with the spatial axes on the other side of the cut: the better one where
there are more input than output channels, or where the inputs are what is redundant. The 1x1
convolution has no bias and runs on the input's grid, so zero padding stays exact. Groups are cut
one by one at a shared rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxcp.factorize import Factors, Floats, Ranks, Unfolding
from onnxcp.graph.chain import Chain, ConvStep
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.site import Site
from onnxcp.linalg.multilinear import Product
from onnxcp.linalg.ranks import rank_for_energy
from onnxcp.linalg.svd import spatial_energies, spatial_spectrum, spatial_svd
from onnxcp.product import SPATIAL, SvdPass
from onnxcp_passes.refusals import needs_kernel


@dataclass(frozen=True)
class OutputFirstSvd(SvdPass):
    """Cuts a kernel into a 1x1 convolution with R filters and a convolution."""

    name = "output-first-svd"
    summary = "1x1 conv S->R, k conv R->T"
    named_only = True

    def applies(self, site: Site) -> Refusal | None:
        """Refuse matrices and 1x1 kernels, where the chain is that of `channel-svd`."""
        return needs_kernel(site, self.name)

    def full_ranks(self, site: Site) -> Ranks:
        """Return the number of singular values of a group's matrix."""
        columns = site.outputs // site.group * prod(site.kernel_shape[2:])
        return (min(site.kernel_shape[1], columns),)

    def ranks_for_energy(self, site: Site, energy: float) -> Ranks:
        """Return the least rank that serves every group."""
        spectra = (spatial_spectrum(kernel, split=0) for kernel in site.group_kernels())
        return (max(rank_for_energy(spectrum, energy) for spectrum in spectra),)

    def unfoldings(self, site: Site) -> tuple[list[Unfolding], ...]:
        """Return the matrix that is cut."""
        shape = site.kernel_shape[1], site.outputs // site.group * prod(site.kernel_shape[2:])
        spectra = (spatial_spectrum(kernel, split=0) for kernel in site.group_kernels())
        return ([Unfolding(spectrum, shape) for spectrum in spectra],)

    def group_energies(self, kernel: Floats) -> Floats:
        """Return the squared singular values of a group's matrix."""
        return spatial_energies(kernel, split=0)

    def factor_shapes(self, site: Site, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """Return ``(G R, S / G, 1...)`` and ``(T, R, *k)``."""
        (rank,) = ranks
        ones = (1,) * site.spatial_rank
        return (
            (site.group * rank, site.kernel_shape[1], *ones),
            (site.outputs, rank, *site.kernel_shape[2:]),
        )

    def factorize(self, site: Site, ranks: Ranks) -> Factors:
        """Cut every group by its own SVD."""
        return self.factorize_all(site, [ranks])[0]

    def factorize_all(self, site: Site, path: Sequence[Ranks]) -> list[Factors]:
        """Cut every group by one SVD: what belongs to a lower rank is part of it."""
        (most,) = max(path)
        pairs = [spatial_svd(kernel, most, split=0) for kernel in site.group_kernels()]
        return [self._stacked(site, pairs, ranks) for ranks in path]

    def _stacked(self, site: Site, pairs: Sequence[tuple[Floats, Floats]], ranks: Ranks) -> Factors:
        (rank,) = ranks
        first = np.concatenate([first[:rank] for first, _ in pairs])
        last = np.concatenate([last[:, :rank] for _, last in pairs])
        return first.reshape(self.factor_shapes(site, ranks)[0]), last

    def lower(self, site: Site, factors: Factors) -> Chain:
        """Arrange the factors as two convolutions; the second takes the site's geometry."""
        assert site.geometry is not None
        first, last = factors
        mix = Geometry.pointwise(site.spatial_rank)
        steps = ConvStep(first, mix, site.group), ConvStep(last, site.geometry, site.group)
        return Chain(steps)

    def product(self, site: Site) -> Product:
        """Return ``rs,trij->tsij``, with as many spatial axes as the kernel has."""
        spatial = SPATIAL[: site.spatial_rank]
        return Product(("rs", f"tr{spatial}"), f"ts{spatial}")
