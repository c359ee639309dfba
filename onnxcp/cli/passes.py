"""`onnxcp passes`: what is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxcp.cli.options import json_option, verbosity_options
from onnxcp.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxcp.passes import Pass


@click.command(short_help="List the installed passes and their options.")
@json_option
@verbosity_options
@click.pass_obj
def passes(terminal: Terminal, *, as_json: bool) -> None:
    """List the installed passes with their options, and the packages that brought them."""
    from importlib.metadata import entry_points

    from onnxcp.passes import ENTRY_POINT_GROUP, registered_passes

    origins = {
        point.name: point.dist.name if point.dist is not None else point.value
        for point in entry_points(group=ENTRY_POINT_GROUP)
    }
    found = registered_passes()
    for name, kind in found.items():
        terminal.say(_title(name, origins[name]))
        terminal.say(f"  {kind.summary}")
        terminal.say(f"  options: {_options_text(kind)}")
        terminal.say("")
    if as_json:
        listed = [
            {
                "name": name,
                "summary": kind.summary,
                "distribution": origins[name],
                "options": _options(kind),
            }
            for name, kind in found.items()
        ]
        terminal.json({"passes": listed})


def _title(name: str, origin: str) -> Any:
    from rich.text import Text

    return Text.assemble((name, "bold"), (f"  (from {origin})", "dim"))


def _options(kind: type[Pass]) -> dict[str, object]:
    """Return the options of a pass with their defaults."""
    from dataclasses import fields

    return {each.name: each.default for each in fields(kind)}


def _options_text(kind: type[Pass]) -> str:
    from onnxcp.passes import format_option

    return ", ".join(f"{k}={format_option(v)}" for k, v in _options(kind).items()) or "none"
