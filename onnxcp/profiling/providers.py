"""Turn the execution providers a user names into what ONNX Runtime wants to hear.

A provider is named as ``cuda`` or ``CUDAExecutionProvider``, in any case, and may have options
behind it, as passes have: ``cuda{use_tf32=0,prefer_nhwc=1}``. Values with commas or brackets stand
in quotes: ``openvino{device_type="HETERO:GPU,CPU"}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import onnxruntime as ort

from onnxcp.errors import ProviderError
from onnxcp.profiling import installation

#: A provider as `onnxruntime.InferenceSession` takes it: a name, or a name and its options.
Provider = str | tuple[str, dict[str, str]]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_SHORT = {
    "cpu": CPU,
    "cuda": CUDA,
    "tensorrt": TENSORRT,
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
}
_ALSO = {"directml": "DmlExecutionProvider", "trt": TENSORRT}

# DEFAULT has meant the fallback algorithm since 1.20, and grouped and 1×3 convolutions, the very
# ones factorised chains are made of, fall off it (onnxruntime#22705: 206 ms instead of 4 ms).
_OPTIONS = {CUDA: {"cudnn_conv_algo_search": "EXHAUSTIVE"}}

_NAMED = re.compile(r"\s*(?P<name>\w+)\s*(?:\{(?P<options>.*)\}\s*)?", re.DOTALL)
_OPTION = re.compile(
    r"""\s*(?P<key>\w+)\s*=\s*(?P<value>"(?:[^"\\]|\\.)*"|[^\s,"{}][^,"{}]*?)\s*(?:,|$)"""
)
# What stands between separators: anything but these, or something in brackets or quotes.
_ITEM = r"""(?:[^{separator}{{}}"]|"(?:[^"\\]|\\.)*"|\{{(?:[^{{}}"]|"(?:[^"\\]|\\.)*")*\}})*"""


def split_providers(text: str, separator: str = ",") -> tuple[str, ...]:
    """Split names of providers at a separator, but not within the options of one.

    Raises
    ------
    ProviderError
        If a name is empty, or a bracket or quote is not closed.
    """
    item = re.compile(_ITEM.format(separator=re.escape(separator)))
    names, position = [], 0
    while True:
        match = item.match(text, position)
        assert match is not None  # it matches nothing, too
        names.append(match.group().strip())
        position = match.end()
        if position == len(text):
            break
        if text[position] != separator:
            raise ProviderError(
                f"Cannot read the providers '{text}'; write names separated by '{separator}', "
                "options as in cuda{use_tf32=0}, and brackets and quotes that are closed."
            )
        position += 1
    if not all(names):
        raise ProviderError(
            f"'{text}' holds an empty name; write providers separated by '{separator}'."
        )
    return tuple(names)


def resolve_providers(names: Sequence[str]) -> tuple[Provider, ...]:
    """Resolve provider names, in order of preference, for `onnxruntime.InferenceSession`.

    The CPU provider is appended where it is not named: it runs the nodes that no other takes.

    Parameters
    ----------
    names
        `cpu`, `cuda`, `tensorrt`, `openvino`, `coreml`, `dml`, or the full names of ONNX Runtime,
        in any case, each with options or without.

    Raises
    ------
    ProviderError
        If there is no such provider, its options cannot be read, or the installed build of ONNX
        Runtime does not have it.
    """
    chosen: dict[str, dict[str, str]] = {}
    for name in (*names, CPU):
        full, options = _parse(name)
        chosen.setdefault(full, options)
    available = ort.get_available_providers()
    for name in chosen:
        if name not in available:
            raise ProviderError(_missing(name, available))
    return tuple((name, options) if options else name for name, options in chosen.items())


def full_name(name: str) -> str:
    """Return what ONNX Runtime calls a provider; options behind the name are left out.

    Raises
    ------
    ProviderError
        If there is no such provider.
    """
    return _parse(name)[0]


def device_of(name: str) -> int | None:
    """Return the number of the NVIDIA device that a provider runs on; None if it runs elsewhere."""
    full, options = _parse(name)
    number = options.get("device_id", "0")
    return int(number) if full in (CUDA, TENSORRT) and number.isdecimal() else None


def short_name(provider: str) -> str:
    """Return what users call a provider: 'cuda' for 'CUDAExecutionProvider'."""
    for short, full in _SHORT.items():
        if full == provider:
            return short
    return provider


def _parse(text: str) -> tuple[str, dict[str, str]]:
    match = _NAMED.fullmatch(text)
    if match is None:
        raise ProviderError(
            f"Cannot read the provider '{text}'; write a name, or one with options such as "
            "cuda{use_tf32=0,prefer_nhwc=1}."
        )
    full = _full_name(match["name"])
    given = _options(text, match["options"] or "")
    if given and full == CPU:
        raise ProviderError(f"The provider 'cpu' has no options, and was given '{text}'.")
    return full, {**_OPTIONS.get(full, {}), **given}


def _options(text: str, inside: str) -> dict[str, str]:
    options: dict[str, str] = {}
    position = 0
    while position < len(inside.rstrip()):
        match = _OPTION.match(inside, position)
        if match is None:
            raise ProviderError(
                f"Cannot read the options of '{text}' from '{inside[position:].strip()}' on; write "
                "NAME=VALUE separated by commas."
            )
        value = match["value"]
        options[match["key"]] = json.loads(value) if value.startswith('"') else value
        position = match.end()
    return options


def _full_name(name: str) -> str:
    every: list[str] = ort.get_all_providers()
    known = {full.lower(): full for full in every}
    known |= {full.removesuffix("ExecutionProvider").lower(): full for full in every}
    known |= _SHORT | _ALSO
    try:
        return known[name.lower()]
    except KeyError:
        allowed = ", ".join(_SHORT)
        raise ProviderError(
            f"There is no execution provider '{name}'; choose from {allowed}, or give a full name "
            "of ONNX Runtime such as 'QNNExecutionProvider'."
        ) from None


def _missing(name: str, available: Sequence[str]) -> str:
    found = installation.installed()
    message = (
        f"The installed ONNX Runtime {ort.__version__} has no provider '{short_name(name)}', only "
        + ", ".join(f"'{short_name(other)}'" for other in available)
    )
    wanted = installation.DISTRIBUTIONS.get(name)
    if clash := installation.conflict(wanted or "onnxruntime"):
        return f"{message}; {clash}"
    if wanted is None or wanted in found:
        return f"{message}; it needs a machine and a build of ONNX Runtime that support it."
    return f"{message}: {installation.replacement(wanted)}"
