"""A pass that rounds the weights of convolutions to a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from onnxcp.errors import PassError
from onnxcp.factorize import selected
from onnxcp.graph.model import Model
from onnxcp.graph.site import find_sites
from onnxcp.graph.splice import replace_kernels
from onnxcp.passes import Context, Pass, PassResult


@dataclass(frozen=True)
class RoundWeights(Pass):
    step: float = 0.5
    nodes: str = "*"
    limit: Optional[int] = None  # noqa: UP045 (written as older code writes it)

    name = "round-weights"
    summary = "weights become multiples of a step"

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise PassError(f"Option 'step' of pass '{self.name}' is {self.step}, not above 0.")

    def run(self, model: Model, context: Context) -> PassResult:
        sites = [site for site in find_sites(model)[0] if selected(site.name, self.nodes)]
        kernels = {
            site: np.round(site.kernel() / self.step) * self.step for site in sites[: self.limit]
        }
        notes = tuple(f"{site.name}: rounded to {self.step}" for site in kernels)
        return PassResult(replace_kernels(model, kernels), changed=bool(kernels), notes=notes)
