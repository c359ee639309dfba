from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from onnxcp.profiling import timing
from onnxcp.profiling.timing import MINIMUM, Latency, Trial, in_turns, measure, of_sessions, paired
from tests.clockwork import trial as trial_of


class Machine:
    """A machine with a clock of its own: running a callable moves the clock and nothing else."""

    def __init__(self) -> None:
        self.now = 0.0
        self.switches = 0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def interruptions(self) -> int:
        return self.switches

    def program(
        self, name: str, seconds: Iterator[float], interrupted: Callable[[int], bool] | None = None
    ) -> Callable[[], None]:
        count = itertools.count()

        def run() -> None:
            self.calls.append(name)
            self.now += next(seconds)
            if interrupted is not None and interrupted(next(count)):
                self.now += 0.004
                self.switches += 1

        return run


@pytest.fixture
def machine() -> Machine:
    return Machine()


def trial(
    machine: Machine, a: Callable[[], None], b: Callable[[], None], **options: float
) -> Trial:
    return paired(a, b, clock=machine.clock, interruptions=machine.interruptions, **options)


def constant(seconds: float) -> Iterator[float]:
    return itertools.repeat(seconds)


def noisy(seconds: float, seed: int = 0) -> Iterator[float]:
    """Seconds that scatter by 5 %."""
    rng = np.random.default_rng(seed)
    return (seconds * (1 + 0.05 * rng.standard_normal()) for _ in itertools.count())


class TestMeasure:
    def test_statistics(self, machine: Machine) -> None:
        run = machine.program("a", iter([9.0, 9.0, 9.0, *(0.1 * k for k in range(1, 11))]))
        latency = measure(run, iterations=10, clock=machine.clock, interruptions=lambda: 0)
        assert latency.median == pytest.approx(0.55)
        assert latency.mean == pytest.approx(0.55)
        assert latency.minimum == pytest.approx(0.1)
        assert latency.p90 == pytest.approx(0.91)
        assert latency.discarded == 0
        assert latency.clean

    def test_fills_the_time_given(self, machine: Machine) -> None:
        run = machine.program("a", constant(0.01))
        latency = measure(run, warmup=5, seconds=1.0, clock=machine.clock, interruptions=lambda: 0)
        assert len(latency.samples) == pytest.approx(100, abs=1)
        assert len(machine.calls) == len(latency.samples) + 5

    def test_slow_callables_run_a_few_times(self, machine: Machine) -> None:
        run = machine.program("a", constant(60.0))
        latency = measure(run, seconds=1.0, clock=machine.clock, interruptions=lambda: 0)
        assert len(latency.samples) == timing.MINIMUM

    def test_interrupted_runs_are_discarded(self, machine: Machine) -> None:
        run = machine.program("a", constant(0.001), lambda k: k % 3 == 0)
        latency = measure(
            run,
            warmup=0,
            iterations=30,
            clock=machine.clock,
            interruptions=machine.interruptions,
        )
        assert latency.discarded == 10
        assert latency.samples == pytest.approx([0.001] * 20)
        assert latency.clean

    def test_too_many_interruptions_are_kept_and_said(self, machine: Machine) -> None:
        run = machine.program("a", constant(0.001), lambda k: k != 5)
        latency = measure(
            run,
            warmup=0,
            iterations=20,
            clock=machine.clock,
            interruptions=machine.interruptions,
        )
        assert latency.discarded == 19
        assert len(latency.samples) == 20
        assert not latency.clean

    def test_runs_of_seconds_bear_a_few_interruptions(self, machine: Machine) -> None:
        run = machine.program("a", constant(1.0), lambda _: True)
        latency = measure(
            run, iterations=10, clock=machine.clock, interruptions=machine.interruptions
        )
        assert latency.discarded == 0

    def test_on_this_machine(self) -> None:
        assert measure(lambda: None, iterations=10).minimum >= 0
        assert timing.involuntary_switches() >= 0


class TestLatency:
    latency = Latency(tuple(0.001 * k for k in range(1, 102)))

    def test_quantiles(self) -> None:
        assert self.latency.quantile(0.5) == self.latency.median == pytest.approx(0.051)
        assert self.latency.quantile(0.95) == pytest.approx(0.096)
        assert self.latency.quantile(0.99) == pytest.approx(0.1)
        assert (self.latency.minimum, self.latency.maximum) == (0.001, 0.101)

    def test_drift_is_between_quarters_of_the_runs(self) -> None:
        steady = Latency((0.01, 0.03, 0.01, 0.011) * 28)
        assert steady.drift == pytest.approx(0.0)
        assert Latency((0.01,) * 50 + (0.012,) * 50).drift == pytest.approx(0.2)
        assert Latency((0.01,) * 10 + (0.012,) * 10).drift == 0  # too few to tell

    def test_the_interval_narrows_with_the_runs(self) -> None:
        seconds = noisy(0.01)
        few, many = (
            Latency(tuple(itertools.islice(seconds, count))).interval() for count in (20, 2000)
        )
        assert few[0] <= few[1]
        assert many[1] - many[0] < few[1] - few[0]
        assert many[0] < 0.01 < many[1]

    def test_runs_that_are_alike_in_stretches_say_less(self) -> None:
        rng = np.random.default_rng(0)
        stretches = np.repeat(0.01 * (1 + 0.05 * rng.standard_normal(50)), 40)
        apart = rng.permutation(stretches)
        together, mixed = (Latency(tuple(each.tolist())).interval() for each in (stretches, apart))
        assert together[1] - together[0] > 2 * (mixed[1] - mixed[0])

    def test_too_few_runs_have_no_interval(self) -> None:
        assert Latency((0.25,) * (MINIMUM - 1)).interval() is None
        assert Latency((0.25,) * MINIMUM).interval() == (0.25, 0.25)


def test_sessions_count_with_what_is_between_them() -> None:
    found = [trial_of(2.0, 1.0), trial_of(2.4, 1.0), trial_of(1.8, 1.0)]
    both = of_sessions(found)
    assert both.ratio == pytest.approx(2.0)
    assert (both.low, both.high) == (pytest.approx(1.79), pytest.approx(2.41))
    assert both.a is found[0].a


class TestPaired:
    def test_ratio_is_the_speed_up_of_b(self, machine: Machine) -> None:
        a, b = machine.program("a", noisy(0.006)), machine.program("b", noisy(0.002, 1))
        result = trial(machine, a, b)
        assert result.low <= result.ratio <= result.high
        assert result.low < 3 < result.high
        assert result.ratio == result.a.median / result.b.median
        assert result.faster
        assert not result.slower
        assert result.p_value < 1e-6

    def test_slower(self, machine: Machine) -> None:
        a, b = machine.program("a", noisy(0.002)), machine.program("b", noisy(0.006, 1))
        result = trial(machine, a, b)
        assert result.slower
        assert not result.faster

    @pytest.mark.parametrize("seed", range(5))
    def test_no_difference_is_claimed_of_equals(self, machine: Machine, seed: int) -> None:
        seconds = noisy(0.005, seed)
        result = trial(machine, machine.program("a", seconds), machine.program("b", seconds))
        assert not result.faster
        assert not result.slower

    @pytest.mark.parametrize("factor", [1.01, 1 / 1.01])
    def test_what_placement_in_memory_can_do_is_no_difference(
        self, machine: Machine, factor: float
    ) -> None:
        a = machine.program("a", constant(0.005 * factor))
        result = trial(machine, a, machine.program("b", constant(0.005)))
        assert result.low == pytest.approx(factor)
        assert not result.faster
        assert not result.slower

    def test_order_alternates(self, machine: Machine) -> None:
        a, b = machine.program("a", constant(0.01)), machine.program("b", constant(0.01))
        trial(machine, a, b, warmup=1, rounds=8, min_seconds=0)
        assert "".join(machine.calls) == "ab" + "abba" * 4

    def test_drift_cancels(self, machine: Machine) -> None:
        # A machine that gets twice as slow under way: one after the other, b would look slower.
        def seconds() -> Iterator[float]:
            while True:
                yield 0.005 * (1 + machine.now)

        a, b = machine.program("a", seconds()), machine.program("b", seconds())
        result = trial(machine, a, b, min_seconds=1.0)
        assert result.ratio == pytest.approx(1, abs=0.01)

    def test_short_runs_are_repeated_within_a_sample(self, machine: Machine) -> None:
        a, b = machine.program("a", constant(0.0001)), machine.program("b", constant(0.01))
        result = trial(machine, a, b, warmup=1, rounds=8, min_seconds=0)
        assert machine.calls.count("a") == 1 + 8 * 10
        assert machine.calls.count("b") == 1 + 8
        assert result.a.median == pytest.approx(0.0001)
        assert result.ratio == pytest.approx(0.01)
        assert (len(result.a.samples), len(result.b.samples)) == (80, 8)

    def test_the_tail_is_that_of_single_runs(self, machine: Machine) -> None:
        slow = (0.001 if k % 20 == 0 else 0.0001 for k in itertools.count())
        a, b = machine.program("a", slow), machine.program("b", constant(0.01))
        result = trial(machine, a, b, warmup=1, rounds=40, min_seconds=0)
        assert result.a.maximum == pytest.approx(0.001)
        assert result.a.quantile(0.9) == pytest.approx(0.0001)

    def test_interrupted_pairs_are_discarded_and_replaced(self, machine: Machine) -> None:
        a = machine.program("a", constant(0.002), lambda k: k % 5 == 4)
        b = machine.program("b", constant(0.001), lambda k: k % 7 == 6)
        result = trial(machine, a, b, rounds=30, min_seconds=0)
        assert result.pairs == 30
        assert result.discarded > 0
        assert result.clean
        assert result.ratio == pytest.approx(2)
        assert result.high == pytest.approx(2)

    @pytest.mark.parametrize(("interrupted", "faster"), [(0, True), (9, False)])
    def test_a_busy_machine_needs_a_larger_difference(
        self, machine: Machine, interrupted: int, faster: bool
    ) -> None:
        a = machine.program("a", constant(0.0105), lambda k: k % 10 < interrupted)
        result = trial(machine, a, machine.program("b", constant(0.01)), rounds=10)
        assert result.clean
        assert result.low == pytest.approx(1.05)
        assert result.faster == faster

    @pytest.mark.parametrize(("seconds", "faster"), [(0.012, False), (0.02, True)])
    def test_only_a_large_difference_is_claimed_where_nearly_all_pairs_are_interrupted(
        self, machine: Machine, seconds: float, faster: bool
    ) -> None:
        # An interruption adds the same tick to both: it hides a difference, it makes none.
        a = machine.program("a", constant(seconds), lambda _: True)
        b = machine.program("b", constant(0.01), lambda _: True)
        result = trial(machine, a, b, max_seconds=1.0)
        assert result.discarded == result.pairs >= timing.MINIMUM
        assert result.low > 1
        assert not result.clean
        assert result.faster == faster
        assert str(result).endswith("interrupted)")

    def test_stops_in_time(self, machine: Machine) -> None:
        a, b = machine.program("a", constant(1.0)), machine.program("b", constant(1.0))
        assert trial(machine, a, b, rounds=1000, max_seconds=20).pairs == 10
        assert trial(machine, a, b, rounds=1000, max_seconds=1).pairs == timing.MINIMUM

    def test_goes_on_for_the_least_time(self, machine: Machine) -> None:
        a, b = machine.program("a", constant(0.002)), machine.program("b", constant(0.002))
        assert trial(machine, a, b, rounds=8, min_seconds=0.4).pairs == pytest.approx(100, abs=1)

    def test_same_seed_same_interval(self) -> None:
        def intervals(seed: int) -> tuple[float, float]:
            machine = Machine()
            a, b = machine.program("a", noisy(0.004, 1)), machine.program("b", noisy(0.003, 2))
            result = trial(machine, a, b, seed=seed)
            return result.low, result.high

        assert intervals(1) == intervals(1)
        assert intervals(1) != intervals(2)

    @pytest.mark.parametrize(
        ("wins", "losses", "p"),
        [(8, 0, 2 / 256), (0, 8, 2 / 256), (4, 4, 1.0), (7, 1, 2 * 9 / 256)],
    )
    def test_sign_test(self, machine: Machine, wins: int, losses: int, p: float) -> None:
        a = machine.program("a", iter([1.0, *([3.0] * wins), *([1.0] * losses)]))
        result = trial(
            machine, a, machine.program("b", constant(2.0)), warmup=1, rounds=8, min_seconds=0
        )
        assert result.p_value == pytest.approx(p)

    def test_ties_say_nothing(self, machine: Machine) -> None:
        a, b = machine.program("a", constant(2.0)), machine.program("b", constant(2.0))
        assert trial(machine, a, b, rounds=8).p_value == 1.0


class TestInTurns:
    def together(
        self, machine: Machine, *runs: Callable[[], None], **options: float
    ) -> list[Trial]:
        return in_turns(runs, clock=machine.clock, interruptions=machine.interruptions, **options)

    def test_compares_the_first_with_each_of_the_others(self, machine: Machine) -> None:
        seconds = {"a": 0.006, "b": 0.003, "c": 0.012, "d": 0.006}
        runs = [machine.program(name, constant(each)) for name, each in seconds.items()]
        b, c, d = self.together(machine, *runs)
        assert [each.ratio for each in (b, c, d)] == pytest.approx([2, 0.5, 1])
        assert [each.b.median for each in (b, c, d)] == pytest.approx([0.003, 0.012, 0.006])
        assert all(each.a.median == pytest.approx(0.006) for each in (b, c, d))
        assert b.faster
        assert c.slower
        assert not d.faster
        assert not d.slower

    def test_order_turns_round(self, machine: Machine) -> None:
        runs = [machine.program(name, constant(0.01)) for name in "abc"]
        self.together(machine, *runs, warmup=1, rounds=8, min_seconds=0)
        assert "".join(machine.calls) == "abc" + "abccba" * 4

    def test_drift_cancels(self, machine: Machine) -> None:
        def seconds() -> Iterator[float]:
            while True:
                yield 0.005 * (1 + machine.now)

        runs = [machine.program(name, seconds()) for name in "abcd"]
        trials = self.together(machine, *runs, min_seconds=2.0)
        assert [each.ratio for each in trials] == pytest.approx([1, 1, 1], abs=0.02)

    def test_of_two_is_a_pair(self) -> None:
        def found(compare: Callable[..., Trial | list[Trial]]) -> Trial | list[Trial]:
            machine = Machine()
            a, b = machine.program("a", noisy(0.004, 1)), machine.program("b", noisy(0.003, 2))
            return compare(machine, a, b, rounds=12, min_seconds=0, seed=3)

        assert found(self.together) == [found(trial)]

    @pytest.mark.parametrize("others", [0, 1])
    def test_of_nothing_to_compare(self, machine: Machine, others: int) -> None:
        runs = [machine.program(str(number), constant(0.01)) for number in range(1 + others)]
        assert len(self.together(machine, *runs)) == others
        assert bool(others) == (len(machine.calls) > 3)

    def test_short_runs_are_repeated_each_for_itself(self, machine: Machine) -> None:
        runs = [machine.program(name, constant(each)) for name, each in (("b", 1e-4), ("a", 0.01))]
        self.together(machine, *runs, warmup=1, rounds=8, min_seconds=0)
        assert machine.calls.count("a") == 1 + 8
        assert machine.calls.count("b") == 1 + 8 * 10

    def test_an_interruption_spoils_only_the_pairs_that_it_fell_into(
        self, machine: Machine
    ) -> None:
        a, c = (machine.program(name, constant(0.002)) for name in "ac")
        b = machine.program("b", constant(0.002), lambda k: k % 3 == 2)
        with_b, with_c = self.together(machine, a, b, c, warmup=0, rounds=20, min_seconds=0)
        assert with_b.pairs == 20
        assert with_b.discarded > 5
        assert with_c.discarded == 0
        assert with_c.pairs == with_b.pairs + with_b.discarded
        assert with_b.ratio == pytest.approx(1)

    def test_an_interruption_of_the_first_spoils_all(self, machine: Machine) -> None:
        a = machine.program("a", constant(0.002), lambda k: k % 3 == 2)
        b, c = (machine.program(name, constant(0.002)) for name in "bc")
        with_b, with_c = self.together(machine, a, b, c, warmup=0, rounds=20, min_seconds=0)
        assert with_b.pairs == with_c.pairs == 20
        assert with_b.discarded == with_c.discarded > 5

    def test_goes_on_until_the_most_disturbed_has_enough(self, machine: Machine) -> None:
        a, b = (machine.program(name, constant(0.002)) for name in "ab")
        c = machine.program("c", constant(0.002), lambda k: k % 10 != 0)
        trials = self.together(machine, a, b, c, rounds=20, min_seconds=0, max_seconds=60)
        assert [each.pairs for each in trials][1] == 20
        assert trials[0].pairs > 150

    def test_stops_in_time(self, machine: Machine) -> None:
        runs = [machine.program(name, constant(1.0)) for name in "abc"]
        trials = self.together(machine, *runs, rounds=1000, max_seconds=30)
        assert [each.pairs for each in trials] == [10, 10]
        trials = self.together(machine, *runs, rounds=1000, max_seconds=1)
        assert [each.pairs for each in trials] == [timing.MINIMUM] * 2


def test_trial_prints_as_a_sentence_would() -> None:
    latency = Latency((1.0,))
    result = Trial(latency, latency, 3.42, 3.31, 3.55, 0.0, 60, 0, clean=True)
    assert str(result) == "3.42x (3.31 to 3.55, 60 pairs)"
