"""What is wrong with an installation of ONNX Runtime, in one sentence with what mends it.

ONNX Runtime itself drops a provider whose libraries do not load, and says why only in its log; two
of its distributions in one environment overwrite each other's files. Nothing here imports it, so
that a broken installation can be explained, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Distributions of the module `onnxruntime`, by the full name of a provider that needs it.
DISTRIBUTIONS = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "DmlExecutionProvider": "onnxruntime-directml",
}

_NVIDIA = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}

_NAMED = re.compile(r"(?P<library>[\w.+-]+\.(?:so(?:\.\d+)*|dll))")

Load = Callable[[str], object]


def installed() -> list[str]:
    """Return the distributions present that provide the module `onnxruntime`."""
    found = []
    for name in ("onnxruntime", *dict.fromkeys(DISTRIBUTIONS.values())):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def replacement(wanted: str) -> str:
    """Return the command after which `wanted` is the only distribution of ONNX Runtime."""
    return f"pip uninstall -y {' '.join(installed() or ['onnxruntime'])} && pip install {wanted}"


def conflict(wanted: str = "") -> str:
    """Say that several distributions of ONNX Runtime are installed; "" if not so.

    Parameters
    ----------
    wanted
        The distribution to keep. By default the one of them with the most providers.
    """
    found = installed()
    if len(found) < 2:
        return ""
    together = " and ".join(f"'{distribution}'" for distribution in found)
    keep = wanted or next(name for name in reversed(found) if name != "onnxruntime")
    return f"{together} are installed together and break each other: {replacement(keep)}"


def broken(error: ImportError) -> str:
    """Say why the module `onnxruntime` cannot be imported, and what mends that."""
    found = installed()
    if not found:
        return "ONNX Runtime is not installed: pip install onnxruntime"
    return (
        f"The installation of ONNX Runtime is broken ({error}); "
        f"{conflict() or 'install it again: ' + replacement(found[0])}"
    )


def why_not_started(provider: str, short: str, *, load: Load = ctypes.CDLL) -> str:
    """Say why ONNX Runtime has a provider but does not start it, and what mends that.

    For providers of NVIDIA the driver and then the provider's own library are loaded, since the
    error of the dynamic linker names the library that is missing.

    Parameters
    ----------
    provider, short
        The provider by its full name, and as users call it.
    load
        Loads a library, and raises OSError if it or one that it needs is missing.
    """
    clash = conflict(DISTRIBUTIONS.get(provider, ""))
    message = f"ONNX Runtime has the provider '{short}' but cannot start it"
    if clash:
        return f"{message}: {clash}"
    if provider in _NVIDIA:
        driver = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            load(driver)
        except OSError:
            return (
                f"{message}: there is no NVIDIA driver ('{driver}' does not load); install it from "
                "https://www.nvidia.com/drivers, and run in a container with: docker run --gpus all"
            )
        if missing := _missing_library(_NVIDIA[provider], load):
            return f"{message}: the library '{missing}' does not load: {_mending(missing)}"
    return f"{message}: there is no such device, or its driver or a library is missing."


@functools.cache
def preload(module: Any) -> None:
    """Load the libraries of CUDA that come as Python packages, where ONNX Runtime can do that.

    That happens once in a process.

    Parameters
    ----------
    module
        `onnxruntime`. What it prints about libraries that it does not find is not shown.
    """
    if hasattr(module, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(OSError, RuntimeError):
            module.preload_dlls()


def _missing_library(kind: str, load: Load) -> str:
    """Load a provider as ONNX Runtime does; return the name of the library that is missing."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        for part in ("shared", kind):
            name = f"onnxruntime_providers_{part}"
            name = f"{name}.dll" if sys.platform == "win32" else f"lib{name}.so"
            try:
                load(str(Path(folder) / "capi" / name))
            except OSError as error:
                # glibc names the missing library first, and Windows only the one that was asked
                # for. An unresolved symbol of the shared part is no missing library.
                if "undefined symbol" in str(error):
                    continue
                match = _NAMED.search(str(error).partition(": ")[0].rpartition("/")[2])
                return match["library"] if match else name
    return ""


def _mending(library: str) -> str:
    if "nvinfer" in library or "nvonnxparser" in library:
        return "pip install tensorrt"
    if "onnxruntime_providers" in library:
        return replacement("onnxruntime-gpu")
    return "pip install 'onnxruntime-gpu[cuda,cudnn]'"
