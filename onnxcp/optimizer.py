"""The main job: a network comes in, a faster one that computes nearly the same goes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from onnxcp.calibration.data import Data, load_calibration, load_labelled
from onnxcp.calibration.sources import CalibrationSource, DataSource
from onnxcp.errors import OnnxcpError, PassError
from onnxcp.factorize import FactorizePass
from onnxcp.graph.model import Model, ModelSource, load
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.site import find_sites
from onnxcp.graph.splice import splice
from onnxcp.graph.summary import Summary, counted_tensors, summarize
from onnxcp.passes import Context, PassManager, PassRecord, find_pass, registered_passes
from onnxcp.pipeline import parse_pipeline
from onnxcp.planning.blocks import rank_block
from onnxcp.planning.decide import Menu, Target, decide
from onnxcp.planning.option import Decision
from onnxcp.profiling.inputs import Shape, session_inputs
from onnxcp.profiling.machine import Machine, observe_shapes, runnable_feeds
from onnxcp.progress import Progress, silent
from onnxcp.verification import Evaluate, Verification, scorer, verify

DEFAULT_MAX_ERROR = 0.1

NOTHING = "Nothing was worth rewriting; the original is handed back."
SLOWER = "The rewritten network is not faster; the original is handed back"
BROKEN = "The rewritten network overflows where the original does not; the original is handed back."
FASTER = "The rewritten network is faster"

Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Settings:
    """What `optimize` is asked to do. All shares and errors lie in (0, 1].

    Attributes
    ----------
    macs
        Keep at most this share of each site's multiply-adds; the closest family is taken.
    energy
        Keep at least this share of each kernel's squared Frobenius norm; the fastest family is
        taken. The same as a `max_error` of sqrt(1 - energy).
    max_error
        Largest relative Frobenius error of each kernel; the fastest family is taken. Where none of
        the three is given, `DEFAULT_MAX_ERROR` is the target.
    families
        Names of the families to choose from. By default all that are installed; for a target of
        error without those that can only find a rank by trial, which takes long (cp3 and cp4).
    nodes, exclude
        Names of the sites to rewrite and to leave alone: patterns as of a shell, several separated
        by spaces.
    round_to
        Ranks become multiples of this. None: of the block that ranks cost in on this machine,
        found by measuring.
    passes
        Pipeline text to run instead of choosing families site by site.
    machine
        Where the network will run.
    input_shapes
        Shapes of inputs, by name, to measure with. Open extents are otherwise taken as 1, and
        those of the spatial axes of images as 224.
    """

    macs: float | None = None
    energy: float | None = None
    max_error: float | None = None
    families: tuple[str, ...] = ()
    nodes: str = "*"
    exclude: str = ""
    round_to: int | None = None
    passes: str = ""
    machine: Machine = field(default_factory=Machine)
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.round_to is not None and self.round_to < 1:
            raise OnnxcpError(f"Ranks cannot be rounded to multiples of {self.round_to}.")

    @property
    def target(self) -> Target:
        """The target of each site."""
        if self.energy is None:
            untold = self.macs is None and self.max_error is None
            return Target(self.macs, DEFAULT_MAX_ERROR if untold else self.max_error)
        if self.macs is not None or self.max_error is not None or not 0 < self.energy <= 1:
            raise OnnxcpError("Give one of macs, energy and max-error, each in (0, 1].")
        # At energy 1 any error is too large; that of rounding must still pass.
        return Target(max_error=max((1 - self.energy) ** 0.5, 1e-6))


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

    Parameters
    ----------
    source
        The model; it is not changed.
    settings
        What to do.
    data
        Samples to compare outputs on, as `onnxcp.calibration.data.load_data` takes them; at most
        1024 unless a `CalibrationSource` says otherwise. Without them, and without `labelled`,
        seeded random inputs serve.
    labelled
        Samples with an array `label` to score both networks on.
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
    machine, target = settings.machine, settings.target
    original = load(source)

    progress("loading", 0, 1)
    session = machine.open(original)
    samples, scored = _data(session, data, labelled)
    feeds = runnable_feeds(session, settings.input_shapes, original.name)
    # Scored before the work is begun: what is wrong with the labels or the function shows now.
    score = scorer(feeds, scored, evaluate)
    baseline = None if score is None else score(session)
    del session
    shapes = {name: value.shape for name, value in feeds.items()}
    known = _shapes(original, feeds, machine)
    before = summarize(original, known)

    decisions: tuple[Decision, ...] = ()
    rewritten: Model | None
    if settings.passes:
        refusals = find_sites(original)[1]
        passes = PassManager(parse_pipeline(settings.passes))
        context = Context(known, lambda what: progress(what, 0, 1))
        rewritten, records = passes.run(original, context)
        if not any(record.changed for record in records):
            rewritten = None
    else:
        prepared, records = PassManager([find_pass("fold-batchnorm")()]).run(original)
        sites, refusals = find_sites(prepared)
        menu = _menu(settings, target, machine) if sites else None
        decisions = tuple(decide(prepared, sites, menu, known, machine, progress)) if menu else ()
        rewritten = _splice(prepared, decisions)

    result = Optimized(
        original=original,
        model=original,
        improved=False,
        verdict=NOTHING,
        decisions=decisions,
        refusals=tuple(refusals),
        records=records,
        before=before,
        after=None,
        verification=None,
        shapes=shapes,
        data_is_random=samples is None,
    )
    if rewritten is None:
        return result

    progress("verifying", 0, 1)
    verification = verify(
        original, rewritten, machine, feeds, samples=samples, score=score, baseline=baseline
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
    """Return the samples to compare outputs on, and those to score on."""
    specs = session_inputs(session)
    scored = None if labelled is None else load_labelled(labelled, specs)
    return scored if data is None else load_calibration(data, specs), scored


def _shapes(model: Model, feeds: Feeds, machine: Machine) -> dict[str, Shape]:
    """Return the shapes of all that a model's sites read and write, from inference or a run."""
    known = infer_shapes(model, {name: value.shape for name, value in feeds.items()})
    if missing := counted_tensors(model) - known.keys():
        known |= observe_shapes(model, missing, feeds, machine)
    return known


def _menu(settings: Settings, target: Target, machine: Machine) -> Menu:
    """Return the families to choose from, and at which ranks."""
    installed = {
        name: kind for name, kind in registered_passes().items() if issubclass(kind, FactorizePass)
    }
    for name in settings.families:
        if name not in installed:
            raise PassError(f"There is no family '{name}'; there are: {', '.join(installed)}.")
    names = settings.families or tuple(
        name
        for name, kind in installed.items()
        if target.macs is not None or not kind.searches_ranks
    )
    families = tuple(installed[name]() for name in names)
    round_to = settings.round_to or rank_block(machine)
    return Menu(families, target, round_to, settings.nodes, settings.exclude)


def _splice(prepared: Model, decisions: tuple[Decision, ...]) -> Model | None:
    """Put the chosen chains in, or return None if none was chosen."""
    chains = {
        decision.site: (decision.option.family.name, decision.result.chain)
        for decision in decisions
        if decision.option is not None and decision.result is not None
    }
    return splice(prepared, chains) if chains else None
