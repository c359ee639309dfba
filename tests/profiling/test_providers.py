from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable

import onnxruntime as ort
import pytest

from onnxcp.errors import ProviderError
from onnxcp.profiling.providers import resolve_providers, short_name

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend to be a build of ONNX Runtime with some providers, from some distributions."""

    def pretend(available: list[str], installed: list[str]) -> None:
        def version(name: str) -> str:
            if name not in installed:
                raise importlib.metadata.PackageNotFoundError(name)
            return "1.0"

        monkeypatch.setattr(ort, "get_available_providers", lambda: available)
        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


@pytest.mark.parametrize("name", ["cpu", "CPU", " cpu ", CPU, CPU.lower()])
def test_names(name: str) -> None:
    assert resolve_providers([name]) == (CPU,)


def test_cpu_is_the_fallback(build: Callable[..., None]) -> None:
    build([CUDA, CPU], ["onnxruntime-gpu"])
    assert resolve_providers([]) == (CPU,)
    assert resolve_providers(["cuda"])[1:] == (CPU,)
    assert resolve_providers(["cpu", "cuda", "cpu"])[0] == CPU
    assert len(resolve_providers(["cpu", "cuda", "cpu"])) == 2


def test_cuda_searches_convolutions_exhaustively(build: Callable[..., None]) -> None:
    build([CUDA, CPU], ["onnxruntime-gpu"])
    assert resolve_providers(["cuda"])[0] == (CUDA, {"cudnn_conv_algo_search": "EXHAUSTIVE"})


def test_unknown() -> None:
    with pytest.raises(ProviderError, match=r"no execution provider 'gpu'.*cpu, cuda, tensorrt"):
        resolve_providers(["gpu"])


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("cuda", "onnxruntime-gpu"),
        ("tensorrt", "onnxruntime-gpu"),
        ("openvino", "onnxruntime-openvino"),
        ("dml", "onnxruntime-directml"),
    ],
)
def test_missing(build: Callable[..., None], name: str, distribution: str) -> None:
    build([CPU], ["onnxruntime"])
    mend = re.escape(f": pip uninstall onnxruntime && pip install {distribution}")
    with pytest.raises(ProviderError, match=f"no provider '{name}', only 'cpu'{mend}$"):
        resolve_providers([name])


def test_missing_where_no_distribution_helps(build: Callable[..., None]) -> None:
    build([CPU], ["onnxruntime"])
    with pytest.raises(ProviderError, match="no provider 'coreml', only 'cpu'; it needs a machine"):
        resolve_providers(["coreml"])


def test_two_distributions_break_each_other(build: Callable[..., None]) -> None:
    build([CPU], ["onnxruntime", "onnxruntime-gpu"])
    with pytest.raises(
        ProviderError,
        match="'onnxruntime' and 'onnxruntime-gpu' are installed together and break each other: "
        "pip uninstall onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
    ):
        resolve_providers(["cuda"])


def test_short_name() -> None:
    assert short_name(CUDA) == "cuda"
    assert short_name("QNNExecutionProvider") == "QNNExecutionProvider"
