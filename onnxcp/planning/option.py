"""What a site could become, what it would cost, and what was decided."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from onnxcp.factorize import Factorized
from onnxcp.graph.chain import Chain
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.planning.latency import Timing
from onnxcp.planning.offer import Offer
from onnxcp.refit import Refit


@dataclass(frozen=True, eq=False)
class Option(Offer):
    """An offer that was measured.

    Attributes
    ----------
    timing
        The site's node against the chain, each alone in a graph.
    distortion, error
        What it is expected to add to the distortion, and to the squared relative error, of the
        network's outputs (see `onnxcp.planning.distortion`); NaN where nothing was planned.
    cosine
        Similarity to the original by which its rank was chosen; NaN where it was not.
    """

    timing: Timing
    distortion: float = math.nan
    error: float = math.nan
    cosine: float = math.nan

    @property
    def saving(self) -> float:
        """Seconds that it saves alone."""
        return self.timing.saving


@dataclass(frozen=True, eq=False)
class Candidate:
    """An option that is fast enough, and the factors that it comes to.

    Attributes
    ----------
    option
        The option.
    result
        The factors that are used.
    from_weights
        Those of the weights alone, where `result` was refitted.
    """

    option: Option
    result: Factorized
    from_weights: Factorized | None = None

    @property
    def unfitted(self) -> Candidate:
        """The same before a refit."""
        return Candidate(self.option, self.from_weights or self.result)


@dataclass(frozen=True, eq=False)
class Decision:
    """What was decided for one site.

    Attributes
    ----------
    site
        The site.
    macs
        Multiply-adds of the original for one sample, or None if its input's shape is unknown.
    candidates
        What it may become, the chosen one first; none where it is left alone.
    reasons
        Why other families, or all, are no candidates.
    refit
        What a refit did, if there was one.
    """

    site: Site
    macs: int | None
    candidates: tuple[Candidate, ...] = ()
    reasons: tuple[Refusal, ...] = ()
    refit: Refit | None = None

    @property
    def option(self) -> Option | None:
        """What was chosen; None where the site is left alone."""
        return self.candidates[0].option if self.candidates else None

    @property
    def result(self) -> Factorized | None:
        """The factors of what was chosen."""
        return self.candidates[0].result if self.candidates else None

    @property
    def chain(self) -> tuple[str, Chain] | None:
        """What the site becomes and what to call it; None where nothing changes."""
        if self.refit is not None:
            return self.refit.chain
        if not self.candidates:
            return None
        result = self.candidates[0].result
        return result.family.name, result.chain

    def refitted(self, refit: Refit) -> Decision:
        """Return the decision with what a refit chose and made of it."""
        if refit.result is None:
            return replace(self, refit=refit)
        chosen = next(each for each in self.candidates if each.option.family is refit.result.family)
        others = (each for each in self.candidates if each is not chosen)
        first = Candidate(chosen.option, refit.result, chosen.unfitted.result)
        return replace(self, candidates=(first, *others), refit=refit)

    def unfitted(self) -> Decision:
        """Return the decision as it was before any refit: the same candidates, of the weights."""
        candidates = tuple(each.unfitted for each in self.candidates)
        return replace(self, candidates=candidates, refit=None)

    def given_back(self, reason: Refusal) -> Decision:
        """Return the decision to leave the site as it is after all."""
        return Decision(self.site, self.macs, reasons=(*self.reasons, reason))

    @property
    def excluded(self) -> bool:
        """Whether the site is not to be touched at all."""
        return any(reason.reason is Reason.EXCLUDED for reason in self.reasons)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why other families, or all, were not chosen."""
        return (*self.reasons, *(self._beaten(other) for other in self.candidates[1:]))

    def _beaten(self, loser: Candidate) -> Refusal:
        winner = self.candidates[0]
        name, better = loser.option.family.name, winner.option.family.name
        if self.refit is not None and self.refit.improved:
            detail = f"{name} has a larger output error than {better} at the same cost"
        else:
            detail = (
                f"{name} has a weight error of {loser.result.error:.3g}, {better} one of "
                f"{winner.result.error:.3g} at the same cost"
            )
        return Refusal(self.site.name, Reason.INACCURATE, detail)
