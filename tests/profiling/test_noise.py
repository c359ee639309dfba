from __future__ import annotations

import pytest

from onnxcp.profiling.machine import Machine
from onnxcp.profiling.noise import (
    AGREEMENT,
    Level,
    Noise,
    Verdict,
    claim,
    judge,
    noise_of,
    probe,
    widened,
)
from onnxcp.profiling.timing import DISTURBED, INDISTINCT, Latency, Trial

QUIET = Noise(apart=0.005, drift=0.01, interrupted=0.0)


def trial(
    ratio: float,
    *,
    spread: float = 0.01,
    median: float = 1e-3,
    pairs: int = 30,
    discarded: int = 0,
    clean: bool = True,
) -> Trial:
    return Trial(
        a=Latency((ratio * median,) * pairs),
        b=Latency((median,) * pairs),
        ratio=ratio,
        low=ratio / (1 + spread),
        high=ratio * (1 + spread),
        p_value=0.0,
        pairs=pairs,
        discarded=discarded,
        clean=clean,
    )


class TestNoise:
    def test_of_a_quiet_machine(self) -> None:
        noise = noise_of([trial(1.0, spread=0.01), trial(1.0, spread=0.02)])
        assert noise.apart == pytest.approx(0.02)
        assert noise.drift == pytest.approx(0.0)
        assert noise.interrupted == 0
        assert noise.level is Level.QUIET

    def test_drift_between_the_first_and_the_last(self) -> None:
        noise = noise_of([trial(1.0), trial(1.0, median=1.1e-3)])
        assert noise.drift == pytest.approx(0.1)
        assert noise.level is Level.NOISY

    def test_apart_counts_both_ends(self) -> None:
        low, high = trial(0.9, spread=0.0), trial(1 / 0.9, spread=0.0)
        assert noise_of([low]).apart == pytest.approx(noise_of([high]).apart)

    @pytest.mark.parametrize(("clean", "pairs", "share"), [(True, 10, 2 / 3), (False, 30, 2 / 3)])
    def test_interrupted(self, clean: bool, pairs: int, share: float) -> None:
        # Pairs that were interrupted are among those that count only where too few were clean.
        noise = noise_of([trial(1.0, pairs=pairs, discarded=20, clean=clean)])
        assert noise.interrupted == pytest.approx(share)

    @pytest.mark.parametrize(
        ("worst", "level"),
        [
            (AGREEMENT, Level.QUIET),
            (AGREEMENT + 0.001, Level.NOISY),
            (DISTURBED, Level.NOISY),
            (DISTURBED + 0.001, Level.BUSY),
        ],
    )
    def test_levels(self, worst: float, level: Level) -> None:
        assert Noise(worst, 0.0, 0.0).level is level
        assert Noise(0.0, worst, 0.0).level is level
        assert Noise(0.0, 0.0, 0.0, within=worst).level is level

    def test_in_words(self) -> None:
        assert str(Noise(0.012, 0.05, 0.25)) == (
            "noisy: identical work came out 1.2 % apart in turns and drifted by 5.0 %, 25 % of it "
            "interrupted"
        )
        assert str(Noise(0.012, 0.01, 0.25, within=0.05)).endswith(
            "25 % of it interrupted, and the runs themselves drifted by 5.0 %"
        )


class TestClaim:
    @pytest.mark.parametrize(
        ("ratio", "verdict"),
        [
            (2.0, Verdict.FASTER),
            (0.5, Verdict.SLOWER),
            (1 + INDISTINCT / 2, Verdict.SAME),
            (1.0, Verdict.SAME),
        ],
    )
    def test_on_a_quiet_machine(self, ratio: float, verdict: Verdict) -> None:
        assert claim(trial(ratio), QUIET).verdict is verdict

    def test_noise_widens_the_interval_and_the_margin(self) -> None:
        noise = Noise(apart=0.1, drift=0.0, interrupted=0.0)
        told = claim(trial(1.08, spread=0.01), noise)
        assert told.verdict is Verdict.SAME
        assert claim(trial(1.08, spread=0.01), QUIET).verdict is Verdict.FASTER
        assert told.low == pytest.approx(1.08 / 1.01 / 1.1)
        assert told.high == pytest.approx(1.08 * 1.01 * 1.1)
        assert told.margin == pytest.approx(0.1)

    def test_a_large_difference_shows_through_noise(self) -> None:
        assert claim(trial(2.0), Noise(0.2, 0.2, 0.5)).verdict is Verdict.FASTER

    def test_nothing_is_claimed_on_a_busy_machine(self) -> None:
        assert claim(trial(2.0), Noise(DISTURBED + 0.01, 0, 1)).verdict is Verdict.REFUSED

    def test_drift_is_no_matter_for_pairs(self) -> None:
        told = claim(trial(1.5), Noise(apart=0.005, drift=0.5, interrupted=0.0))
        assert told.verdict is Verdict.FASTER

    def test_a_trial_that_was_interrupted_keeps_its_margin(self) -> None:
        told = claim(trial(1.2, clean=False), QUIET)
        assert told.margin == DISTURBED
        assert told.verdict is Verdict.SAME


@pytest.mark.parametrize(
    ("ratio", "low", "high", "verdict"),
    [
        (1.10, 1.01, 1.20, Verdict.FASTER),
        (1.10, 0.99, 1.20, Verdict.SAME),
        (1.02, 1.01, 1.03, Verdict.SAME),
        (0.90, 0.85, 0.99, Verdict.SLOWER),
        (0.90, 0.85, 1.01, Verdict.SAME),
    ],
)
def test_the_whole_interval_and_a_margin(
    ratio: float, low: float, high: float, verdict: Verdict
) -> None:
    assert judge(ratio, low, high, 0.03) is verdict


def test_intervals_of_times_are_widened_by_drift() -> None:
    assert widened((1.0, 2.0), Noise(0.2, 0.1, 0.0)) == pytest.approx((1 / 1.1, 2.2))
    assert widened((1.0, 2.0), Noise(0.0, 0.3, 0.0)) is None


def test_the_probe_runs_here() -> None:
    check = probe(Machine(intra_op_num_threads=1), seconds=0.01)
    noise = noise_of([check(), check()])
    assert noise.apart >= 0
    assert noise.drift >= 0
    assert 0 <= noise.interrupted <= 1
