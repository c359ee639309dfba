from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from onnxcp.profiling.warmup import STEADY, warm_up


class Clock:
    """A clock that a run moves on."""

    def __init__(self, seconds: Iterator[float]) -> None:
        self.now = 0.0
        self.runs = 0
        self._seconds = seconds

    def __call__(self) -> float:
        return self.now

    def run(self) -> None:
        self.runs += 1
        self.now += next(self._seconds)


def ramp(start: float, step: float, end: float) -> Iterator[float]:
    """Times that fall or grow, run by run, to an end."""
    value = start
    while True:
        yield value
        value *= step
        value = max(end, value) if step < 1 else min(end, value)


def test_steady_times_take_two_windows() -> None:
    clock = Clock(itertools.repeat(0.01))
    found = warm_up(clock.run, clock=clock)
    assert found.stable
    assert found.runs == clock.runs == pytest.approx(20, abs=2)
    assert found.seconds == pytest.approx(0.2, abs=0.02)
    assert found.last == pytest.approx(0.01)


def test_goes_on_while_times_fall() -> None:
    clock = Clock(ramp(0.05, 0.9, 0.01))
    found = warm_up(clock.run, clock=clock)
    assert found.stable
    assert found.last == pytest.approx(0.01)


def test_gives_up_in_the_end() -> None:
    clock = Clock(ramp(0.001, 1.02, 1.0))
    found = warm_up(clock.run, max_seconds=1.0, clock=clock)
    assert not found.stable
    assert found.seconds == pytest.approx(1.0, abs=0.1)


def test_slow_runs_make_short_windows() -> None:
    clock = Clock(itertools.repeat(0.9))
    assert warm_up(clock.run, max_seconds=10, clock=clock).runs == 6
    clock = Clock(itertools.repeat(9.0))
    assert warm_up(clock.run, max_seconds=2, clock=clock).runs == 3


def test_at_least_as_many_as_asked_for() -> None:
    clock = Clock(itertools.repeat(1.0))
    assert warm_up(clock.run, least=10, max_seconds=2, clock=clock).runs >= 10


def test_nothing_to_wait_for_where_a_run_takes_no_time_at_all() -> None:
    ticking = itertools.count()
    run: Callable[[], object] = lambda: None  # noqa: E731
    assert warm_up(run, clock=lambda: 0.01 * next(ticking)).stable


@pytest.mark.parametrize(("step", "stable"), [(1 + STEADY / 2, True), (1 + 2 * STEADY, False)])
def test_how_alike_windows_must_be(step: float, stable: bool) -> None:
    windows = iter([0.05, 0.05 * step])
    clock = Clock(itertools.chain.from_iterable([value] * 3 for value in windows))
    assert warm_up(clock.run, max_seconds=0.25, clock=clock).stable == stable
