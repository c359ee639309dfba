"""Fine-tuning: a rewritten network learns to put out what the original does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

import numpy as np
import onnx
import torch

from onnxcp.calibration.data import Data, load_training
from onnxcp.calibration.sources import CalibrationSource, DataSource
from onnxcp.errors import DataError, OnnxcpError
from onnxcp.graph.digest import model_digest
from onnxcp.graph.model import Model, ModelSource, load
from onnxcp.graph.origins import Origin, origins
from onnxcp.profiling.inputs import session_inputs
from onnxcp.profiling.machine import Machine
from onnxcp.progress import Progress, silent
from onnxcp.training import Epoch, Finetuned, Told, Training
from onnxcp.tuning.augment import Augment, parse_augment
from onnxcp.tuning.balance import balance
from onnxcp.tuning.from_torch import from_torch
from onnxcp.tuning.module import OnnxModule
from onnxcp.tuning.objective import Objective
from onnxcp.tuning.recalibrate import recalibrate
from onnxcp.tuning.samples import Samples
from onnxcp.tuning.team import Team, assemble, check_device
from onnxcp.tuning.to_torch import to_torch
from onnxcp.tuning.trainer import Trainer, listed

_RECALIBRATING = 32  # batches


def ignore(_: Epoch) -> None:
    """Tell nobody."""


def finetune(
    source: ModelSource | Model,
    teacher: ModelSource | Model,
    data: DataSource | CalibrationSource | Data,
    training: Training | None = None,
    *,
    augment: Augment | None = None,
    progress: Progress = silent,
    told: Told = ignore,
) -> Finetuned:
    """Train the weights of a network until it puts out what its teacher does.

    The distance of the outputs is made small (Hinton et al. 2015): for classes the divergence of
    softmaxes, for all else the relative squared error. No labels are needed; where there are any,
    the cross-entropy with them is added. First the factors of replaced layers are balanced, and
    statistics of BatchNormalization taken anew. Some samples are held out; what comes back is the
    network that was closest on them after any epoch, and the very one that was given if none was
    closer.

    Only tensors change: the graph is what it was. Which of them are factors, the model's own
    metadata say (`onnxcp.graph.origins`).

    Parameters
    ----------
    source
        The network, such as `onnxcp.optimize` makes.
    teacher
        The network that it is to be like: the original.
    data
        Samples, as `onnxcp.calibration.data.load_data` takes them, all of which are used unless a
        `CalibrationSource` says otherwise; an array `label` of classes is used, too.
    training
        How to train.
    augment
        Called with the inputs of every batch by name and a `torch.Generator`; returns others.
        By default what `training.augment` says.
    progress
        Called after every step.
    told
        Called after every epoch.

    Raises
    ------
    ModelError
        If PyTorch cannot compute one of the networks.
    DataError
        If the teacher has other inputs or outputs, or samples do not fit, or are too few, or no
        weight has a say in the outputs, or a checkpoint is of another run.
    OnnxcpError
        If the device is not there.
    """
    training = training or Training()
    model, master = load(source), load(teacher)
    if not isinstance(data, Data):
        data = load_training(data, session_inputs(Machine().open(model)))
    check(training, data)
    known = origins(model.proto)
    shown = _shared(known, model, master) if training.match else ()
    student, guide = to_torch(_showing(model, shown)), to_torch(_showing(master, shown))
    _check_teacher(student, guide, model, master)
    team = assemble(training.device)
    guide.to(team.device).eval().requires_grad_(False)
    student.to(team.device)
    samples = Samples.of(data, training.held_out, training.seed)
    objective = _objective(student, guide, samples, training, team, len(shown))
    if not _train_what_counts(student, guide, objective, samples, team):
        raise DataError(f"No weight of '{model.name}' has a say in its outputs, to be trained.")
    trainer = Trainer(
        student,
        guide,
        objective,
        samples,
        training,
        team,
        known=known,
        augment=augment or parse_augment(training.augment),
    )
    run = _run(model, master, data, training, team)
    if not trainer.resume(run):
        before = trainer.position.before
        if not math.isfinite(before.loss):
            raise DataError(
                f"What '{model.name}' or its teacher puts out for the samples is not finite."
            )
        balance(student, known)
        trainer.limit_rates()
        if _recalibrate(student, samples, training, team):
            trainer.restart()
    interrupted, drawing = False, torch.get_rng_state()
    try:
        trainer.run(run, progress, told)
    except KeyboardInterrupt:
        interrupted = True
    except torch.OutOfMemoryError as error:
        raise OnnxcpError(
            f"There is not enough memory on the device for batches of {training.batch} samples; "
            "ask for smaller ones."
        ) from error
    finally:
        torch.set_rng_state(drawing)  # that of whoever called
    return _made(model, trainer, known, interrupted=interrupted)


def check(training: Training, data: Data) -> None:
    """Fail where `finetune` would, whatever the network.

    Raises
    ------
    DataError
        If there is no such augmentation, or nothing to augment, or there are too few samples.
    OnnxcpError
        If the device is not there.
    """
    parse_augment(training.augment)
    if training.augment and not any(len(spec.shape) == 4 for spec in data.specs):
        raise DataError("Only pictures are augmented, and no input has four axes (N×C×H×W).")
    check_device(training.device)
    Samples.of(data, training.held_out, training.seed)


def _shared(known: Sequence[Origin], model: Model, teacher: Model) -> tuple[str, ...]:
    """Return what replaced layers put out, where the teacher has a tensor of that name."""
    ends = {origin.factors[-1] for origin in known}
    made = {name for node in teacher.proto.graph.node for name in node.output}
    outputs = {value.name for value in model.proto.graph.output}
    found: list[str] = []
    terms: set[str] = set()
    for node in model.proto.graph.node:
        read = set(node.input)
        if not ends & read and not (node.op_type == "Add" and terms & read):
            continue
        if node.output[0] in made:
            found.append(node.output[0])
        else:
            terms.add(node.output[0])  # what a row of several makes; they end in their sum
    return tuple(name for name in found if name not in outputs)


def _showing(model: Model, names: Iterable[str]) -> Model:
    """Return a model that puts out some of its inner tensors, too."""
    more = [onnx.helper.make_empty_tensor_value_info(name) for name in names]
    if not more:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.output.extend(more)
    return model.with_proto(proto)


def _check_teacher(student: OnnxModule, teacher: OnnxModule, model: Model, master: Model) -> None:
    for what in ("input", "output"):
        own, other = (getattr(each, f"{what}_names") for each in (student, teacher))
        # Inputs are given by name, outputs compared in their order.
        if set(own) != set(other) or (what == "output" and own != other):
            raise DataError(
                f"The teacher '{master.name}' has the {what}s {', '.join(map(repr, other))}, and "
                f"'{model.name}' has {', '.join(map(repr, own))}; they must be the same."
            )


def _objective(
    student: OnnxModule,
    teacher: OnnxModule,
    samples: Samples,
    training: Training,
    team: Team,
    matched: int,
) -> Objective:
    """Look at what both put out for some samples, and say how to compare it."""
    place = samples.batches(samples.held, training.batch)[0]
    inputs, labels = samples.tensors(place)
    moved = {name: value.to(team.device) for name, value in inputs.items()}
    with torch.no_grad():
        try:
            wanted = teacher(**moved)
        except RuntimeError as error:
            detail = str(error).splitlines()[0].rstrip(".")
            raise DataError(f"The teacher cannot compute the samples: {detail}.") from error
        found = student.eval()(**moved)
    pairs = zip(student.output_names, listed(found), listed(wanted), strict=True)
    for name, a, b in pairs:
        if a.shape != b.shape:
            raise DataError(
                f"Output '{name}' is of shape {list(b.shape)} in the teacher, and of "
                f"{list(a.shape)} in the network to be trained; they must be the same."
            )
    objective = Objective(
        student.output_names, listed(wanted), matched, training, labels is not None
    )
    objective.check(samples.data.labels)
    return objective


def _train_what_counts(
    student: OnnxModule, teacher: OnnxModule, objective: Objective, samples: Samples, team: Team
) -> bool:
    """Leave weights that the loss does not depend on out of training; tell if others are left.

    Several processes would wait for gradients of theirs, which never come.
    """
    inputs, labels = samples.tensors(samples.batches(samples.held, 1)[0])
    moved = {name: value.to(team.device) for name, value in inputs.items()}
    found, wanted = (listed(network(**moved)) for network in (student.eval(), teacher))
    labels = None if labels is None else labels.to(team.device)
    loss = objective.loss(objective.terms(found, wanted, labels))
    weights = list(student.parameters())
    if not (weights and loss.requires_grad):
        return False
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.requires_grad_(gradient is not None)
    return True


def _recalibrate(student: OnnxModule, samples: Samples, training: Training, team: Team) -> bool:
    rng = np.random.default_rng(training.seed)
    places = samples.batches(samples.trained, training.batch, rng)[:_RECALIBRATING]
    batches = (samples.tensors(place)[0] for place in places)
    return recalibrate(
        student, ({n: x.to(team.device) for n, x in each.items()} for each in batches)
    )


def _run(model: Model, master: Model, data: Data, training: Training, team: Team) -> dict[str, str]:
    """Return what makes a training what it is, by what a person would call it."""
    plain = replace(training, checkpoint=None, checkpoint_seconds=0.0, resume=False)
    settings = {key.replace("_", " "): repr(value) for key, value in asdict(plain).items()}
    return {
        "model": f"{model_digest(model)} {origins(model.proto)}",
        "teacher": model_digest(master),
        "data": data.digests,
        "number of processes": str(team.size),
        **settings,
    }


def _made(
    model: Model,
    trainer: Trainer,
    known: Sequence[Origin],
    *,
    interrupted: bool,
) -> Finetuned:
    """Return the best network, as its file holds it, or the one that was given."""
    here = trainer.position
    result = Finetuned(
        model=model,
        before=here.before,
        after=here.before,
        epochs=tuple(here.epochs),
        grouped=bool(known),
        stopped=here.stopped,
        diverged=here.diverged,
        interrupted=interrupted,
    )
    if not here.best.loss < here.before.loss:
        return result
    trained = from_torch(model, trainer.best)
    after = trainer.score_of(dict(to_torch(trained).named_tensors()))
    return replace(result, model=trained, after=after) if after.loss < here.before.loss else result
