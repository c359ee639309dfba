"""What a network is to become as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from onnxcp.errors import OnnxcpError

DEFAULT_MAX_ERROR = 0.1


@dataclass(frozen=True)
class Goal:
    """At most one is given; with none, the network is to be fast within `DEFAULT_MAX_ERROR`.

    Attributes
    ----------
    speedup
        How many times faster, more than 1; the distortion of the outputs is made least.
    latency
        Seconds per run, likewise.
    macs, parameters
        Share of the network's multiply-adds or weights to keep, in (0, 1); likewise.
    size
        Bytes of the file, external data included; below 1, the share of them to keep. Likewise.
    max_error
        Largest relative error of the outputs, in (0, 1]; the network is made as fast as it allows.
    max_accuracy_drop
        How much of the score may be lost at most, from 0 on; likewise. Needs labelled data or an
        evaluation function.
    min_agreement
        Share of samples, in (0, 1], whose top class must be the original's; likewise. Needs samples
        but no labels.
    """

    speedup: float | None = None
    latency: float | None = None
    macs: float | None = None
    parameters: float | None = None
    size: float | None = None
    max_error: float | None = None
    max_accuracy_drop: float | None = None
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise OnnxcpError(f"Give only one goal: {' and '.join(given)} exclude each other.")
        for name, value in given.items():
            low, high = _RANGES[name]
            closed = name == "max_accuracy_drop"  # nothing may be lost: that is a goal, too
            if not (low < value <= high or (closed and value == low)):
                opening = "[" if closed else "("
                raise OnnxcpError(
                    f"The goal {name} must lie in {opening}{low:g}, {high:g}]; not {value:g}."
                )

    @property
    def error(self) -> float | None:
        """Largest relative error of the outputs; None where the goal is another."""
        others = (self.speedup, self.latency, self.macs, self.parameters, self.size)
        if self.scored or any(each is not None for each in others):
            return None
        return self.max_error or DEFAULT_MAX_ERROR

    @property
    def scored(self) -> bool:
        """Whether it is a limit on what a network scores, which only a built one does."""
        return self.max_accuracy_drop is not None or self.min_agreement is not None

    def least(self, baseline: float | None) -> float:
        """Return the least score that is tolerated: of accuracy, or the agreement itself.

        Parameters
        ----------
        baseline
            What the original scores; no matter for an agreement.
        """
        if self.min_agreement is not None:
            return self.min_agreement
        assert baseline is not None, "a goal of accuracy needs a score"
        assert self.max_accuracy_drop is not None, "other goals need none"
        return baseline - self.max_accuracy_drop

    def __str__(self) -> str:
        match self:
            case Goal(speedup=float() | int() as value):
                return f"{value:g} times faster"
            case Goal(latency=float() | int() as value):
                return f"{1e3 * value:g} ms per run"
            case Goal(macs=float() | int() as value):
                return f"{100 * value:g} % of the MACs"
            case Goal(parameters=float() | int() as value):
                return f"{100 * value:g} % of the parameters"
            case Goal(size=float() | int() as value) if value < 1:
                return f"{100 * value:g} % of the file's size"
            case Goal(size=float() | int() as value):
                return f"a file of {value:.0f} bytes"
            case Goal(max_accuracy_drop=float() | int() as value):
                return f"a score at most {value:g} lower"
            case Goal(min_agreement=float() | int() as value):
                return f"the same top class on {100 * value:g} % of the samples"
            case _:
                return f"a relative error of the outputs of at most {self.error:g}"


_RANGES = {
    "speedup": (1.0, math.inf),
    "latency": (0.0, math.inf),
    "macs": (0.0, 1.0),
    "parameters": (0.0, 1.0),
    "size": (0.0, math.inf),
    "max_error": (0.0, 1.0),
    "max_accuracy_drop": (0.0, math.inf),
    "min_agreement": (0.0, 1.0),
}
