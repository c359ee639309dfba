"""What a site could become, what it would cost, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcp.factorize import Factorized, FactorizePass, Ranks
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.site import Site
from onnxcp.profiling.timing import Trial


@dataclass(frozen=True, eq=False)
class Option:
    """A family at a rank, for one site.

    Attributes
    ----------
    site, family, ranks
        What it is.
    macs
        Multiply-adds of the chain for one sample.
    trial
        The site's node (a) against the chain (b), each alone in a graph, paired.
    """

    site: Site
    family: FactorizePass
    ranks: Ranks
    macs: int
    trial: Trial


@dataclass(frozen=True, eq=False)
class Decision:
    """What was decided for one site.

    Attributes
    ----------
    site
        The site.
    macs
        Multiply-adds of the original for one sample, or None if its input's shape is unknown.
    option, result
        What was chosen, and the factors; both None where the site is left alone.
    refusals
        Why other families, or all, were not chosen.
    """

    site: Site
    macs: int | None
    option: Option | None
    result: Factorized | None
    refusals: tuple[Refusal, ...]
