"""`onnxcp report`: the page on a job that was done before."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcp.cli.options import PATH, verbosity_options
from onnxcp.cli.terminal import Terminal


@click.command(short_help="Make a page of what optimize --json printed.")
@click.argument("record", type=PATH)
@click.option(
    "-o", "--output", type=PATH, metavar="R.html", help="Where to; RECORD with .html by default."
)
@click.option("--force", is_flag=True, help="Replace the page if it exists.")
@verbosity_options
@click.pass_obj
def report(terminal: Terminal, record: Path, *, output: Path | None, force: bool) -> None:
    r"""Make a page of RECORD, which `onnxcp optimize --json` printed: that of its --report.

    It needs neither the model nor the machine that it was optimized on:

    \b
    onnxcp optimize model.onnx --json > run.json
    onnxcp report run.json
    """
    from onnxcp.cli.outputs import check_outputs
    from onnxcp.files import write_text
    from onnxcp.reporting.saved import rendered

    page = rendered(record)
    target = output or record.with_suffix(".html")
    check_outputs({"the report": target}, {"the record": record}, force=force)
    write_text(target, page)
    terminal.wrote(target, "the report")
