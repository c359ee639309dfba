"""Why a node is left alone: a typed reason that prints as a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """The kinds of reason for which a node, or an option for it, is refused."""

    DEPTHWISE = "depthwise"
    EXCLUDED = "excluded"
    INACCURATE = "inaccurate"
    IN_FUNCTION = "in a function"
    IN_SUBGRAPH = "in a subgraph"
    INEXPRESSIBLE = "cannot be expressed"
    NO_REDUCTION = "no reduction"
    NOT_FASTER = "not faster"
    NOT_FINITE = "not finite"
    NOT_NEEDED = "not needed"
    QUANTIZED = "quantized"
    SHAPE_UNKNOWN = "shape unknown"
    TOO_SMALL = "too small"
    UNKNOWN_DOMAIN = "unknown domain"
    UNSUPPORTED = "unsupported"
    WEIGHT_NOT_CONSTANT = "weight not constant"


# How far an option came before it was refused; of several refusals the last such says most.
_STAGES = (
    Reason.INEXPRESSIBLE,
    Reason.NO_REDUCTION,
    Reason.NOT_FASTER,
    Reason.NOT_FINITE,
    Reason.INACCURATE,
    Reason.NOT_NEEDED,
)


@dataclass(frozen=True)
class Refusal:
    """A node that is left alone, and why.

    Attributes
    ----------
    site
        Name of the node.
    reason
        The kind of reason, for programs.
    detail
        The reason as the end of a sentence that begins with the node's name, for people.
    """

    site: str
    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.site}: {self.detail}"


def main_refusal(refusals: Sequence[Refusal]) -> Refusal | None:
    """Return the refusal of the option that came furthest: it says most."""

    def stage(refusal: Refusal) -> int:
        return _STAGES.index(refusal.reason) if refusal.reason in _STAGES else -1

    return max(refusals, key=stage, default=None)
