"""What a rewrite starts from, and what it can be asked for on the way."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import onnxruntime as ort

from onnxcp.calibration.data import Data
from onnxcp.calibration.statistics import held_out
from onnxcp.errors import OnnxcpError
from onnxcp.graph.model import Model
from onnxcp.graph.site import find_sites
from onnxcp.passes import Context, LowerPass, Pass, PassManager, PassRecord
from onnxcp.planning.cache import Cache
from onnxcp.planning.menu import Shapes
from onnxcp.profiling.compare import Batch, OutputDifference, batch_size, first_samples
from onnxcp.profiling.session import Feeds
from onnxcp.progress import Progress
from onnxcp.refit import AsDeployed
from onnxcp.settings import Settings
from onnxcp.verification import Score, Step, output_differences

_BATCH = 32  # at most, of samples for passes


@dataclass(frozen=True, eq=False)
class Work:
    """What a rewrite starts from.

    Attributes
    ----------
    original
        The network.
    settings
        What to do.
    shapes
        Shapes of what its sites read, by name of tensor.
    feeds
        What it is timed with.
    calibration
        Samples to refit to, or None.
    samples
        Samples to compare outputs on; None for `feeds`.
    score, baseline
        What scores a session, and what it gave for the original; None where nothing does.
    labelled
        The samples that scores are shares of; None where nothing, or a user's function, scores.
    cache
        What was measured before.
    progress
        Called with what is being done, how much of it is done, and of how much.
    finish
        Passes that every rewritten network goes through in the end (`onnxcp.finishing`).
    gained
        Share of its time that they, and the lower precision, spare the original.
    lower
        What writes a network in the precision that it is deployed in, after all of them; None where
        it stays as it is.
    lowered, lowerings
        The original so written, to be beaten, and what did it; None where it stays.
    told
        What there is to say of the precision, in a sentence; else empty.
    seconds
        What a run of the original takes at least; None where it was not timed by itself yet.
    """

    original: Model
    settings: Settings
    shapes: Shapes
    feeds: Feeds
    calibration: Data | None
    samples: Data | None
    score: Score | None
    baseline: float | None
    cache: Cache
    progress: Progress
    labelled: Data | None = None
    finish: tuple[Pass, ...] = ()
    gained: float = 0.0
    lower: LowerPass | None = None
    lowered: Step | None = None
    lowerings: tuple[PassRecord, ...] = ()
    told: str = ""
    seconds: float | None = None

    @functools.cached_property
    def judges(self) -> Data | None:
        """The samples that refits hold out, to judge networks by; None if there are too few.

        None as well where a site reads something else than a row for each sample (tokens, windows,
        sequences first): of these refits hold out some of every sample.
        """
        if self.fits is None:
            return None
        batch = (batch_size(self.feeds),)
        read = (self.shapes.get(site.input, batch) for site in find_sites(self.original)[0])
        return held_out(self.fits) if all(shape[:1] == batch for shape in read) else None

    @property
    def fits(self) -> Data | None:
        """The samples to refit to, if that is to be done."""
        return None if self.settings.refit.scope == "none" else self.calibration

    @property
    def context(self) -> Context:
        """What passes may know."""
        data = self.calibration
        return Context(
            self.shapes,
            progress=lambda what: self.progress(what, 0, 1),
            samples=None if data is None else functools.partial(some_batches, data),
            machine=self.settings.machine,
        )

    def deployed(self, model: Model) -> tuple[Model, tuple[PassRecord, ...]]:
        """Return a finished network in the precision that it is deployed in."""
        if self.lower is None:
            return model, ()
        return PassManager([self.lower]).run(model, self.context)

    @property
    def layers_deployed(self) -> AsDeployed | None:
        """What a refit puts in the place of layers that it is done with; None for themselves."""
        if self.lower is None or self.settings.refit.prefix == "full":
            return None
        lower = self.lower

        def deployed(model: Model, name: str, feeds: Iterator[Batch]) -> Model:
            data = Context(
                samples=lambda count: first_samples(feeds, count),
                machine=self.settings.machine,
            )
            try:
                return lower.part(model, name, data)
            except OnnxcpError:  # what cannot be lowered by itself counts as it is
                return model

        return deployed

    def timed_as(self, model: Model) -> Model:
        """Return what takes as long as that."""
        return model if self.lower is None else self.lower.stand_in(model)

    def finished(self, model: Model) -> tuple[Model, tuple[PassRecord, ...]]:
        """Return what the last passes make of a network, and what they did."""
        return PassManager(self.finish).run(model)

    def differences(self, rewritten: Model) -> tuple[OutputDifference, ...]:
        """Compare the outputs of a rewritten network with those of the original."""
        return self._compared(rewritten, self.samples)

    def held(self, rewritten: Model) -> tuple[OutputDifference, ...]:
        """Compare them on the samples that refits hold out; nothing where there are too few."""
        return () if self.judges is None else self._compared(rewritten, self.judges)

    def _compared(self, rewritten: Model, samples: Data | None) -> tuple[OutputDifference, ...]:
        self.progress("comparing outputs", 0, 1)
        return output_differences(
            self.original,
            rewritten,
            machine=self.settings.machine,
            feeds=self.feeds,
            samples=samples,
        )

    def scored(self, model: Model) -> float | None:
        """Score a rewritten network, if anything scores."""
        if self.score is None:
            return None
        self.progress("scoring", 0, 1)
        session: ort.InferenceSession = self.settings.machine.open(
            model, label="the rewritten network"
        )
        return self.score(session)


def some_batches(data: Data, count: int) -> list[Batch]:
    """Return the first samples, in eight batches at least where there are so many."""
    size = max(1, min(_BATCH, min(count, len(data)) // 8))
    return first_samples(data.batches(size), count)
