"""Where results go: never over an input, never over what is there already unless asked to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from onnxcp.errors import OutputError
from onnxcp.files import check_writable, unwritable
from onnxcp.graph.model import Model, external_locations


def check_outputs(outputs: Mapping[str, Path], inputs: Mapping[str, Path], *, force: bool) -> None:
    """Fail before the work if results could not, or should not, be written.

    Parameters
    ----------
    outputs, inputs
        Files, by what to call them ("the input model").
    force
        Whether outputs may replace what is there.

    Raises
    ------
    OutputError
        If an output is one of the inputs or another output, cannot be written to, or exists.
    """
    seen = dict(inputs)
    for what, path in outputs.items():
        try:
            for other, taken in seen.items():
                if _same(path, taken):
                    raise OutputError(f"Cannot write {what} to '{path}': it is {other}.")
            seen[what] = path
            check_writable(path)
            exists = path.exists()
        except OSError as error:  # a folder on the way may not be searched
            raise unwritable(path, error) from error
        if exists and not force:
            raise OutputError(f"'{path}' exists; name another file, or replace it with --force.")


def external_path(path: Path) -> Path:
    """Return where `onnxcp.graph.model.save` puts external data."""
    return path.with_name(f"{path.name}.data")


def external_files(model: Model) -> set[Path]:
    """Return the files besides its own that hold weights of a model."""
    if model.path is None or not model.external:
        return set()
    return {model.path.parent / location for location in external_locations(model.path)}


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file, by any link."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)
