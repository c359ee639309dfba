"""The loop of fine-tuning: a state that can be written down at any step and gone on from."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxcp.graph.origins import Origin
from onnxcp.progress import Progress
from onnxcp.training import Epoch, Score, Told, Training
from onnxcp.tuning import checkpoint
from onnxcp.tuning.augment import Augment
from onnxcp.tuning.module import OnnxModule, escaped
from onnxcp.tuning.objective import Objective
from onnxcp.tuning.samples import Place, Samples
from onnxcp.tuning.team import Team

Tensors = dict[str, Tensor]

_LARGEST_STEP, _LEAST_SIZE = 1e-2, 1e-3  # relative, and of what it is relative to


@dataclass
class Position:
    """How far a training is.

    Attributes
    ----------
    epoch, step
        Epochs that are over, and steps of the present one.
    total
        Sum of the losses of these steps.
    since
        Epochs since the best.
    before, best
        Scores of the start and of the best so far.
    epochs
        What happened.
    stopped
        Why it ended before its time.
    diverged
        Whether because values were not finite any more.
    """

    before: Score
    best: Score
    epoch: int = 0
    step: int = 0
    total: float = 0.0
    since: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    stopped: str = ""
    diverged: bool = False


class Trainer:
    """Trains a student to do as its teacher does, and keeps the best that it has been.

    Nothing that is drawn depends on what was drawn before, only on the seed, the epoch and the
    step: so a training that goes on from a checkpoint ends as if it had never been interrupted.
    """

    def __init__(
        self,
        student: OnnxModule,
        teacher: OnnxModule,
        objective: Objective,
        samples: Samples,
        training: Training,
        team: Team,
        *,
        known: Sequence[Origin],
        augment: Augment,
    ) -> None:
        self._student, self._teacher = student, teacher
        self._objective, self._samples = objective, samples
        self._training, self._team, self._augment = training, team, augment
        self._middle = {escaped(name) for origin in known for name in origin.middle}
        factors = {escaped(name) for origin in known for name in origin.factors}
        self._optimizer = _optimizer(student, factors, training)
        self._net, self._joined = team.join(student, self._optimizer)
        self._held = samples.batches(samples.held, training.batch, among=1)
        self._saved = time.monotonic()
        score = self.score()
        self.position = Position(before=score, best=score)
        self.best = self.tensors()

    def tensors(self) -> Tensors:
        """Return a copy of the student's tensors by their names in the model."""
        return {name: x.detach().cpu().clone() for name, x in self._student.named_tensors()}

    def restart(self) -> None:
        """Take the student as it is now for where to start from; it may be the best so far."""
        score = self.score()
        if score.loss < self.position.best.loss:
            self.best, self.position.best = self.tensors(), score

    def limit_rates(self) -> None:
        """Let no step be large beside the weights that the student has now.

        AdamW moves every weight by the rate, whatever its size: those of a layer that reads numbers
        up to 255 are small, and would be lost within a few steps. So a tensor has a rate of one
        hundredth of its root mean square at most (Shazeer and Stern 2018, section 8). Vectors have
        no such limit: they are added, and zeros are as good a start as any.
        """
        if self._training.optimizer == "adamw":
            for group in self._optimizer.param_groups:
                (weight,) = group["params"]
                if weight.ndim > 1:
                    size = max(float(weight.detach().square().mean().sqrt()), _LEAST_SIZE)
                    group["highest"] = min(group["highest"], _LARGEST_STEP * size)

    def score_of(self, tensors: Tensors) -> Score:
        """Score the network with other tensors, which the student then has."""
        self._student.load_tensors(tensors)
        return self.score()

    def run(self, run: Mapping[str, str], progress: Progress, told: Told) -> None:
        """Train to the end, or until there is nothing more to gain.

        Parameters
        ----------
        run
            What makes it this run, for checkpoints.
        progress, told
            Called after every step, and after every epoch.
        """
        training, here = self._training, self.position
        while here.epoch < training.epochs and not here.stopped:
            places = self._places(here.epoch)
            while here.step < len(places):
                loss = self._step(places[here.step], here.epoch, here.step, len(places))
                if loss is None:
                    return
                here.total += loss
                here.step += 1
                progress(self._said(here), here.step, len(places))
                if time.monotonic() - self._saved >= training.checkpoint_seconds:
                    self._save(run)
            self._finish(len(places), told)
            self._save(run)

    def resume(self, run: Mapping[str, str]) -> bool:
        """Take the state of the checkpoint, if there is one; return whether there was."""
        path = self._training.checkpoint
        state = checkpoint.read(path, run) if path is not None and self._training.resume else None
        if state is None:
            return False
        self._student.load_tensors(state["student"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]
        self.position = _position(state["position"])
        return True

    def score(self) -> Score:
        """Score the student on the samples that were held out."""
        self._student.eval()
        terms = facts = None
        team = self._team
        with torch.no_grad():
            for place in self._held[team.rank :: team.size]:
                inputs, labels = self._tensors(place)
                found, wanted = (
                    [_double(x) for x in listed(network(**inputs))]
                    for network in (self._student, self._teacher)
                )
                own = self._objective.terms(found, wanted, labels)
                also = self._objective.facts(found, wanted, labels)
                terms = own if terms is None else terms + own
                facts = also if facts is None else facts + also
        if terms is None or facts is None:  # fewer batches than processes
            terms = torch.zeros(len(self._objective.weights), 2, dtype=torch.float64)
            facts = torch.zeros(5, dtype=torch.float64)
        sums = [team.total(each.to(team.device)).cpu() for each in (terms, facts)]
        return self._objective.score(*sums)

    def _places(self, epoch: int) -> list[Place]:
        rng = np.random.default_rng((self._training.seed, epoch))
        samples, team = self._samples, self._team
        places = samples.batches(samples.trained, self._training.batch, rng, among=team.size)
        return [Place(each.part, each.rows[team.rank :: team.size]) for each in places]

    def _tensors(self, place: Place) -> tuple[Tensors, Tensor | None]:
        inputs, labels = self._samples.tensors(place)
        device = self._team.device
        moved = {name: value.to(device) for name, value in inputs.items()}
        return moved, None if labels is None else labels.to(device)

    def _step(self, place: Place, epoch: int, step: int, steps: int) -> float | None:
        """Take one step; return its loss, or None if there was nothing finite to go by."""
        training, team = self._training, self._team
        seed = np.random.SeedSequence((training.seed, epoch, step, team.rank))
        (number,) = seed.generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(number))
        torch.manual_seed(int(number))  # of what is dropped
        inputs, labels = self._samples.tensors(place)
        inputs = {n: x.to(team.device) for n, x in self._augment(inputs, generator).items()}
        labels = None if labels is None else labels.to(team.device)
        with torch.no_grad():
            wanted = listed(self._teacher(**inputs))
        self._net.train()
        found = listed(self._net(**inputs))
        loss = self._objective.loss(self._objective.terms(found, wanted, labels))
        share = _schedule((epoch * steps + step) / (training.epochs * steps), training.warm_up)
        for group in self._optimizer.param_groups:
            group["lr"] = share * group["highest"]
        self._optimizer.zero_grad()
        team.backward(loss)
        if epoch < training.frozen_epochs:
            for name, parameter in self._student.named_parameters():
                if name in self._middle:
                    parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self._student.parameters(), training.clip)
        mean = float(team.total(loss.detach())) / team.size
        if not (math.isfinite(mean) and bool(norm.isfinite())):
            self.position.diverged = True
            self.position.stopped = (
                f"The loss or its gradient was not finite in step {step + 1} of epoch {epoch + 1}; "
                "the best so far was kept. Try a lower rate."
            )
            return None
        self._joined.step()
        return mean

    def _finish(self, steps: int, told: Told) -> None:
        """End an epoch: score, keep the student if it is the best, and tell."""
        here, training = self.position, self._training
        score = self.score()
        if not math.isfinite(score.loss):
            here.diverged = True
            here.stopped = (
                f"The outputs were not finite after epoch {here.epoch + 1}; the best so far was "
                "kept. Try a lower rate."
            )
        better = score.loss < here.best.loss
        if better:
            self.best, here.best = self.tensors(), score
        here.since = 0 if better else here.since + 1
        here.epochs.append(Epoch(here.epoch + 1, here.total / steps, score, better))
        here.epoch, here.step, here.total = here.epoch + 1, 0, 0.0
        if not here.stopped and training.patience is not None and here.since >= training.patience:
            here.stopped = f"Nothing was better for {here.since} epochs."
        told(here.epochs[-1])

    def _save(self, run: Mapping[str, str]) -> None:
        path = self._training.checkpoint
        if path is not None and self._team.rank == 0:
            state = {
                "student": self.tensors(),
                "optimizer": self._optimizer.state_dict(),
                "best": self.best,
                "position": asdict(self.position),
            }
            checkpoint.write(path, run, state)
        self._saved = time.monotonic()

    def _said(self, here: Position) -> str:
        text = (
            f"epoch {here.epoch + 1} of {self._training.epochs}: loss {here.total / here.step:.3g}"
        )
        agreement = here.best.agreement
        return text if agreement is None else f"{text}, agreement {100 * agreement:.1f} %"


def listed(outputs: Any) -> tuple[Tensor, ...]:
    """Return what a network puts out as a tuple, also if it is one tensor."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _schedule(share: float, warm_up: float) -> float:
    """Return the rate as a share of its highest, from how much of all steps is over."""
    if share < warm_up:
        # From above zero on, so that the first step is one.
        return (share + 1e-3) / (warm_up + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))


def _optimizer(student: OnnxModule, factors: set[str], training: Training) -> torch.optim.Optimizer:
    """Return an optimizer with a rate for factors and one for the rest; vectors do not decay."""
    options = [
        {
            "params": [parameter],
            "highest": training.rate * (training.factor_rate if name in factors else 1.0),
            "weight_decay": training.weight_decay if parameter.ndim > 1 else 0.0,
        }
        for name, parameter in student.named_parameters()
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(options, lr=training.rate, momentum=training.momentum)
    return torch.optim.AdamW(options, lr=training.rate)


def _position(state: Mapping[str, Any]) -> Position:
    epochs = [Epoch(**{**each, "score": Score(**each["score"])}) for each in state["epochs"]]
    scores = {name: Score(**state[name]) for name in ("before", "best")}
    return Position(**{**state, **scores, "epochs": epochs})
