"""`onnxcp plan`: what `optimize` would do, without doing it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcp.cli.goals import cache_options, choosing_options, goal_options
from onnxcp.cli.options import (
    PATH,
    calibration_options,
    input_shapes_option,
    json_option,
    machine_options,
    model_argument,
    precision_option,
    verbosity_options,
)
from onnxcp.cli.presets import preset_options
from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxcp.calibration.sources import CalibrationSource
    from onnxcp.planning.cosine import CosineSvd
    from onnxcp.planning.goal import Goal
    from onnxcp.profiling.inputs import Shape
    from onnxcp.profiling.machine import Machine


@click.command(short_help="Say what optimize would do, and what to expect of it.")
@model_argument
@goal_options
@preset_options
@choosing_options
@click.option("--save-plan", type=PATH, metavar="P.yaml", help="Write the plan, to carry it out.")
@cache_options
@machine_options
@precision_option(
    "What the network is deployed in: int8 by ONNX Runtime's quantizer, which needs calibration "
    "data, or fp16. Kept only where it is measured to be faster."
)
@input_shapes_option
@calibration_options(
    use="to find out what options cost in error",
    without="errors are those of weights, and of outputs on random inputs",
)
@click.option("--force", is_flag=True, help="Replace the plan if it exists.")
@json_option
@verbosity_options
@click.pass_obj
def plan(
    terminal: Terminal,
    model: Path,
    *,
    goal: Goal,
    preset: CosineSvd | None,
    families: tuple[str, ...],
    nodes: str,
    exclude: str,
    round_to: int | None,
    save_plan: Path | None,
    cache_dir: Path | None,
    no_cache: bool,
    machine: Machine,
    precision: str,
    input_shapes: dict[str, Shape],
    calibration: CalibrationSource | None,
    force: bool,
    as_json: bool,
) -> None:
    """Choose for every layer of MODEL what it should become, and time the choice as a whole.

    Nothing is built: chains are timed with random weights, since time does not depend on them.
    The plan can be changed by hand; `onnxcp optimize --plan` carries it out.
    """
    from onnxcp.cli.outputs import check_outputs
    from onnxcp.optimizer import make_plan
    from onnxcp.planning.plan import save_plan as write
    from onnxcp.profiling.environment import describe
    from onnxcp.reporting import facts, table
    from onnxcp.reporting.record import planned_record
    from onnxcp.settings import Settings

    settings = Settings(
        goal=goal,
        preset=preset,
        families=families,
        nodes=nodes,
        exclude=exclude,
        round_to=round_to,
        machine=replace(machine, precision=precision),
        input_shapes=input_shapes,
        cache_dir=cache_dir,
        cached=not no_cache,
    )
    inputs = {"the input model": model}
    if calibration is not None and calibration.path is not None:
        inputs["where the calibration data come from"] = calibration.path
    if save_plan is not None:
        check_outputs({"the plan": save_plan}, inputs, force=force)
    with terminal.progress() as progress:
        made, planned = make_plan(model, settings, data=calibration, progress=progress)
    terminal.show(table.planned_sites(made))
    if planned.rounds:
        terminal.show(table.rounds(planned))
    for note in facts.plan_notes(planned, from_data=calibration is not None):
        terminal.say(note)
    if save_plan is not None:
        write(made, save_plan)
        terminal.wrote(save_plan, "the plan")
    if as_json:
        terminal.json(planned_record(made, planned, describe(settings.machine)))
