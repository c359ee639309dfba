"""The main job: a network comes in, a faster one that computes nearly the same goes out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from onnxcp.calibration.data import Data, load_calibration, load_labelled
from onnxcp.calibration.sources import CalibrationSource, DataSource
from onnxcp.graph.model import Model, ModelSource, load
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.summary import Summary, counted_tensors, summarize
from onnxcp.passes import PassRecord
from onnxcp.planning.option import Decision
from onnxcp.profiling.compare import OutputDifference
from onnxcp.profiling.inputs import Shape, session_inputs
from onnxcp.profiling.machine import Machine, observe_shapes, runnable_feeds
from onnxcp.progress import Progress, silent
from onnxcp.rewriting import by_choice, by_passes, refitted
from onnxcp.settings import Settings
from onnxcp.verification import (
    Evaluate,
    Verification,
    output_differences,
    scorer,
    total_error,
    verify,
)

NOTHING = "Nothing was worth rewriting; the original is handed back."
SLOWER = "The rewritten network is not faster; the original is handed back"
BROKEN = "The rewritten network overflows where the original does not; the original is handed back."
FASTER = "The rewritten network is faster"

Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Optimized:
    """What `optimize` did.

    Attributes
    ----------
    original, model
        The network that came in, and the one to use: the rewritten one, or the original itself
        where the rewritten one is not faster.
    improved
        Whether `model` is a rewritten one.
    verdict
        One sentence on the outcome.
    decisions
        What was decided for each site; empty where a pipeline was given.
    refusals
        Nodes that are no sites, and why.
    records
        What each pass did.
    before, after
        Size and cost of the original, and of the rewritten network if there is one.
    verification
        The original against the rewritten network, in numbers and in time.
    shapes
        Shapes of the inputs that all of this was measured with.
    data_is_random
        Whether outputs were compared on random inputs, for want of data.
    unfitted
        How the outputs differed before chains were refitted; empty if none were. The same as in
        `verification` if the refit took them no closer, and was given up.
    """

    original: Model
    model: Model
    improved: bool
    verdict: str
    decisions: tuple[Decision, ...]
    refusals: tuple[Refusal, ...]
    records: tuple[PassRecord, ...]
    before: Summary
    after: Summary | None
    verification: Verification | None
    shapes: Mapping[str, Shape]
    data_is_random: bool
    unfitted: tuple[OutputDifference, ...] = ()


def optimize(
    source: ModelSource | Model,
    settings: Settings | None = None,
    *,
    data: DataSource | CalibrationSource | None = None,
    labelled: DataSource | None = None,
    evaluate: Evaluate | None = None,
    progress: Progress = silent,
) -> Optimized:
    """Make a network faster on the machine at hand, or say why it cannot be done.

    BatchNormalization is folded; every Conv, Gemm and MatMul with a constant weight is offered to
    each family at the rank that the target allows; chains are timed against the nodes that they
    would replace; the best are put in; the result is held against the original in numbers and
    then, whole and paired, in time. A result that is not faster is thrown away.

    Where there are data, families are chosen by what they do to the outputs of a site instead of
    its weights, and the chains are refitted (see `onnxcp.refit`).

    Parameters
    ----------
    source
        The model; it is not changed.
    settings
        What to do.
    data
        Samples to refit chains to and to compare outputs on, as
        `onnxcp.calibration.data.load_data` takes them; at most 1024 unless a `CalibrationSource`
        says otherwise. Without them nothing is refitted, and outputs are compared on `labelled`, or
        else on seeded random inputs.
    labelled
        Samples with an array `label` to score both networks on. Nothing is ever fitted to them.
    evaluate
        Called with an `onnxruntime.InferenceSession` of each network; returns a score.
    progress
        Called with what is being done, how much of it is done, and of how much.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot load or run the model.
    OnnxcpError
        If data, shapes, passes or providers do not fit.
    """
    settings = settings or Settings()
    machine = settings.machine
    _ = settings.target  # what is wrong with it shows now
    original = load(source)

    progress("loading", 0, 1)
    session = machine.open(original)
    calibration, scored = _data(session, data, labelled)
    samples = calibration or scored
    feeds = runnable_feeds(session, settings.input_shapes, original.name)
    # Scored before the work is begun: what is wrong with the labels or the function shows now.
    score = scorer(feeds, scored, evaluate)
    baseline = None if score is None else score(session)
    del session
    shapes = {name: value.shape for name, value in feeds.items()}
    known = _shapes(original, feeds, machine)
    before = summarize(original, known)

    if settings.passes:
        rewrite = by_passes(original, settings, known, calibration, progress)
    else:
        rewrite = by_choice(original, settings, known, progress)
    differ = functools.partial(
        output_differences, original, machine=machine, feeds=feeds, samples=samples
    )
    unfitted: tuple[OutputDifference, ...] = ()
    differences: tuple[OutputDifference, ...] = ()
    if rewrite.model is not None:
        progress("comparing outputs", 0, 1)
        differences = differ(rewrite.model)
        fits = calibration is not None and settings.refit.scope != "none"
        if rewrite.decisions and fits:
            assert calibration is not None
            after_refit = refitted(rewrite, settings, calibration, progress)
            assert after_refit.model is not None
            progress("comparing outputs", 0, 1)
            unfitted, fitted = differences, differ(after_refit.model)
            if total_error(fitted) <= total_error(unfitted):
                rewrite, differences = after_refit, fitted

    result = Optimized(
        original=original,
        model=original,
        improved=False,
        verdict=NOTHING,
        decisions=rewrite.decisions,
        refusals=rewrite.refusals,
        records=rewrite.records,
        before=before,
        after=None,
        verification=None,
        shapes=shapes,
        data_is_random=samples is None,
        unfitted=unfitted,
    )
    rewritten = rewrite.model
    if rewritten is None:
        return result

    progress("verifying", 0, 1)
    verification = verify(
        original, rewritten, machine, feeds, differences, score=score, baseline=baseline
    )
    after = summarize(rewritten, _shapes(rewritten, feeds, machine))
    result = replace(result, after=after, verification=verification)
    if any(d.finite_a and not d.finite_b for d in verification.differences):
        return replace(result, verdict=BROKEN)
    if not verification.trial.faster:
        return replace(result, verdict=f"{SLOWER} ({verification.trial})")
    return replace(
        result, model=rewritten, improved=True, verdict=f"{FASTER}: {verification.trial}"
    )


def _data(
    session: ort.InferenceSession,
    data: DataSource | CalibrationSource | None,
    labelled: DataSource | None,
) -> tuple[Data | None, Data | None]:
    """Return the samples to refit to, and those to score on."""
    specs = session_inputs(session)
    scored = None if labelled is None else load_labelled(labelled, specs)
    return None if data is None else load_calibration(data, specs), scored


def _shapes(model: Model, feeds: Feeds, machine: Machine) -> dict[str, Shape]:
    """Return the shapes of all that a model's sites read and write, from inference or a run."""
    known = infer_shapes(model, {name: value.shape for name, value in feeds.items()})
    if missing := counted_tensors(model) - known.keys():
        known |= observe_shapes(model, missing, feeds, machine)
    return known
