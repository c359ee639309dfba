"""Refusals that several families share."""

from __future__ import annotations

from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site


def needs_kernel(site: Site, family: str) -> Refusal | None:
    """Refuse matrices and 1x1 kernels: all that a family could add there is a step too many."""
    if site.geometry is None:
        detail = f"{family} needs spatial axes, and {site.op} has none"
        return Refusal(site.name, Reason.INEXPRESSIBLE, detail)
    if all(size == 1 for size in site.geometry.kernel):
        detail = f"{family} on a 1x1 kernel is a channel-svd with a step too many"
        return Refusal(site.name, Reason.INEXPRESSIBLE, detail)
    return None


def needs_splittable_axes(site: Site, family: str, at_least: int) -> Refusal | None:
    """Refuse sites whose spatial axes cannot be moved over one after the other."""
    refusal = needs_kernel(site, family)
    if refusal is not None:
        return refusal
    assert site.geometry is not None
    if site.spatial_rank < at_least:
        detail = f"{family} needs {at_least} spatial axes, not {site.spatial_rank}"
        return Refusal(site.name, Reason.INEXPRESSIBLE, detail)
    if site.geometry.output_shape:
        detail = f"{family} cannot split the attribute output_shape between two convolutions"
        return Refusal(site.name, Reason.INEXPRESSIBLE, detail)
    return None
