"""What a site could become, what it would cost, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxcp.factorize import Factorized, FactorizePass, Ranks
from onnxcp.graph.chain import Chain
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.profiling.timing import Trial
from onnxcp.refit import Refit


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
class Candidate:
    """An option that is fast enough, and the factors that it comes to."""

    option: Option
    result: Factorized


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
        first = Candidate(chosen.option, refit.result)
        return replace(self, candidates=(first, *others), refit=refit)

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
