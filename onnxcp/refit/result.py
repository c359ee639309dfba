"""What a refit is asked to do, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxcp.errors import OnnxcpError
from onnxcp.factorize import Factorized, FactorizePass
from onnxcp.graph.chain import Chain

SCOPES = ("all", "factorised", "none")
TARGETS = ("auto", "linear")
PREFIXES = ("full", "deployed")


@dataclass(frozen=True)
class RefitSettings:
    """How to refit.

    Attributes
    ----------
    scope
        ``"all"``: also the sites that stay as they are, where errors of others reach them;
        ``"factorised"``; or ``"none"``.
    memory_limit
        Bytes of intermediate results to keep in memory; the rest goes to a temporary folder.
    seed
        Of the drawing of rows.
    target
        ``"auto"``: where nothing but an activation reads a site's output, what comes out of it is
        fitted too, and taken if it is closer there; ``"linear"``: never.
    prefix
        What sites are fitted behind, where the network is deployed in a lower precision:
        ``"full"``, the rewritten network as it is, or ``"deployed"``, what its layers deliver in
        that precision, so that a fit makes good for rounding as well.
    """

    scope: str = "all"
    memory_limit: int = 2**31
    seed: int = 0
    target: str = "auto"
    prefix: str = "full"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise OnnxcpError(f"There is no refit '{self.scope}'; there are: {', '.join(SCOPES)}.")
        if self.target not in TARGETS:
            raise OnnxcpError(
                f"There is no target '{self.target}' of refits; there are: {', '.join(TARGETS)}."
            )
        if self.prefix not in PREFIXES:
            raise OnnxcpError(
                f"There is no prefix '{self.prefix}' of refits; there are: {', '.join(PREFIXES)}."
            )


@dataclass(frozen=True, eq=False)
class Refit:
    """What a refit did to one site.

    Attributes
    ----------
    before, after
        Error of the site's output in the network as it is rewritten before the site, relative to
        the norm of what it should be, on samples that were not fitted to: with factors made from
        the weights alone (or the site as it was), and with what is used now.
    result
        The factors to use; None where the site stays dense.
    dense
        The site itself with other weights; None where they stay as they are, or it is factorised.
    tried
        Squared errors of all choices, after the first and cheapest fit of each, by family.
    """

    before: float
    after: float
    result: Factorized | None = None
    dense: Chain | None = None
    tried: Mapping[FactorizePass, float] = field(default_factory=dict)

    @property
    def chain(self) -> tuple[str, Chain] | None:
        """What the site becomes and what to call it; None where it stays as it is."""
        if self.result is not None:
            return self.result.family.name, self.result.chain
        return None if self.dense is None else ("refit", self.dense)

    @property
    def improved(self) -> bool:
        """Whether the refit was any better."""
        return self.after < self.before
