"""Holding a rewritten network against the original: first in numbers, then in time."""

from __future__ import annotations

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
    labelled: Data | None = None,
    evaluate: Evaluate | None = None,
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
    labelled
        Data with labels to score both networks on.
    evaluate
        Scores a session, instead of labels.
    """
    a = machine.open(original)
    b = machine.open(rewritten, label="the rewritten network")
    names = [output.name for output in a.get_outputs()]
    batch = max((len(value) for value in feeds.values() if value.ndim), default=1)
    batches: Iterable[Batch] = [feeds] if samples is None else samples.batches(batch)
    differences = compare(_infer(a), _infer(b), batches, names)

    def score(session: ort.InferenceSession) -> float:
        if evaluate is not None:
            return _evaluated(evaluate, session)
        assert labelled is not None
        assert labelled.labels is not None
        return accuracy(_infer(session), labelled.batches(batch), labelled.labels[: labelled.used])

    scored = evaluate is not None or labelled is not None
    scores = (score(a), score(b)) if scored else None
    trial = paired(
        Runner(a, feeds).run,
        Runner(b, feeds).run,
        rounds=_ROUNDS,
        min_seconds=_MIN_SECONDS,
        max_seconds=_MAX_SECONDS,
    )
    return Verification(differences, scores, trial)


def _infer(session: ort.InferenceSession) -> Infer:
    def run(batch: Batch) -> Sequence[Any]:
        return infer(session, batch)

    return run


def _evaluated(evaluate: Evaluate, session: ort.InferenceSession) -> float:
    """Call the user's function; what it raises becomes a sentence, since it is no fault of ours."""
    try:
        return float(evaluate(session))
    except Exception as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise OnnxcpError(f"The evaluation function failed: {detail}.") from error
