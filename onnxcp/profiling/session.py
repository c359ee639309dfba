"""Open ONNX Runtime sessions and run them; everything that goes wrong becomes one sentence."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from onnxcp.errors import ModelError, ProviderError
from onnxcp.profiling import installation
from onnxcp.profiling.providers import CUDA, TENSORRT, resolve_providers, short_name

#: The values of a model's inputs, by name. Strings come as arrays of objects.
Feeds = Mapping[str, npt.NDArray[Any]]

# ONNX Runtime has an exception of its own for every status code, each derived from Exception.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(
        value
        for value in vars(ort_state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ),
)

# The memory in which a provider wants its inputs; providers not named here work on host memory.
_DEVICES = {CUDA: "cuda", TENSORRT: "cuda", "DmlExecutionProvider": "dml"}


def open_session(
    model: str | Path | bytes,
    *,
    providers: Sequence[str] = ("cpu",),
    intra_op_num_threads: int = 0,
    label: str = "",
    profile_prefix: str | Path | None = None,
) -> ort.InferenceSession:
    """Open a model for measuring: quiet, and without stealing cores from other sessions.

    Parameters
    ----------
    model
        A file or the bytes of one. External data of bytes are looked for in the working directory.
    providers
        Names that `resolve_providers` understands, in order of preference.
    intra_op_num_threads
        Threads within a node; 0 leaves the number to ONNX Runtime (one per physical core).
    label
        What errors call the model. By default its path.
    profile_prefix
        Where to write a profile, as `<prefix>_<date>.json`. None: no profile.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot load the model.
    ProviderError
        If a provider is unknown, missing, or does not start.
    """
    resolved = resolve_providers(providers)
    named = [provider if isinstance(provider, str) else provider[0] for provider in resolved]
    if CUDA in named or TENSORRT in named:
        installation.preload(ort)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # Errors come as exceptions anyway.
    options.intra_op_num_threads = intra_op_num_threads
    options.inter_op_num_threads = 1
    # Idle threads spin for work and take the cores of any other session in this process: with two
    # sessions open, a convolution of 4 ms reads 8 to 22 ms.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile_prefix)

    label = label or ("the model" if isinstance(model, bytes) else f"'{model}'")
    with _as_model_error("load", label):
        # The fallback of ONNX Runtime would announce itself on stdout and go on without a provider.
        session = ort.InferenceSession(
            os.fspath(model) if isinstance(model, Path) else model,
            options,
            providers=list(resolved),
            enable_fallback=0,
        )
    # ONNX Runtime drops a provider whose libraries do not load, and says so only in its log.
    started = session.get_providers()
    for name in named:
        if name not in started:
            raise ProviderError(installation.why_not_started(name, short_name(name)))
    return session


def infer(
    session: ort.InferenceSession, feeds: Feeds, *, label: str = "the model"
) -> list[npt.NDArray[Any]]:
    """Run a session once and return its outputs in the order of the graph.

    Raises
    ------
    ModelError
        If ONNX Runtime fails on the model or the feeds.
    """
    with _as_model_error("run", label):
        outputs: list[npt.NDArray[Any]] = session.run(None, _acceptable(feeds))
    return outputs


class Runner:
    """A session with its feeds: the callable to time.

    Where the first provider has memory of its own, inputs and outputs stay there (IOBinding), so
    that `run` times the network and no copies; `run_with_copies` times both.

    Parameters
    ----------
    session
        What to run.
    feeds
        The values of its inputs.
    label
        What errors call the model.
    """

    def __init__(
        self, session: ort.InferenceSession, feeds: Feeds, *, label: str = "the model"
    ) -> None:
        self._session = session
        self._label = label
        self._outputs: list[npt.NDArray[Any]] = []
        with _as_model_error("run", label):
            self._feeds = _acceptable(feeds)
            self._binding = _bound(session, self._feeds)

    @property
    def on_device(self) -> bool:
        """Whether inputs and outputs are in the memory of a device, and not in the host's."""
        return self._binding is not None

    def run(self) -> None:
        """Run once; the outputs stay where they are.

        Raises
        ------
        ModelError
            If ONNX Runtime fails.
        """
        with _as_model_error("run", self._label):
            if self._binding is None:
                self._outputs = self._session.run(None, self._feeds)
            else:
                self._session.run_with_iobinding(self._binding)
                # A device may still be at work when control comes back.
                self._binding.synchronize_outputs()

    def run_with_copies(self) -> None:
        """Run once from the host's memory and back to it.

        Raises
        ------
        ModelError
            If ONNX Runtime fails.
        """
        with _as_model_error("run", self._label):
            self._session.run(None, self._feeds)

    def outputs(self) -> list[npt.NDArray[Any]]:
        """Return the outputs of the last run, in the order of the graph."""
        if self._binding is not None:
            with _as_model_error("run", self._label):
                self._outputs = self._binding.copy_outputs_to_cpu()
        return self._outputs


def _bound(session: ort.InferenceSession, feeds: Mapping[str, Any]) -> ort.IOBinding | None:
    """Place feeds in the memory of the first provider; None where that is the host's."""
    first = session.get_providers()[0]
    device = _DEVICES.get(first)
    number = int(session.get_provider_options().get(first, {}).get("device_id", 0))
    strings = any(
        isinstance(value, np.ndarray) and value.dtype.kind in "OUS" for value in feeds.values()
    )
    if device is None or strings:  # Strings live on the host only, and cannot be bound.
        return None
    binding = session.io_binding()
    for name, value in feeds.items():
        if not isinstance(value, ort.OrtValue):
            value = ort.OrtValue.ortvalue_from_numpy(value, device, number)
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, device, number)
    binding.synchronize_inputs()
    return binding


def _acceptable(feeds: Feeds) -> dict[str, Any]:
    """Wrap the arrays that ONNX Runtime does not take as they are: bfloat16 and float8."""
    return {name: _wrapped(np.asarray(value)) for name, value in feeds.items()}


def _wrapped(value: npt.NDArray[Any]) -> Any:
    if value.dtype.kind != "V":
        return value
    bits = np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


@contextmanager
def _as_model_error(verb: str, label: str) -> Iterator[None]:
    try:
        yield
    except _ORT_ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot {verb} {label}: {_reason(error)}.") from error


# "[ONNXRuntimeError] : 1 : FAIL : ", and the place in the sources that raised the error:
# "/onnxruntime_src/onnxruntime/core/graph/graph.cc:1587 void onnxruntime::Graph::F(int) const ".
_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_FUNCTION = r"(?:[\w:&*<>, ]*onnxruntime::[^()]*\([^()]*\)(?: const)? |\w+ )?"
_PLACE = re.compile(r"\S+\.(?:cc|h|cpp|cu):\d+ " + _FUNCTION)
_LOADING = re.compile(r"^(?:Load model .*? failed[:.] ?)+")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    for noise in (_STATUS, _LOADING, _PLACE):
        text = noise.sub("", text)
    text = textwrap.shorten(text.strip().rstrip("."), 240, placeholder=" [...]")
    return text or type(error).__name__
