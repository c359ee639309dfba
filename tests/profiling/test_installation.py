from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import pytest

from onnxcp.profiling import installation
from onnxcp.profiling.installation import broken, conflict, installed, preload, why_not_started

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


@pytest.fixture
def having(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that these distributions are installed, and no others."""

    def pretend(*names: str) -> None:
        def version(name: str) -> str:
            if name not in names:
                raise importlib.metadata.PackageNotFoundError(name)
            return "1.0"

        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


def loader(**failures: str) -> Callable[[str], object]:
    """Load anything but libraries whose names hold these words, which fail with these messages."""

    def load(path: str) -> object:
        for word, message in failures.items():
            if word in path:
                raise OSError(message)
        return object()

    return load


def test_one_distribution_is_no_conflict(having: Callable[..., None]) -> None:
    having("onnxruntime-gpu", "numpy")
    assert installed() == ["onnxruntime-gpu"]
    assert conflict() == ""


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("onnxruntime", "onnxruntime-gpu"), "onnxruntime-gpu"),
        (("onnxruntime", "onnxruntime-openvino"), "onnxruntime-openvino"),
        (("onnxruntime-gpu", "onnxruntime-directml"), "onnxruntime-directml"),
    ],
)
def test_two_distributions_are(
    having: Callable[..., None], names: tuple[str, ...], kept: str
) -> None:
    having(*names)
    both = " and ".join(f"'{name}'" for name in names)
    assert conflict() == (
        f"{both} are installed together and break each other: "
        f"pip uninstall -y {' '.join(names)} && pip install {kept}"
    )
    assert conflict("onnxruntime").endswith("&& pip install onnxruntime")


class TestBroken:
    error = ModuleNotFoundError("No module named 'onnxruntime.capi'", name="onnxruntime.capi")

    def test_not_installed(self, having: Callable[..., None]) -> None:
        having()
        assert broken(self.error) == "ONNX Runtime is not installed: pip install onnxruntime"

    def test_installed_again(self, having: Callable[..., None]) -> None:
        having("onnxruntime-gpu")
        assert broken(self.error) == (
            "The installation of ONNX Runtime is broken (No module named 'onnxruntime.capi'); "
            "install it again: pip uninstall -y onnxruntime-gpu && pip install onnxruntime-gpu"
        )

    def test_two(self, having: Callable[..., None]) -> None:
        having("onnxruntime", "onnxruntime-gpu")
        assert "are installed together and break each other" in broken(self.error)


class TestWhyNotStarted:
    @pytest.fixture(autouse=True)
    def one(self, having: Callable[..., None]) -> None:
        having("onnxruntime-gpu")

    def test_no_driver(self) -> None:
        found = why_not_started(CUDA, "cuda", load=loader(libcuda="no such file"))
        assert found.startswith(
            "ONNX Runtime has the provider 'cuda' but cannot start it: there is no NVIDIA driver "
            "('libcuda.so.1' does not load); install it"
        )
        assert "docker run --gpus all" in found

    @pytest.mark.parametrize(
        ("library", "mending"),
        [
            ("libcudnn.so.9", "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
            ("libcublasLt.so.12", "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
            ("libnvinfer.so.10", "pip install tensorrt"),
        ],
    )
    def test_the_missing_library_is_named(self, library: str, mending: str) -> None:
        message = f"{library}: cannot open shared object file: No such file or directory"
        load = loader(providers_cuda=message, providers_tensorrt=message)
        for provider in (CUDA, TENSORRT):
            found = why_not_started(provider, "gpu", load=load)
            assert found.endswith(f"the library '{library}' does not load: {mending}")

    def test_the_providers_own_library_is_missing(self) -> None:
        path = "/somewhere/onnxruntime/capi/libonnxruntime_providers_cuda.so"
        load = loader(providers_cuda=f"{path}: cannot open shared object file")
        found = why_not_started(CUDA, "cuda", load=load)
        assert "the library 'libonnxruntime_providers_cuda.so' does not load" in found
        assert found.endswith("pip uninstall -y onnxruntime-gpu && pip install onnxruntime-gpu")

    def test_a_symbol_that_onnx_runtime_resolves_itself_is_not_missing(self) -> None:
        load = loader(providers_cuda="libonnxruntime_providers_cuda.so: undefined symbol: Host")
        found = why_not_started(CUDA, "cuda", load=load)
        assert found.endswith("there is no such device, or its driver or a library is missing.")

    def test_providers_of_others(self) -> None:
        found = why_not_started("DmlExecutionProvider", "dml", load=loader())
        assert found.endswith("there is no such device, or its driver or a library is missing.")

    def test_two_distributions_come_first(self, having: Callable[..., None]) -> None:
        having("onnxruntime", "onnxruntime-gpu")
        found = why_not_started(CUDA, "cuda", load=loader(libcuda="no such file"))
        assert "cannot start it: 'onnxruntime' and 'onnxruntime-gpu' are installed" in found


class TestPreload:
    def test_says_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        class Module:
            calls = 0

            def preload_dlls(self) -> None:
                self.calls += 1
                print("Failed to load libcudnn.so.9")

        module = Module()
        preload(module)
        preload(module)
        assert module.calls == 1
        assert capsys.readouterr().out == ""

    def test_what_fails_is_explained_later(self) -> None:
        class Module:
            def preload_dlls(self) -> None:
                raise OSError("libcuda.so.1")

        preload(Module())

    def test_builds_without_it(self) -> None:
        preload(object())


def test_onnx_runtime_is_not_imported() -> None:
    """A broken installation must be explained, too."""
    assert not hasattr(installation, "onnxruntime")
    assert not hasattr(installation, "ort")
