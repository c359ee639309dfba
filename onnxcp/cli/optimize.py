"""`onnxcp optimize`: the main job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcp.cli.again import settled_commands
from onnxcp.cli.goals import (
    CHOOSING,
    GOALS,
    cache_options,
    choosing_options,
    goal_options,
    numbers,
    one_target,
)
from onnxcp.cli.options import (
    PATH,
    calibration_options,
    given_options,
    input_shapes_option,
    json_option,
    machine_list,
    machine_options,
    model_argument,
    precision_option,
    refit_options,
    refuse_without_data,
    verbosity_options,
)
from onnxcp.cli.presets import preset_options
from onnxcp.cli.terminal import Terminal
from onnxcp.cli.training import TRAINING, training_options

if TYPE_CHECKING:
    from onnxcp.calibration.sources import CalibrationSource
    from onnxcp.graph.model import Model
    from onnxcp.planning.cosine import CosineSvd
    from onnxcp.planning.goal import Goal
    from onnxcp.profiling.inputs import Shape
    from onnxcp.profiling.machine import Machine
    from onnxcp.refit import RefitSettings

_SHARE = click.FloatRange(0, 1, min_open=True)


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
@goal_options
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
@preset_options
@choosing_options
@click.option(
    "--passes",
    "pipeline",
    default="",
    metavar="TEXT",
    help="Run these passes as they stand, such as "
    "'fold-batchnorm,cp4{rank=64,nodes=\"conv2*\"}', instead of choosing.",
)
@click.option(
    "--plan",
    "plan_file",
    type=PATH,
    metavar="P.yaml",
    help="Do what this plan says, written by --save-plan or `onnxcp plan`, instead of choosing.",
)
@click.option("--save-plan", type=PATH, metavar="P.yaml", help="Write what every layer became.")
@click.option(
    "--frontier",
    type=numbers,
    default="",
    metavar="X,...",
    help="Plan for these speed-ups, too, and measure what they cost, such as 1.5,2,3; with "
    "--save-plan P.yaml their plans are written to P.1.5x.yaml and so on.",
)
@cache_options
@machine_options
@click.option(
    "--also-on",
    type=machine_list,
    default="",
    metavar="NAME[:THREADS],...",
    help="Where else OUTPUT may not be slower than MODEL: providers, each in sessions of its own, "
    "with '+' to fall back on another and ':' for threads, such as 'cuda+cpu,cpu:1'. It is planned "
    "for --providers; layers are given back until it is faster on all of them.",
)
@precision_option(
    "What the network is deployed in: int8 by ONNX Runtime's quantizer, which needs calibration "
    "data, or fp16. Kept only where it is measured to be faster."
)
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
@click.option(
    "--finetune",
    "epochs",
    type=click.IntRange(1),
    metavar="EPOCHS",
    help="Train the result for so many epochs to put out what MODEL does (extra 'torch'); what "
    "follows, from --train-data to --device, says how.",
)
@click.option(
    "--train-data",
    type=PATH,
    metavar="X.npz|DIR",
    help="Samples to train on, all of which are used; the calibration data by default.",
)
@training_options
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
    goal: Goal,
    macs: float | dict[str, float] | None,
    energy: float | None,
    preset: CosineSvd | None,
    families: tuple[str, ...],
    nodes: str,
    exclude: str,
    round_to: int | None,
    pipeline: str,
    plan_file: Path | None,
    save_plan: Path | None,
    frontier: tuple[float, ...],
    cache_dir: Path | None,
    no_cache: bool,
    machine: Machine,
    also_on: tuple[Machine, ...],
    precision: str,
    input_shapes: dict[str, Shape],
    calibration: CalibrationSource | None,
    refit: RefitSettings,
    eval_data: Path | None,
    eval_script: str | None,
    epochs: int | None,
    train_data: Path | None,
    training: dict[str, Any],
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
    _check_usage(pipeline, plan_file)
    if eval_data is not None and eval_script is not None:
        raise click.UsageError("Give one of --eval-data and --eval-script.")
    if calibration is None:
        refuse_without_data("refit", "memory_limit", "refit_target", "refit_prefix")

    if epochs is None and (idle := given_options("train_data", *TRAINING)):
        raise click.UsageError(f"{idle[0]} has no say without --finetune.")
    if epochs is not None and calibration is None and train_data is None:
        raise click.UsageError("--finetune needs --train-data or --calibration-data.")

    from onnxcp.cli import outcome
    from onnxcp.cli.script import load_function, split_reference
    from onnxcp.graph.model import load
    from onnxcp.optimizer import optimize as run
    from onnxcp.planning.plan import load_plan
    from onnxcp.profiling.environment import describe
    from onnxcp.reporting.job import Job
    from onnxcp.reporting.record import optimized_record
    from onnxcp.reporting.tuned import epoch_line
    from onnxcp.settings import Settings
    from onnxcp.sizes import shrinking
    from onnxcp.training import Epoch, Training

    settings = Settings(
        macs=macs,
        energy=energy,
        goal=goal,
        plan=None if plan_file is None else load_plan(plan_file),
        preset=preset,
        frontier=frontier,
        families=families,
        nodes=nodes,
        exclude=exclude,
        round_to=round_to,
        passes=pipeline,
        machine=replace(machine, precision=precision),
        also_on=tuple(each for each in also_on if each != machine),
        input_shapes=input_shapes,
        refit=refit,
        training=None if epochs is None else Training(epochs=epochs, **training),
        cache_dir=cache_dir,
        cached=not no_cache,
    )
    if save_plan is not None and shrinking(settings) is not None:
        raise click.UsageError(
            "Layers that are coupled are no plan, which --save-plan could write."
        )
    source = load(model)
    target = None if dry_run else output or model.with_name(f"{model.stem}.optimized.onnx")
    inputs = {"the input model": model}
    if calibration is not None and calibration.path is not None:
        inputs["where the calibration data come from"] = calibration.path
    if eval_data is not None:
        inputs["the evaluation data"] = eval_data
    if train_data is not None:
        inputs["where the training data come from"] = train_data
    if eval_script is not None:
        inputs["the evaluation script"] = split_reference(eval_script)[0]
    if plan_file is not None:
        inputs["the plan to carry out"] = plan_file
    pages = {"the report": report, "the plan": save_plan}
    if save_plan is not None:
        pages |= dict(outcome.plan_of_point(save_plan, each) for each in frontier)
    _check(source, target, pages, inputs, external=save_as_external_data, force=force)
    evaluate = None if eval_script is None else load_function(eval_script)

    def told(epoch: Epoch) -> None:
        terminal.say(epoch_line(epoch, epochs or 0))

    with terminal.progress() as progress:
        result = run(
            source,
            settings,
            data=calibration,
            labelled=eval_data,
            evaluate=evaluate,
            training_data=_training_source(train_data, calibration),
            progress=progress,
            told=told,
        )
    job = Job(
        settings=settings,
        model=str(model),
        command=terminal.command,
        again=settled_commands(terminal.command, result),
        output=None if target is None else str(target),
        data=None if calibration is None else str(calibration),
        labelled=None if eval_data is None else str(eval_data),
        script=eval_script,
    )
    outcome.show(terminal, result, job)
    page = outcome.keep(
        terminal,
        result,
        job,
        output=target,
        report=report,
        plan=save_plan,
        external=save_as_external_data,
    )
    if dry_run:
        terminal.say("No model was written, since this was a dry run.")
    if as_json:
        terminal.json(optimized_record(result, job, describe(job.settings.machine), page))


def _training_source(
    path: Path | None, calibration: CalibrationSource | None
) -> CalibrationSource | None:
    """Return all samples of a path, prepared as those to calibrate on; None for those."""
    from onnxcp.calibration.sources import CalibrationSource

    if path is None:
        return None
    preprocess = None if calibration is None else calibration.preprocess
    return CalibrationSource(path, preprocess, samples=None, path=path)


def _check_usage(pipeline: str, plan_file: Path | None) -> None:
    """Refuse options that exclude each other or have no say."""
    one_target("macs", "energy", *GOALS)
    if pipeline and plan_file is not None:
        raise click.UsageError("Give one of --passes and --plan.")
    settled = {"--passes are run as they stand": pipeline, "--plan says it all": plan_file}
    for what, given in settled.items():
        if given and (idle := given_options("macs", "energy", "frontier", *GOALS, *CHOOSING)):
            raise click.UsageError(f"{what}; {idle[0]} has no say there.")
    if pipeline and given_options("save_plan"):
        raise click.UsageError("--passes are no plan; there is nothing for --save-plan to write.")


def _check(
    source: Model,
    target: Path | None,
    pages: dict[str, Path | None],
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
    outputs |= {what: path for what, path in pages.items() if path is not None}
    check_outputs(outputs, inputs, force=force)
