"""What sites may become, and which sites are not looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxcp.factorize import FactorizePass, selected
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site

Shapes = Mapping[str, tuple[int, ...]]

_NOTABLE = 0.002  # share of the network's multiply-adds below which a site is not worth a look


@dataclass(frozen=True)
class Menu:
    """What may be chosen from.

    Attributes
    ----------
    families
        The families.
    round_to
        Multiple that ranks are rounded to.
    nodes, exclude
        Names of sites, as of `FactorizePass`.
    """

    families: tuple[FactorizePass, ...]
    round_to: int = 1
    nodes: str = "*"
    exclude: str = ""

    def refusal(self, site: Site, macs: int | None, total: int) -> Refusal | None:
        """Return why a site is not worth a look.

        Parameters
        ----------
        site
            The site.
        macs
            Its multiply-adds for one sample; None if the shape of its input is unknown.
        total
            Those of all sites.
        """
        if not selected(site.name, self.nodes, self.exclude):
            return Refusal(site.name, Reason.EXCLUDED, "it is not among the nodes to rewrite")
        if macs is None:
            detail = "the shape of its input is not known; give input shapes"
            return Refusal(site.name, Reason.SHAPE_UNKNOWN, detail)
        if macs < _NOTABLE * total:
            detail = f"it makes up {macs / total:.2%} of the MACs, too few to pay"
            return Refusal(site.name, Reason.TOO_SMALL, detail)
        return None
