"""The precision that a network is deployed in: whether it pays, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import onnx

from onnxcp.calibration.data import Data
from onnxcp.errors import OnnxcpError
from onnxcp.finishing import race, seconds_of_original
from onnxcp.graph.model import Model
from onnxcp.passes import Context, LowerPass, PassManager, PassRecord, registered_passes
from onnxcp.pipeline import parse_pipeline
from onnxcp.precision.qdq import is_quantized
from onnxcp.profiling.compare import OutputDifference
from onnxcp.profiling.machine import PRECISIONS, Machine
from onnxcp.rewriting import Rewrite, fold
from onnxcp.settings import Settings
from onnxcp.verification import Step, Verification, agreement, time, whole_error
from onnxcp.work import Work, some_batches

FULL = PRECISIONS[0]


def as_timed(model: Model, precision: str) -> Model:
    """Return what takes as long as a model does in a precision; one in integers stays.

    Raises
    ------
    OnnxcpError
        If it cannot be had in it.
    """
    if precision == FULL or is_quantized(model):
        return model
    _check_type(model, precision)
    return _pass_for(precision)().stand_in(model)


def as_deployed(model: Model, precision: str, data: Data | None, machine: Machine) -> Model:
    """Return a model in a precision, calibrated on samples; one in integers stays.

    Raises
    ------
    OnnxcpError
        If there are no samples and it needs some, or it cannot be had in it.
    """
    if precision == FULL or is_quantized(model):
        return model
    _check_type(model, precision)
    _check_samples(precision, data)
    samples = None if data is None else partial(some_batches, data)
    lower = PassManager([_pass_for(precision)()])
    return lower.run(model, Context(samples=samples, machine=machine))[0]


def with_precision(work: Work) -> Work:
    """Return the work with the pass that lowers its precision, where that is faster here.

    The original in the precision of the machine is timed against itself. If it is not faster, the
    machine's precision becomes that of the model. Where the work has a plan, its pass is taken as
    it stands.

    Raises
    ------
    OnnxcpError
        If the precision cannot be had: for want of samples, or since the model has a lower one.
    """
    settings = work.settings
    planned = _planned(work)
    precision = settings.machine.precision if planned is None else planned.precision
    if (precision == FULL or settings.passes) and settings.refit.prefix != "full":
        raise OnnxcpError(
            "Layers are fitted behind what is deployed only on the way to a lower precision: "
            "give --precision."
        )
    if precision == FULL:
        return work
    if settings.passes:
        raise OnnxcpError(
            f"Passes are run as they are given: let them end with that for {precision}."
        )
    if is_quantized(work.original):
        raise OnnxcpError(
            f"'{work.original.name}' is quantized already: give the float model, and "
            "--precision int8."
        )
    full, kind = work, _pass_for(precision)
    _check_samples(precision, work.calibration)
    _check_type(work.original, precision)
    work = replace(work, settings=_for(work, precision))
    prepared, _ = work.finished(fold(work.original)[0])
    work.progress(f"choosing how to get to {precision}", 0, 1)
    lower = kind().tuned(prepared, work.context) if planned is None else planned
    alone = _deployed(replace(work, lower=lower), prepared, fixed=planned is not None)
    work = alone.work
    work.progress(f"timing {precision}", 0, 1)
    trial = race(work, alone.model, seconds_of_original(work))
    if planned is None and not trial.faster:
        most = f", with as many layers in {FULL} as the goal takes," if work.lower != lower else ""
        told = f"{precision}{most} is not faster here ({trial}), so {FULL} is kept."
        return replace(in_full(full), told=told)
    name, seen = f"{precision} alone", alone.differences
    step = Step(name, alone.model, trial, seen, alone.score, _notes(alone.records))
    gained = max(1 - 1 / trial.ratio, 0.0)
    return replace(work, lowered=step, lowerings=alone.records, gained=gained)


def in_full(work: Work) -> Work:
    """Return a work that has not come to a precision yet, at full precision."""
    return replace(work, settings=_for(work, FULL))


def lowered(work: Work, rewrite: Rewrite, *, as_before: bool = False) -> Rewrite:
    """Write a rewritten network in the precision of the work; the original, if there is none.

    With `as_before` by the very pass that wrote it before, so that it takes as long; else by one
    that suits it.
    """
    lower = work.lower
    if lower is None or work.lowered is None:
        return rewrite
    if rewrite.model is None or rewrite.plain is rewrite.prepared:  # no layer has changed
        alone = work.lowered
        return replace(
            rewrite,
            model=alone.model,
            full=None,
            lower=None,
            lowerings=work.lowerings,
            differences=alone.differences,
            held=(),
        )
    fixed = as_before or _planned(work) is not None
    if as_before:
        lower = rewrite.lower
    elif not fixed:
        work.progress("choosing the layers that stay in float", 0, 1)
        lower = lower.retuned(rewrite.model, work.context)
    made = _deployed(replace(work, lower=lower), rewrite.model, fixed=fixed)
    return replace(
        rewrite,
        model=made.model,
        full=rewrite.model,
        lower=made.work.lower,
        lowerings=made.records,
        differences=made.differences,
        held=work.held(made.model) if rewrite.held else (),
    )


@dataclass(frozen=True, eq=False)
class Steps:
    """The way to a network of a lower precision.

    Attributes
    ----------
    rows
        What there is between the original and the network that is handed out, and that itself.
    pays
        Whether the network is faster than the original in the same precision.
    full_is_faster
        Whether it is measured to be faster with full precision.
    misses
        Whether it is beyond the loss that was asked for, all layers given back.
    told
        What there is to say of it, in a sentence.
    told_of_full
        The same where full precision is kept after all.
    """

    rows: tuple[Step, ...]
    pays: bool
    full_is_faster: bool = False
    misses: bool = False
    told: str = ""
    told_of_full: str = ""


def steps(
    work: Work, rewrite: Rewrite, verification: Verification, shortfall: str = ""
) -> Steps | None:
    """Time what lies between the original and a rewritten network; None for full precision.

    Parameters
    ----------
    work, rewrite, verification
        The network, and what it showed.
    shortfall
        Why the goal was not reached, if it was not.
    """
    alone = work.lowered
    if alone is None or rewrite.model is None:
        return None
    precision, machine = work.settings.machine.precision, work.settings.machine
    if rewrite.full is None:
        told = f"No layer is faster factorised in {precision}, so this is {alone.name}."
        goal = work.settings.goal
        if shortfall and (goal.scored or goal.error is not None):  # which says why
            told = f"This is {alone.name}."
        missed = _missed(work, alone.differences, alone.score)
        kept = f"{precision[:1].upper()}{precision[1:]} alone has {missed}, so {FULL} is kept."
        return Steps((alone,), pays=True, misses=bool(missed), told=told, told_of_full=kept)
    work.progress(f"timing against {alone.name}", 0, 1)
    over = time(alone.model, rewrite.model, machine, work.feeds)
    if not over.faster:
        return Steps((alone,), pays=False)
    full = time(rewrite.full, rewrite.model, machine, work.feeds)
    float_step = Step(
        "low rank alone",
        rewrite.full,
        time(work.original, rewrite.full, machine, work.feeds),
        work.differences(rewrite.full),
        work.scored(rewrite.full),
    )
    both = Step(
        f"low rank, then {precision}",
        rewrite.model,
        verification.trial,
        verification.differences,
        None if verification.accuracy is None else verification.accuracy[1],
        _notes(rewrite.lowerings),
    )
    told = f"Low rank and {precision} together are {over} as fast as {alone.name}."
    kept = (
        f"Factorised layers are not faster in {precision} here: the network with them took "
        f"{1 / full.ratio:.2f} times as long as in {FULL}, which is kept."
    )
    rows = (alone, float_step, both)
    return Steps(rows, pays=True, full_is_faster=full.slower, told=told, told_of_full=kept)


@dataclass(frozen=True, eq=False)
class _Deployed:
    """A network in the precision of a work; what it loses is looked at once, and if it is asked."""

    work: Work
    model: Model
    records: tuple[PassRecord, ...]

    @cached_property
    def differences(self) -> tuple[OutputDifference, ...]:
        return self.work.differences(self.model)

    @cached_property
    def score(self) -> float | None:
        return self.work.scored(self.model)

    @property
    def enough(self) -> bool:
        """Whether it keeps to a goal of loss, if there is one."""
        goal = self.work.settings.goal
        if goal.max_accuracy_drop is not None:
            return not _missed(self.work, (), self.score)
        if goal.max_error is None and goal.min_agreement is None:
            return True
        return not _missed(self.work, self.differences, None)


def _deployed(work: Work, network: Model, *, fixed: bool) -> _Deployed:
    """Write a network in the precision; unless it is fixed how, with less in it if that loses."""
    made = _Deployed(work, *work.deployed(network))
    if work.lower is None or fixed or made.enough:
        return made
    spared = work.lower.spared(
        network, work.context, lambda model: _Deployed(work, model, ()).enough
    )
    if spared == work.lower:
        return made
    work = replace(work, lower=spared)
    return _Deployed(work, *work.deployed(network))


def _missed(work: Work, differences: Sequence[OutputDifference], score: float | None) -> str:
    """Return what of a network is beyond what the goal asks for, in words; "" if nothing is."""
    goal = work.settings.goal
    if goal.max_error is not None:
        error = whole_error(differences)
        return "" if error <= goal.max_error else f"an error of the outputs of {error:.3g}"
    if goal.min_agreement is not None:
        agreed = agreement(differences) or 0.0
        told = f"the same top class on {agreed:.4g} of the samples"
        return "" if agreed >= goal.min_agreement else told
    if goal.max_accuracy_drop is None or score is None:
        return ""
    return "" if score >= goal.least(work.baseline) else f"a score of {score:.6g}"


def _check_type(model: Model, precision: str) -> None:
    """Refuse to quantize a network of which most weights are of float16."""
    if precision != "int8":
        return
    sizes: dict[int, int] = {onnx.TensorProto.FLOAT16: 0, onnx.TensorProto.FLOAT: 0}
    constants = (
        each.t
        for node in model.proto.graph.node
        if node.op_type == "Constant"
        for each in node.attribute
        if each.name == "value"
    )
    for tensor in (*model.proto.graph.initializer, *constants):
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += math.prod(tensor.dims)
    if sizes[onnx.TensorProto.FLOAT16] > sizes[onnx.TensorProto.FLOAT]:
        raise OnnxcpError(
            f"'{model.name}' is of float16, which is not quantized: give it in float32."
        )


def _check_samples(precision: str, data: Data | None) -> None:
    if precision == "int8" and data is None:
        raise OnnxcpError("int8 needs samples to calibrate on: give --calibration-data.")


def _notes(records: Sequence[PassRecord]) -> tuple[str, ...]:
    return tuple(note for each in records for note in each.notes)


def _for(work: Work, precision: str) -> Settings:
    machine = replace(work.settings.machine, precision=precision)
    return replace(work.settings, machine=machine)


def _planned(work: Work) -> LowerPass | None:
    """Return what lowers the precision of a plan; None where there is no plan, or nothing does."""
    plan = work.settings.plan
    passes = parse_pipeline(plan.finish) if plan is not None and plan.finish else ()
    return next((each for each in passes if isinstance(each, LowerPass)), None)


def _pass_for(precision: str) -> type[LowerPass]:
    for kind in registered_passes().values():
        if issubclass(kind, LowerPass) and kind.precision == precision:
            return kind
    raise OnnxcpError(f"No pass is installed that writes networks in {precision}.")
