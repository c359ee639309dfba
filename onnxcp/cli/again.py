"""Command lines that do again what was done, from a plan or a recipe: nothing is chosen anew."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import TYPE_CHECKING

from onnxcp.cli.goals import CHOOSING, GOALS

if TYPE_CHECKING:
    from onnxcp.optimizer import Optimized

_OF_ALL = (
    "macs",
    "energy",
    "preset",
    "cosine",
    "cosine_of",
    "fewest",
    "frontier",
    "passes",
    "plan",
)
_WRITTEN = ("save_plan", "report")
_FLAGS = ("--dry-run", "--json")
_CHOICES = frozenset(
    {f"--{each.replace('_', '-')}" for each in (*GOALS, *CHOOSING, *_OF_ALL, *_WRITTEN)}
    | set(_FLAGS)
)
"""Options of `optimize` that have no say, or none any more, where a plan or passes say it all."""


def settled_by(command: str, *given: str, without: Collection[str] = ()) -> str:
    """Return a command line without what says how to choose, and with what says it all instead.

    Parameters
    ----------
    command
        ``onnxcp optimize`` and what was typed after it.
    given
        What says it all, as it is to be typed.
    without
        Other options to leave out, which take a value.
    """
    kept: list[str] = []
    words = iter(shlex.split(command))
    for word in words:
        name, sign, _ = word.partition("=")
        if name not in _CHOICES and name not in without:
            kept.append(word)
        elif not sign and name not in _FLAGS:
            next(words, None)
    # Right behind the command: behind a -- they would be no options.
    at = kept.index("optimize") + 1
    return " ".join([shlex.join(kept[:at]), *given, shlex.join(kept[at:])]).strip()


def settled_commands(command: str, result: Optimized) -> tuple[str, str]:
    """Return command lines that carry out the recipe and the plan of an outcome; "" for none.

    A goal of size is what networks are judged by, and no plan says it.
    """
    from onnxcp.lowering import FULL

    if result.planned is not None and result.planned.goal.size is not None:
        return "", ""
    # Passes and plans end in what lowers the precision.
    first, *_ = lowering = ("--precision", "--refit-prefix")
    of_plans = lowering if result.precision == FULL else (first,)
    return (
        settled_by(command, '--passes "$(cat recipe.txt)"', without=lowering),
        settled_by(command, "--plan plan.yaml", without=of_plans),
    )
