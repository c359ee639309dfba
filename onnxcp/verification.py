"""Holding a rewritten network against the original: first in numbers, then in time."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxcp.calibration.data import Data
from onnxcp.errors import OnnxcpError
from onnxcp.factorize import Factorized
from onnxcp.graph.chain import with_kernel
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site
from onnxcp.graph.splice import splice
from onnxcp.profiling.compare import (
    Batch,
    Infer,
    OutputDifference,
    accuracy,
    batch_size,
    compare,
)
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.session import Feeds, Runner, infer
from onnxcp.profiling.timing import Trial, of_sessions, paired

Evaluate = Callable[[ort.InferenceSession], float]
Score = Callable[[ort.InferenceSession], float]

SESSIONS = 3

_ROUNDS = 30
_MIN_SECONDS = 0.8
_MAX_SECONDS = 12.0
_REWRITTEN = "the rewritten network"

_ROUNDING = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-4, "float64": 1e-10}


@dataclass(frozen=True)
class Elsewhere:
    """What came of timing two networks on a machine that they were not planned for.

    Attributes
    ----------
    machine
        The machine.
    trial
        Original (a) against rewritten (b), paired, there.
    """

    machine: Machine
    trial: Trial


@dataclass(frozen=True)
class Verification:
    """What came of a comparison of two networks.

    Attributes
    ----------
    differences
        How their outputs differ, output by output.
    accuracy
        Score of the original and of the rewritten network: the share of right classes, or what the
        user's function gave; None without labels and function.
    trial
        Original (a) against rewritten (b), paired.
    elsewhere
        The same on the further machines that the user named.
    """

    differences: tuple[OutputDifference, ...]
    accuracy: tuple[float, float] | None
    trial: Trial
    elsewhere: tuple[Elsewhere, ...] = ()

    @property
    def faster(self) -> bool:
        """Whether the rewritten network is faster on every machine."""
        return self.trial.faster and all(each.trial.faster for each in self.elsewhere)

    @property
    def shown(self) -> str:
        """The ratio and its interval; where it is no faster elsewhere alone, those there."""
        lost = [each for each in self.elsewhere if not each.trial.faster]
        if not self.trial.faster or not lost:
            return str(self.trial)
        return "; ".join(f"{each.trial} on {each.machine}" for each in lost)


@dataclass(frozen=True, eq=False)
class Step:
    """A network on the way from the original to the one that is handed out.

    Attributes
    ----------
    name
        What was done to it, in words.
    model
        The network.
    trial
        Original (a) against it (b), paired.
    differences
        How its outputs differ from those of the original.
    score
        What it scores; None where nothing does.
    notes
        What was done to lower its precision.
    """

    name: str
    model: Model
    trial: Trial
    differences: tuple[OutputDifference, ...]
    score: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Relative error of its outputs, all together."""
        return whole_error(self.differences)


def output_differences(
    original: Model,
    rewritten: Model,
    *,
    machine: Machine,
    feeds: Feeds,
    samples: Data | None = None,
) -> tuple[OutputDifference, ...]:
    """Compare the outputs of two networks.

    Parameters
    ----------
    original, rewritten
        The networks.
    machine
        Where to run them.
    feeds
        What to run them on without `samples`.
    samples
        Data to compare on, in batches of the size of `feeds`.
    """
    a = machine.open(original)
    b = machine.open(rewritten, label="the rewritten network")
    names = [output.name for output in a.get_outputs()]
    batches: Iterable[Batch] = [feeds] if samples is None else samples.batches(batch_size(feeds))
    return compare(_infer(a), _infer(b), batches, names)


def total_error(differences: Iterable[OutputDifference]) -> float:
    """Return the sum of the errors of all outputs; infinite where one is not finite any more."""
    return sum(
        math.inf if each.finite_a and not each.finite_b else each.error for each in differences
    )


def whole_error(differences: Iterable[OutputDifference]) -> float:
    """Return the relative error of all outputs together: the root of the sum of the squares."""
    return math.sqrt(sum(min(each.error, 1e18) ** 2 for each in differences))


def agreement(differences: Iterable[OutputDifference]) -> float | None:
    """Return the share of samples with the same top class, the least of all outputs of classes.

    None where no output is one of classes.
    """
    known = [each.top1_agreement for each in differences if each.top1_agreement is not None]
    return min(known, default=None)


def verify(
    original: Model,
    rewritten: Model,
    machine: Machine,
    feeds: Feeds,
    differences: tuple[OutputDifference, ...],
    *,
    score: Score | None = None,
    baseline: float | None = None,
    also_on: Sequence[Machine] = (),
) -> Verification:
    """Score and time two networks.

    Parameters
    ----------
    original, rewritten
        The networks.
    machine
        Where to run them.
    feeds
        What to time them with.
    differences
        How their outputs differ.
    score
        Scores a session, as `scorer` makes it.
    baseline
        What it gave for the original.
    also_on
        Further machines to time them on.
    """
    scores = None
    if score is not None and baseline is not None:
        scores = baseline, score(machine.open(rewritten, label=_REWRITTEN))
    trial, *others = (time(original, rewritten, each, feeds) for each in (machine, *also_on))
    elsewhere = tuple(map(Elsewhere, also_on, others))
    return Verification(differences, scores, trial, elsewhere)


def time(first: Model, second: Model, machine: Machine, feeds: Feeds) -> Trial:
    """Time two networks (a, b) in turns, in a few sessions of both; as `of_sessions` sums up."""

    def trial(*sessions: ort.InferenceSession) -> Trial:
        a, b = (Runner(session, feeds).run for session in sessions)
        return paired(a, b, rounds=_ROUNDS, min_seconds=_MIN_SECONDS, max_seconds=_MAX_SECONDS)

    pairs = zip(
        machine.sessions(first, SESSIONS),
        machine.sessions(second, SESSIONS, label=_REWRITTEN),
        strict=True,
    )
    return of_sessions([trial(*pair) for pair in pairs])


def scorer(feeds: Feeds, labelled: Data | None, evaluate: Evaluate | None) -> Score | None:
    """Return what scores a session, or None if there is nothing to score with.

    Parameters
    ----------
    feeds
        What networks are timed with: labelled data are run in batches of the same size.
    labelled
        Data with labels: the score is the share of right classes.
    evaluate
        The user's own function, which is preferred.
    """
    if evaluate is not None:
        return functools.partial(_evaluated, evaluate)
    if labelled is None or labelled.labels is None:
        return None
    data, labels = labelled, labelled.labels[: labelled.used]

    def score(session: ort.InferenceSession) -> float:
        return accuracy(_infer(session), data.batches(batch_size(feeds)), labels)

    return score


def _infer(session: ort.InferenceSession) -> Infer:
    def run(batch: Batch) -> Sequence[Any]:
        return infer(session, batch)

    return run


def _evaluated(evaluate: Evaluate, session: ort.InferenceSession) -> float:
    """Call the user's function; what it raises becomes a sentence, since it is no fault of ours.

    What it prints goes to stderr: stdout is for results.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return float(evaluate(session))
    except (Exception, SystemExit) as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise OnnxcpError(f"The evaluation function failed: {detail}.") from error


def rounding_error(
    alone: Model, site: Site, result: Factorized, feeds: Feeds, machine: Machine
) -> float:
    """Run a chain against the one kernel that it stands for; return their relative distance.

    Parameters
    ----------
    alone, site
        A model of one site's node, and the site in it.
    result
        Factors of the site's kernel.
    feeds
        What to run it on.
    machine
        Where.
    """
    label = f"'{result.site.name}'"
    whole = splice(alone, {site: ("whole", with_kernel(site, result.kernel, result.bias))})
    chain = splice(alone, {site: ("chain", result.chain)})
    expected, got = (
        infer(machine.open(model, label=label), feeds, label=label)[0].astype(np.float64)
        for model in (whole, chain)
    )
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(got - expected)) / norm if norm else 0.0


def tolerable(site: Site, error: float) -> bool:
    """Tell whether an error is what rounding of a site's type explains. NaN is not."""
    return error <= _ROUNDING[site.dtype.name]
