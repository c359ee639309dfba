"""onnxcp: low-rank compression of ONNX networks, decided by measured latency.

The public names, each imported when it is first used:

- `optimize`, `Settings`, `Goal`, `CosineSvd`, `RefitSettings`, `Optimized`: the main job.
- `Training`, `Finetuned`, `Epoch`: fine-tuning, by `optimize` or `onnxcp.tuning.finetune`.
- `make_plan`, `Plan`, `load_plan`, `save_plan`: what the main job would do, as a file.
- `CalibrationSource`, `Preprocess`: samples to refit to, how many, and what is done to pictures.
- `load`, `save`, `Model`: models that lose no field.
- `find_sites`, `Site`, `Refusal`: weights that may be factorised, and why others may not.
- `Pass`, `PassManager`, `parse_pipeline`, `registered_passes`: rewriting passes.
- `FactorizePass`, `ProductPass`, `SvdPass`: families of decompositions.
- `Machine`: where networks run.
- `OnnxcpError`: what is raised on bad input.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcp.calibration.preprocess import Preprocess
    from onnxcp.calibration.sources import CalibrationSource
    from onnxcp.errors import OnnxcpError
    from onnxcp.factorize import FactorizePass
    from onnxcp.graph.model import Model, load, save
    from onnxcp.graph.refusal import Refusal
    from onnxcp.graph.site import Site, find_sites
    from onnxcp.optimizer import Optimized, make_plan, optimize
    from onnxcp.passes import Context, Pass, PassManager, PassResult, registered_passes
    from onnxcp.pipeline import parse_pipeline
    from onnxcp.planning.cosine import CosineSvd
    from onnxcp.planning.goal import Goal
    from onnxcp.planning.plan import Plan, load_plan, save_plan
    from onnxcp.product import ProductPass, SvdPass
    from onnxcp.profiling.machine import Machine
    from onnxcp.refit import RefitSettings
    from onnxcp.settings import Settings
    from onnxcp.training import Epoch, Finetuned, Training

__version__ = "0.1.0"

_HOMES = {
    "CalibrationSource": "onnxcp.calibration.sources",
    "Context": "onnxcp.passes",
    "CosineSvd": "onnxcp.planning.cosine",
    "Epoch": "onnxcp.training",
    "FactorizePass": "onnxcp.factorize",
    "Finetuned": "onnxcp.training",
    "Goal": "onnxcp.planning.goal",
    "Machine": "onnxcp.profiling.machine",
    "Model": "onnxcp.graph.model",
    "OnnxcpError": "onnxcp.errors",
    "Optimized": "onnxcp.optimizer",
    "Pass": "onnxcp.passes",
    "PassManager": "onnxcp.passes",
    "PassResult": "onnxcp.passes",
    "Plan": "onnxcp.planning.plan",
    "Preprocess": "onnxcp.calibration.preprocess",
    "ProductPass": "onnxcp.product",
    "RefitSettings": "onnxcp.refit",
    "Refusal": "onnxcp.graph.refusal",
    "Settings": "onnxcp.settings",
    "Site": "onnxcp.graph.site",
    "SvdPass": "onnxcp.product",
    "Training": "onnxcp.training",
    "find_sites": "onnxcp.graph.site",
    "load": "onnxcp.graph.model",
    "load_plan": "onnxcp.planning.plan",
    "make_plan": "onnxcp.optimizer",
    "optimize": "onnxcp.optimizer",
    "parse_pipeline": "onnxcp.pipeline",
    "registered_passes": "onnxcp.passes",
    "save": "onnxcp.graph.model",
    "save_plan": "onnxcp.planning.plan",
}

__all__ = [
    "CalibrationSource",
    "Context",
    "CosineSvd",
    "Epoch",
    "FactorizePass",
    "Finetuned",
    "Goal",
    "Machine",
    "Model",
    "OnnxcpError",
    "Optimized",
    "Pass",
    "PassManager",
    "PassResult",
    "Plan",
    "Preprocess",
    "ProductPass",
    "RefitSettings",
    "Refusal",
    "Settings",
    "Site",
    "SvdPass",
    "Training",
    "find_sites",
    "load",
    "load_plan",
    "make_plan",
    "optimize",
    "parse_pipeline",
    "registered_passes",
    "save",
    "save_plan",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for: `import onnxcp` alone stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxcp' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
