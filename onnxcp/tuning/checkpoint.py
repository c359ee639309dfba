"""The state of a training as a file that is there whole or not at all."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onnxcp.errors import DataError
from onnxcp.files import atomic_writer

_FORMAT = "onnxcp training 2"


def write(path: Path, run: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Write a state, and what it is the state of.

    Parameters
    ----------
    path
        Where; what stands there is replaced in one go.
    run
        What makes the training what it is, each as a text by what to call it.
    state
        Tensors, numbers and texts, nested.
    """
    with atomic_writer(path) as stream:
        torch.save({"format": _FORMAT, "run": dict(run), "state": dict(state)}, stream)


def read(path: Path, run: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the state of the same training, or None if there is no file.

    Raises
    ------
    DataError
        If the file cannot be read, or is of another training; says what differs.
    """
    try:
        # Of what is no archive, pickle makes errors of any kind.
        with path.open("rb") as stream:
            whole = zipfile.is_zipfile(stream)
        # Nothing but tensors and plain values is read: the file may come from anyone.
        content = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        content = None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(f"'{path}' is not a checkpoint of a fine-tuning, or is truncated.")
    known = content["run"]
    other = [name for name in {**known, **run} if known.get(name) != run.get(name)]
    if other:
        raise DataError(
            f"The checkpoint '{path}' is of another run: of another {', another '.join(other)}; "
            "name another file, or train anew without it."
        )
    state: dict[str, Any] = content["state"]
    return state
