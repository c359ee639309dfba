"""How noisy a machine is now, and what may be claimed on it: identical work, timed in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from onnxcp.profiling.machine import Machine
from onnxcp.profiling.product import matrix_product
from onnxcp.profiling.timing import DISTURBED, INDISTINCT, Trial, paired

#: Two profiles of one network on a quiet machine agree within this much; so a difference between
#: profiles taken at different times is only called one beyond it.
AGREEMENT = 0.03

# Work of some tenths of a millisecond, the shortest that plans are made for.
_SIZE = 256
_SECONDS = 0.4


class Level(StrEnum):
    """How noisy a machine is."""

    QUIET = "quiet"
    NOISY = "noisy"
    BUSY = "busy"


class Verdict(StrEnum):
    """What a comparison of times says of the second against the first."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "not told apart"
    REFUSED = "refused"


@dataclass(frozen=True)
class Noise:
    """What identical work showed, timed against itself before and after something was measured.

    Attributes
    ----------
    apart
        How far the 95 % interval of its ratio to itself, which is 1, reaches from 1.
    drift
        How much its median changed between the first time and the last.
    interrupted
        The share of its pairs that were interrupted.
    seconds
        The median of the work itself: how fast the machine was, to tell profiles apart that are
        quiet each and still not alike, as on a machine that is shared. 0 where it is not known.
    within
        How much the median of the runs that were made in between changed from one quarter of a
        session to another: a machine may be slow for just these seconds. 0 where it is not known.
    """

    apart: float
    drift: float
    interrupted: float
    seconds: float = 0.0
    within: float = 0.0

    @property
    def level(self) -> Level:
        """Quiet up to `AGREEMENT`; busy, where nothing is claimed, beyond `DISTURBED`."""
        if self.worst > DISTURBED:
            return Level.BUSY
        return Level.NOISY if self.worst > AGREEMENT else Level.QUIET

    @property
    def worst(self) -> float:
        """The largest of what shows noise."""
        return max(self.apart, self.drift, self.within)

    def __str__(self) -> str:
        runs = f", and the runs themselves drifted by {self.within:.1%}" if self.within else ""
        return (
            f"{self.level}: identical work came out {self.apart:.1%} apart in turns and drifted by "
            f"{self.drift:.1%}, {self.interrupted:.0%} of it interrupted{runs}"
        ).replace("%", " %")


@dataclass(frozen=True)
class Claim:
    """What is said of two times.

    Attributes
    ----------
    verdict
        Of the second against the first.
    ratio
        How many times faster the second is.
    low, high
        Its 95 % interval, wider than that of the measurement by what identical work came out apart.
    margin
        How far from 1 the ratio has to be to be called a difference.
    """

    verdict: Verdict
    ratio: float
    low: float
    high: float
    margin: float


def probe(machine: Machine, *, seconds: float = _SECONDS) -> Callable[[], Trial]:
    """Return what times a small matrix product against itself, for so many seconds.

    Raises
    ------
    ProviderError
        If a provider is unknown, missing, or does not start.
    """
    run = matrix_product(machine, _SIZE).run
    return lambda: paired(run, run, min_seconds=seconds, max_seconds=2 * seconds)


def noise_of(trials: Sequence[Trial]) -> Noise:
    """Sum up trials of something against itself, in the order in which they were made."""
    apart = max(max(trial.high, 1 / trial.low) - 1 for trial in trials)
    medians = [each.median for trial in trials for each in (trial.a, trial.b)]
    taken = sum(trial.pairs + (trial.discarded if trial.clean else 0) for trial in trials)
    discarded = sum(trial.discarded for trial in trials)
    drift = max(medians) / min(medians) - 1
    return Noise(apart, drift, discarded / taken, statistics.median(medians))


def claim(trial: Trial, noise: Noise) -> Claim:
    """Say what a paired trial shows on a machine as noisy as this.

    The interval is widened by what identical work came out apart, and the margin is at least that
    much; on a busy machine nothing is claimed. Drift does not count, since pairs drift together.
    """
    margin = max(trial.margin, noise.apart, INDISTINCT)
    low, high = trial.low / (1 + noise.apart), trial.high * (1 + noise.apart)
    verdict = judge(trial.ratio, low, high, margin)
    if noise.apart > DISTURBED:
        verdict = Verdict.REFUSED
    return Claim(verdict, trial.ratio, low, high, margin)


def judge(ratio: float, low: float, high: float, margin: float) -> Verdict:
    """Call a ratio a difference where its whole interval and a margin say so."""
    if low > 1 and ratio > 1 + margin:
        return Verdict.FASTER
    if high < 1 and ratio < 1 / (1 + margin):
        return Verdict.SLOWER
    return Verdict.SAME


def widened(interval: tuple[float, float] | None, noise: Noise) -> tuple[float, float] | None:
    """Return an interval of a time by itself, wider by the drift; None on a busy machine."""
    if interval is None or noise.level is Level.BUSY:
        return None
    (low, high), drift = interval, max(noise.drift, noise.within)
    return low / (1 + drift), high * (1 + drift)
