"""From what sites may become to a choice for all of them, and what it is expected to do."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcp.factorize import FactorizePass
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.planning.allocate import Weighed, allocate, nearest
from onnxcp.planning.goal import Goal
from onnxcp.planning.option import Option
from onnxcp.planning.survey import Surveyed

_SCALES = (0.2, 2.0)  # between which savings may differ from those of sites alone
_LEFT = 0.2  # of the share of their time that sites alone keep, the network keeps so much at least
_RESERVE = 0.9  # share of the tolerated error to plan with, since it is not known exactly


@dataclass(frozen=True, eq=False)
class Choice:
    """An option for some sites; the others stay as they are.

    Attributes
    ----------
    options
        By site, in the order of the network.
    reached
        Whether the goal is expected to be reached; otherwise this is as close as it gets.
    """

    options: Mapping[Site, Option]
    reached: bool = True

    def key(self) -> tuple[Any, ...]:
        """Return what makes two choices the same."""
        return tuple((site.name, o.family.name, o.ranks) for site, o in self.options.items())


@dataclass(frozen=True)
class Forecast:
    """What a choice is expected to do to the whole network.

    Attributes
    ----------
    before, after
        Seconds per run.
    error
        Relative error of the outputs.
    distortion
        Divergence of the classes, or the squared relative error again.
    """

    before: float
    after: float
    error: float
    distortion: float

    @property
    def speedup(self) -> float:
        """How many times faster."""
        return self.before / self.after


class Planner:
    """Makes choices, and learns from what came of them.

    Parameters
    ----------
    sites
        What was found out about each site.
    seconds
        What a run of the whole network takes.
    macs, parameters
        Multiply-adds and weights of the whole network; by default those of the sites.
    gained
        Share of its time that the network is faster by before anything is chosen.
    """

    def __init__(
        self,
        sites: Sequence[Surveyed],
        seconds: float,
        *,
        macs: int | None = None,
        parameters: int | None = None,
        gained: float = 0.0,
    ) -> None:
        self.sites = tuple(_finite(each) for each in sites)
        self._alone = seconds  # of the network when its sites were timed alone
        self._befores: tuple[float, ...] = ()  # of the network beside each plan that was timed
        self._gained = gained
        own = {
            "macs": sum(each.macs or 0 for each in sites),
            "parameters": sum(each.site.parameters for each in sites),
        }
        whole = {"macs": macs, "parameters": parameters}
        # What is not at the sites stays, and counts.
        self._sizes = {name: max(whole[name] or 0, size) for name, size in own.items()}
        self._rests = {name: self._sizes[name] - size for name, size in own.items()}
        self._rivals: tuple[Surveyed, ...] = ()  # where not all options are chosen from
        self._forgotten: set[tuple[Site, FactorizePass]] = set()
        self._first_scale = min(1.0, seconds / (_sites_alone(self.sites) or seconds))
        # Seconds saved in the network for each saved alone, by the seconds saved alone.
        self._time_scales: dict[float, float] = {}
        self._error_scale = 1.0  # squared error of the outputs for each expected

    def choose(self, goal: Goal) -> Choice:
        """Return the best choice for a goal; where it is out of reach, the closest."""
        objective, limits = self._limits(goal)
        scale = self._scale_to_save(-limits.get("seconds", 0.0))
        offered = [self._weighed(each, scale) for each in self.sites]
        chosen = allocate(offered, objective, limits)
        # A share of no multiply-adds, or of no weights, is nothing that a plan could come to.
        empty = not self.sites and (goal.macs is not None or goal.parameters is not None)
        if chosen is not None and not empty:
            return self._choice(chosen, reached=True)
        (measure,) = limits
        return self._choice(nearest(offered, objective, measure), reached=False)

    def forecast(self, choice: Choice) -> Forecast:
        """Return what a choice is expected to do."""
        options = choice.options.values()
        error = self._error_scale * sum(option.error for option in options)
        return Forecast(
            before=self.seconds,
            after=self._after(_saving(options)),
            error=error**0.5,
            distortion=self._error_scale * sum(option.distortion for option in options),
        )

    def learn_time(self, choice: Choice, before: float, after: float) -> None:
        """Take in what a network and a choice for it really took, in seconds.

        A machine that is slower for a while is so for both, so it is their ratio that tells what is
        saved of the seconds that the network took when its sites were timed.
        """
        self._befores = (*self._befores, before)
        expected = _saving(choice.options.values())
        if expected > 0:
            low, high = _SCALES
            saved = (1 - self._gained - after / before) * self._alone
            self._time_scales[expected] = min(max(saved / expected, low), high)

    def learn_error(self, choice: Choice, error: float) -> None:
        """Take in the relative error of the outputs that came of a choice."""
        expected = sum(option.error for option in choice.options.values())
        if expected > 0 and error > 0:
            self._error_scale = error**2 / expected

    def learn_options(
        self,
        families: Mapping[FactorizePass, float],
        sites: Mapping[Site, float],
        choice: Choice,
    ) -> Choice:
        """Take in how many times the expected squared errors of options really are.

        Parameters
        ----------
        families, sites
            These factors; those of families and sites that are not named stay as expected.
        choice
            What they were learned from.

        Returns
        -------
        The choice, of options with their errors as they are expected now.
        """

        def corrected(option: Option) -> Option:
            factor = families.get(option.family, 1.0) * sites.get(option.site, 1.0)
            return replace(
                option, error=factor * option.error, distortion=factor * option.distortion
            )

        self.sites = tuple(
            replace(each, options=tuple(map(corrected, each.options))) for each in self.sites
        )
        options = {site: corrected(option) for site, option in choice.options.items()}
        return replace(choice, options=options)

    def only(self, family: str) -> Planner:
        """Return a planner that knows as much, but chooses among the options of one family.

        What is built of its choices competes with the others all the same.
        """
        found = copy.copy(self)
        found._rivals = self._rivals or self.sites
        found._time_scales = dict(self._time_scales)
        found._forgotten = set(self._forgotten)
        found.sites = tuple(each.of(family) for each in self.sites)
        return found

    def rivals(self, site: Site) -> tuple[Option, ...]:
        """Return the options that may take the place of a chosen one, of a family cheap to dear."""
        return next(each.options for each in self._rivals or self.sites if each.site is site)

    def forget(self, option: Option, reason: Refusal) -> None:
        """Take an option, and those of its family at that site that are no smaller, off the list.

        Factors that cancel do so at higher ranks, too. The second time all of the family goes.
        """
        again = (option.site, option.family) in self._forgotten
        self._forgotten.add((option.site, option.family))
        sites = []
        for each in self.sites:
            if each.site is option.site:
                same = [o for o in each.options if o.family is option.family]
                each = each.without([o for o in same if again or o.macs >= option.macs], reason)
            sites.append(each)
        self.sites = tuple(sites)

    @property
    def seconds(self) -> float:
        """What a run of the whole network takes, as far as is known."""
        return statistics.median(self._befores) if self._befores else self._alone

    @property
    def fastest(self) -> float:
        """The speed-up that is expected of the fastest choice, whatever it does to outputs."""
        savings = [max((o.saving for o in s.options), default=0.0) for s in self.sites]
        return self.seconds / self._after(sum(savings))

    def _after(self, saving: float) -> float:
        """Return what the network takes where its sites alone save some seconds."""
        begin = (1 - self._gained) * self._alone
        # Beyond the plans that were timed a scale says little, and no plan saves what it leaves.
        whole = _sites_alone(self.sites)
        least = _LEFT * begin * max(1 - saving / whole, 0.0) if whole else 0.0
        after = max(begin - self._scale_at(saving) * saving, least, 1e-9)
        return after * self.seconds / self._alone

    def _scale_at(self, saving: float) -> float:
        """Return the seconds saved in the network for each that its sites save alone.

        It is interpolated between the plans that were timed; beyond them the closest counts.
        Before the first it is one, or less if sites alone took longer than all of the network: then
        the machine has been slower meanwhile.
        """
        if not self._time_scales:
            return self._first_scale
        return _between(saving, [(alone, alone * s, s) for alone, s in self._time_scales.items()])

    def _scale_to_save(self, seconds: float) -> float:
        """Return the same for a plan that is to save some seconds of the whole network."""
        if not self._time_scales:
            return self._first_scale
        pairs = [(alone * s, alone, s) for alone, s in self._time_scales.items()]
        return _between(seconds, pairs, inverse=True)

    def _limits(self, goal: Goal) -> tuple[str, dict[str, float]]:
        """Return what to make least, and within which limits."""
        begin = (1 - self._gained) * self._alone
        if goal.speedup is not None:
            return "distortion", {"seconds": self._alone / goal.speedup - begin}
        if goal.latency is not None:
            wanted = goal.latency * self._alone / self.seconds
            return "distortion", {"seconds": wanted - begin}
        for name, share in (("macs", goal.macs), ("parameters", goal.parameters)):
            if share is not None:
                return "distortion", {name: share * self._sizes[name] - self._rests[name]}
        assert goal.error is not None, "a score is no measure of single sites"
        return "seconds", {"error": _RESERVE * goal.error**2}

    def _weighed(self, surveyed: Surveyed, scale: float) -> list[Weighed]:
        """Return a site as it is, and then its options; seconds are what they add to it."""
        site = surveyed.site
        dense = Weighed(0.0, surveyed.macs or 0, site.parameters, 0.0, 0.0)
        return [dense, *(self._weigh(option, scale) for option in surveyed.options)]

    def _weigh(self, option: Option, scale: float) -> Weighed:
        return Weighed(
            seconds=-scale * option.saving,
            macs=option.macs,
            parameters=option.parameters,
            distortion=self._error_scale * option.distortion,
            error=self._error_scale * option.error,
        )

    def _choice(self, chosen: Sequence[int], *, reached: bool) -> Choice:
        pairs = zip(self.sites, chosen, strict=True)
        return Choice({s.site: s.options[each - 1] for s, each in pairs if each}, reached)


def _between(
    place: float, points: Sequence[tuple[float, float, float]], *, inverse: bool = False
) -> float:
    """Return the scale at a place: between points ``(x, y, scale)`` from the y of a line."""
    xs, ys, scales = zip(*sorted(points), strict=True)
    if place <= xs[0]:
        return float(scales[0])
    if place >= xs[-1]:
        return float(scales[-1])
    there = float(np.interp(place, xs, ys))
    return place / there if inverse else there / place


def _finite(surveyed: Surveyed) -> Surveyed:
    """Leave out the options that break the outputs, or of which nothing is known."""
    broken = [
        each
        for each in surveyed.options
        if not (math.isfinite(each.distortion) and math.isfinite(each.error))
    ]
    if not broken:
        return surveyed
    name = surveyed.site.name
    detail = f"{broken[0].family.name} takes the outputs of the network out of bounds"
    return surveyed.without(broken, Refusal(name, Reason.NOT_FINITE, detail))


def _sites_alone(sites: Sequence[Surveyed]) -> float:
    """Return the seconds that the sites with options take as they are, each by itself."""
    times = ([option.timing.before for option in each.options] for each in sites)
    return sum(statistics.median(each) for each in times if each)


def _saving(options: Iterable[Option]) -> float:
    return sum(option.saving for option in options)
