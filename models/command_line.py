"""The command line of every reference network: its `build` function's arguments as options."""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx

from models.weightless import weightless


def main(build: Callable[..., onnx.ModelProto], arguments: Sequence[str] | None = None) -> None:
    """Build the network that the command line describes, describe it in turn, and save it.

    Parameters
    ----------
    build
        Takes keywords with defaults, ``batch`` among them; each becomes an option of its
        default's type.
    arguments
        The command line, of the process by default.
    """
    document = inspect.getdoc(build) or ""
    parser = argparse.ArgumentParser(
        description=document.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    described = _descriptions(document)
    for name, parameter in inspect.signature(build).parameters.items():
        _add_option(parser, name, parameter.default, described[name])
    parser.add_argument(
        "-o", "--output", type=Path, default=argparse.SUPPRESS, help="the file to write"
    )

    options = vars(parser.parse_args(arguments))
    output: Path | None = options.pop("output", None)
    try:
        model = build(**options)
    except ValueError as error:
        parser.error(str(error))
    weights, macs = _cost(model)
    print(f"{model.graph.name}: {weights:,} parameters, {macs:,} MACs")
    if output is not None:
        onnx.save(model, output)
        print(f"wrote {output}")


def _descriptions(document: str) -> dict[str, str]:
    """Read what a numpy docstring says of each parameter."""
    found = re.findall(r"^(\w+)\n((?:    .+(?:\n|$))+)", document, re.MULTILINE)
    return {name: " ".join(text.replace("`", "").split()) for name, text in found}


def _add_option(
    parser: argparse.ArgumentParser, name: str, default: bool | int | float, described: str
) -> None:
    kind: dict[str, Any] = {"type": type(default)}
    if name == "batch":
        kind = {"type": _number_or_name}
    elif isinstance(default, bool):
        kind = {"action": argparse.BooleanOptionalAction}
    parser.add_argument(f"--{name}", default=default, help=described, **kind)


def _number_or_name(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _cost(model: onnx.ModelProto) -> tuple[int, int]:
    """Count the trained parameters, and the multiply-adds of one sample."""
    graph = onnx.shape_inference.infer_shapes(weightless(model)).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.value_info, *graph.output]
    }
    parameters = macs = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "BatchNormalization"):
            continue
        # The mean and variance of a BatchNormalization, inputs 3 and 4, are not trained.
        parameters += sum(math.prod(shapes[name]) for name in node.input[1:3])
        if node.op_type != "BatchNormalization":
            grid = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
            macs += math.prod(shapes[node.input[1]]) * math.prod(shapes[grid][2:])
    return parameters, macs
