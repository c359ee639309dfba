"""Options that say how to fine-tune; `finetune` and `optimize --finetune` share them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import click

from onnxcp.training import DEVICES, OPTIMIZERS, Training

TRAINING = (
    *("batch", "optimizer", "rate", "factor_rate", "frozen_epochs", "weight_decay"),
    *("temperature", "label_weight", "match", "held_out", "patience", "augment", "seed", "device"),
)
"""Parameters that say how to train; where nothing is trained they have no say."""

_DEFAULT = Training()
_POSITIVE = click.FloatRange(0, min_open=True)


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says how to train, received as keyword arguments of `Training` in `training`."""

    def option(name: str, kind: Any, text: str, metavar: str | None = None) -> Callable[..., Any]:
        key = name.removeprefix("--").replace("-", "_")
        default = getattr(_DEFAULT, key)
        return click.option(
            name, type=kind, default=default, show_default=True, metavar=metavar, help=text
        )

    @option("--batch", click.IntRange(1), "Samples in a step.", "N")
    @option("--optimizer", click.Choice(OPTIMIZERS), "AdamW, or SGD with momentum.")
    @option("--rate", _POSITIVE, "The learning rate at its highest.", "R")
    @option(
        "--factor-rate", click.FloatRange(0), "What factors of replaced layers get of it.", "SHARE"
    )
    @option(
        "--frozen-epochs",
        click.IntRange(0),
        "For so many epochs, the middle factors of replaced layers stay as they are.",
        "N",
    )
    @option("--weight-decay", click.FloatRange(0), "How fast weights decay.", "W")
    @option("--temperature", _POSITIVE, "Divides scores of classes on both sides.", "T")
    @option(
        "--label-weight",
        click.FloatRange(0),
        "Weight of the cross-entropy, where samples have an array 'label'.",
        "W",
    )
    @option(
        "--match",
        click.FloatRange(0),
        "Weight of what replaced layers put out, beside the outputs of the network.",
        "W",
    )
    @option(
        "--held-out",
        click.FloatRange(0, 1, min_open=True, max_open=True),
        "Share of the samples to judge by, and not to train on.",
        "SHARE",
    )
    @option("--patience", click.IntRange(1), "End after so many epochs that were no better.", "N")
    @option(
        "--augment",
        str,
        "What is done to pictures on their way in: flip, crop:PIXELS, or both.",
        "TEXT",
    )
    @option("--seed", click.IntRange(0), "Of all that is drawn.", "N")
    @option("--device", click.Choice(DEVICES), "Where to train.")
    @functools.wraps(command)
    def with_training(*args: Any, **kwargs: Any) -> Any:
        training = {key: kwargs.pop(key) for key in TRAINING}
        return command(*args, training=training, **kwargs)

    return cast("Callable[..., Any]", with_training)
