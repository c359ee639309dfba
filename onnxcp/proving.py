"""A rewrite of a network on trial: held against the original, and given back where that loses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from onnxcp.cosine_svd import by_cosine
from onnxcp.graph.model import Model
from onnxcp.graph.summary import Summary, summarize
from onnxcp.loading import shapes_of
from onnxcp.lowering import Steps, lowered, steps
from onnxcp.planned import Planned, by_goal, by_plan
from onnxcp.rewriting import Rewrite, by_choice, by_passes, given_back
from onnxcp.sizes import by_size, judged_by_size
from onnxcp.verification import Verification, verify
from onnxcp.work import Work


@dataclass(frozen=True, eq=False)
class Proven:
    """A rewritten network as it may be handed out, and how it came about.

    Attributes
    ----------
    rewrite
        The network.
    planned
        How its plan came about; None where none was made.
    verification
        What it showed against the original; None where nothing was rewritten.
    steps
        What lies between the two in a lower precision; None without one, or if it is not faster.
    """

    rewrite: Rewrite
    planned: Planned | None
    verification: Verification | None
    steps: Steps | None

    @property
    def seconds(self) -> float:
        """Seconds of a run for each of the original; infinite where it is no faster elsewhere."""
        seen = self.verification
        if seen is None or not all(each.trial.faster for each in seen.elsewhere):
            return math.inf
        return 1 / seen.trial.ratio

    @property
    def broken(self) -> bool:
        """Whether it overflows where the original does not."""
        differences = () if self.verification is None else self.verification.differences
        return any(each.finite_a and not each.finite_b for each in differences)


def proven(work: Work) -> Proven:
    """Rewrite, and give sites back until the whole network is faster; or none are left."""
    sized = judged_by_size(work.settings)
    rewrite, planned = _rewritten(work)
    made = _held(work, lowered(work, rewrite), planned)
    smaller = _smaller(work, made.rewrite, made.verification)
    while made.verification is not None and not (_good(made, sized) or made.broken):
        fewer = _doubted(work, made.rewrite)
        if fewer is None:
            break
        planned = None if planned is None else planned.given_back(smaller)
        smaller = ""
        made = _held(work, lowered(work, fewer), planned)
    return made


def _held(work: Work, rewrite: Rewrite, planned: Planned | None) -> Proven:
    """Hold a rewritten network against the original."""
    verification = _verified(work, rewrite)
    there = verification is not None and verification.faster
    short = "" if planned is None else planned.shortfall
    found = None
    if there and verification is not None:
        found = steps(work, rewrite, verification, short)
    return Proven(rewrite, planned, verification, found)


def _good(made: Proven, sized: bool) -> bool:
    if sized:
        return True
    if made.steps is not None and not made.steps.pays:
        return False
    return made.verification is not None and made.verification.faster


def with_weights(work: Work, made: Proven, model: Model) -> Proven:
    """Return the same for other weights, on which time does not depend."""
    rewrite, verification = made.rewrite, made.verification
    if model is rewrite.plain or verification is None:
        return made
    if rewrite.endings:
        model, _ = work.finished(model)
    # What was held out of refits may have been trained on.
    rewrite = replace(rewrite, model=model, differences=work.differences(model), held=())
    rewrite = lowered(work, rewrite, as_before=True)
    assert rewrite.model is not None
    score = work.scored(rewrite.model)
    scores = None if score is None or work.baseline is None else (work.baseline, score)
    verification = replace(verification, differences=rewrite.differences, accuracy=scores)
    found = None if made.steps is None else steps(work, rewrite, verification)
    return replace(made, rewrite=rewrite, verification=verification, steps=found)


def summary_of(work: Work, rewrite: Rewrite) -> Summary:
    """Summarize a rewritten network; what a lower precision writes otherwise counts as before."""
    assert rewrite.model is not None
    counted = rewrite.model
    if work.lower is not None:
        counted = rewrite.full or work.original
    found = summarize(counted, shapes_of(counted, work.feeds, work.settings.machine))
    return replace(found, nbytes=rewrite.model.file_nbytes)


def size_left(before: Summary, after: Summary) -> str:
    """Return what is left of a network, as the beginning of a sentence."""
    left = f"{after.parameters / before.parameters:.0%} of the parameters"
    if before.macs and after.macs is not None:
        left += f" and {after.macs / before.macs:.0%} of the MACs"
    return f"The rewritten network has {left}"


def _rewritten(work: Work) -> tuple[Rewrite, Planned | None]:
    """Rewrite as the settings say."""
    settings = work.settings
    if settings.passes:
        return by_passes(work), None
    if settings.plan is not None:
        return by_plan(work, settings.plan), None
    if settings.target is not None:
        return by_choice(work, settings.target), None
    if settings.preset is not None:
        return by_cosine(work, settings.preset, settings.goal)
    if settings.goal.parameters is not None or settings.goal.size is not None:
        return by_size(work)
    return by_goal(work, settings.goal)


def _verified(work: Work, rewrite: Rewrite) -> Verification | None:
    """Time a rewritten network against the original, and score it."""
    if rewrite.model is None:
        return None
    work.progress("verifying", 0, 1)
    return verify(
        work.original,
        rewrite.model,
        work.settings.machine,
        work.feeds,
        rewrite.differences,
        score=work.score,
        baseline=work.baseline,
        also_on=work.settings.also_on,
    )


def _doubted(work: Work, rewrite: Rewrite) -> Rewrite | None:
    """Give back the half of the sites that gain least for certain; None if none are left."""
    certain = {
        each.site: (timing.before - timing.before / timing.low)
        for each in rewrite.decisions
        if each.option is not None and (timing := each.option.timing) is not None
    }
    # What ends every rewrite, and a lower precision, may pay without any site.
    if len(certain) < (1 if work.finish or work.lower else 2):
        return None
    doubted = sorted(certain, key=lambda site: certain[site])[: (len(certain) + 1) // 2]
    why = "with it, the whole network was measured to be no faster"
    return given_back(work, rewrite, doubted, why)


def _smaller(work: Work, rewrite: Rewrite, verification: Verification | None) -> str:
    """Say what a preset for size comes to where that is not faster; "" elsewhere."""
    if work.settings.preset is None or rewrite.model is None or verification is None:
        return ""
    if verification.faster:
        return ""
    size = size_left(summarize(work.original, work.shapes), summary_of(work, rewrite))
    return (
        f"{size}, but is not faster ({verification.shown}), so layers were given back, those "
        "first that gain least."
    )
