"""Run something until its times stop changing; this module knows no ONNX Runtime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxcp.profiling.timing import Clock

#: Two windows of runs whose medians differ by less than this are alike.
STEADY = 0.03

# A window must outlast the ramp of a clock frequency, and hold enough runs for a median.
_WINDOW_SECONDS = 0.1
_WINDOW_RUNS = 3


@dataclass(frozen=True)
class WarmUp:
    """What came before the first run that counts.

    Attributes
    ----------
    runs
        How many runs it was.
    seconds
        How long they took.
    stable
        Whether times had stopped changing: the medians of the last two windows of a tenth of a
        second were within `STEADY`.
    last
        Median of the last window, in seconds per run.
    """

    runs: int
    seconds: float
    stable: bool
    last: float


def warm_up(
    run: Callable[[], object],
    *,
    least: int = 3,
    max_seconds: float = 2.0,
    clock: Clock = time.perf_counter,
) -> WarmUp:
    """Run until times are stable.

    The first runs allocate memory, fault pages in, and, on CUDA, search for algorithms; the clock
    of a processor takes tenths of a second to settle.

    Parameters
    ----------
    run
        What to warm up.
    least
        Runs to make in any case.
    max_seconds
        When to stop although times still change; a window that has begun is ended.
    clock
        Where seconds are read.
    """
    start = clock()
    runs, before, now = 0, math.inf, math.inf
    steady = False
    while runs < least or not (steady or clock() - start >= max_seconds):
        window: list[float] = []
        opened = clock()
        while len(window) < _WINDOW_RUNS or clock() - opened < _WINDOW_SECONDS:
            begin = clock()
            run()
            window.append(clock() - begin)
        runs += len(window)
        before, now = now, float(np.median(window))
        steady = math.isfinite(before) and abs(now - before) <= STEADY * before
    return WarmUp(runs, clock() - start, steady, now)
