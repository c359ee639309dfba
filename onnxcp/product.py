"""Families whose kernels are products of their factors, which is nearly all of them.

Such a family says how its factors multiply; what a refit needs follows from that. Where an SVD
makes them, one is enough for all ranks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcp.factorize import FactorizePass, Factors, Floats, Ranks, mixed_outputs
from onnxcp.graph.site import Site
from onnxcp.linalg.metric import Whitening
from onnxcp.linalg.multilinear import Product, refine

SPATIAL = "ijk"
"""Subscripts of the spatial axes of a kernel, one after the other."""


@dataclass(frozen=True)
class ProductPass(FactorizePass):
    """Replaces kernels by products: factors multiply out to the kernel, the last one mixes outputs.

    Options are those of `FactorizePass`.
    """

    @abstractmethod
    def product(self, site: Site) -> Product:
        """Return how the factors of one group make its kernel, in the order of the chain.

        A factor is the weight of a step, ``(out, in, *k)``, and its subscripts are what is left of
        these axes without those of length 1 that no letter stands for: `t` and `s` for output and
        input channels of the group, those of `SPATIAL` for the spatial axes of the kernel, any
        other for a rank.
        """

    def kernel(self, site: Site, factors: Factors) -> Floats:
        """Multiply factors out to the kernel ``(T, S / group, *k)`` that they stand for."""
        product = self.product(site)
        groups = _operands(product, site, factors)
        return np.concatenate([product.multiply(operands) for operands in groups])

    def refine(
        self,
        site: Site,
        factors: Factors,
        targets: Sequence[Floats],
        grams: Sequence[Floats],
        sweeps: int | None = None,
    ) -> Factors:
        """Take turns with the factors, each the best one beside the others."""
        product = self.product(site)
        refined = []
        groups = _operands(product, site, factors)
        for operands, target, gram in zip(groups, targets, grams, strict=True):
            options = {} if sweeps is None else {"sweeps": sweeps}
            refined.append(refine(product, operands, target, gram, **options)[0])
        return _joined(refined, factors)

    def whitened(
        self, site: Site, ranks: Ranks, targets: Sequence[Floats], grams: Sequence[Floats]
    ) -> Factors | None:
        """Decompose kernels in a separable norm near that of the data."""
        product = self.product(site)
        roots = [
            Whitening.of(product, gram, target.shape)
            for target, gram in zip(targets, grams, strict=True)
        ]
        white = [each.whiten(target) for each, target in zip(roots, targets, strict=True)]
        factors = self.factorize(site.holding(np.concatenate(white)), ranks)
        groups = _operands(product, site, factors)
        undone = [each.undo(operands) for each, operands in zip(roots, groups, strict=True)]
        return _joined(undone, factors)

    def mixed(self, site: Site, factors: Factors, mixing: Floats) -> Factors:
        """Mix the outputs of the last factor."""
        *others, last = factors
        return (*others, mixed_outputs(last, mixing, site.group))


@dataclass(frozen=True)
class SvdPass(ProductPass):
    """Replaces kernels by the leading terms of one SVD: a rank holds what every lower one does.

    Options are those of `FactorizePass`. There is one rank and there are two factors, in each of
    which the leading terms stand first.
    """

    def energies(self, site: Site) -> Floats:
        """Return what the terms of the SVD hold of the kernel's squared norm, largest first.

        What a rank R of each group keeps is the sum of the first R.
        """
        found: Floats = np.sum([self.group_energies(each) for each in site.group_kernels()], axis=0)
        return found

    @abstractmethod
    def group_energies(self, kernel: Floats) -> Floats:
        """Return the same for one group."""

    def truncated(self, site: Site, factors: Factors, rank: int) -> Factors:
        """Return the factors of a lower rank that are part of given ones.

        Parameters
        ----------
        site
            The site.
        factors
            What `factorize` returned for at least this rank.
        rank
            Of each group.
        """
        first, last = factors
        groups = [each[:rank] for each in np.split(first, site.group)]
        return np.concatenate(groups), np.ascontiguousarray(last[:, :rank])


def _operands(product: Product, site: Site, factors: Factors) -> list[list[Floats]]:
    """Return, for each group, its factors without the axes that no subscript stands for."""
    spatial = dict(zip(SPATIAL, site.kernel_shape[2:], strict=False))
    groups = []
    for parts in zip(*(np.split(factor, site.group) for factor in factors), strict=True):
        operands = []
        for letters, part in zip(product.operands, parts, strict=True):
            channels = sum(letter not in spatial for letter in letters)
            sizes = [spatial[letter] for letter in letters if letter in spatial]
            operands.append(part.reshape(*part.shape[:channels], *sizes))
        groups.append(operands)
    return groups


def _joined(groups: Iterable[Sequence[Floats]], like: Factors) -> Factors:
    """Put the factors of all groups together again, in the shapes of others: undoes `_operands`."""
    return tuple(
        np.concatenate(parts).reshape(factor.shape)
        for parts, factor in zip(zip(*groups, strict=True), like, strict=True)
    )
