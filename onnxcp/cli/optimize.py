"""`onnxcp optimize`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcp.cli.options import (
    PATH,
    calibration_options,
    comma_separated,
    given_options,
    input_shapes_option,
    json_option,
    machine_options,
    model_argument,
    refit_options,
    refuse_without_data,
    verbosity_options,
)
from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxcp.calibration.sources import CalibrationSource
    from onnxcp.graph.model import Model
    from onnxcp.profiling.inputs import Shape
    from onnxcp.profiling.machine import Machine
    from onnxcp.refit import RefitSettings

_SHARE = click.FloatRange(0, 1, min_open=True)

_CHOOSING = ("macs", "energy", "max_error", "families", "nodes", "exclude", "round_to")
"""Parameters that say how to choose; where passes are given there is nothing to choose."""


def round_to_multiple(text: str) -> int | None:
    """Return a multiple for ranks, or None for ``auto``."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"'{text}' is neither auto nor a whole number from 1 on.")
    return int(text)


def shares(text: str) -> float | dict[str, float]:
    """Parse ``0.1``, ``conv3=0.2`` or ``0.1,conv3=0.2``: a share for all layers, and for some."""
    result = {}
    for part in text.split(","):
        pattern, _, number = part.strip().rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise click.BadParameter(
                f"'{part.strip()}' is neither a share, from above 0 to 1, nor GLOB=SHARE."
            )
        result[pattern.strip() or "*"] = share
    # The last pattern that fits a layer counts, so that for all layers comes first.
    ordered = dict(sorted(result.items(), key=lambda item: item[0] != "*"))
    return ordered["*"] if list(ordered) == ["*"] else ordered


@click.command(short_help="Write a faster model that computes nearly the same.")
@model_argument
@click.argument("output", type=PATH, required=False)
@click.option(
    "--macs",
    type=shares,
    metavar="SHARE[,GLOB=SHARE,...]",
    help="Keep at most this share of each layer's multiply-adds, such as 0.25; of some layers "
    "another, such as '0.1,conv3=0.2'.",
)
@click.option(
    "--energy",
    type=_SHARE,
    metavar="SHARE",
    help="Keep at least this share of each kernel's squared norm, such as 0.99.",
)
@click.option(
    "--max-error",
    type=_SHARE,
    metavar="ERROR",
    help="Largest relative error of each kernel. The default target, at 0.1.",
)
@click.option(
    "--families",
    type=comma_separated,
    default="",
    metavar="NAME,...",
    help="Families to choose from, such as cp3,tucker2. By default all for --macs; for other "
    "targets all but those that find a rank only by trial, cp3 and cp4.",
)
@click.option(
    "--nodes",
    default="*",
    metavar="GLOB",
    show_default=True,
    help="Names of the nodes to rewrite; several patterns separated by spaces.",
)
@click.option("--exclude", default="", metavar="GLOB", help="Names of the nodes to leave alone.")
@click.option(
    "--round-to",
    type=round_to_multiple,
    default="auto",
    show_default=True,
    metavar="auto|N",
    help="Ranks become multiples of this; auto finds by measuring what pays.",
)
@click.option(
    "--passes",
    "pipeline",
    default="",
    metavar="TEXT",
    help="Run these passes as they stand, such as "
    "'fold-batchnorm,cp4{rank=64,nodes=\"conv2*\"}', instead of choosing.",
)
@machine_options
@input_shapes_option
@calibration_options(
    use="to refit chains to and to compare outputs on",
    without="nothing is refitted, and outputs are compared on --eval-data or random inputs",
)
@refit_options
@click.option(
    "--eval-data",
    type=PATH,
    metavar="X.npz|DIR",
    help="Samples with an array 'label', all of which are used: accuracy is measured before and "
    "after. A folder is one of npz files.",
)
@click.option(
    "--eval-script",
    metavar="F.py:FUNC",
    help="Function that is given an onnxruntime.InferenceSession and returns a score.",
)
@click.option("--report", type=PATH, metavar="R.html", help="Write a page about it, too.")
@click.option(
    "--save-as-external-data",
    is_flag=True,
    help="Keep weights in a file OUTPUT.data. So it is anyway where MODEL does it.",
)
@click.option("--dry-run", is_flag=True, help="Decide and measure, but write no model.")
@click.option("--force", is_flag=True, help="Replace OUTPUT and the report if they exist.")
@json_option
@verbosity_options
@click.pass_obj
def optimize(
    terminal: Terminal,
    model: Path,
    output: Path | None,
    *,
    macs: float | dict[str, float] | None,
    energy: float | None,
    max_error: float | None,
    families: tuple[str, ...],
    nodes: str,
    exclude: str,
    round_to: int | None,
    pipeline: str,
    machine: Machine,
    input_shapes: dict[str, Shape],
    calibration: CalibrationSource | None,
    refit: RefitSettings,
    eval_data: Path | None,
    eval_script: str | None,
    report: Path | None,
    save_as_external_data: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make MODEL faster and write it to OUTPUT, MODEL.optimized.onnx by default.

    Layers are replaced by chains of smaller ones where that is measured to pay on this machine.
    Given samples, the chains are refitted to them, without labels and without training. The
    result is compared with the original in numbers and in time. If it is not faster, OUTPUT is
    the original, unchanged, and the exit code is 0 all the same.
    """
    targets = {"--macs": macs, "--energy": energy, "--max-error": max_error}
    given = [name for name, value in targets.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"Give only one target: {' and '.join(given)} exclude each other.")
    if pipeline and (idle := given_options(*_CHOOSING)):
        raise click.UsageError(f"--passes are run as they stand; {idle[0]} has no say there.")
    if eval_data is not None and eval_script is not None:
        raise click.UsageError("Give one of --eval-data and --eval-script.")
    if calibration is None:
        refuse_without_data("refit", "memory_limit", "refit_target")

    from onnxcp.cli import outcome
    from onnxcp.cli.script import load_function, split_reference
    from onnxcp.graph.model import load
    from onnxcp.optimizer import optimize as run
    from onnxcp.reporting.environment import describe
    from onnxcp.reporting.job import Job
    from onnxcp.reporting.record import optimized_record
    from onnxcp.settings import Settings

    settings = Settings(
        macs=macs,
        energy=energy,
        max_error=max_error,
        families=families,
        nodes=nodes,
        exclude=exclude,
        round_to=round_to,
        passes=pipeline,
        machine=machine,
        input_shapes=input_shapes,
        refit=refit,
    )
    source = load(model)
    target = None if dry_run else output or model.with_name(f"{model.stem}.optimized.onnx")
    inputs = {"the input model": model}
    if calibration is not None and calibration.path is not None:
        inputs["where the calibration data come from"] = calibration.path
    if eval_data is not None:
        inputs["the evaluation data"] = eval_data
    if eval_script is not None:
        inputs["the evaluation script"] = split_reference(eval_script)[0]
    _check(source, target, report, inputs, external=save_as_external_data, force=force)
    evaluate = None if eval_script is None else load_function(eval_script)

    with terminal.progress() as progress:
        result = run(
            source,
            settings,
            data=calibration,
            labelled=eval_data,
            evaluate=evaluate,
            progress=progress,
        )
    job = Job(
        settings=settings,
        model=str(model),
        command=terminal.command,
        output=None if target is None else str(target),
        data=None if calibration is None else str(calibration),
        labelled=None if eval_data is None else str(eval_data),
        script=eval_script,
    )
    outcome.show(terminal, result, job)
    outcome.keep(
        terminal, result, job, output=target, report=report, external=save_as_external_data
    )
    if dry_run:
        terminal.say("No model was written, since this was a dry run.")
    if as_json:
        terminal.json(optimized_record(result, job, describe(machine)))


def _check(
    source: Model,
    target: Path | None,
    report: Path | None,
    inputs: dict[str, Path],
    *,
    external: bool,
    force: bool,
) -> None:
    """Fail before the work if something could not be written."""
    from onnxcp.cli.outputs import check_outputs, external_files, external_path

    outputs = {} if target is None else {"the model": target}
    if target is not None and (external or source.external):
        outputs["external data"] = external_path(target)
        weights = enumerate(sorted(external_files(source)))
        inputs |= {f"external data {number} of the input": path for number, path in weights}
    if report is not None:
        outputs["the report"] = report
    check_outputs(outputs, inputs, force=force)
