from __future__ import annotations

import pytest

from onnxcp.refit import RefitSettings
from onnxcp.reporting.job import Job
from onnxcp.settings import Settings


@pytest.mark.parametrize(
    ("passes", "scope", "data", "refits"),
    [
        ("fold-batchnorm,cp3{rank=1}", "all", "'x.npz'", True),
        ("cp3{rank=1}", "factorised", "'x.npz'", True),
        ("cp3{rank=1}", "none", "'x.npz'", False),
        ("cp3{rank=1}", "all", None, False),
        ("fold-batchnorm", "all", "'x.npz'", False),
        ("", "all", "'x.npz'", False),
    ],
)
def test_whether_passes_refit(passes: str, scope: str, data: str | None, refits: bool) -> None:
    settings = Settings(passes=passes, refit=RefitSettings(scope))
    job = Job(settings, model="m.onnx", command="onnxcp optimize m.onnx", data=data)
    assert job.passes_refit is refits
