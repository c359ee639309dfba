"""Options of published ways to choose; `optimize` and `plan` share them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from onnxcp.cli.options import given_options

PRESETS = ("cosine-svd",)
_COSTS = {"params": "parameters", "macs": "macs"}
_KINDS = ("auto", "weights", "responses")
"""Those of `onnxcp.planning.cosine`, which is not imported for the help."""


def preset_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --preset and what it goes by, received as one `preset` or None."""

    @click.option(
        "--preset",
        "name",
        type=click.Choice(PRESETS),
        help="Choose in a published way instead of planning by time. cosine-svd: the form (channel "
        "or spatial SVD, or none) and the rank of each layer by cosine similarity, then the layers "
        "that are decomposed at all by what the goal allows to be lost; ranks are rounded only "
        "where --round-to is a number.",
    )
    @click.option(
        "--cosine",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="TAU",
        help="Least similarity of a layer that is decomposed. By default as low as the goal "
        "allows; with it and without a goal every layer is decomposed where that saves anything.",
    )
    @click.option(
        "--cosine-of",
        type=click.Choice(_KINDS),
        default="auto",
        show_default=True,
        help="What is similar: weights, or responses behind activations, on calibration data; "
        "auto: responses where there are data.",
    )
    @click.option(
        "--fewest",
        type=click.Choice(tuple(_COSTS)),
        default="params",
        show_default=True,
        help="What forms are compared by, and which layers come first.",
    )
    @functools.wraps(command)
    def with_preset(
        *args: Any, name: str | None, cosine: float | None, cosine_of: str, fewest: str, **rest: Any
    ) -> Any:
        from onnxcp.planning.cosine import CosineSvd

        if name is None:
            if idle := given_options("cosine", "cosine_of", "fewest"):
                raise click.UsageError(f"{idle[0]} has no say without --preset cosine-svd.")
            return command(*args, preset=None, **rest)
        _check_usage()
        if cosine_of == "responses" and not given_options("calibration_data", "data_loader_script"):
            raise click.UsageError(
                "--cosine-of responses needs --calibration-data or --data-loader-script."
            )
        return command(*args, preset=CosineSvd(cosine, _COSTS[fewest], cosine_of), **rest)

    return with_preset


def _check_usage() -> None:
    """Refuse what excludes a preset, or has no say beside it."""
    others = {"pipeline": "--passes", "plan_file": "--plan"}
    for parameter in ("macs", "energy", "frontier", *others):
        if given := given_options(parameter):
            raise click.UsageError(
                f"--preset and {others.get(parameter, given[0])} exclude each other."
            )
    if times := given_options("target_speedup", "target_latency"):
        raise click.UsageError(
            f"--preset cosine-svd is about parameters and multiply-adds; {times[0]} has no say."
        )
    sizes = given_options("target_macs", "target_params")
    if sizes and given_options("cosine"):
        raise click.UsageError(f"--cosine and {sizes[0]} exclude each other.")
