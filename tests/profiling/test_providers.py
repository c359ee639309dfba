from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable

import onnxruntime as ort
import pytest

from onnxcp.errors import ProviderError
from onnxcp.profiling.providers import (
    device_of,
    full_name,
    resolve_providers,
    short_name,
    split_providers,
)

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
    mend = re.escape(f": pip uninstall -y onnxruntime && pip install {distribution}")
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
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
    ):
        resolve_providers(["cuda"])


def test_short_name() -> None:
    assert short_name(CUDA) == "cuda"
    assert short_name("QNNExecutionProvider") == "QNNExecutionProvider"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("cuda{use_tf32=0}", {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0"}),
        (
            "CUDA { use_tf32 = 1 , prefer_nhwc=1 }",
            {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "1", "prefer_nhwc": "1"},
        ),
        ("cuda{cudnn_conv_algo_search=HEURISTIC}", {"cudnn_conv_algo_search": "HEURISTIC"}),
        ("cuda{}", {"cudnn_conv_algo_search": "EXHAUSTIVE"}),
        (
            'cuda{a="x,{y}",b=two words}',
            {"cudnn_conv_algo_search": "EXHAUSTIVE", "a": "x,{y}", "b": "two words"},
        ),
    ],
)
def test_options(build: Callable[..., None], text: str, options: dict[str, str]) -> None:
    build([CUDA, CPU], ["onnxruntime-gpu"])
    assert resolve_providers([text]) == ((CUDA, options), CPU)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("tensorrt", "TensorrtExecutionProvider"),
        ("TRT", "TensorrtExecutionProvider"),
        ("openvino", "OpenVINOExecutionProvider"),
        ("coreml", "CoreMLExecutionProvider"),
        ("CoreMLExecutionProvider", "CoreMLExecutionProvider"),
        ("directml", "DmlExecutionProvider"),
        ("dml", "DmlExecutionProvider"),
        ("qnn", "QNNExecutionProvider"),
        ("migraphx", "MIGraphXExecutionProvider"),
    ],
)
def test_other_providers_pass_through(build: Callable[..., None], text: str, full: str) -> None:
    build([full, CPU], ["onnxruntime"])
    assert resolve_providers([text]) == (full, CPU)
    assert resolve_providers([text + '{device_type="HETERO:GPU,CPU"}']) == (
        (full, {"device_type": "HETERO:GPU,CPU"}),
        CPU,
    )
    assert full_name(text + "{a=b}") == full


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuda{use_tf32}", "Cannot read the options of 'cuda{use_tf32}' from 'use_tf32' on"),
        ("cuda{a=1,=2}", "from '=2' on"),
        ("cuda{a=1", "Cannot read the provider 'cuda{a=1'"),
        ("cpu{threads=4}", "The provider 'cpu' has no options, and was given 'cpu{threads=4}'"),
    ],
)
def test_options_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ProviderError, match=re.escape(message)):
        resolve_providers([text])


@pytest.mark.parametrize(
    ("text", "separator", "names"),
    [
        ("cpu", ",", ("cpu",)),
        ("cpu, cuda", ",", ("cpu", "cuda")),
        ("cuda{a=1,b=2},cpu", ",", ("cuda{a=1,b=2}", "cpu")),
        ('openvino{d="GPU,CPU}"},cpu', ",", ('openvino{d="GPU,CPU}"}', "cpu")),
        ("tensorrt{a=x+y}+cuda", "+", ("tensorrt{a=x+y}", "cuda")),
    ],
)
def test_split(text: str, separator: str, names: tuple[str, ...]) -> None:
    assert split_providers(text, separator) == names


@pytest.mark.parametrize(
    ("name", "device"),
    [("cpu", None), ("cuda", 0), ("cuda{device_id=1}", 1), ("tensorrt{device_id=2,x=3}", 2)],
)
def test_device(name: str, device: int | None) -> None:
    assert device_of(name) == device


@pytest.mark.parametrize("text", ["", "cpu,", ",cpu", "cpu,,cuda", "cuda{a=1,cpu", 'a{b="c}', "a}"])
def test_what_cannot_be_split(text: str) -> None:
    with pytest.raises(ProviderError):
        split_providers(text)
