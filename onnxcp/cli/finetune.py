"""`onnxcp finetune`: weights trained until the network puts out what the original does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcp.cli.options import (
    PATH,
    calibration_options,
    json_option,
    model_argument,
    verbosity_options,
)
from onnxcp.cli.terminal import Terminal
from onnxcp.cli.training import training_options
from onnxcp.errors import OnnxcpError, OutputError

if TYPE_CHECKING:
    from onnxcp.calibration.sources import CalibrationSource
    from onnxcp.graph.model import Model
    from onnxcp.training import Epoch


@click.command(short_help="Train a rewritten model to put out what the original does.")
@model_argument
@click.option("--teacher", type=PATH, required=True, metavar="ORIGINAL", help="What to be like.")
@click.option("-o", "--output", "out", type=PATH, required=True, metavar="OUT", help="Where.")
@calibration_options(
    use="to train on, with or without labels",
    without="there is nothing to train on",
    also=("--train-data",),
    samples="all",
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    metavar="N",
    help="How often all samples are gone through.",
)
@training_options
@click.option(
    "--checkpoint",
    type=PATH,
    metavar="FILE",
    help="Where the state is kept meanwhile; OUT.checkpoint by default.",
)
@click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="S",
    help="How often, besides at the end of every epoch.",
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint, if there is one.")
@click.option("--force", is_flag=True, help="Replace OUT and the checkpoint if they exist.")
@json_option
@verbosity_options
@click.pass_obj
def finetune(
    terminal: Terminal,
    model: Path,
    *,
    teacher: Path,
    out: Path,
    calibration: CalibrationSource | None,
    epochs: int,
    training: dict[str, Any],
    checkpoint: Path | None,
    checkpoint_seconds: float,
    resume: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Train MODEL until it puts out what ORIGINAL does, and write it to OUT.

    Only weights change; the graph, names and all else stay. Some samples are held out, and what
    is written is what was closest on them: MODEL itself if nothing was closer. Killed at any
    moment, the same command with --resume ends as if it had not been. Ctrl-C keeps the best so
    far. To train on several devices, start it by `accelerate launch -m onnxcp finetune ...`.
    """
    if calibration is None:
        raise click.UsageError("Fine-tuning needs --train-data or --data-loader-script.")

    from onnxcp.graph.model import load, save
    from onnxcp.reporting.record import finetuned_record
    from onnxcp.reporting.tuned import epoch_line, sentences
    from onnxcp.training import Training
    from onnxcp.tuning import finetune as run
    from onnxcp.tuning.team import is_first

    checkpoint = checkpoint or out.with_name(f"{out.name}.checkpoint")
    settings = Training(
        epochs=epochs,
        **training,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        resume=resume,
    )
    source, original = load(model), load(teacher)
    inputs = {"the input model": model, "the teacher": teacher}
    if calibration.path is not None:
        inputs["where the samples come from"] = calibration.path
    first = is_first()
    if first:
        _check(source, out, checkpoint, inputs, resume=resume, force=force)
    else:
        terminal.verbosity = -1

    def told(epoch: Epoch) -> None:
        terminal.say(epoch_line(epoch, epochs))

    with terminal.progress() as progress:
        result = run(source, original, calibration, settings, progress=progress, told=told)
    for sentence in sentences(result):
        terminal.say(sentence)
    if first:
        save(result.model, out)
        terminal.wrote(out, "the trained model" if result.improved else "the model, unchanged,")
        if as_json:
            terminal.json(finetuned_record(result))
    if result.interrupted:
        raise KeyboardInterrupt
    if result.diverged:
        raise OnnxcpError(result.stopped)
    if first:
        checkpoint.unlink(missing_ok=True)


def _check(
    source: Model,
    out: Path,
    checkpoint: Path,
    inputs: dict[str, Path],
    *,
    resume: bool,
    force: bool,
) -> None:
    """Fail before the work if something could not, or should not, be written."""
    from onnxcp.cli.outputs import check_outputs, external_files, external_path

    outputs = {"the model": out, "the checkpoint": checkpoint}
    if source.external:
        outputs["external data"] = external_path(out)
        files = enumerate(sorted(external_files(source)))
        inputs = {**inputs, **{f"external data {n} of the input": path for n, path in files}}
    if checkpoint.exists() and not (resume or force):
        raise OutputError(
            f"'{checkpoint}' is left of a training; go on with it by --resume, or begin anew by "
            "--force."
        )
    # What an interrupted training wrote is there to be replaced.
    check_outputs(outputs, inputs, force=force or resume)
