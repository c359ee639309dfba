"""From what `optimize` is given to the work that it is: what is wrong with it shows here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnxcp.calibration.data import Data, load_calibration, load_labelled
from onnxcp.calibration.sources import CalibrationSource, DataSource
from onnxcp.errors import OnnxcpError
from onnxcp.graph.model import Model, ModelSource, load
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.summary import counted_tensors
from onnxcp.profiling.compare import compare
from onnxcp.profiling.inputs import Shape, name_shapes, session_inputs
from onnxcp.profiling.machine import Machine, observe_shapes, runnable_feeds
from onnxcp.profiling.session import infer
from onnxcp.progress import Progress
from onnxcp.settings import Settings
from onnxcp.verification import Evaluate, agreement, scorer
from onnxcp.work import Work

Feeds = Mapping[str, npt.NDArray[Any]]


def work_for(
    source: ModelSource | Model,
    settings: Settings,
    data: DataSource | CalibrationSource | None,
    labelled: DataSource | None,
    evaluate: Evaluate | None,
    progress: Progress,
) -> Work:
    """Load what is given; what is wrong with it shows now, before the work is begun."""
    machine = settings.machine
    _ = settings.target
    original = load(source)
    progress("loading", 0, 1)
    session = machine.open(original)
    calibration, scored = _data(session, data, labelled)
    # What is there to score on has no say in a plan, which may look at what networks are timed on.
    feeds = _feeds(session, settings.input_shapes, original.name, calibration)
    for other in settings.also_on:  # what does not start there fails now
        infer(other.open(original), feeds, label=f"'{original.name}' on {other}")
    score = scorer(feeds, scored, evaluate)
    if settings.goal.max_accuracy_drop is not None and score is None:
        raise OnnxcpError("A largest drop needs labelled data or a function that scores.")
    if settings.preset is not None:
        _ = settings.preset.of_responses(data=calibration is not None)
    if settings.goal.min_agreement is not None:
        _check_classes(session, feeds, calibration or scored)
    return Work(
        original=original,
        settings=settings,
        shapes=shapes_of(original, feeds, machine),
        feeds=feeds,
        calibration=calibration,
        samples=calibration or scored,
        score=score,
        baseline=None if score is None else score(session),
        cache=settings.cache,
        progress=progress,
        labelled=None if evaluate is not None else scored,
    )


def _check_classes(session: ort.InferenceSession, feeds: Feeds, samples: Data | None) -> None:
    """Check that there is something to agree about."""
    if samples is None:
        raise OnnxcpError("An agreement needs samples, to calibrate on or with labels.")
    outputs = infer(session, feeds)
    names = [each.name for each in session.get_outputs()]
    if agreement(compare(lambda _: outputs, lambda _: outputs, [feeds], names)) is None:
        raise OnnxcpError("An agreement needs an output of class scores, samples × classes.")


def _data(
    session: ort.InferenceSession,
    data: DataSource | CalibrationSource | None,
    labelled: DataSource | None,
) -> tuple[Data | None, Data | None]:
    """Return the samples to refit to, and those to score on."""
    specs = session_inputs(session)
    scored = None if labelled is None else load_labelled(labelled, specs)
    return None if data is None else load_calibration(data, specs), scored


def _feeds(
    session: ort.InferenceSession, shapes: Mapping[str, Shape], label: str, samples: Data | None
) -> dict[str, npt.NDArray[Any]]:
    """Return what to time networks on: samples, where they have the shapes that are asked for.

    Some networks run only on values that mean something (a sampling rate).
    """
    wanted = name_shapes(session_inputs(session), shapes)
    if samples is not None:
        size = max((shape[0] for shape in wanted.values() if shape), default=None)
        size = size or samples.fixed_batch or 1
        feeds = samples.feeds(0, np.arange(min(size, len(samples.parts[0]))))
        if all(feeds[name].shape == shape for name, shape in wanted.items()):
            infer(session, feeds, label=f"'{label}'")
            return feeds
    return runnable_feeds(session, shapes, label)


def shapes_of(model: Model, feeds: Feeds, machine: Machine) -> dict[str, Shape]:
    """Return the shapes of all that a model's sites read and write, from inference or a run."""
    known = infer_shapes(model, {name: value.shape for name, value in feeds.items()})
    if missing := counted_tensors(model) - known.keys():
        known |= observe_shapes(model, missing, feeds, machine)
    return known
