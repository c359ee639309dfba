"""Plan, measure, correct, plan again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from onnxcp.factorize import FactorizePass
from onnxcp.graph.site import Site
from onnxcp.planning.goal import Goal
from onnxcp.planning.planner import Choice, Forecast, Planner
from onnxcp.profiling.timing import Trial

Made = TypeVar("Made")

_ROUNDS = 4
_NEAR = (0.98, 1.04)  # measured speed over the one asked for, within which it is reached
_FULL = 0.85  # share of the tolerated error from which on another round gains little
_RIVAL = 1.5  # times the expected error of a mixture, up to which one family is tried alone
_TRIALS = 5  # plans to build in the search for a score


@dataclass(frozen=True, eq=False)
class Attempt(Generic[Made]):
    """A network that was built from a choice.

    Attributes
    ----------
    made
        The network, and whatever the builder knows of it.
    choice
        What it was built from: less than was chosen where factors were unfit, and at the same cost
        something else where that turned out to be closer.
    error
        Relative error of its outputs.
    score
        What it scored, or how far it agrees where that is the goal; None if nothing scores.
    held
        The error on samples that no layer was fitted to; None where there are too few, or no fits.
    lessons
        How many times the expected squared errors of families turned out to be within layers;
        empty where that was not looked at.
    """

    made: Made
    choice: Choice
    error: float
    score: float | None = None
    held: float | None = None
    lessons: Mapping[FactorizePass, float] = field(default_factory=dict)

    @property
    def judged(self) -> float:
        """The error to compare networks by that were fitted to the same samples."""
        return self.error if self.held is None else self.held


@dataclass(frozen=True)
class Round:
    """One plan, what was expected of it, and what was found.

    Attributes
    ----------
    sites
        How many sites were replaced.
    forecast
        What was expected.
    before, after
        Measured seconds of the whole network; None where it was not timed.
    error, score
        Of the network that was built; None where none was, or where it was not looked at.
    kept
        Whether it is the one that was taken.
    parameters, macs
        Share of the network's weights and multiply-adds that is left; None where it was planned
        by other measures.
    """

    sites: int
    forecast: Forecast
    before: float | None = None
    after: float | None = None
    error: float | None = None
    score: float | None = None
    kept: bool = False
    parameters: float | None = None
    macs: float | None = None


class Workshop(Protocol[Made]):
    """What a search has its choices measured and built by."""

    def time(self, choice: Choice) -> Trial:
        """Time the original (a) against a network of such chains (b)."""

    def build(self, choice: Choice, planner: Planner, *, compete: bool = True) -> Attempt[Made]:
        """Build the network of a choice; tell the planner of options that are unfit.

        Where options may compete, others of the same cost may take the place of those chosen.
        """

    def site_lessons(self, attempt: Attempt[Made]) -> Mapping[Site, float]:
        """Return how many times the expected squared errors of sites turned out to be.

        That is what they add to those of the network, with what is in their place now; empty where
        there is nothing to look at it with.
        """


@dataclass(frozen=True, eq=False)
class Outcome(Generic[Made]):
    """What a search came to.

    Attributes
    ----------
    attempt
        The network that is closest to the goal; None if no site has an option.
    rounds
        What was tried on the way.
    shortfall
        A sentence, where the goal was out of reach; else empty.
    """

    attempt: Attempt[Made] | None
    rounds: tuple[Round, ...] = ()
    shortfall: str = ""


def search(
    planner: Planner, goal: Goal, workshop: Workshop[Made], baseline: float | None = None
) -> Outcome[Made]:
    """Find the network for a goal.

    Parameters
    ----------
    planner
        Makes choices.
    goal
        What is wanted.
    workshop
        Measures and builds what was chosen.
    baseline
        Score of the original, for a goal of accuracy.
    """
    if goal.scored:
        if not any(each.options for each in planner.sites):
            return Outcome(None)
        return _by_score(planner, goal.least(baseline), workshop)
    if goal.error is not None:
        return _by_error(planner, goal, goal.error, workshop)
    return _by_time(planner, goal, workshop)


def timed(planner: Planner, choice: Choice, workshop: Workshop[Made]) -> Round:
    """Time a choice, and let the planner learn from it."""
    expected, trial = planner.forecast(choice), workshop.time(choice)
    before, after = trial.a.median, trial.b.median
    planner.learn_time(choice, before, after)
    return Round(len(choice.options), expected, before, after)


def learn(planner: Planner, attempt: Attempt[Made], sites: Mapping[Site, float]) -> None:
    """Let a planner learn from a network that was built: of single options, then of all errors."""
    corrected = planner.learn_options(attempt.lessons, sites, attempt.choice)
    planner.learn_error(corrected, attempt.error)


def outline(
    planner: Planner, goal: Goal, workshop: Workshop[Made]
) -> tuple[Choice, tuple[Round, ...], str]:
    """Plan for a goal and time the plan, but build nothing.

    Returns
    -------
    choice
        What was chosen; empty if there is nothing to choose.
    rounds
        What was tried on the way.
    shortfall
        A sentence, where the goal is out of reach; else empty.
    """
    if goal.error is None:
        return _approach(planner, goal, workshop)
    choice = planner.choose(goal)
    if not choice.options:
        return choice, (), ""
    return choice, (replace(timed(planner, choice, workshop), kept=True),), ""


def _by_time(planner: Planner, goal: Goal, workshop: Workshop[Made]) -> Outcome[Made]:
    """Build the best plan, another by what was learned of options, and one of a single family.

    Errors of options are estimates, more so of some families than of others, and where a plan
    mixes several of them, these mistakes are what it is chosen by. A refit shows what they are
    worth, and what each site really adds; and where one family comes near the mixture, they matter
    least in a plan of it alone.
    """
    first = _built(planner, goal, workshop)
    if first.attempt is None or first.shortfall:
        return first
    built = [first]
    known = {planner.choose(goal).key(), first.attempt.choice.key()}
    sites = workshop.site_lessons(first.attempt)
    if first.attempt.lessons or sites:
        learn(planner, first.attempt, sites)
        learned = planner.choose(goal).key()
        if learned not in known:
            second = _built(planner, goal, workshop)
            built.append(second)
            known |= {learned, planner.choose(goal).key()}
            if second.attempt is not None:
                known.add(second.attempt.choice.key())
    rival = _of_one_family(planner, goal, first.attempt.choice)
    if rival is not None and rival.choose(goal).key() not in known:
        built.append(_built(rival, goal, workshop))
    return _closest(built)


def _closest(built: Sequence[Outcome[Made]]) -> Outcome[Made]:
    """Return the outcome that is closest to the original, with the rounds of all."""

    def off(outcome: Outcome[Made]) -> float:
        return math.inf if outcome.attempt is None else outcome.attempt.judged

    taken = min((each for each in built if not each.shortfall), key=off)
    rounds = (
        replace(each, kept=each.kept and outcome is taken)
        for outcome in built
        for each in outcome.rounds
    )
    return replace(taken, rounds=tuple(rounds))


def _of_one_family(planner: Planner, goal: Goal, choice: Choice) -> Planner | None:
    """Return a planner of the family that comes closest to a mixture; None if none is close."""
    families = {option.family.name for option in choice.options.values()}
    if len(families) < 2:
        return None
    found = [planner.only(family) for family in sorted(families)]
    chosen = [each.choose(goal) for each in found]
    errors = [
        each.forecast(one).error if one.reached else math.inf
        for each, one in zip(found, chosen, strict=True)
    ]
    least = min(range(len(found)), key=lambda number: errors[number])
    within = errors[least] <= _RIVAL * planner.forecast(planner.choose(goal)).error
    return found[least] if within else None


def _built(planner: Planner, goal: Goal, workshop: Workshop[Made]) -> Outcome[Made]:
    """Build what comes close; where options turn out to be unfit, plan without them."""
    for _ in range(_ROUNDS):
        choice, rounds, shortfall = _approach(planner, goal, workshop)
        if not choice.options:
            return Outcome(None, rounds, shortfall)
        attempt = workshop.build(choice, planner)
        if attempt.choice.options.keys() == choice.options.keys():
            told, attempt = _as_fast(planner, goal, workshop, choice, rounds, attempt)
            (last,) = (each for each in told if each.kept)
            # What took an option's place may be faster than what was planned.
            return Outcome(attempt, told, "" if _is_met(goal, last, choice) else shortfall)
    tried = tuple(replace(each, kept=False) for each in rounds)
    if not attempt.choice.options:
        return Outcome(None, tried, _out_of_reach(goal, planner))
    # Less was built than was timed.
    done = timed(planner, attempt.choice, workshop)
    left = _out_of_reach(goal, planner) if not _is_met(goal, done, Choice({}, False)) else ""
    return Outcome(attempt, (*tried, _kept(done, attempt)), left)


def _as_fast(
    planner: Planner,
    goal: Goal,
    workshop: Workshop[Made],
    choice: Choice,
    rounds: Sequence[Round],
    attempt: Attempt[Made],
) -> tuple[tuple[Round, ...], Attempt[Made]]:
    """Time what was built where it is not what was timed; where it is too slow, build that."""
    timed_rounds = tuple(_kept(each, attempt) if each.kept else each for each in rounds)
    if attempt.choice.key() == choice.key() or (goal.speedup is None and goal.latency is None):
        return timed_rounds, attempt
    done = timed(planner, attempt.choice, workshop)
    planned = next(each for each in rounds if each.kept)
    tried = tuple(replace(each, kept=False) for each in rounds)
    if _reach(goal, done) >= min(_NEAR[0], _reach(goal, planned)):
        return (*tried, _kept(done, attempt)), attempt
    exact = workshop.build(choice, planner, compete=False)
    if exact.choice.key() != choice.key():  # it was fit a moment ago
        return (*tried, _kept(done, attempt)), attempt
    slow = _kept(done, attempt, kept=False)
    (number,) = (number for number, each in enumerate(rounds) if each.kept)
    return (*rounds[:number], slow, _kept(rounds[number], exact), *rounds[number + 1 :]), exact


def _approach(
    planner: Planner, goal: Goal, workshop: Workshop[Made]
) -> tuple[Choice, tuple[Round, ...], str]:
    """Correct the table of times by the whole network until the goal is met, or nothing changes."""
    tried: list[tuple[Round, Choice]] = []
    for _ in range(_ROUNDS):
        choice = planner.choose(goal)
        if not choice.options:
            break
        # One that comes again is timed once more: now it is expected to take what it took.
        again = any(choice.key() == before.key() for _, before in tried)
        tried.append((timed(planner, choice, workshop), choice))
        if again or _NEAR[0] <= _reach(goal, tried[-1][0]) <= _NEAR[1]:
            break
    if not tried:
        short = "" if choice.reached else _out_of_reach(goal, planner)
        return Choice({}, choice.reached), (), short
    reaches = [_reach(goal, each) for each, _ in tried]
    met = [number for number, reach in enumerate(reaches) if reach >= _NEAR[0]]
    # The slowest that meets the goal loses least.
    best = min(met or range(len(tried)), key=lambda n: reaches[n] if met else -reaches[n])
    choice = tried[best][1]
    if choice.key() != tried[-1][1].key():
        # It was expected to take something else, and may have been taken for its luck.
        tried.append((timed(planner, choice, workshop), choice))
    rounds = tuple(each for each, _ in tried[:-1])
    last = replace(tried[-1][0], kept=True)
    shortfall = "" if _is_met(goal, last, choice) else _out_of_reach(goal, planner, last)
    return choice, (*rounds, last), shortfall


def _is_met(goal: Goal, done: Round, choice: Choice) -> bool:
    """Tell whether a network meets a goal: one of time by the clock, others as was planned."""
    if goal.speedup is None and goal.latency is None:
        return choice.reached
    return _reach(goal, done) >= _NEAR[0]


def _reach(goal: Goal, done: Round) -> float:
    """Return how fast a measured network is over how fast it ought to be."""
    assert done.before is not None
    assert done.after is not None
    if goal.speedup is not None:
        return done.before / done.after / goal.speedup
    return 1.0 if goal.latency is None else goal.latency / done.after


def _out_of_reach(goal: Goal, planner: Planner, closest: Round | None = None) -> str:
    if goal.macs is not None or goal.parameters is not None:
        return f"No plan comes to {goal}: too few layers can be replaced by faster chains."
    if closest is not None and closest.before and closest.after:
        speed = closest.before / closest.after
        wanted = speed / _reach(goal, closest)
        if planner.fastest >= wanted:  # it is expected, and was not found in so many rounds
            return f"No plan was found that makes it {goal}; the closest came to {speed:.2f} times."
    fastest = f"the fastest is expected to be {planner.fastest:.2f} times faster"
    return f"No plan makes it {goal}; {fastest}."


def _by_error(
    planner: Planner, goal: Goal, limit: float, workshop: Workshop[Made]
) -> Outcome[Made]:
    """Correct the table of errors by the outputs until they are as far off as they may be."""
    rounds: list[Round] = []
    best: tuple[int, Attempt[Made]] | None = None
    seen = set()
    for _ in range(_ROUNDS):
        choice = planner.choose(goal)
        if not choice.options or choice.key() in seen:
            break
        seen.add(choice.key())
        expected = planner.forecast(choice)
        attempt = workshop.build(choice, planner)
        rounds.append(Round(len(attempt.choice.options), expected, error=attempt.error))
        learn(planner, attempt, workshop.site_lessons(attempt))
        if attempt.error <= limit and attempt.choice.options:
            faster = best is None or _after(planner, attempt) < _after(planner, best[1])
            best = (len(rounds) - 1, attempt) if faster else best
            if attempt.error >= _FULL * limit:
                break
    if best is None:
        return Outcome(None, tuple(rounds), _too_far(rounds, limit))
    number, attempt = best
    # What was expected of its error is what was expected before it was known.
    forecast = replace(planner.forecast(attempt.choice), error=rounds[number].forecast.error)
    measured = replace(timed(planner, attempt.choice, workshop), forecast=forecast)
    rounds[number] = _kept(measured, attempt)
    return Outcome(attempt, tuple(rounds))


def _by_score(planner: Planner, least: float, workshop: Workshop[Made]) -> Outcome[Made]:
    """Halve the interval of speeds in which the score falls below what is tolerated."""
    rounds: list[Round] = []
    best: tuple[int, Attempt[Made]] | None = None
    slow, fast = 1.0, planner.fastest
    for _ in range(_TRIALS):
        speed = math.sqrt(slow * fast)
        choice = planner.choose(Goal(speedup=speed))
        if not choice.options:
            slow = speed
            continue
        done = timed(planner, choice, workshop)
        attempt = workshop.build(choice, planner)
        rounds.append(_kept(done, attempt, kept=False))
        if attempt.score is None:
            continue  # nothing was left of it: its options were unfit, and are forgotten now
        good = attempt.score >= least
        if good:
            best = len(rounds) - 1, attempt
        slow, fast = (speed, fast) if good else (slow, speed)
    if best is None:
        return Outcome(None, tuple(rounds), _too_low(rounds, least))
    number, attempt = best
    rounds[number] = _kept(rounds[number], attempt)
    return Outcome(attempt, tuple(rounds))


def _too_far(rounds: Sequence[Round], limit: float) -> str:
    errors = [each.error for each in rounds if each.error is not None]
    if not errors:
        return ""  # no layer has an option, which its own reasons tell
    closest = f"the closest of {len(errors)} was at {min(errors):.3g}"
    return f"No network that was built keeps within a relative error of {limit:g}; {closest}."


def _too_low(rounds: Sequence[Round], least: float) -> str:
    scores = [each.score for each in rounds if each.score is not None]
    if not scores:
        return ""
    best = f"the best of {len(scores)} scored {max(scores):.6g}"
    return f"No network that was built scores {least:.6g} or more; {best}."


def _after(planner: Planner, attempt: Attempt[Made]) -> float:
    return planner.forecast(attempt.choice).after


def _kept(done: Round, attempt: Attempt[Made], *, kept: bool = True) -> Round:
    return replace(
        done,
        sites=len(attempt.choice.options),
        error=attempt.error,
        score=attempt.score,
        kept=kept,
    )
