"""What was asked for: the side of a report that the result itself does not know."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcp.factorize import FactorizePass
from onnxcp.passes import ShrinkPass
from onnxcp.pipeline import parse_pipeline
from onnxcp.settings import Settings
from onnxcp.sizes import shrinking


@dataclass(frozen=True)
class Job:
    """One call of the main job.

    Attributes
    ----------
    settings
        What it was called with.
    model
        The input, as the user named it.
    command
        The command line that does it again.
    output
        The file that was written, or None.
    data
        What samples it was calibrated on and how they were prepared, as one line, or None.
    labelled, script
        Files of labelled samples and of an evaluation function, as the user named them, or None.
    again
        Command lines that carry out the passes that ran, from a file ``recipe.txt``, and the plan,
        from ``plan.yaml``, without choosing anew; "" where there is none.
    """

    settings: Settings
    model: str
    command: str
    output: str | None = None
    data: str | None = None
    labelled: str | None = None
    script: str | None = None
    again: tuple[str, str] = ("", "")

    @property
    def passes_refit(self) -> bool:
        """Whether passes were asked for whose factorisations are refitted to the samples."""
        settings = self.settings
        if self.data is None or settings.refit.scope == "none":
            return False
        if not settings.passes:
            return shrinking(settings) is not None
        passes = parse_pipeline(settings.passes)
        return any(isinstance(each, FactorizePass | ShrinkPass) for each in passes)
