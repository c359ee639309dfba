"""Time callables, and compare two of them in pairs; this module knows no ONNX Runtime.

Two things spoil timings on a shared machine, and both are met here. Another process that is given
the core costs an interrupted run a whole scheduler tick, so the process's involuntary context
switches are read around every sample and spoiled samples are set aside. And the speed of the
machine drifts, so two callables are never timed one after the other but in turns, A B, B A, ...
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

#: Fewer clean samples or pairs than this support no claim: with 8, a sign test just reaches 1 %.
MINIMUM = 8

#: Two copies of one network in one process still differ by up to this much, from where their
#: weights lie in memory. A ratio nearer to 1 is not called a difference, however narrow its
#: interval.
INDISTINCT = 0.02

#: Where too few pairs are clean, a ratio nearer to 1 than this is not called a difference.
#: Interruptions hit short runs hardest and pull ratios to 1: a large advantage that still shows is
#: one, a small one may be noise.
DISTURBED = 0.25

#: In a trial the other network has just emptied the caches, which makes a short run look slow
#: (0.115 ms for 0.08 ms) and pulls ratios to 1, so a sample repeats short runs for this long.
#: Much longer samples (2 ms) are interrupted too often: nine in ten on a busy machine.
SAMPLE_SECONDS = 1e-3

#: What one involuntary context switch costs the run it interrupts: about a scheduler tick.
TICK_SECONDS = 4e-3

#: The share of a sample that interruptions may make up. Up to 80 ms a single one spoils a sample;
#: runs of seconds are always interrupted now and then, and are none the worse for it.
TOLERATED = 0.05

_RESAMPLES = 2000

_STRETCHES = 50

_QUARTERS, _QUARTER = 4, 25  # and runs in each of them at least, for its median to say something

Run = Callable[[], object]
Clock = Callable[[], float]
Interruptions = Callable[[], int]

if sys.platform == "win32":

    def involuntary_switches() -> int:
        """Return 0: Windows does not count a process's context switches."""
        return 0

else:
    import resource

    def involuntary_switches() -> int:
        """Return how often this process was made to yield a core, over all of its threads."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@dataclass(frozen=True)
class Latency:
    """Seconds per run of one callable.

    Attributes
    ----------
    samples
        The seconds of each run, in the order in which they were made.
    discarded
        How many samples, of one run or of several short ones, were interrupted.
    clean
        Whether the interrupted samples were left out. They are not where too few would remain.
    """

    samples: tuple[float, ...]
    discarded: int = 0
    clean: bool = True

    @property
    def median(self) -> float:
        """Median, in seconds."""
        return float(np.median(self.samples))

    @property
    def p90(self) -> float:
        """90th percentile, in seconds."""
        return self.quantile(0.9)

    @property
    def mean(self) -> float:
        """Mean, in seconds."""
        return float(np.mean(self.samples))

    @property
    def minimum(self) -> float:
        """Least, in seconds."""
        return min(self.samples)

    @property
    def maximum(self) -> float:
        """Most, in seconds."""
        return max(self.samples)

    def quantile(self, share: float) -> float:
        """Return the time, in seconds, that a share of the runs stays below."""
        return float(np.quantile(self.samples, share))

    @property
    def drift(self) -> float:
        """How much the median changed from quarter to quarter of the runs; 0 of too few to tell."""
        if len(self.samples) < _QUARTERS * _QUARTER:
            return 0.0
        quarters = np.array_split(np.asarray(self.samples), _QUARTERS)
        medians = [float(np.median(quarter)) for quarter in quarters]
        return max(medians) / min(medians) - 1

    def interval(self, seed: int = 0) -> tuple[float, float] | None:
        """Return a 95 % bootstrap interval of the median, in seconds; None of too few samples.

        Runs that follow each other are alike, so it is not runs that are drawn but stretches of
        consecutive ones, each with its median (batching: Law and Kelton, "Simulation Modeling and
        Analysis", section 9.5.3).
        """
        if len(self.samples) < MINIMUM:
            return None
        stretches = np.array_split(np.asarray(self.samples), min(len(self.samples), _STRETCHES))
        medians = np.array([np.median(stretch) for stretch in stretches])
        drawn = np.random.default_rng(seed).integers(0, len(medians), (_RESAMPLES, len(medians)))
        low, high = np.quantile(np.median(medians[drawn], axis=1), [0.025, 0.975])
        return min(float(low), self.median), max(float(high), self.median)


@dataclass(frozen=True)
class Trial:
    """A paired measurement of two callables in one process.

    Attributes
    ----------
    a, b
        The latencies of single runs.
    ratio
        How many times faster b is: of the medians of samples, which are means of short runs.
    low, high
        95 % interval of the ratio: percentile bootstrap over pairs (Efron and Tibshirani, "An
        Introduction to the Bootstrap", chapter 13).
    p_value
        Two-sided sign test over pairs, of neither being the faster.
    pairs
        How many pairs stand behind all of this.
    discarded
        How many pairs were interrupted.
    clean
        Whether the interrupted pairs were left out. If too few would remain they are not, and
        then only a difference beyond `DISTURBED` is claimed.
    """

    a: Latency
    b: Latency
    ratio: float
    low: float
    high: float
    p_value: float
    pairs: int
    discarded: int
    clean: bool

    @property
    def margin(self) -> float:
        """How far from 1 the ratio must be to be called a difference.

        `INDISTINCT`, and more the fewer pairs were clean: a machine so busy that it interrupts
        nine pairs in ten does not run the tenth at its usual speed (identical networks came out
        6 % apart there). Where hardly any pair was clean it is `DISTURBED`.
        """
        if not self.clean:
            return DISTURBED
        return INDISTINCT * (self.pairs + self.discarded) / self.pairs

    @property
    def faster(self) -> bool:
        """Whether b is faster than a: the whole interval says so, and by more than `margin`."""
        return self.low > 1 and self.ratio > 1 + self.margin

    @property
    def slower(self) -> bool:
        """Whether b is slower than a: the whole interval says so, and by more than `margin`."""
        return self.high < 1 and self.ratio < 1 / (1 + self.margin)

    def __str__(self) -> str:
        note = "" if self.clean else ", interrupted"
        return f"{self.ratio:.2f}x ({self.low:.2f} to {self.high:.2f}, {self.pairs} pairs{note})"


def measure(
    run: Run,
    *,
    warmup: int = 3,
    iterations: int | None = None,
    seconds: float = 1.0,
    clock: Clock = time.perf_counter,
    interruptions: Interruptions = involuntary_switches,
) -> Latency:
    """Time one callable, run after run.

    Parameters
    ----------
    run
        What to time.
    warmup
        Runs before the first that counts.
    iterations
        How many runs to time, interrupted ones among them. None: as many as fit into `seconds`.
    seconds
        How long to go on where `iterations` is None; at least `MINIMUM` runs are made.
    clock, interruptions
        Where the seconds and the count of context switches are read.
    """
    for _ in range(warmup):
        run()
    samples: list[_Sample] = []
    start = clock()
    while len(samples) < (iterations or MINIMUM) or (
        iterations is None and clock() - start < seconds
    ):
        samples.append(_sample(run, 1, clock, interruptions))
    return _latency(samples)


def paired(
    run_a: Run,
    run_b: Run,
    *,
    warmup: int = 3,
    rounds: int = 30,
    min_seconds: float = 0.5,
    max_seconds: float = 10.0,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    interruptions: Interruptions = involuntary_switches,
) -> Trial:
    """Time two callables in turns, and compare them.

    The pairs run A B, B A, A B, ..., so that neither gains from its place. A sample repeats runs
    shorter than `SAMPLE_SECONDS`. Pairs in which either sample was interrupted are left out.

    Parameters
    ----------
    run_a, run_b
        What to compare.
    warmup
        Runs of each before the first that counts.
    rounds
        How many clean pairs to take, at least `MINIMUM`.
    min_seconds
        How long to go on in any case: a disturbance on a shared machine can outlast 30 pairs of
        short runs, and would then pass for a difference (identical networks came out 30 % apart
        after 40 ms, and 1 % apart after 0.5 s).
    max_seconds
        When to stop although clean pairs are missing; `MINIMUM` pairs are taken in any case.
    seed
        Of the bootstrap.
    clock, interruptions
        Where the seconds and the count of context switches are read.
    """
    (trial,) = in_turns(
        (run_a, run_b),
        warmup=warmup,
        rounds=rounds,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        seed=seed,
        clock=clock,
        interruptions=interruptions,
    )
    return trial


def of_sessions(trials: Sequence[Trial]) -> Trial:
    """Return the median of trials of several sessions, with an interval that spans all of theirs.

    Where the weights of a session lie in memory stays for its life: what one pair of sessions
    shows to the percent, the next one may show ten percent off.
    """
    middle = sorted(trials, key=lambda trial: trial.ratio)[len(trials) // 2]
    low, high = min(each.low for each in trials), max(each.high for each in trials)
    return replace(middle, low=low, high=high)


def in_turns(
    runs: Sequence[Run],
    *,
    warmup: int = 3,
    rounds: int = 30,
    min_seconds: float = 0.5,
    max_seconds: float = 10.0,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    interruptions: Interruptions = involuntary_switches,
) -> list[Trial]:
    """Time several callables in turns, and compare the first with each of the others.

    As `paired`, of which this is the general case: A B C, C B A, A B C, ...

    Returns
    -------
    list of Trial
        One for each but the first.
    """
    rounds = max(rounds, MINIMUM)
    calls = [_calls_per_sample(run, warmup, clock) for run in runs]
    samples: list[list[_Sample]] = [[] for _ in runs]
    clean = [0] * (len(runs) - 1)
    start = clock()
    while clean:
        elapsed, taken = clock() - start, len(samples[0])
        if min(clean) >= rounds and elapsed >= min_seconds:
            break
        if taken >= MINIMUM and elapsed >= max_seconds:
            break
        order = range(len(runs)) if taken % 2 == 0 else reversed(range(len(runs)))
        for position in order:
            run, repeats = runs[position], calls[position]
            samples[position].append(_sample(run, repeats, clock, interruptions))
        first, *others = (each[-1].spoiled for each in samples)
        for position, spoiled in enumerate(others):
            clean[position] += not (first or spoiled)
    return [_trial(samples[0], each, seed) for each in samples[1:]]


@dataclass(frozen=True)
class _Sample:
    runs: tuple[float, ...]
    spoiled: bool

    @property
    def seconds(self) -> float:
        """Mean of its runs."""
        return sum(self.runs) / len(self.runs)


def _sample(run: Run, calls: int, clock: Clock, interruptions: Interruptions) -> _Sample:
    switches = interruptions()
    times = [clock()]
    for _ in range(calls):
        run()
        times.append(clock())
    switches = interruptions() - switches
    spoiled = switches * TICK_SECONDS > TOLERATED * (times[-1] - times[0])
    return _Sample(tuple(b - a for a, b in itertools.pairwise(times)), spoiled)


def _calls_per_sample(run: Run, warmup: int, clock: Clock) -> int:
    """Warm up, and tell how many runs make a sample."""
    least = math.inf
    for _ in range(max(warmup, 1)):
        start = clock()
        run()
        least = min(least, clock() - start)
    return max(1, math.ceil(SAMPLE_SECONDS / max(least, 1e-6)))


def _latency(samples: list[_Sample]) -> Latency:
    kept = [sample.seconds for sample in samples if not sample.spoiled]
    discarded = len(samples) - len(kept)
    if len(kept) < min(MINIMUM, len(samples)):
        return Latency(tuple(sample.seconds for sample in samples), discarded, clean=False)
    return Latency(tuple(kept), discarded)


def _trial(a: list[_Sample], b: list[_Sample], seed: int) -> Trial:
    seconds = np.array([[x.seconds, y.seconds] for x, y in zip(a, b, strict=True)])
    keep = np.array([not (x.spoiled or y.spoiled) for x, y in zip(a, b, strict=True)])
    discarded = int(np.count_nonzero(~keep))
    clean = len(keep) - discarded >= MINIMUM
    if not clean:
        keep[:] = True
    seconds = seconds[keep]
    low, high = _interval(seconds, seed)
    latency_a, latency_b = (
        Latency(
            tuple(itertools.chain.from_iterable(each.runs for each in itertools.compress(x, keep))),
            discarded,
            clean,
        )
        for x in (a, b)
    )
    medians = np.median(seconds, axis=0)
    return Trial(
        a=latency_a,
        b=latency_b,
        ratio=float(medians[0] / medians[1]),
        low=low,
        high=high,
        p_value=_sign_test(seconds),
        pairs=len(seconds),
        discarded=discarded,
        clean=clean,
    )


def _interval(seconds: npt.NDArray[np.float64], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of medians; `seconds` is pairs × 2."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(seconds), (_RESAMPLES, len(seconds)))
    medians = np.median(seconds[drawn], axis=1)
    low, high = np.quantile(medians[:, 0] / medians[:, 1], [0.025, 0.975])
    return float(low), float(high)


def _sign_test(seconds: npt.NDArray[np.float64]) -> float:
    """Two-sided sign test; ties say nothing and are left out."""
    wins = int(np.count_nonzero(seconds[:, 0] > seconds[:, 1]))
    losses = int(np.count_nonzero(seconds[:, 0] < seconds[:, 1]))
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / (1 << n))
