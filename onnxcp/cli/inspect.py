"""`onnxcp inspect`: what each layer costs, and whether it may be rewritten."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcp.cli.options import (
    input_shapes_option,
    json_option,
    machine_options,
    model_argument,
    verbosity_options,
)
from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxcp.profiling.inputs import Shape
    from onnxcp.profiling.machine import Machine
    from onnxcp.reporting.inspection import Inspection, Layer


@click.command(short_help="List the layers: cost, time, eligible or why not.")
@model_argument
@machine_options
@input_shapes_option
@click.option("--time/--no-time", default=True, help="Whether to time the model.")
@json_option
@verbosity_options
@click.pass_obj
def inspect(
    terminal: Terminal,
    model: Path,
    *,
    machine: Machine,
    input_shapes: dict[str, Shape],
    time: bool,
    as_json: bool,
) -> None:
    """List each Conv, ConvTranspose, Gemm and MatMul of MODEL.

    Kernels are output channels × input channels of a group × extents. MACs are multiply-adds for
    one sample, in percent of those listed. Time is in percent of that of the whole model. Layers
    whose places chains have taken already are listed after them, if the model says so.
    """
    from onnxcp import units
    from onnxcp.graph.model import load
    from onnxcp.reporting import facts, table
    from onnxcp.reporting.inspection import inspect_model

    with terminal.progress() as progress:
        progress("loading", 0, 1)
        source = load(model)
        found = inspect_model(source, machine, input_shapes, time=time, progress=progress)
    columns = ("name", "op", "kernel=", "input=", "MACs>", "share>", "time>", "eligible")
    terminal.show(table.plain(columns, (_cells(layer, found) for layer in found.layers)))
    refusals = [layer.refusal for layer in found.layers if layer.refusal is not None]
    if refusals:
        terminal.show(table.plain(("not eligible", "because"), facts.grouped(refusals)))
    if found.factorised:
        # A chain of several rows is noted once for each.
        became = {each.site: (each.family, each.ranks) for each in found.factorised}
        rows = ((site, f"{how}, rank {units.shape(n)}") for site, (how, n) in became.items())
        terminal.show(table.plain(("factorised already", "as"), rows))
    if not found.layers:
        terminal.say(f"In {source.name} is no Conv, ConvTranspose, Gemm or MatMul.")
    if found.untimed:
        terminal.say(f"No times were taken: {found.untimed}")
    if as_json:
        layers = [
            {
                **asdict(layer),
                "eligible": layer.refusal is None,
                "refusal": None
                if layer.refusal is None
                else {"reason": str(layer.refusal.reason), "detail": layer.refusal.detail},
            }
            for layer in found.layers
        ]
        terminal.json(
            {
                "model": str(model),
                "layers": layers,
                "factorised": [asdict(origin) for origin in found.factorised],
                "seconds": found.seconds,
                "untimed": found.untimed,
            }
        )


def _cells(layer: Layer, found: Inspection) -> tuple[str, ...]:
    from onnxcp import units

    total = sum(each.macs or 0 for each in found.layers)
    group = f"\n{layer.group} groups" if layer.group > 1 else ""
    share_of_time = None
    if found.seconds and layer.seconds is not None:
        share_of_time = layer.seconds / found.seconds
    return (
        layer.name,
        layer.op,
        f"{units.shape(layer.kernel_shape)}{group}",
        units.shape(layer.input_shape),
        units.count(layer.macs),
        units.share(layer.macs / total if layer.macs is not None and total else None),
        units.share(share_of_time),
        "yes" if layer.refusal is None else str(layer.refusal.reason),
    )
