"""Arrays from files: npz, npy and tensors as the ONNX model zoo keeps them, alone or in folders."""

from __future__ import annotations

import functools
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from onnxcp.calibration import images
from onnxcp.errors import DataError
from onnxcp.profiling.inputs import InputSpec

Array = npt.NDArray[Any]
Kind = Literal["npz files", "npy files", "tensors input_*.pb", "pictures"]

_TENSOR = re.compile(r"input_(\d+)\.pb")


@dataclass(frozen=True)
class Batch:
    """One batch of samples that has yet to be read.

    Attributes
    ----------
    origin
        What messages call it.
    read
        Returns its arrays by name.
    """

    origin: str
    read: Callable[[], dict[str, Array]]


def find_files(path: Path) -> tuple[Kind, list[Path]]:
    """Return what kind of data a path holds, and the files of it in order.

    A folder is searched to its bottom. Hidden files, and those that are no data, are passed over.
    A file whose name says nothing is taken for npz.

    Raises
    ------
    DataError
        If there is nothing at that path, or if a folder cannot be read, or holds data of several
        kinds, or none.
    """
    # Unlike those of Path, these do not fail where a folder on the way is locked.
    if not os.path.exists(path):  # noqa: PTH110
        raise DataError(f"There is no file '{path}'.")
    if not os.path.isdir(path):  # noqa: PTH112
        return _kind(path) or "npz files", [path]
    kinds: dict[Kind, list[Path]] = {}
    for file in _below(path):
        if kind := _kind(file):
            kinds.setdefault(kind, []).append(file)
    if len(kinds) > 1:
        raise DataError(f"'{path}' holds {' and '.join(kinds)}; give a folder of one kind.")
    for kind, files in kinds.items():
        return kind, files
    raise DataError(
        f"In the folder '{path}' are no data; it may hold npz files, npy files, pictures "
        f"({' '.join(images.SUFFIXES)}) or test_data_set_*/input_0.pb."
    )


def array_batches(
    path: Path, kind: Kind, files: Sequence[Path], specs: Sequence[InputSpec]
) -> list[Batch]:
    """Return the batches of arrays that files hold.

    A npz file holds one batch. So does a npy file of the rank of a model's only input; of one less
    it holds one sample. For a model of several inputs a folder `path` has a subfolder of npy files
    for each, which belong together in the order of their names. Tensors `input_0.pb`, `input_1.pb`
    in one folder are one batch, in the order of the inputs.

    Raises
    ------
    DataError
        If npy files are not as several inputs need them.
    """
    if kind == "npy files" and len(specs) > 1 and files != [path]:
        return _by_subfolder(path, files, specs)
    if kind == "tensors input_*.pb":
        folders = sorted({file.parent for file in files})
        sets = [[file for file in files if file.parent == folder] for folder in folders]
        return [
            Batch(f"'{folder}'", functools.partial(_read_tensors, tensors, specs))
            for folder, tensors in zip(folders, sets, strict=True)
        ]
    return [Batch(f"'{file}'", functools.partial(_read, file, specs)) for file in files]


def as_batch(array: Array, spec: InputSpec) -> Array:
    """Return a nameless array as a batch: of one axis less than the input it is a sample."""
    return array[np.newaxis] if spec.shape and array.ndim == len(spec.shape) - 1 else array


def inputs_text(specs: Sequence[InputSpec]) -> str:
    """Write what a model wants as messages do."""
    return ", ".join(map(str, specs)) or "none"


def _kind(path: Path) -> Kind | None:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return "npz files"
    if suffix == ".npy":
        return "npy files"
    if suffix in images.SUFFIXES:
        return "pictures"
    return "tensors input_*.pb" if _TENSOR.fullmatch(path.name) else None


def _below(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise DataError(f"Cannot read the folder '{error.filename}': {error.strerror}.") from error

    found: list[Path] = []
    for where, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _by_subfolder(path: Path, files: Sequence[Path], specs: Sequence[InputSpec]) -> list[Batch]:
    columns: dict[str, list[Path]] = {}
    for file in files:
        columns.setdefault(file.parent.relative_to(path).as_posix(), []).append(file)
    given = ", ".join(f"'{name}' {len(column)}" for name, column in columns.items() if name != ".")
    for spec in specs:
        if spec.name not in columns:
            raise DataError(
                f"In '{path}' is no subfolder of npy files for input {spec}; a model of several "
                f"inputs needs one for each, named as the input; there are: {given or 'none'}."
            )
    wanted = {spec.name: columns[spec.name] for spec in specs}
    if len({len(column) for column in wanted.values()}) > 1:
        raise DataError(f"The subfolders of '{path}' differ in their number of files: {given}.")
    rows = (dict(zip(wanted, row, strict=True)) for row in zip(*wanted.values(), strict=True))
    return [
        Batch(f"'{path}' (file {number} of each input)", functools.partial(_read_row, row, specs))
        for number, row in enumerate(rows, start=1)
    ]


def _read_row(row: dict[str, Path], specs: Sequence[InputSpec]) -> dict[str, Array]:
    return {name: array for spec in specs for name, array in _read(row[spec.name], [spec]).items()}


def _read(path: Path, specs: Sequence[InputSpec]) -> dict[str, Array]:
    """Read a npz file, or a npy file for the only input."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            with loaded as file:
                members = {name: file[name] for name in file.files}
            return {name: each for name, each in members.items() if isinstance(each, np.ndarray)}
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # RuntimeError: what is encrypted, or compressed in a way that zipfile does not know.
        kind = "npy" if path.suffix.lower() == ".npy" else "npz"
        raise DataError(
            f"'{path}' cannot be read as an {kind} file: {error}".rstrip(".") + "."
        ) from None
    if len(specs) != 1:
        raise DataError(
            f"'{path}' is a single array, and the model's inputs are {inputs_text(specs)}; save "
            "one for each with numpy.savez."
        )
    return {specs[0].name: as_batch(loaded, specs[0])}


def _read_tensors(files: Sequence[Path], specs: Sequence[InputSpec]) -> dict[str, Array]:
    arrays = {}
    for file in files:
        match = _TENSOR.fullmatch(file.name)
        assert match is not None
        try:
            tensor = onnx.TensorProto.FromString(file.read_bytes())
            array = numpy_helper.to_array(tensor, str(file.parent))
        except (OSError, DecodeError, ValueError, TypeError) as error:
            raise DataError(
                f"'{file}' cannot be read as a tensor: {error}".rstrip(".") + "."
            ) from None
        if int(match[1]) < len(specs):
            arrays[specs[int(match[1])].name] = array
    return arrays
