"""The command `onnxcp`, and what becomes of errors: one sentence and an exit code.

The modules of commands import what they need when they run, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

import click

from onnxcp import __version__
from onnxcp.cli.compare import compare
from onnxcp.cli.demo import demo
from onnxcp.cli.finetune import finetune
from onnxcp.cli.inspect import inspect
from onnxcp.cli.optimize import optimize
from onnxcp.cli.options import verbosity_options
from onnxcp.cli.passes import passes
from onnxcp.cli.plan import plan
from onnxcp.cli.profile import profile
from onnxcp.cli.report import report
from onnxcp.cli.terminal import Terminal
from onnxcp.cli.torch import export_torch, import_torch
from onnxcp.errors import OnnxcpError
from onnxcp.profiling.installation import broken

BAD_INPUT = 2
FAULT = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130


_HELP = """Make ONNX networks faster by low-rank compression, decided by measured latency.

\b
onnxcp demo                  see it work on a network that comes along
onnxcp plan model.onnx       say what it would become, and how fast
onnxcp optimize model.onnx   write model.optimized.onnx, if that is faster
onnxcp finetune faster.onnx --teacher model.onnx --train-data DIR -o tuned.onnx
onnxcp export-torch model.onnx -o DIR   weights for PyTorch; import-torch brings them back

Tables and progress go to stderr, --json to stdout. Exit codes: 0 done, also where nothing was
worth doing; 1 a comparison failed; 2 bad usage or bad input; 70 a fault of onnxcp itself; 130
interrupted.
"""


@click.group(
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    commands=[
        *(optimize, plan, inspect, profile, compare, report, passes, demo),
        *(finetune, export_torch, import_torch),
    ],
)
@click.version_option(__version__, message="onnxcp %(version)s")
@verbosity_options
def cli() -> None:
    """Hold the commands together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    Parameters
    ----------
    arguments
        Of the process by default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    terminal = Terminal(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        return _run(arguments, terminal)


def _run(arguments: Sequence[str], terminal: Terminal) -> int:
    try:
        code = cli.main(arguments, prog_name="onnxcp", obj=terminal, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain(f"interrupted; {_what_stands(terminal)}.")
        return INTERRUPTED
    except BrokenPipeError:
        return _leave_pipe()
    except OnnxcpError as error:
        _complain(str(error), terminal)
    except ImportError as error:
        if not (error.name or "").startswith("onnxruntime"):
            return _fault(error, terminal)
        _complain(broken(error), terminal)
    except MemoryError:
        _complain("There is not enough memory for this model.", terminal)
    except Exception as error:
        return _fault(error, terminal)
    return BAD_INPUT


def _fault(error: Exception, terminal: Terminal) -> int:
    detail = f"{type(error).__name__}: {error}".rstrip(".")
    _complain(f"An unexpected error, a fault of onnxcp; please report it: {detail}.", terminal)
    return FAULT


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,
) -> None:
    """Print a warning of ours as a sentence; others say where they come from."""
    if category.__module__.partition(".")[0] == "onnxcp":
        _complain(f"Note that {message}.")
    else:
        click.echo(
            warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False
        )


def _complain(sentence: str, terminal: Terminal | None = None) -> None:
    if terminal is not None and terminal.verbose:
        traceback.print_exc()
    with contextlib.suppress(BrokenPipeError):
        click.echo(f"onnxcp: {' '.join(sentence.splitlines())}", err=True)


def _what_stands(terminal: Terminal) -> str:
    if not terminal.written:
        return "nothing was written"
    return f"written already: {', '.join(map(str, terminal.written))}"


def _leave_pipe() -> int:
    """Go quietly: the interpreter would still try to flush, and complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    return 1


if __name__ == "__main__":
    sys.exit(main())
