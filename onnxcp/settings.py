"""What the main job is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnxcp.errors import OnnxcpError
from onnxcp.planning.cache import Cache
from onnxcp.planning.cosine import NAME, CosineSvd
from onnxcp.planning.decide import Target
from onnxcp.planning.goal import Goal
from onnxcp.planning.plan import Plan
from onnxcp.profiling.inputs import Shape
from onnxcp.profiling.machine import Machine
from onnxcp.refit import RefitSettings
from onnxcp.training import Training


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
        taken.
    goal
        What the network is to become as a whole: planned, if neither of the two above is given.
    plan
        A plan to carry out as it stands, instead of choosing.
    preset
        A published way to choose, instead of planning by time: within the goal, of which it knows
        all but those of time.
    frontier
        Speed-ups to plan for besides, to see what they cost.
    families
        Names of the families to choose from. By default all that are installed but those that ask
        to be named (output-first-svd, tensor-train, sparse-low-rank, and coupled-tensor-train,
        which takes a goal of size and no other family beside it); for a target of energy
        without those that can only find a rank by trial, which takes long (cp3 and cp4).
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
    also_on
        Where else it may not be slower than the original: it is planned for `machine`, and timed on
        all of them in the end.
    input_shapes
        Shapes of inputs, by name, to measure with. Without them, or beside samples of these
        shapes, a sample is measured with; without samples, too, open extents are taken as 1, and
        those of the spatial axes of images as 224.
    refit
        How what replaces sites is fitted to data, where there are any.
    training
        How to fine-tune the result; None leaves it as it is.
    cache_dir
        Where measurements are kept for the next time; None: in the user's folder for such.
    cached
        Whether they are kept at all.
    """

    macs: float | Mapping[str, float] | None = None
    energy: float | None = None
    goal: Goal = field(default_factory=Goal)
    plan: Plan | None = None
    preset: CosineSvd | None = None
    frontier: tuple[float, ...] = ()
    families: tuple[str, ...] = ()
    nodes: str = "*"
    exclude: str = ""
    round_to: int | None = None
    passes: str = ""
    machine: Machine = field(default_factory=Machine)
    also_on: tuple[Machine, ...] = ()
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)
    refit: RefitSettings = field(default_factory=RefitSettings)
    training: Training | None = None
    cache_dir: Path | None = None
    cached: bool = True

    def __post_init__(self) -> None:
        if self.round_to is not None and self.round_to < 1:
            raise OnnxcpError(f"Ranks cannot be rounded to multiples of {self.round_to}.")

        if sum((self.macs is not None, self.energy is not None, self.goal != Goal())) > 1:
            raise OnnxcpError("Give one of macs, energy and a goal for the whole network.")
        if any(not speedup > 1 for speedup in self.frontier):
            raise OnnxcpError("The speed-ups of a frontier are numbers above 1.")
        if self.preset is not None:
            self._check_preset(self.preset)

    def _check_preset(self, preset: CosineSvd) -> None:
        goal = self.goal
        others = {
            "macs": self.macs, "energy": self.energy, "a plan": self.plan, "passes": self.passes,
            "a frontier": self.frontier,
        }  # fmt: skip
        for what, value in others.items():
            if value:
                raise OnnxcpError(f"The preset {NAME} and {what} exclude each other.")
        if goal.speedup is not None or goal.latency is not None or goal.size is not None:
            raise OnnxcpError(
                f"The preset {NAME} is about parameters and multiply-adds, and cannot aim at "
                f"{goal}."
            )
        if preset.cosine is not None and (goal.macs is not None or goal.parameters is not None):
            raise OnnxcpError(
                f"A cosine of {preset.cosine:g} and a goal of {goal} exclude each other."
            )

    @property
    def target(self) -> Target | None:
        """The target of each site by itself; None where it is the network that has a goal."""
        if self.macs is not None:
            return Target(self.macs)
        if self.energy is None:
            return None
        if not 0 < self.energy <= 1:
            raise OnnxcpError(f"An energy must lie in (0, 1]; {self.energy:g} does not.")
        # At energy 1 any error is too large; that of rounding must still pass.
        return Target(max_error=max((1 - self.energy) ** 0.5, 1e-6))

    @property
    def cache(self) -> Cache:
        """What was measured before."""
        if not self.cached:
            return Cache(None)
        return Cache.default() if self.cache_dir is None else Cache(self.cache_dir)
