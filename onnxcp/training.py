"""What fine-tuning is asked to do, and what it did; plain values, without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxcp.errors import OnnxcpError

if TYPE_CHECKING:  # the command line reads settings from here, and prints help without ONNX
    from onnxcp.graph.model import Model

OPTIMIZERS = ("adamw", "sgd")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Training:
    """How to fine-tune.

    Attributes
    ----------
    epochs
        How often all samples are gone through.
    batch
        Samples in a step, on all devices together.
    optimizer
        ``"adamw"``, or ``"sgd"`` with momentum.
    rate
        The learning rate at its highest. With ``"adamw"``, a weight of more than one axis has one
        hundredth of its root mean square at most.
    factor_rate
        What factors of replaced layers get of it. Their gradients are steep: what one changes is
        multiplied by all others of its layer (Lebedev et al. 2015, section 4.2; Phan et al. 2020).
    frozen_epochs
        For so many epochs at first, the factors between the first and the last of a layer stay as
        they are.
    momentum
        Of ``"sgd"``.
    weight_decay
        Decoupled from the gradient for ``"adamw"``; biases and other vectors have none.
    warm_up
        Share of all steps over which the rate grows, before it falls along a cosine.
    clip
        Largest norm of the gradient, of all weights together.
    temperature
        By which scores of classes are divided on both sides (Hinton et al. 2015, section 2).
    label_weight
        Of the cross-entropy with labels, where there are any, beside the distance to the teacher.
    match
        Weight of the distances between what replaced layers put out and what they did in the
        teacher; 0 looks at the outputs of the network only.
    held_out
        Share of the samples that is not trained on, to judge by.
    patience
        End after so many epochs without a better one; None: never before the last.
    augment
        What is done to pictures on their way in, such as ``"flip,crop:4"``; nothing if empty.
    seed
        Of everything that is drawn.
    device
        ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA where there is a device.
    checkpoint
        File that the state is written to, to go on from it; None writes none.
    checkpoint_seconds
        How often, besides at the end of every epoch.
    resume
        Whether to go on from the checkpoint if there is one.
    """

    epochs: int = 10
    batch: int = 64
    optimizer: str = "adamw"
    rate: float = 1e-3
    factor_rate: float = 0.3
    frozen_epochs: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warm_up: float = 0.05
    clip: float = 1.0
    temperature: float = 2.0
    label_weight: float = 0.1
    match: float = 0.0
    held_out: float = 0.1
    patience: int | None = None
    augment: str = ""
    seed: int = 0
    device: str = "auto"
    checkpoint: Path | None = None
    checkpoint_seconds: float = 60.0
    resume: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise OnnxcpError(
                f"There is no optimizer '{self.optimizer}'; there are: {', '.join(OPTIMIZERS)}."
            )
        if self.device not in DEVICES:
            raise OnnxcpError(
                f"There is no device '{self.device}'; there are: {', '.join(DEVICES)}."
            )
        for key, least in _LEAST.items():
            value = getattr(self, key)
            if value is not None and not (least <= value < math.inf):
                raise OnnxcpError(f"In training, {key} is {value}, not {least:g} or more.")
        for key in ("rate", "clip", "temperature", "held_out"):
            if not getattr(self, key) > 0:
                raise OnnxcpError(f"In training, {key} is {getattr(self, key):g}, not above 0.")
        for key in ("held_out", "warm_up", "momentum"):
            if not getattr(self, key) < 1:
                raise OnnxcpError(f"In training, {key} is {getattr(self, key):g}, not below 1.")
        if self.resume and self.checkpoint is None:
            raise OnnxcpError("To resume a training, name its checkpoint.")


_LEAST = {
    "epochs": 1,
    "batch": 1,
    "rate": 0,
    "factor_rate": 0,
    "frozen_epochs": 0,
    "momentum": 0,
    "weight_decay": 0,
    "warm_up": 0,
    "clip": 0,
    "temperature": 0,
    "label_weight": 0,
    "match": 0,
    "held_out": 0,
    "patience": 1,
    "seed": 0,
    "checkpoint_seconds": 0,
}


@dataclass(frozen=True)
class Score:
    """How close a network is to its teacher on samples that were held out.

    Attributes
    ----------
    loss
        What training makes small, on these samples.
    error
        Relative distance of the outputs, all together: the root of squared errors over squares.
    agreement
        Share of the samples with the same top class; None where no output is of classes.
    accuracy
        Share with the class of their label; None without labels or classes.
    """

    loss: float
    error: float
    agreement: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Epoch:
    """One time through the samples: its number from 1 on, mean loss, and the score after it."""

    number: int
    loss: float
    score: Score
    best: bool


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What fine-tuning made.

    Attributes
    ----------
    model
        The network: the very one that came in if none was better.
    before, after
        How close it was and is, on samples that were held out.
    epochs
        What happened.
    grouped
        Whether the model says which weights are factors; if not, all have one rate.
    stopped
        Why it ended before its time, as a sentence; "" if it did not.
    diverged
        Whether because values were not finite any more.
    interrupted
        Whether by ctrl-C.
    """

    model: Model
    before: Score
    after: Score
    epochs: tuple[Epoch, ...]
    grouped: bool
    stopped: str = ""
    diverged: bool = False
    interrupted: bool = False

    @property
    def improved(self) -> bool:
        """Whether anything was better than the start."""
        return self.after.loss < self.before.loss


Told = Callable[[Epoch], None]
"""Called after every epoch."""
