"""The last passes of a rewrite: exact, and only where the clock has nothing against them."""

from __future__ import annotations

from dataclasses import replace

import onnxruntime as ort

from onnxcp.graph.model import Model
from onnxcp.passes import LowerPass, PassManager, registered_passes
from onnxcp.pipeline import parse_pipeline
from onnxcp.profiling.session import Runner
from onnxcp.profiling.timing import Trial, measure, paired
from onnxcp.rewriting import fold
from onnxcp.work import Work

SESSIONS = 3  # to time a network in: where weights lie in memory makes one of six 15 % slower

_WARMUP = 2  # runs, and
_ROUNDS = 8  # pairs in each of them
_MIN_SECONDS = 0.2
_MAX_SECONDS = 0.5  # on a busy machine,
_MAX_RUNS = 20  # or as many runs of the network, if they take longer


def with_finish(work: Work) -> Work:
    """Return the work with the passes that end it.

    They are those of its plan, if it has one; none where passes were given; else those of the
    installed ones that `finishes` and that are not measured to make the original slower.
    """
    settings = work.settings
    if settings.plan is not None:
        passes = parse_pipeline(settings.plan.finish) if settings.plan.finish else ()
        return replace(work, finish=tuple(e for e in passes if not isinstance(e, LowerPass)))
    if settings.passes:
        return work
    prepared, _ = fold(work.original)
    for kind in registered_passes().values():
        if not kind.finishes:
            continue
        each = kind()
        model, (*_, record) = PassManager([*work.finish, each]).run(prepared)
        if not record.changed:
            continue
        work.progress(f"timing {each}", 0, 1)
        seconds = seconds_of_original(work)
        work = replace(work, seconds=seconds)
        trial = race(work, model, seconds)
        if trial.high >= 1:
            gained = max(1 - 1 / trial.ratio, 0.0)
            work = replace(work, finish=(*work.finish, each), gained=gained)
    return work


def seconds_of_original(work: Work) -> float:
    """Time the original by itself, if it was not yet: the least that a run takes, in seconds."""
    if work.seconds is not None:
        return work.seconds
    # The first plan rests on it, and has no other network to be compared with: what disturbs a run
    # only adds to it. Later plans rest on paired medians.
    sessions = work.settings.machine.sessions(work.original, SESSIONS)
    runs = (Runner(session, work.feeds).run for session in sessions)
    return min(measure(run, seconds=_MIN_SECONDS).minimum for run in runs)


def race(work: Work, network: Model, seconds: float) -> Trial:
    """Time the original (a) against another network (b): the median of a few sessions of both.

    Parameters
    ----------
    work
        The work.
    network
        The other network.
    seconds
        What a run of the original takes.
    """

    def trial(*sessions: ort.InferenceSession) -> Trial:
        before, after = (Runner(session, work.feeds).run for session in sessions)
        return paired(
            before,
            after,
            warmup=_WARMUP,
            rounds=_ROUNDS,
            min_seconds=_MIN_SECONDS,
            max_seconds=max(_MAX_SECONDS, _MAX_RUNS * seconds),
        )

    machine = work.settings.machine
    each = (
        machine.sessions(model, SESSIONS, label="the planned network")
        for model in (work.original, network)
    )
    trials = [trial(*pair) for pair in zip(*each, strict=True)]
    return sorted(trials, key=lambda found: found.ratio)[SESSIONS // 2]
