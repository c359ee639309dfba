"""What families have to offer for a site, before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from onnxcp.factorize import FactorizePass, Ranks
from onnxcp.graph.chain import Chain, chain_macs
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site

SHARES = tuple(0.025 * 1.12**step for step in range(29))
"""Shares of a site's multiply-adds at which every family is offered: from 2.5 to 60 %."""


@dataclass(frozen=True, eq=False)
class Offer:
    """A family at a rank for a site.

    Attributes
    ----------
    site, family, ranks
        What it is.
    macs
        Multiply-adds of the chain for one sample.
    """

    site: Site
    family: FactorizePass
    ranks: Ranks
    macs: int

    @classmethod
    def of(cls, site: Site, family: FactorizePass, ranks: Ranks, shape: Sequence[int]) -> Offer:
        """Count what a chain costs on an input of a shape, batch included."""
        return cls(site, family, ranks, chain_macs(site, family.sketch(site, ranks), shape))

    @cached_property
    def sketch(self) -> Chain:
        """A chain of this shape, which takes no memory."""
        return self.family.sketch(self.site, self.ranks)

    @property
    def parameters(self) -> int:
        """Weights of the chain."""
        return self.sketch.parameters

    def __str__(self) -> str:
        return f"{self.family.name} {'x'.join(map(str, self.ranks))}"


def ladder(
    site: Site, family: FactorizePass, shape: Sequence[int], macs: int, round_to: int = 1
) -> list[Offer] | Refusal:
    """Return a family at ranks from small to large, or why there is none.

    Parameters
    ----------
    site, family
        The two.
    shape
        Shape of what the site reads, batch included.
    macs
        Multiply-adds of the site; what needs as many is not offered.
    round_to
        Multiple that ranks are rounded to.
    """
    refusal = family.applies(site)
    if refusal is not None:
        return refusal
    found: dict[Ranks, Offer] = {}
    for share in SHARES:
        ranks = family.ranks_for_macs(site, share, round_to, shape)
        if isinstance(ranks, Refusal):
            refusal = ranks
        elif ranks not in found:
            found[ranks] = Offer.of(site, family, ranks, shape)
    offers = sorted((each for each in found.values() if each.macs < macs), key=lambda o: o.macs)
    if offers:
        return offers
    return refusal or Refusal(site.name, Reason.NO_REDUCTION, f"{family.name} saves no MACs")


def anchors(offers: Sequence[Offer]) -> list[Offer]:
    """Return the first, the middle and the last of a ladder: what lies between is interpolated."""
    chosen = {0, len(offers) // 2, len(offers) - 1}
    return [offers[position] for position in sorted(chosen)]
