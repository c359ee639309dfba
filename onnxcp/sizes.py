"""Goals of size: files in bytes, and families that couple layers to get there."""

from __future__ import annotations

from dataclasses import replace

from onnxcp.errors import OnnxcpError
from onnxcp.graph.model import Model
from onnxcp.graph.summary import summarize
from onnxcp.passes import ShrinkPass, find_pass, registered_passes
from onnxcp.pipeline import parse_pipeline
from onnxcp.planned import Planned, by_goal
from onnxcp.planning.goal import Goal
from onnxcp.rewriting import Rewrite, by_passes, fold
from onnxcp.settings import Settings
from onnxcp.units import nbytes
from onnxcp.work import Work

_ROUNDS = 4  # of building, and asking for fewer weights where the file came out too large
_SPARE = 1e-3  # of the bytes, to end before the last round


def judged_by_size(settings: Settings) -> bool:
    """Tell whether a result has to be smaller, and not faster, to be kept."""
    if settings.passes:
        return any(isinstance(each, ShrinkPass) for each in parse_pipeline(settings.passes))
    return settings.goal.size is not None or shrinking(settings) is not None


def shrinking(settings: Settings) -> ShrinkPass | None:
    """Return the family that couples layers, if one was named.

    Raises
    ------
    OnnxcpError
        If other families are named beside it, or the goal is not one of size.
    """
    kinds = registered_passes() if settings.families else {}
    named = [kinds[name] for name in settings.families if name in kinds]
    found = next((kind for kind in named if issubclass(kind, ShrinkPass)), None)
    if found is None:
        return None
    goal = settings.goal
    if goal.parameters is None and goal.size is None:
        raise OnnxcpError(
            f"Family '{found.name}' makes files smaller, not networks faster: "
            "its goal is a share of the parameters or a size."
        )
    if len(settings.families) > 1:
        raise OnnxcpError(
            f"Family '{found.name}' decides for several layers at once: name no other beside it."
        )
    return found(nodes=settings.nodes, exclude=settings.exclude)


def by_size(work: Work) -> tuple[Rewrite, Planned | None]:
    """Rewrite for a share of the parameters, or for the size of the file.

    The size of a file is that of its weights and of everything else, names and nodes among it,
    of which there are more after a rewrite. So a first share is reckoned, and mended where the file
    that comes of it is too large.
    """
    goal = work.settings.goal
    if goal.parameters is not None:
        return _within(work, goal)
    wanted = bytes_wanted(work.original, goal)
    share = first_share(work.original, wanted)
    weights = work.original.nbytes
    for _ in range(_ROUNDS):
        rewrite, planned = _within(work, Goal(parameters=share))
        excess = wanted if rewrite.model is None else rewrite.model.file_nbytes - wanted
        if rewrite.model is None or excess <= 0:
            break
        share -= (excess + _SPARE * wanted) / weights
        if share <= 0:
            break
    if planned is None:
        if excess > 0:
            raise OnnxcpError(
                f"No coupling comes to {goal}; the closest is {nbytes(wanted + excess)}."
            )
        return rewrite, None
    short = planned.shortfall or (f"No plan comes to {goal}." if excess > 0 else "")
    return rewrite, replace(planned, goal=goal, shortfall=short)


def bytes_wanted(model: Model, goal: Goal) -> int:
    """Return how large a file may be: a size in bytes, or a share of that of the model.

    Raises
    ------
    OnnxcpError
        If the model is no larger to begin with.
    """
    assert goal.size is not None
    before = model.file_nbytes
    wanted = int(goal.size * before if goal.size < 1 else goal.size)
    if wanted >= before:
        raise OnnxcpError(
            f"'{model.name}' is no larger than {nbytes(wanted)} as it is: {nbytes(before)}."
        )
    return wanted


def first_share(model: Model, wanted: int) -> float:
    """Return the share of the weights that is left if everything but weights keeps its size.

    Raises
    ------
    OnnxcpError
        If everything else is larger than what is wanted.
    """
    weights = model.nbytes
    share = 1 - (model.file_nbytes - wanted) / (weights or 1)
    if not 0 < share < 1:
        rest = nbytes(model.file_nbytes - weights)
        raise OnnxcpError(
            f"'{model.name}' cannot come down to {nbytes(wanted)}: without weights it has {rest}."
        )
    return share


def _within(work: Work, goal: Goal) -> tuple[Rewrite, Planned | None]:
    """Rewrite for a share of the parameters."""
    family = shrinking(work.settings)
    if family is None:
        return by_goal(work, goal)
    assert goal.parameters is not None
    prepared, _ = fold(work.original)
    have = summarize(prepared, {}).parameters
    removed = have - int(goal.parameters * summarize(work.original, {}).parameters)
    passes = find_pass("fold-batchnorm")(), family.keeping(prepared, removed)
    return by_passes(work, passes), None
