"""Made-up time: what anything takes follows from its multiply-adds, and no clock is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime as ort
import pytest

from onnxcp.graph.model import Model
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.summary import summarize
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.timing import Latency, Trial

SECONDS = 1e-9
"""What a multiply-add takes."""

MINIMUM = 1e-7
"""What a graph takes besides, of whatever nodes."""

Run = Callable[[], object]
Seconds = Callable[[Model, int], float]


def trial(before: float, after: float, spread: float = 0.01) -> Trial:
    """Return what a trial of so many seconds before and after says, on a quiet machine."""
    ratio = before / after
    a, b = Latency((before,) * 30), Latency((after,) * 30)
    return Trial(a, b, ratio, ratio - spread, ratio + spread, 0.0, 30, 0, clean=True)


def by_macs(model: Model, macs: int) -> float:
    """Return how long a network takes that does nothing but multiply and add."""
    return MINIMUM + SECONDS * macs


class Clockwork:
    """Takes the place of all that is timed.

    Attributes
    ----------
    alone, whole
        What a site or a chain by itself takes, and a network, by model and multiply-adds.
    counts
        How often each place asked for time.
    timed
        How many things were run in turns, call by call.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.alone: Seconds = by_macs
        self.whole: Seconds = by_macs
        self.verified: Seconds | None = None
        self.counts: Counter[str] = Counter()
        self.timed: list[int] = []
        self._models: WeakKeyDictionary[ort.InferenceSession, Model] = WeakKeyDictionary()
        self._patch(patch)

    def in_turns(self, runs: Sequence[Run], **options: Any) -> list[Trial]:
        """Compare the first of several sites and chains with the others."""
        self.counts["alone"] += 1
        self.timed.append(len(runs))
        first, *others = (self._seconds(run, self.alone) for run in runs)
        return [trial(first, other) for other in others]

    def paired(self, run_a: Run, run_b: Run, **options: Any) -> Trial:
        """Compare two networks on the way to a plan."""
        self.counts["whole"] += 1
        return trial(*(self._seconds(run, self.whole) for run in (run_a, run_b)))

    def measure(self, run: Run, **options: Any) -> Latency:
        """Time the network by itself."""
        self.counts["measure"] += 1
        return Latency((self._seconds(run, self.whole),) * 30)

    def verify(self, run_a: Run, run_b: Run, **options: Any) -> Trial:
        """Compare two networks at the end."""
        self.counts["verify"] += 1
        return trial(*(self._seconds(run, self.verified or self.whole) for run in (run_a, run_b)))

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        really = Machine.sessions

        def sessions(
            machine: Machine, model: Model, count: int = 1, **options: Any
        ) -> Iterator[ort.InferenceSession]:
            for session in really(machine, model, count, **options):
                self._models[session] = model
                yield session

        patch.setattr(Machine, "sessions", sessions)
        patch.setattr("onnxcp.planning.latency.in_turns", self.in_turns)
        patch.setattr("onnxcp.finishing.paired", self.paired)
        patch.setattr("onnxcp.finishing.measure", self.measure)
        patch.setattr("onnxcp.verification.paired", self.verify)

    def _seconds(self, run: Run, seconds: Seconds) -> float:
        runner = run.__self__  # type: ignore[attr-defined]
        model = self._models[runner._session]
        shapes = {name: np.shape(value) for name, value in runner._feeds.items()}
        macs = summarize(model, infer_shapes(model, shapes)).macs
        assert macs is not None
        return seconds(model, macs)
