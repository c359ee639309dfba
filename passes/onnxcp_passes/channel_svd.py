"""Channel SVD: a convolution with fewer filters, then a 1x1 convolution that mixes them.

The kernel K, as a matrix of T rows and S * |k| columns, is cut after R singular values::

    K[t, s, k] ~ sum_r U[t, r] V[r, s, k]

    S --(k; strides, pads, dilations)--> R --(1x1; bias)--> T

(Denton et al. 2014, section 3.1; Zhang et al. 2015, equation 3 without data.) No other pair of this
form is closer to K in the Frobenius norm. Groups are cut one by one at a shared rank, and both
convolutions are grouped. Matrices of Gemm and MatMul become two products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcp.factorize import Factors, Floats, Ranks, Unfolding
from onnxcp.graph.chain import Chain, ConvStep, MatrixStep
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.site import Site
from onnxcp.linalg.moments import reduced_rank
from onnxcp.linalg.multilinear import Product
from onnxcp.linalg.ranks import rank_for_energy
from onnxcp.linalg.svd import channel_energies, channel_spectrum, channel_svd
from onnxcp.product import SPATIAL, SvdPass


@dataclass(frozen=True)
class ChannelSvd(SvdPass):
    """Cuts a kernel into a convolution with R filters and a 1x1 convolution (or two products)."""

    name = "channel-svd"
    summary = "k conv S->R, 1x1 conv R->T; Gemm and MatMul: two products"
    cuts_outputs = True

    def applies(self, site: Site) -> Refusal | None:  # noqa: ARG002
        """Return None: every site can be cut."""
        return None

    def full_ranks(self, site: Site) -> Ranks:
        """Return the number of singular values of a group's matrix."""
        per_group, columns = site.outputs // site.group, int(np.prod(site.kernel_shape[1:]))
        return (min(per_group, columns),)

    def ranks_for_energy(self, site: Site, energy: float) -> Ranks:
        """Return the least rank that serves every group."""
        spectra = map(channel_spectrum, site.group_kernels())
        return (max(rank_for_energy(spectrum, energy) for spectrum in spectra),)

    def unfoldings(self, site: Site) -> tuple[list[Unfolding], ...]:
        """Return the matrix that is cut."""
        shape = site.outputs // site.group, int(np.prod(site.kernel_shape[1:]))
        return ([Unfolding(channel_spectrum(kernel), shape) for kernel in site.group_kernels()],)

    def group_energies(self, kernel: Floats) -> Floats:
        """Return the squared singular values of a group's matrix."""
        return channel_energies(kernel)

    def factor_shapes(self, site: Site, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """Return ``(G R, S / G, *k)`` and ``(T, R, 1...)``."""
        (rank,) = ranks
        ones = (1,) * site.spatial_rank
        return (site.group * rank, *site.kernel_shape[1:]), (site.outputs, rank, *ones)

    def factorize(self, site: Site, ranks: Ranks) -> Factors:
        """Cut every group by its own SVD."""
        return self.factorize_all(site, [ranks])[0]

    def factorize_all(self, site: Site, path: Sequence[Ranks]) -> list[Factors]:
        """Cut every group by one SVD: what belongs to a lower rank is part of it."""
        pairs = [channel_svd(kernel, *max(path)) for kernel in site.group_kernels()]
        return [self._stacked(site, pairs, ranks) for ranks in path]

    def _stacked(self, site: Site, pairs: Sequence[tuple[Floats, Floats]], ranks: Ranks) -> Factors:
        (rank,) = ranks
        first = np.concatenate([first[:rank] for first, _ in pairs])
        last = np.concatenate([last[:, :rank] for _, last in pairs])
        return first, last.reshape(*last.shape, *(1 for _ in range(site.spatial_rank)))

    def lower(self, site: Site, factors: Factors) -> Chain:
        """Arrange the factors as two convolutions or two products."""
        first, last = factors
        if site.geometry is None:
            return Chain((MatrixStep(first), MatrixStep(last)))
        mix = Geometry.pointwise(site.spatial_rank)
        return Chain((ConvStep(first, site.geometry, site.group), ConvStep(last, mix, site.group)))

    def product(self, site: Site) -> Product:
        """Return ``rsij,tr->tsij``, with as many spatial axes as the kernel has."""
        spatial = SPATIAL[: site.spatial_rank]
        return Product((f"rs{spatial}", "tr"), f"ts{spatial}")

    def refine(
        self,
        site: Site,
        factors: Factors,
        targets: Sequence[Floats],
        grams: Sequence[Floats],
        sweeps: int | None = None,  # noqa: ARG002
    ) -> Factors:
        """Return the best factors there are, by reduced-rank regression."""
        rank = len(factors[0]) // site.group
        pairs = [
            reduced_rank(target.reshape(len(target), -1), gram, rank)
            for target, gram in zip(targets, grams, strict=True)
        ]
        firsts, lasts = zip(*pairs, strict=True)
        return (
            np.concatenate(firsts).reshape(factors[0].shape),
            np.concatenate(lasts).reshape(factors[1].shape),
        )

    def whitened(
        self,
        site: Site,
        ranks: Ranks,
        targets: Sequence[Floats],
        grams: Sequence[Floats],
    ) -> None:
        """Return None: `refine` needs no start."""

    def cut(
        self,
        site: Site,
        ranks: Ranks,
        mixings: Sequence[Floats],
        covariances: Sequence[Floats],
    ) -> tuple[Factors, Floats]:
        """Regress at a reduced rank, and let the first factor make what the last one mixes."""
        (rank,) = ranks
        firsts, lasts, kept = [], [], []
        groups = zip(mixings, covariances, site.group_kernels(), strict=True)
        for mixing, covariance, kernel in groups:
            first, last = reduced_rank(mixing, covariance, rank)
            firsts.append(np.tensordot(first, kernel, axes=1))
            lasts.append(last)
            kept.append(last @ first)
        last = np.concatenate(lasts)
        ones = (1,) * site.spatial_rank
        return (np.concatenate(firsts), last.reshape(*last.shape, *ones)), np.concatenate(kept)
