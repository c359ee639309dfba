"""Spatial SVD: one convolution along the first spatial axes, a second one along the others.

The kernel K, as a matrix of S * |k_1| rows and T * |k_2| columns, is cut after R singular values::

    K[t, s, i, j] ~ sum_r H[t, r, j] V[r, s, i]

    S --(k_1 x 1; strides, pads, dilations of its axes)--> R --(1 x k_2; of the others; bias)--> T

(Jaderberg et al. 2014, scheme 2; Tai et al. 2016 for the closed form.) Every spatial axis is moved
over once, so strides, pads, SAME padding and dilations split without a remainder. Groups are cut
one by one at a shared rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxcp.errors import PassError
from onnxcp.factorize import Factors, Floats, Ranks, Unfolding
from onnxcp.graph.chain import Chain, ConvStep
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.site import Site
from onnxcp.linalg.multilinear import Product
from onnxcp.linalg.ranks import rank_for_energy
from onnxcp.linalg.svd import spatial_energies, spatial_spectrum, spatial_svd
from onnxcp.product import SPATIAL, SvdPass
from onnxcp_passes.refusals import needs_splittable_axes


@dataclass(frozen=True)
class SpatialSvd(SvdPass):
    """Cuts a kernel between its spatial axes.

    Attributes
    ----------
    split
        How many spatial axes the first convolution takes.
    """

    split: int = 1

    name = "spatial-svd"
    summary = "k x 1 conv S->R, 1 x k conv R->T"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split < 1:
            raise PassError(f"Option 'split' of pass '{self.name}' is {self.split}, not 1 or more.")

    def applies(self, site: Site) -> Refusal | None:
        """Refuse sites with fewer than `split` + 1 spatial axes, or with a 1x1 kernel."""
        return needs_splittable_axes(site, self.name, at_least=self.split + 1)

    def full_ranks(self, site: Site) -> Ranks:
        """Return the number of singular values of a group's matrix."""
        first, last = self._sides(site)
        return (min(site.kernel_shape[1] * prod(first), site.outputs // site.group * prod(last)),)

    def ranks_for_energy(self, site: Site, energy: float) -> Ranks:
        """Return the least rank that serves every group."""
        spectra = (spatial_spectrum(kernel, split=self.split) for kernel in site.group_kernels())
        return (max(rank_for_energy(spectrum, energy) for spectrum in spectra),)

    def unfoldings(self, site: Site) -> tuple[list[Unfolding], ...]:
        """Return the matrix that is cut."""
        first, last = self._sides(site)
        shape = site.kernel_shape[1] * prod(first), site.outputs // site.group * prod(last)
        spectra = (spatial_spectrum(kernel, split=self.split) for kernel in site.group_kernels())
        return ([Unfolding(spectrum, shape) for spectrum in spectra],)

    def group_energies(self, kernel: Floats) -> Floats:
        """Return the squared singular values of a group's matrix."""
        return spatial_energies(kernel, split=self.split)

    def factor_shapes(self, site: Site, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """Return ``(G R, S / G, *k_1, 1...)`` and ``(T, R, 1..., *k_2)``."""
        (rank,) = ranks
        first, last = self._sides(site)
        return (
            (site.group * rank, site.kernel_shape[1], *first, *(1 for _ in last)),
            (site.outputs, rank, *(1 for _ in first), *last),
        )

    def factorize(self, site: Site, ranks: Ranks) -> Factors:
        """Cut every group by its own SVD."""
        return self.factorize_all(site, [ranks])[0]

    def factorize_all(self, site: Site, path: Sequence[Ranks]) -> list[Factors]:
        """Cut every group by one SVD: what belongs to a lower rank is part of it."""
        (most,) = max(path)
        pairs = [spatial_svd(kernel, most, split=self.split) for kernel in site.group_kernels()]
        return [self._stacked(site, pairs, ranks) for ranks in path]

    def _stacked(self, site: Site, pairs: Sequence[tuple[Floats, Floats]], ranks: Ranks) -> Factors:
        (rank,) = ranks
        first = np.concatenate([first[:rank] for first, _ in pairs])
        last = np.concatenate([last[:, :rank] for _, last in pairs])
        shapes = self.factor_shapes(site, ranks)
        return first.reshape(shapes[0]), last.reshape(shapes[1])

    def lower(self, site: Site, factors: Factors) -> Chain:
        """Arrange the factors as two convolutions, each along its own axes."""
        assert site.geometry is not None
        axes = range(site.spatial_rank)
        first, last = factors
        return Chain(
            (
                ConvStep(first, site.geometry.on_axes(axes[: self.split]), site.group),
                ConvStep(last, site.geometry.on_axes(axes[self.split :]), site.group),
            )
        )

    def product(self, site: Site) -> Product:
        """Return ``rsi,trj->tsij``, with as many spatial axes as the kernel has."""
        spatial = SPATIAL[: site.spatial_rank]
        first, last = spatial[: self.split], spatial[self.split :]
        return Product((f"rs{first}", f"tr{last}"), f"ts{spatial}")

    def _sides(self, site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
        spatial = site.kernel_shape[2:]
        return spatial[: self.split], spatial[self.split :]
