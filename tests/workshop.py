"""A workshop for searches of plans, in which the truth may differ from what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.planning.option import Option
from onnxcp.planning.planner import Choice, Planner
from onnxcp.planning.search import Attempt, Outcome, Round
from onnxcp.profiling.timing import Trial
from tests.clockwork import trial
from tests.plans import seconds

COUNT = 6
"""Sites of the networks that are planned."""


class Workshop:
    """Makes of a choice the choice itself.

    Attributes
    ----------
    speed
        Seconds saved in the network for each saved alone.
    loss
        Squared error of the outputs for each expected; or what makes the error of that expected.
    unfit
        Tells options whose factors cancel.
    score
        What a network of a certain error scores.
    closer
        What turns out to be closer than an option, at the same cost alone.
    """

    def __init__(
        self,
        *,
        speed: float | Callable[[int], float] = 1.0,
        loss: float | Callable[[float], float] = 1.0,
        before: float = seconds(COUNT),
        unfit: Callable[[Option], bool] = lambda _: False,
        score: Callable[[float], float] | None = None,
        closer: Callable[[Option], Option] = lambda option: option,
    ) -> None:
        self.speed, self.loss, self.before, self.unfit = speed, loss, before, unfit
        self.score, self.closer = score, closer
        self.timed: list[Choice] = []
        self.built: list[Choice] = []

    def time(self, choice: Choice) -> Trial:
        speed = self.speed(len(self.timed)) if callable(self.speed) else self.speed
        self.timed.append(choice)
        return trial(self.before, self.before - speed * saving(choice))

    def build(self, choice: Choice, planner: Planner, *, compete: bool = True) -> Attempt[Choice]:
        self.built.append(choice)
        fit = {site: o for site, o in choice.options.items() if not self.unfit(o)}
        for site, option in choice.options.items():
            if site not in fit:
                planner.forget(option, Refusal(site.name, Reason.INACCURATE, "terms cancel"))
        if compete:
            fit = {site: self.closer(option) for site, option in fit.items()}
        made = Choice(fit, choice.reached)
        error = self.error(made)
        # Where nothing is left there is no network to be scored.
        score = self.score(error) if self.score is not None and fit else None
        return Attempt(made, made, error, score)

    def site_lessons(self, _: Attempt[Choice]) -> dict[Site, float]:
        return {}

    def error(self, choice: Choice) -> float:
        expected = math.sqrt(sum(o.error for o in choice.options.values()))
        return self.loss(expected) if callable(self.loss) else math.sqrt(self.loss) * expected

    def truth(self, choice: Choice) -> float:
        """Return how many times faster the network really is."""
        assert not callable(self.speed)
        return self.before / (self.before - self.speed * saving(choice))


def saving(choice: Choice) -> float:
    return sum(o.saving for o in choice.options.values())


def kept(outcome: Outcome[Choice]) -> Round:
    (one,) = (each for each in outcome.rounds if each.kept)
    return one
