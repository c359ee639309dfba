"""CP: depthwise convolutions between two 1x1 convolutions.

A kernel becomes a sum of R products of vectors. With the spatial axes merged into one (`cp3`)::

    K[t, s, k] ~ sum_r C[t, r] D[k, r] A[s, r]

    S --(1x1)--> R --(k, depthwise; strides, pads, dilations)--> R --(1x1; bias)--> T

and with each spatial axis by itself (`cp4`, for a 2-D kernel)::

    K[t, s, i, j] ~ sum_r C[t, r] Y[i, r] X[j, r] A[s, r]

    S --(1x1)--> R --(k_1 x 1, depthwise)--> R --(1 x k_2, depthwise)--> R --(1x1; bias)--> T

(`cp4` is the chain of Lebedev et al. 2015, equation 3. `cp3` contains it at the same rank with one
step fewer, and has as good as the same number of weights for 3x3 kernels.) The first 1x1
convolution has no bias and runs on the input's grid, so zero padding stays exact. Groups are
decomposed one by one at a shared rank.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from math import ceil, prod

import numpy as np

from onnxcp.errors import PassError
from onnxcp.factorize import FactorizePass, Factors, Floats, Ranks
from onnxcp.graph.chain import Chain, ConvStep
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.linalg.cp import CPResult, cp, full_rank
from onnxcp.linalg.cp_fit import SOLVERS
from onnxcp.linalg.multilinear import Product
from onnxcp.linalg.ranks import rank_for_energy
from onnxcp.linalg.svd import singular_values
from onnxcp.product import SPATIAL, ProductPass
from onnxcp_passes.refusals import needs_kernel, needs_splittable_axes

_QUICK = 10  # sweeps for an estimate
_GROWTH = 1.25  # of the rank, from one trial to the next, where an energy is asked for


@dataclass(frozen=True)
class _Cp(ProductPass):
    """What `cp3` and `cp4` share: they differ in which spatial axes make up a mode.

    Attributes
    ----------
    sweeps
        Of alternating least squares, at most.
    seed
        Of the random start.
    solver
        As of `onnxcp.linalg.cp.cp`: ``"als"``, ``"nls"``, which is slower and closer, or
        ``"auto"``, whose outcome depends on the clock.
    slack
        How much larger the error may become, as a share of it, for the least sensitive factors:
        for networks that are trained further, or run at low precision.
    """

    searches_ranks = True

    sweeps: int = 40
    seed: int = 0
    solver: str = "als"
    slack: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise PassError(f"Option 'seed' of pass '{self.name}' is {self.seed}, not 0 or more.")
        if self.sweeps < 1:
            raise PassError(
                f"Option 'sweeps' of pass '{self.name}' is {self.sweeps}, not 1 or more."
            )
        if self.solver not in SOLVERS:
            names = ", ".join(SOLVERS)
            raise PassError(
                f"Option 'solver' of pass '{self.name}' is '{self.solver}', not one of {names}."
            )
        if not 0 <= self.slack < 1:
            raise PassError(f"Option 'slack' of pass '{self.name}' is {self.slack}, not in [0, 1).")

    @abstractmethod
    def modes(self, site: Site) -> list[list[int]]:
        """Return the spatial axes that make up each spatial mode, all axes once."""

    def full_ranks(self, site: Site) -> Ranks:
        """Return a rank at which every tensor of this shape has an exact decomposition."""
        return (full_rank(self._tensor_shape(site)),)

    def ranks_for_energy(self, site: Site, energy: float) -> Ranks:
        """Search upwards from the ranks of the unfoldings, which no CP rank can be below.

        The search ends where a chain would have as many weights as the site.
        """
        tensors = self._tensors(site)
        (limit,) = self.full_ranks(site)
        rank = max(
            rank_for_energy(
                singular_values(np.moveaxis(t, mode, 0).reshape(t.shape[mode], -1)), energy
            )
            for t in tensors
            for mode in range(t.ndim)
        )
        while rank < limit and self.sketch(site, (rank,)).parameters < site.parameters:
            errors = [self._fit(tensor, rank).relative_error for tensor in tensors]
            if max(errors) ** 2 <= 1 - energy:
                break
            rank = min(limit, ceil(rank * _GROWTH))
        return (rank,)

    def quick(self) -> FactorizePass:
        """Return the same with so few sweeps that errors come within a tenth of the final ones."""
        return replace(self, sweeps=min(self.sweeps, _QUICK), solver="als", slack=0.0)

    def factor_shapes(self, site: Site, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """Return ``(G R, S / G, 1...)``, depthwise ``(G R, 1, ...)`` and ``(T, R, 1...)``."""
        (rank,) = ranks
        ones = (1,) * site.spatial_rank
        spatial = site.kernel_shape[2:]
        depthwise = [
            (site.group * rank, 1, *(n if axis in mode else 1 for axis, n in enumerate(spatial)))
            for mode in self.modes(site)
        ]
        first = (site.group * rank, site.kernel_shape[1], *ones)
        return first, *depthwise, (site.outputs, rank, *ones)

    def factorize(self, site: Site, ranks: Ranks) -> Factors:
        """Decompose every group by alternating least squares."""
        (rank,) = ranks
        groups = [self._fit(tensor, rank).factors for tensor in self._tensors(site)]
        shapes = self.factor_shapes(site, ranks)
        last, *others = zip(*groups, strict=True)
        # Mode factors are (size, R): channels first for a convolution, but for the last one.
        stacked = [np.concatenate([factor.T for factor in mode]) for mode in others]
        return tuple(
            np.ascontiguousarray(factor).reshape(shape)
            for factor, shape in zip([*stacked, np.concatenate(last)], shapes, strict=True)
        )

    def lower(self, site: Site, factors: Factors) -> Chain:
        """Arrange the factors as 1x1, depthwise (one for each mode) and 1x1 convolutions."""
        assert site.geometry is not None
        first, *depthwise, last = factors
        mix = Geometry.pointwise(site.spatial_rank)
        middle = (
            ConvStep(kernel, site.geometry.on_axes(axes), len(kernel))
            for kernel, axes in zip(depthwise, self.modes(site), strict=True)
        )
        return Chain((ConvStep(first, mix, site.group), *middle, ConvStep(last, mix, site.group)))

    def product(self, site: Site) -> Product:
        """Return ``rs,rij,tr->tsij``: between the ends one operand for each mode."""
        modes = ("r" + "".join(SPATIAL[axis] for axis in mode) for mode in self.modes(site))
        return Product(("rs", *modes, "tr"), f"ts{SPATIAL[: site.spatial_rank]}")

    def _fit(self, tensor: Floats, rank: int) -> CPResult:
        return cp(
            tensor,
            rank,
            sweeps=self.sweeps,
            seed=self.seed,
            solver=self.solver,
            slack=self.slack,
        )

    def _tensor_shape(self, site: Site) -> tuple[int, ...]:
        """Return the shape of a group's tensor: output channels, input channels, spatial modes."""
        spatial = site.kernel_shape[2:]
        modes = (prod(spatial[axis] for axis in mode) for mode in self.modes(site))
        return site.outputs // site.group, site.kernel_shape[1], *modes

    def _tensors(self, site: Site) -> list[Floats]:
        order = [axis for mode in self.modes(site) for axis in mode]
        shape = self._tensor_shape(site)
        return [
            kernel.transpose(0, 1, *(axis + 2 for axis in order)).reshape(shape)
            for kernel in site.group_kernels()
        ]


@dataclass(frozen=True)
class Cp3(_Cp):
    """CP with all spatial axes in one mode: one depthwise convolution."""

    name = "cp3"
    summary = "1x1 conv S->R, k depthwise conv, 1x1 conv R->T"

    def applies(self, site: Site) -> Refusal | None:
        """Refuse matrices and 1x1 kernels."""
        return needs_kernel(site, self.name)

    def modes(self, site: Site) -> list[list[int]]:
        """Return one mode of all spatial axes."""
        return [list(range(site.spatial_rank))]


@dataclass(frozen=True)
class Cp4(_Cp):
    """CP with each spatial axis a mode of its own: one depthwise convolution an axis."""

    name = "cp4"
    summary = "1x1 conv S->R, k x 1 and 1 x k depthwise convs, 1x1 conv R->T"

    def applies(self, site: Site) -> Refusal | None:
        """Refuse sites with fewer than two spatial axes longer than 1."""
        refusal = needs_splittable_axes(site, self.name, at_least=2)
        if refusal is None and len(self._long_axes(site)) < 2:
            detail = "cp4 needs two spatial axes longer than 1; cp3 has the same chain here"
            return Refusal(site.name, Reason.INEXPRESSIBLE, detail)
        return refusal

    def modes(self, site: Site) -> list[list[int]]:
        """Return a mode for each axis longer than 1; the first takes the others along.

        An axis of size 1 may still have a stride or pads, so some step must move over it.
        """
        first, *others = self._long_axes(site)
        short = [axis for axis, size in enumerate(site.kernel_shape[2:]) if size == 1]
        return [sorted([first, *short]), *([axis] for axis in others)]

    @staticmethod
    def _long_axes(site: Site) -> list[int]:
        return [axis for axis, size in enumerate(site.kernel_shape[2:]) if size > 1]
