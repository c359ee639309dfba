"""Holding a rewritten network against the original: first in numbers, then in time."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from onnxcp.calibration.data import Data
from onnxcp.errors import OnnxcpError
from onnxcp.graph.model import Model
from onnxcp.profiling.compare import Batch, Infer, OutputDifference, accuracy, compare
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.session import Feeds, Runner, infer
from onnxcp.profiling.timing import Trial, paired

Evaluate = Callable[[ort.InferenceSession], float]
Score = Callable[[ort.InferenceSession], float]

_ROUNDS = 30
_MIN_SECONDS = 2.0
_MAX_SECONDS = 30.0


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
    """

    differences: tuple[OutputDifference, ...]
    accuracy: tuple[float, float] | None
    trial: Trial


def verify(
    original: Model,
    rewritten: Model,
    machine: Machine,
    feeds: Feeds,
    *,
    samples: Data | None = None,
    score: Score | None = None,
    baseline: float | None = None,
) -> Verification:
    """Compare two networks.

    Parameters
    ----------
    original, rewritten
        The networks.
    machine
        Where to run them.
    feeds
        What to time them with; without `samples`, also what to compare their outputs on.
    samples
        Data to compare outputs on, in batches of the size of `feeds`.
    score
        Scores a session, as `scorer` makes it.
    baseline
        What it gave for the original.
    """
    a = machine.open(original)
    b = machine.open(rewritten, label="the rewritten network")
    names = [output.name for output in a.get_outputs()]
    batches: Iterable[Batch] = [feeds] if samples is None else samples.batches(batch_size(feeds))
    differences = compare(_infer(a), _infer(b), batches, names)
    scores = None if score is None or baseline is None else (baseline, score(b))
    trial = paired(
        Runner(a, feeds).run,
        Runner(b, feeds).run,
        rounds=_ROUNDS,
        min_seconds=_MIN_SECONDS,
        max_seconds=_MAX_SECONDS,
    )
    return Verification(differences, scores, trial)


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


def batch_size(feeds: Feeds) -> int:
    """Return how many samples feeds hold."""
    return max((len(value) for value in feeds.values() if value.ndim), default=1)


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
