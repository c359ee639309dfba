"""What the main job is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxcp.errors import OnnxcpError
from onnxcp.planning.decide import Target
from onnxcp.profiling.inputs import Shape
from onnxcp.profiling.machine import Machine
from onnxcp.refit import RefitSettings

DEFAULT_MAX_ERROR = 0.1


@dataclass(frozen=True)
class Settings:
    """What `optimize` is asked to do. All shares and errors lie in (0, 1].

    Attributes
    ----------
    macs
        Keep at most this share of each site's multiply-adds; the closest family is taken. Or
        shares by patterns of names: ``{"*": 0.1, "conv3": 0.2}``, of which the last that fits
        counts.
    energy
        Keep at least this share of each kernel's squared Frobenius norm; the fastest family is
        taken. The same as a `max_error` of sqrt(1 - energy).
    max_error
        Largest relative Frobenius error of each kernel; the fastest family is taken. Where none of
        the three is given, `DEFAULT_MAX_ERROR` is the target.
    families
        Names of the families to choose from. By default all that are installed; for a target of
        error without those that can only find a rank by trial, which takes long (cp3 and cp4).
    nodes, exclude
        Names of the sites to rewrite and to leave alone: patterns as of a shell, several separated
        by spaces.
    round_to
        Ranks become multiples of this. None: of the block that ranks cost in on this machine,
        found by measuring.
    passes
        Pipeline text to run instead of choosing families site by site.
    machine
        Where the network will run.
    input_shapes
        Shapes of inputs, by name, to measure with. Open extents are otherwise taken as 1, and
        those of the spatial axes of images as 224.
    refit
        How what replaces sites is fitted to data, where there are any.
    """

    macs: float | Mapping[str, float] | None = None
    energy: float | None = None
    max_error: float | None = None
    families: tuple[str, ...] = ()
    nodes: str = "*"
    exclude: str = ""
    round_to: int | None = None
    passes: str = ""
    machine: Machine = field(default_factory=Machine)
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)
    refit: RefitSettings = field(default_factory=RefitSettings)

    def __post_init__(self) -> None:
        if self.round_to is not None and self.round_to < 1:
            raise OnnxcpError(f"Ranks cannot be rounded to multiples of {self.round_to}.")

    @property
    def target(self) -> Target:
        """The target of each site."""
        if self.energy is None:
            untold = self.macs is None and self.max_error is None
            return Target(self.macs, DEFAULT_MAX_ERROR if untold else self.max_error)
        if self.macs is not None or self.max_error is not None or not 0 < self.energy <= 1:
            raise OnnxcpError("Give one of macs, energy and max-error, each in (0, 1].")
        # At energy 1 any error is too large; that of rounding must still pass.
        return Target(max_error=max((1 - self.energy) ** 0.5, 1e-6))
