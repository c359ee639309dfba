"""Options that say what is wanted and what may be chosen from; `optimize` and `plan` share them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import click

from onnxcp.cli.options import PATH, comma_separated, given_options

_SHARE = click.FloatRange(0, 1, min_open=True)
_BYTES = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}

_GOALS = {
    "target_speedup": "speedup",
    "target_latency": "latency",
    "target_macs": "macs",
    "target_params": "parameters",
    "target_size": "size",
    "max_error": "max_error",
    "max_accuracy_drop": "max_accuracy_drop",
    "min_agreement": "min_agreement",
}
"""Fields of `onnxcp.planning.goal.Goal`, by parameter."""

GOALS = tuple(_GOALS)
CHOOSING = ("families", "nodes", "exclude", "round_to")
"""Parameters that say how to choose; where there is nothing to choose they have no say."""


def round_to_multiple(text: str) -> int | None:
    """Return a multiple for ranks, or None for ``auto``."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"'{text}' is neither auto nor a whole number from 1 on.")
    return int(text)


def duration(text: str) -> float:
    """Parse ``5ms``, ``0.2s`` or ``300us``; return seconds."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e-?\d+)?)\s*(s|ms|us)\s*", text)
    try:
        seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise click.BadParameter(f"'{text}' is no time such as 5ms, 0.2s or 300us.")
    return seconds


def drop(text: str) -> float:
    """Parse ``1%``, which is 0.01, or a number in the unit of the score."""
    body, unit = (text[:-1], 0.01) if text.endswith("%") else (text, 1.0)
    try:
        value = float(body) * unit
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise click.BadParameter(f"'{text}' is neither a percentage nor a number from 0 on.")
    return value


def size(text: str) -> float:
    """Parse ``2MB``, ``500KiB`` or ``80000B`` as bytes, and ``0.5`` as a share below 1."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(B|[kKMG]i?B)?\s*", text)
    try:
        value = float(match[1]) if match else 0.0
    except ValueError:
        value = 0.0
    unit = match[2] if match else None
    if unit is None and not 0 < value < 1:
        raise click.BadParameter(f"'{text}' is neither a size such as 2MB nor a share below 1.")
    nbytes = value * _BYTES[(unit or "").upper()]
    if unit is not None and nbytes < 1:
        raise click.BadParameter(f"'{text}' is less than a byte.")
    return nbytes


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers above 1 separated by commas; an empty text holds none."""
    try:
        values = tuple(float(each) for each in comma_separated(text))
    except ValueError:
        values = (0.0,)
    if not all(1 < each < float("inf") for each in values):
        raise click.BadParameter(f"'{text}' are no numbers above 1 separated by commas.")
    return values


def one_target(*parameters: str) -> None:
    """Fail if several of the options of these parameters were typed."""
    given = given_options(*parameters)
    if len(given) > 1:
        raise click.UsageError(f"Give only one target: {' and '.join(given)} exclude each other.")


def goal_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the goals for the whole network, received as one `goal`."""

    @click.option(
        "--target-speedup",
        type=click.FloatRange(1, min_open=True),
        metavar="X",
        help="Make the network this many times faster, at the least loss.",
    )
    @click.option(
        "--target-latency",
        type=duration,
        metavar="TIME",
        help="Bring a run down to this time, such as 5ms, at the least loss.",
    )
    @click.option(
        "--target-macs",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="SHARE",
        help="Keep at most this share of the network's multiply-adds, at the least loss.",
    )
    @click.option(
        "--target-params",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="SHARE",
        help="Keep at most this share of the network's weights, at the least loss.",
    )
    @click.option(
        "--target-size",
        type=size,
        metavar="SIZE|SHARE",
        help="Bring the file down to this size, such as 2MB, or to this share of it, such as 0.5, "
        "at the least loss.",
    )
    @click.option(
        "--max-error",
        type=_SHARE,
        metavar="ERROR",
        help="Make the network as fast as a relative error of its outputs allows. The default "
        "goal, at 0.1.",
    )
    @click.option(
        "--max-accuracy-drop",
        type=drop,
        metavar="DROP",
        help="Make the network as fast as this loss of accuracy allows, such as 1%. Needs "
        "--eval-data or --eval-script.",
    )
    @click.option(
        "--min-agreement",
        type=_SHARE,
        metavar="SHARE",
        help="Make the network as fast as it gets while so many samples keep their top class, such "
        "as 0.99: a loss of accuracy without labels. Needs --calibration-data or --eval-data.",
    )
    @functools.wraps(command)
    def with_goal(*args: Any, **kwargs: Any) -> Any:
        from onnxcp.planning.goal import Goal

        one_target(*GOALS)
        given = {field: kwargs.pop(parameter) for parameter, field in _GOALS.items()}
        return command(*args, goal=Goal(**given), **kwargs)

    return with_goal


def choosing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --families, --nodes, --exclude and --round-to."""
    for option in (
        click.option(
            "--round-to",
            type=round_to_multiple,
            default="auto",
            show_default=True,
            metavar="auto|N",
            help="Ranks become multiples of this; auto finds by measuring what pays.",
        ),
        click.option(
            "--exclude", default="", metavar="GLOB", help="Names of the nodes to leave alone."
        ),
        click.option(
            "--nodes",
            default="*",
            metavar="GLOB",
            show_default=True,
            help="Names of the nodes to rewrite; several patterns separated by spaces.",
        ),
        click.option(
            "--families",
            type=comma_separated,
            default="",
            metavar="NAME,...",
            help="Families to choose from, such as cp3,tucker2. By default all but those that ask "
            "to be named, output-first-svd, tensor-train, sparse-low-rank and (alone, for "
            "--target-params or --target-size) coupled-tensor-train; for --energy also "
            "without those that find a rank only by trial, cp3 and cp4.",
        ),
    ):
        command = option(command)
    return command


def cache_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --cache-dir and --no-cache."""
    command = click.option(
        "--no-cache", is_flag=True, help="Measure anew, and keep nothing for the next time."
    )(command)
    return click.option(
        "--cache-dir",
        type=PATH,
        metavar="DIR",
        help="Where measurements are kept; by default in your folder for such.",
    )(command)
