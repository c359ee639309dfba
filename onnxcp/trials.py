"""Trying choices in a network: what it then loses, against what it may lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxcp.building import score_for
from onnxcp.factorize import Factors
from onnxcp.graph.chain import Chain
from onnxcp.graph.site import Site
from onnxcp.graph.splice import splice
from onnxcp.graph.summary import summarize
from onnxcp.planning.cosine import Compared, Cut
from onnxcp.planning.goal import Goal
from onnxcp.planning.planner import Forecast
from onnxcp.planning.search import Round
from onnxcp.product import SvdPass
from onnxcp.rewriting import Rewrite
from onnxcp.work import Work

Chosen = Mapping[Site, Cut]

MOST = 100
"""Trials of networks at most."""

_NOWHERE = Forecast(math.nan, math.nan, math.nan, math.nan)  # nothing is expected of a trial


class Trials:
    """Tries choices in the network, each once, and remembers what came of them.

    Attributes
    ----------
    compared
        The sites and their forms.
    ended
        Whether there were so many trials that no more was tried.
    """

    def __init__(self, work: Work, bare: Rewrite, goal: Goal, compared: Sequence[Compared]) -> None:
        self.compared = compared
        self.ended = False
        self._work = work
        self._bare = bare
        self._goal = goal
        self._rounds: dict[frozenset[Cut], tuple[bool, Round]] = {}
        self._factors: dict[tuple[Site, str], Factors] = {}
        whole = summarize(work.original, work.shapes)
        self._sizes = {
            "parameters": summarize(bare.prepared, work.shapes).parameters,
            "macs": whole.macs,
        }

    def __call__(self, chosen: Chosen) -> bool:
        """Tell whether a choice is within the goal."""
        if not chosen:
            return True
        key = frozenset(chosen.values())
        if key not in self._rounds:
            if len(self._rounds) >= MOST:
                self.ended = True
                return False
            self._work.progress("trying a network", len(self._rounds), MOST)
            self._rounds[key] = self._tried(chosen)
        return self._rounds[key][0]

    def tried(self, cut: Cut) -> bool:
        """Tell whether there was a network with a cut, before the search ended."""
        return any(cut in key for key in self._rounds)

    def within(self, rewrite: Rewrite) -> tuple[bool, float | None]:
        """Tell whether a network is within the goal, and what it scored."""
        goal, work = self._goal, self._work
        if not goal.scored:
            assert goal.error is not None, "shares need no trials"
            return rewrite.error <= goal.error, None
        score = score_for(goal, work, rewrite)
        return score is not None and score >= goal.least(work.baseline), score

    def left(self, chosen: Chosen) -> dict[str, float | None]:
        """Return the shares of the parameters and multiply-adds that a choice leaves."""
        saved = {
            what: sum(
                each.saving(chosen[each.site], what)
                for each in self.compared
                if each.site in chosen
            )
            for what in self._sizes
        }
        return {
            what: 1 - saved[what] / whole if whole else None for what, whole in self._sizes.items()
        }

    def told(self, chosen: Chosen, rewrite: Rewrite | None) -> tuple[Round, ...]:
        """Return the trials, the one that was taken marked; where there were none, that alone.

        Parameters
        ----------
        chosen
            What was taken.
        rewrite
            The network that came of it, refitted; None if none was built.
        """
        if not chosen:
            return tuple(done for _, done in self._rounds.values())
        key = frozenset(chosen.values())
        taken = self._rounds[key][1] if key in self._rounds else self._round(chosen)
        if rewrite is not None:
            taken = replace(taken, error=rewrite.error)
            if self._goal.scored and rewrite.unfitted:
                taken = replace(taken, score=self.within(rewrite)[1])
        taken = replace(taken, kept=True)
        others = [done for each, (_, done) in self._rounds.items() if each != key]
        return (*others, taken)

    def _tried(self, chosen: Chosen) -> tuple[bool, Round]:
        rewrite = replace(self._bare, model=splice(self._bare.prepared, self._chains(chosen)))
        assert rewrite.model is not None
        round_ = self._round(chosen)
        if self._goal.max_accuracy_drop is None:
            rewrite = replace(rewrite, differences=self._work.differences(rewrite.model))
            round_ = replace(round_, error=rewrite.error)
        good, score = self.within(rewrite)
        return good, replace(round_, score=score)

    def _round(self, chosen: Chosen) -> Round:
        left = self.left(chosen)
        return Round(len(chosen), _NOWHERE, parameters=left["parameters"], macs=left["macs"])

    def _chains(self, chosen: Chosen) -> dict[Site, tuple[str, Chain]]:
        """Return the chains of a choice: of a site and a form there is one SVD for all ranks."""
        chains = {}
        for site, cut in chosen.items():
            family, (rank,) = cut.offer.family, cut.offer.ranks
            assert isinstance(family, SvdPass), "nothing else is compared"
            key = site, family.name
            if key not in self._factors or len(self._factors[key][0]) < rank * site.group:
                self._factors[key] = family.factorize(site, (rank,))
            factors = family.truncated(site, self._factors[key], rank)
            chains[site] = family.name, replace(family.lower(site, factors), ranks=(rank,))
        return chains
