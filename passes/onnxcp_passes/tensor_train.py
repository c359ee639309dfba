"""Tensor train: one convolution for every spatial axis, between two 1x1 convolutions.

The axes of the kernel are strung up, input channels first and output channels last, and every two
neighbours share a rank::

    K[t, s, i, j] ~ sum_pqr G4[r, t] G3[q, j, r] G2[p, i, q] G1[s, p]

    S --(1x1)--> R_1 --(k_1 x 1)--> R_2 --(1 x k_2)--> R_3 --(1x1; bias)--> T

(Oseledets 2011; for convolutions Garipov et al. 2016, here without folding channels.) Strides, pads
and dilations of an axis are those of its convolution. The first 1x1 convolution has no bias and
runs on the input's grid, so zero padding stays exact. With one spatial axis longer than 1 the chain
would be that of `tucker2`. Groups are decomposed one by one at shared ranks.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np

from onnxcp.factorize import Factors, Floats, Ranks, Unfolding
from onnxcp.graph.chain import Chain, ConvStep
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.linalg.multilinear import Product
from onnxcp.linalg.ranks import rank_for_energy
from onnxcp.linalg.tensor_train import (
    feasible_ranks,
    full_train_ranks,
    tensor_train,
    tensor_train_spectra,
)
from onnxcp.product import SPATIAL, ProductPass
from onnxcp_passes.padding import padded
from onnxcp_passes.refusals import needs_splittable_axes

_LETTERS = "pqrw"


@dataclass(frozen=True)
class TensorTrain(ProductPass):
    """Strings up the axes of a kernel; there is a rank between every two of them."""

    name = "tensor-train"
    summary = "1x1 conv S->R_1, k x 1 conv R_1->R_2, 1 x k conv R_2->R_3, 1x1 conv R_3->T"
    named_only = True

    def applies(self, site: Site) -> Refusal | None:
        """Refuse sites with fewer than two spatial axes longer than 1."""
        refusal = needs_splittable_axes(site, self.name, at_least=2)
        if refusal is None and len(self._long_axes(site)) < 2:
            detail = (
                f"{self.name} needs two spatial axes longer than 1; tucker2 has the same chain here"
            )
            return Refusal(site.name, Reason.INEXPRESSIBLE, detail)
        return refusal

    def full_ranks(self, site: Site) -> Ranks:
        """Return the smaller sides of the unfoldings between neighbouring axes."""
        return full_train_ranks(self._tensor_shape(site))

    def ranks_for_energy(self, site: Site, energy: float) -> Ranks:
        """Return ranks at which all cuts together lose at most a share 1 - `energy`."""
        groups = self._spectra(site)
        # Their losses add up at most (Oseledets 2011, theorem 2.2), so each may lose its part.
        share = 1 - (1 - energy) / len(groups[0])
        ranks = [[rank_for_energy(spectrum, share) for spectrum in group] for group in groups]
        return tuple(max(each) for each in zip(*ranks, strict=True))

    def ranks_on_path(self, site: Site, share: float) -> Ranks:
        """Return ranks that cut all spectra at the same singular value, not the same share."""
        full, groups = self.full_ranks(site), self._spectra(site)
        values = np.sort(np.concatenate([np.concatenate(group) for group in groups]))[::-1]
        count = round(share * len(values))
        threshold = values[count - 1] if count else np.inf
        kept = (
            max(int(np.count_nonzero(group[n] >= threshold)) for group in groups)
            for n in range(len(full))
        )
        return tuple(max(1, min(rank, most)) for rank, most in zip(kept, full, strict=True))

    def unfoldings(self, site: Site) -> tuple[list[Unfolding], ...]:
        """Return the cuts between neighbouring axes."""
        outputs, *others = self._tensor_shape(site)
        rows = np.cumprod(others).tolist()
        size = outputs * rows[-1]
        return tuple(
            [Unfolding(group[n], (side, size // side)) for group in self._spectra(site)]
            for n, side in enumerate(rows)
        )

    def factor_shapes(self, site: Site, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """Return ``(G R_1, S / G, 1...)``, ``(G R_n+1, R_n, ..., k_n, ...)``, ``(T, R, 1...)``."""
        spatial = site.kernel_shape[2:]
        ones = (1,) * site.spatial_rank
        middle = [
            (
                site.group * after,
                before,
                *(size if axis in mode else 1 for axis, size in enumerate(spatial)),
            )
            for mode, before, after in zip(self._modes(site), ranks, ranks[1:], strict=False)
        ]
        first = (site.group * ranks[0], site.kernel_shape[1], *ones)
        return first, *middle, (site.outputs, ranks[-1], *ones)

    def factorize(self, site: Site, ranks: Ranks) -> Factors:
        """Decompose every group by TT-SVD and alternating least squares.

        What a rank has beyond what its neighbours can feed is filled with zeros.
        """
        used = feasible_ranks(self._tensor_shape(site), ranks)
        groups = [tensor_train(tensor, used) for tensor in self._tensors(site)]
        inner = (site.kernel_shape[1], *ranks)
        outer = (*ranks, site.outputs // site.group)
        factors = []
        shapes = self.factor_shapes(site, ranks)
        for position, cores in enumerate(zip(*groups, strict=True)):
            # Cores are (in, size, out): outputs first for a convolution.
            sizes = outer[position], inner[position]
            parts = [padded(np.moveaxis(core, -1, 0), *sizes) for core in cores]
            factors.append(np.concatenate(parts).reshape(shapes[position]))
        return tuple(factors)

    def lower(self, site: Site, factors: Factors) -> Chain:
        """Arrange the factors as a 1x1 convolution, one for every spatial axis and a 1x1 one."""
        assert site.geometry is not None
        first, *middle, last = factors
        mix = Geometry.pointwise(site.spatial_rank)
        steps = (
            ConvStep(kernel, site.geometry.on_axes(axes), site.group)
            for kernel, axes in zip(middle, self._modes(site), strict=True)
        )
        return Chain((ConvStep(first, mix, site.group), *steps, ConvStep(last, mix, site.group)))

    def product(self, site: Site) -> Product:
        """Return ``ps,qpi,rqj,tr->tsij``: between the ends one operand for each spatial axis."""
        modes = self._modes(site)
        middle = (
            _LETTERS[n + 1] + _LETTERS[n] + "".join(SPATIAL[axis] for axis in mode)
            for n, mode in enumerate(modes)
        )
        ends = f"{_LETTERS[0]}s", f"t{_LETTERS[len(modes)]}"
        return Product((ends[0], *middle, ends[1]), f"ts{SPATIAL[: site.spatial_rank]}")

    @classmethod
    def _modes(cls, site: Site) -> list[list[int]]:
        """Return the spatial axes of each core: one longer than 1; the first takes the others."""
        first, *others = cls._long_axes(site)
        short = [axis for axis, size in enumerate(site.kernel_shape[2:]) if size == 1]
        return [sorted([first, *short]), *([axis] for axis in others)]

    @staticmethod
    def _long_axes(site: Site) -> list[int]:
        return [axis for axis, size in enumerate(site.kernel_shape[2:]) if size > 1]

    @classmethod
    def _tensor_shape(cls, site: Site) -> tuple[int, ...]:
        spatial = [site.kernel_shape[2 + axis] for axis in cls._long_axes(site)]
        return site.outputs // site.group, site.kernel_shape[1], *spatial

    @classmethod
    def _tensors(cls, site: Site) -> list[Floats]:
        """Return the kernels of all groups without spatial axes of length 1."""
        shape = cls._tensor_shape(site)
        return [kernel.reshape(shape) for kernel in site.group_kernels()]

    @classmethod
    def _spectra(cls, site: Site) -> tuple[list[Floats], ...]:
        """Return the spectra of all cuts, group by group."""
        if site not in _KNOWN:
            _KNOWN[site] = tuple(tensor_train_spectra(each) for each in cls._tensors(site))
        return _KNOWN[site]


# A search over ranks asks many times. Weakly, since a site keeps its whole model alive.
_KNOWN: weakref.WeakKeyDictionary[Site, tuple[list[Floats], ...]] = weakref.WeakKeyDictionary()
