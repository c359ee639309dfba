"""`onnxcp export-torch` and `import-torch`: weights to PyTorch, and back by name."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from onnxcp.cli.options import PATH, model_argument, verbosity_options
from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxcp.graph.model import Model


@click.command("export-torch", short_help="Write weights and a script to train them in PyTorch.")
@model_argument
@click.option("-o", "--output", "folder", type=PATH, required=True, metavar="DIR", help="Where.")
@click.option("--force", is_flag=True, help="Replace files in DIR if they exist.")
@verbosity_options
@click.pass_obj
def export_torch(terminal: Terminal, model: Path, *, folder: Path, force: bool) -> None:
    """Write what it takes to train MODEL in PyTorch into the folder DIR.

    That is a copy of MODEL, its weights as weights.safetensors under the names that they have in
    it, and finetune.py, a script to run and to change. What is trained comes back by `onnxcp
    import-torch`.
    """
    from onnxcp.cli.outputs import check_outputs
    from onnxcp.files import atomic_writers
    from onnxcp.graph.model import load
    from onnxcp.tuning import to_torch
    from onnxcp.tuning.bundle import script, weights_bytes

    source = load(model)
    content = weights_bytes(to_torch(source))
    weights, program = folder / "weights.safetensors", folder / "finetune.py"
    copies = _copies(source, model, folder / model.name)
    outputs = {"the weights": weights, "the script": program, **_labelled(copies, "the copy")}
    with _folder(folder):
        check_outputs(outputs, _labelled({path: path for path in copies}, "the input"), force=force)
        _make_folders(copies)
        with atomic_writers(program, weights, *copies.values()) as (text, data, *others):
            text.write(script(model.name).encode())
            data.write(content)
            _copy(copies, others)
    terminal.wrote(folder / model.name, "the model")
    terminal.wrote(weights, "the weights")
    terminal.wrote(program, "the script")


@click.command("import-torch", short_help="Put weights that PyTorch trained back into a model.")
@model_argument
@click.argument("weights", type=PATH)
@click.option("-o", "--output", "out", type=PATH, required=True, metavar="OUT", help="Where.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@verbosity_options
@click.pass_obj
def import_torch(terminal: Terminal, model: Path, weights: Path, *, out: Path, force: bool) -> None:
    """Write MODEL with the tensors of WEIGHTS, a safetensors file, to OUT.

    Tensors are found by their names in MODEL and stored in the types that they have there; nothing
    else changes. With the very values that MODEL has, OUT is its copy, byte by byte.
    """
    from onnxcp.cli.outputs import check_outputs, external_files, external_path
    from onnxcp.files import atomic_writers
    from onnxcp.graph.model import load, save
    from onnxcp.tuning import from_torch
    from onnxcp.tuning.bundle import load_weights

    source = load(model)
    inputs = {"the input model": model, "the input weights": weights}
    files = sorted(external_files(source))
    inputs |= {f"external data {n} of the input": path for n, path in enumerate(files)}
    changed = from_torch(source, load_weights(weights))
    if changed is source:
        copies = _copies(source, model, out)
        check_outputs(_labelled(copies, "the model"), inputs, force=force)
        _make_folders(copies)
        with atomic_writers(*copies.values()) as streams:
            _copy(copies, list(streams))
        terminal.say("The weights are those of the model: it was copied.")
    else:
        outputs = {"the model": out}
        if source.external:
            outputs["external data"] = external_path(out)
        check_outputs(outputs, inputs, force=force)
        save(changed, out)
    terminal.wrote(out, "the model")


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder, and take it away again if nothing comes to lie in it."""
    from onnxcp.files import unwritable

    there = path.exists()
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _copies(source: Model, path: Path, target: Path) -> dict[Path, Path]:
    """Return the files of a model and where copies of them go, the model itself first.

    External data are named in the model by where they are beside it, and stay there: in the same
    folder, they serve the copy, too.
    """
    from onnxcp.cli.outputs import external_files

    copies = {path: target}
    for each in sorted(external_files(source)):
        place = target.parent / each.relative_to(path.parent)
        if not (place.exists() and place.samefile(each)):
            copies[each] = place
    return copies


def _labelled(copies: Mapping[Path, Path], what: str) -> dict[str, Path]:
    """Return where copies go, by what to call them."""
    first, *others = copies.values()
    return {what: first} | {f"external data {n} of {what}": p for n, p in enumerate(others)}


def _make_folders(copies: Mapping[Path, Path]) -> None:
    """Make the folders that external data are in beside a model; its own is there."""
    from onnxcp.files import unwritable

    _, *others = copies.values()
    for target in others:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(target, error) from error


def _copy(copies: Mapping[Path, Path], streams: Iterable[BinaryIO]) -> None:
    for path, stream in zip(copies, streams, strict=True):
        with path.open("rb") as original:
            shutil.copyfileobj(original, stream)
