"""Functions of the user's own, from `script.py:function`."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxcp.errors import OnnxcpError


def split_reference(text: str) -> tuple[Path, str]:
    """Split `script.py:function`.

    Raises
    ------
    OnnxcpError
        If the text is not of this form.
    """
    path, colon, name = text.rpartition(":")
    if not (colon and path and name.isidentifier()):
        raise OnnxcpError(f"Cannot read '{text}'; write FILE.py:FUNCTION.")
    return Path(path), name


def load_function(text: str) -> Callable[..., Any]:
    """Run a script and return a function that it defines. It may import what lies beside it.

    What it prints goes to stderr: stdout is for results.

    Raises
    ------
    OnnxcpError
        If there is no such file or function, or the script fails.
    """
    path, name = split_reference(text)
    try:
        there = path.is_file()
    except OSError as error:
        raise OnnxcpError(f"Cannot read script '{path}': {error.strerror}.") from error
    if not there:
        raise OnnxcpError(f"There is no script '{path}'.")
    module = _run(path)
    if not hasattr(module, name):
        raise OnnxcpError(f"Script '{path}' defines no '{name}'.")
    function = getattr(module, name)
    if not callable(function):
        raise OnnxcpError(f"'{name}' of script '{path}' is no function.")
    return function  # type: ignore[no-any-return]


def deferred(text: str) -> Callable[[], Any]:
    """Return a function that runs `script.py:function`, without arguments, when it is called.

    Raises
    ------
    OnnxcpError
        If the text is not of this form; what `load_function` raises, when it is called.
    """
    split_reference(text)

    def call() -> Any:
        return load_function(text)()

    call.__name__ = text  # what messages call it
    return call


def _run(path: Path) -> ModuleType:
    name = f"onnxcp_script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise OnnxcpError(f"'{path}' is no Python script; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        raise OnnxcpError(f"Script '{path}' failed{_line(path, error)}: {detail}.") from error
    return module


def _line(path: Path, error: BaseException) -> str:
    """Return the line of the script that raised, as words, if it is known."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path
    ]
    return f" in line {lines[-1]}" if lines else ""
