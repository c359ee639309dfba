"""The main job: a network comes in, a faster one that computes nearly the same goes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from onnxcp.calibration.data import Samples, load_training
from onnxcp.calibration.sources import CalibrationSource, DataSource
from onnxcp.cosine_svd import is_limited, outlined_by_cosine, wanted
from onnxcp.errors import OnnxcpError
from onnxcp.finishing import with_finish
from onnxcp.graph.model import Model, ModelSource
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.summary import Summary, summarize
from onnxcp.loading import work_for
from onnxcp.lowering import FULL, in_full, with_precision
from onnxcp.passes import PassRecord
from onnxcp.planned import Planned, outlined, plan_of, point_of, remarks
from onnxcp.planning.goal import Goal
from onnxcp.planning.option import Decision
from onnxcp.planning.plan import Plan
from onnxcp.profiling.compare import OutputDifference
from onnxcp.profiling.inputs import Shape, session_inputs
from onnxcp.progress import Progress, silent
from onnxcp.proving import proven, size_left, summary_of, with_weights
from onnxcp.settings import Settings
from onnxcp.sizes import bytes_wanted, first_share, judged_by_size
from onnxcp.training import Finetuned, Told
from onnxcp.units import nbytes
from onnxcp.verification import Evaluate, Step, Verification
from onnxcp.work import Work

NOTHING = "Nothing was worth rewriting; the original is handed back."
SLOWER = "The rewritten network is not faster; the original is handed back"
BROKEN = "The rewritten network overflows where the original does not; the original is handed back."
FASTER = "The rewritten network is faster"
SMALLER = "The rewritten network is smaller"
NOT_SMALLER = "The rewritten network is not smaller; the original is handed back"

Feeds = Mapping[str, npt.NDArray[Any]]


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
    endings
        Those of them that ended the rewrite unasked, without changing what is computed.
    before, after
        Size and cost of the original, and of the rewritten network if there is one.
    verification
        The original against the rewritten network, in numbers and in time.
    shapes
        Shapes of the inputs that all of this was measured with.
    compared, scored
        The samples that outputs were compared on, and those that accuracies are shares of; None
        where there were none: outputs were then compared on random inputs.
    judges
        How many of the samples refits held out, where networks are judged by them; else 0.
    unfitted
        How the outputs differed before chains were refitted; empty if none were. The same as in
        `verification` if the refit took them no closer, and was given up.
    held
        How the outputs differ on the samples that refits held out; empty where there were none, or
        too few.
    planned
        How the plan came about; None where none was made.
    plan
        What every site became, to be carried out again; None where passes were given.
    frontier
        Plans for the speed-ups of the settings' frontier, and what came of them.
    finetuned
        What fine-tuning did; None where there was none.
    precision
        In which the network is deployed.
    steps
        What lies between the original and a network of lower precision, or what was tried where
        full precision was faster in the end; empty elsewhere.
    told
        What there is to say of the precision, in a sentence; else empty.
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
    compared: Samples | None = None
    scored: Samples | None = None
    judges: int = 0
    endings: tuple[PassRecord, ...] = ()
    unfitted: tuple[OutputDifference, ...] = ()
    held: tuple[OutputDifference, ...] = ()
    planned: Planned | None = None
    plan: Plan | None = None
    frontier: tuple[Planned, ...] = ()
    finetuned: Finetuned | None = None
    precision: str = FULL
    steps: tuple[Step, ...] = ()
    told: str = ""

    @property
    def data_is_random(self) -> bool:
        """Whether outputs were compared on random inputs, for want of data."""
        return self.compared is None


def optimize(
    source: ModelSource | Model,
    settings: Settings | None = None,
    *,
    data: DataSource | CalibrationSource | None = None,
    labelled: DataSource | None = None,
    evaluate: Evaluate | None = None,
    training_data: DataSource | CalibrationSource | None = None,
    progress: Progress = silent,
    told: Told = lambda _: None,
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
    training_data
        Samples to fine-tune on where the settings ask for it; those of `data` by default.
    progress
        Called with what is being done, how much of it is done, and of how much.
    told
        Called after every epoch of fine-tuning.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot load or run the model.
    OnnxcpError
        If data, shapes, passes or providers do not fit.
    """
    settings = settings or Settings()
    sized = judged_by_size(settings)
    full = with_finish(work_for(source, settings, data, labelled, evaluate, progress))
    trains = _trains(full, training_data, told)
    work = with_precision(full)
    made = proven(work)
    way = made.steps
    if settings.plan is None and way is not None and (way.full_is_faster or way.misses):
        # Chains may be so small that going to integers and back costs more than they gain; or the
        # loss is that of the precision, and no layer that is given back undoes it.
        again = in_full(full)
        other = proven(again)
        if way.misses or other.seconds < made.seconds:
            work, made = replace(again, told=way.told_of_full), other
    rewrite, planned, verification = made.rewrite, made.planned, made.verification
    finetuned = None
    able = verification is not None and (sized or verification.faster) and not made.broken
    if trains is not None and able:
        if rewrite.plain is None:
            untrained = "No layer was replaced, so nothing was fine-tuned."
            work = replace(work, told=f"{work.told} {untrained}".strip())
        else:
            finetuned = trains(rewrite.plain)
    if finetuned is not None:
        made = with_weights(work, made, finetuned.model)
        rewrite, verification = made.rewrite, made.verification

    result = Optimized(
        original=work.original,
        model=work.original,
        improved=False,
        verdict=NOTHING,
        decisions=rewrite.decisions,
        refusals=rewrite.refusals,
        records=(*rewrite.records, *rewrite.endings, *rewrite.lowerings),
        endings=rewrite.endings,
        before=summarize(work.original, work.shapes),
        after=None,
        verification=verification,
        shapes={name: value.shape for name, value in work.feeds.items()},
        compared=None if work.samples is None else work.samples.summary,
        scored=None if work.labelled is None else work.labelled.summary,
        judges=work.judges.used if rewrite.held and work.judges is not None else 0,
        unfitted=rewrite.unfitted,
        held=rewrite.held,
        planned=planned,
        plan=(
            None
            if settings.passes or (planned is None and sized)
            else plan_of(work, rewrite, planned, verification, _wanted(settings))
        ),
        finetuned=finetuned,
        frontier=tuple(point_of(work, each) for each in settings.frontier),
    )
    result = replace(result, precision=work.settings.machine.precision, told=work.told)
    if way is not None:
        result = replace(result, steps=(made.steps or way).rows, told=work.told or way.told)
    if settings.plan is not None:
        said = remarks(work, settings.plan)
        result = replace(result, told=f"{said} {result.told}".strip())
    if rewrite.model is None or verification is None:
        return result
    after = summary_of(work, rewrite)
    result = replace(result, after=after)
    if made.broken:
        return replace(result, verdict=BROKEN)
    if sized:
        sizes = f"{nbytes(result.before.nbytes)} to {nbytes(after.nbytes)}"
        if after.nbytes >= result.before.nbytes:
            return replace(result, verdict=f"{NOT_SMALLER} ({sizes})")
        verdict = f"{SMALLER}: {sizes}, {verification.trial} as fast"
        return replace(result, model=rewrite.model, improved=True, verdict=verdict)
    if not verification.faster:
        size = f"{size_left(result.before, after)}. " if settings.preset else ""
        return replace(result, verdict=f"{size}{SLOWER} ({verification.shown})")
    return replace(
        result, model=rewrite.model, improved=True, verdict=f"{FASTER}: {verification.trial}"
    )


def make_plan(
    source: ModelSource | Model,
    settings: Settings | None = None,
    *,
    data: DataSource | CalibrationSource | None = None,
    progress: Progress = silent,
) -> tuple[Plan, Planned]:
    """Plan for a goal as `optimize` does, but build nothing: chains are timed, not made.

    Parameters and errors are those of `optimize`. A goal of accuracy can only be met by building
    networks; it is refused.

    Returns
    -------
    Plan
        To be carried out by `optimize`, by `Settings.plan`.
    Planned
        How it came about.
    """
    settings = settings or Settings()
    if settings.goal.scored:
        what = "A drop of accuracy" if settings.goal.max_accuracy_drop is not None else "Agreement"
        raise OnnxcpError(f"{what} shows only in a network that was built: optimize it.")
    if settings.preset is not None and is_limited(settings.preset, settings.goal):
        raise OnnxcpError(
            "What an error allows shows only in networks that were built: optimize it, or give a "
            "cosine or a share of the parameters or MACs to keep."
        )
    work = with_precision(with_finish(work_for(source, settings, data, None, None, progress)))
    goal = settings.goal
    if settings.preset is not None:
        return outlined_by_cosine(work, settings.preset, goal)
    if goal.size is not None:
        goal = Goal(parameters=first_share(work.original, bytes_wanted(work.original, goal)))
    plan, planned = outlined(work, goal)
    return plan, replace(planned, shortfall=f"{planned.shortfall} {work.told}".strip())


def _trains(
    work: Work, data: DataSource | CalibrationSource | None, told: Told
) -> Callable[[Model], Finetuned] | None:
    """Return what fine-tunes a rewritten network; None where that is not asked for."""
    training, original = work.settings.training, work.original
    if training is None:
        return None
    from onnxcp.tuning import finetune, to_torch
    from onnxcp.tuning.finetune import check

    specs = session_inputs(work.settings.machine.open(original))
    samples = work.calibration if data is None else load_training(data, specs)
    if samples is None:
        raise OnnxcpError("Fine-tuning needs samples to train on or to calibrate on.")
    _ = to_torch(original)  # what PyTorch cannot compute shows now, before the work
    check(training, samples)

    def train(rewritten: Model) -> Finetuned:
        found = finetune(rewritten, original, samples, training, progress=work.progress, told=told)
        if found.interrupted:
            raise KeyboardInterrupt
        return found

    return train


def _wanted(settings: Settings) -> str:
    """Return what was asked for, in words."""
    if settings.preset is not None:
        return wanted(settings.preset, settings.goal)
    if settings.plan is not None:
        return settings.plan.goal
    if isinstance(settings.macs, Mapping):
        others = [f"{name}: {100 * s:g} %" for name, s in settings.macs.items() if name != "*"]
        first = settings.macs.get("*")
        whole = "" if first is None else f"{100 * first:g} % of each layer's MACs"
        some = f"of the MACs of {', '.join(others)}"
        return f"{whole}; {some}" if whole else some
    if settings.macs is not None:
        return f"{100 * settings.macs:g} % of each layer's MACs"
    if settings.energy is not None:
        return f"{100 * settings.energy:g} % of each kernel's squared norm"
    return str(settings.goal)
