"""What a command says and where: tables, progress and sentences on stderr, JSON on stdout."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcp.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Terminal:
    """The state that a command line keeps for its length.

    Attributes
    ----------
    command
        The command line, as one would type it.
    verbosity
        -1 says nothing but errors, 0 what matters, 1 and above all there is to say.
    written
        Files that stand in their places already.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self.command = shlex.join(["onnxcp", *arguments])
        self.verbosity = 0
        self.written: list[Path] = []

    @property
    def verbose(self) -> bool:
        """Whether to say all there is to say, tracebacks included."""
        return self.verbosity > 0

    @cached_property
    def console(self) -> Console:
        """Where tables go. Rich drops colour where stderr is no terminal or NO_COLOR is set."""
        from rich.console import Console

        # Names of nodes hold brackets and colons: they are no markup and no emoji.
        return Console(stderr=True, markup=False, emoji=False, highlight=False)

    def show(self, table: RenderableType) -> None:
        """Print a table, with an empty line after it."""
        if self.verbosity >= 0:
            self.console.print(table)
            self.console.print()

    def say(self, sentence: RenderableType) -> None:
        """Print a sentence, never broken by hand: a terminal does that itself."""
        if self.verbosity >= 0:
            self.console.print(sentence, soft_wrap=True)

    def json(self, record: Mapping[str, Any]) -> None:
        """Print a record on stdout."""
        from onnxcp.reporting.record import to_json

        click.echo(to_json(record))

    def wrote(self, path: Path, what: str) -> None:
        """Note and say that a file stands in its place."""
        self.written.append(path)
        self.say(f"Wrote {what} to {path}")

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show a bar on a terminal while the block lasts; elsewhere and with -q nothing."""
        if self.verbosity < 0 or not self.console.is_terminal:
            yield silent
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        # A thread that redraws the bar would take time from what is being timed.
        with Bars(*columns, console=self.console, transient=True, auto_refresh=False) as bars:
            task = bars.add_task("starting", total=None)

            def report(what: str, done: int, total: int) -> None:
                # One step of one has no length worth a bar: it pulses.
                known = total if total > 1 else None
                bars.update(task, description=what, completed=done, total=known)
                bars.refresh()

            yield report
