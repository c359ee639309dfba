"""Turn the execution providers a user names into what ONNX Runtime wants to hear."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

import onnxruntime as ort

from onnxcp.errors import ProviderError

#: A provider as `onnxruntime.InferenceSession` takes it: a name, or a name and its options.
Provider = str | tuple[str, dict[str, str]]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

_SHORT = {
    "cpu": CPU,
    "cuda": CUDA,
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
}

# DEFAULT has meant the fallback algorithm since 1.20, and grouped and 1×3 convolutions, the very
# ones factorised chains are made of, fall off it (onnxruntime#22705: 206 ms instead of 4 ms).
_OPTIONS = {CUDA: {"cudnn_conv_algo_search": "EXHAUSTIVE"}}

_DISTRIBUTIONS = {
    CUDA: "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "DmlExecutionProvider": "onnxruntime-directml",
}


def resolve_providers(names: Sequence[str]) -> tuple[Provider, ...]:
    """Resolve provider names, in order of preference, for `onnxruntime.InferenceSession`.

    The CPU provider is appended where it is not named: it runs the nodes that no other takes.

    Parameters
    ----------
    names
        `cpu`, `cuda`, `tensorrt`, `openvino`, `coreml`, `dml`, or the full names of ONNX Runtime,
        in any case.

    Raises
    ------
    ProviderError
        If there is no such provider, or the installed build of ONNX Runtime does not have it.
    """
    full = list(dict.fromkeys([*(_full_name(name) for name in names), CPU]))
    available = ort.get_available_providers()
    for name in full:
        if name not in available:
            raise ProviderError(_missing(name, available))
    return tuple((name, dict(_OPTIONS[name])) if name in _OPTIONS else name for name in full)


def _full_name(name: str) -> str:
    known: dict[str, str] = {full.lower(): full for full in ort.get_all_providers()} | _SHORT
    try:
        return known[name.strip().lower()]
    except KeyError:
        allowed = ", ".join(_SHORT)
        raise ProviderError(
            f"There is no execution provider '{name}'; choose from {allowed}, or give a full name "
            "of ONNX Runtime such as 'QNNExecutionProvider'."
        ) from None


def short_name(provider: str) -> str:
    """Return what users call a provider: 'cuda' for 'CUDAExecutionProvider'."""
    for short, full in _SHORT.items():
        if full == provider:
            return short
    return provider


def _missing(name: str, available: Sequence[str]) -> str:
    installed = _installed_distributions()
    message = (
        f"The installed ONNX Runtime {ort.__version__} has no provider '{short_name(name)}', only "
        + ", ".join(f"'{short_name(other)}'" for other in available)
    )
    wanted = _DISTRIBUTIONS.get(name)
    if len(installed) > 1:
        together = " and ".join(f"'{distribution}'" for distribution in installed)
        return (
            f"{message}; {together} are installed together and break each other: "
            f"pip uninstall {' '.join(installed)} && pip install {wanted or 'onnxruntime'}"
        )
    if wanted is None or wanted in installed:
        return f"{message}; it needs a machine and a build of ONNX Runtime that support it."
    return (
        f"{message}: pip uninstall {' '.join(installed) or 'onnxruntime'} && pip install {wanted}"
    )


def _installed_distributions() -> list[str]:
    """Return the distributions present that provide the module `onnxruntime`."""
    found = []
    for name in ("onnxruntime", *dict.fromkeys(_DISTRIBUTIONS.values())):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found
