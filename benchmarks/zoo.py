"""Run `onnxcp optimize` on every network in some folders and hold it to its promises.

    python -m benchmarks.zoo FOLDER ... [--options "--macs 0.5"] [--samples 16]

Every file must end optimised, or left alone with reasons, or refused with one sentence; no command
may show a traceback; and what was written must compute what was stated: a network that was left
alone exactly the same, an optimised one within the error that was reported. Exits with 1 if any
file does not.

With --samples the networks are refitted on so many random inputs, on fewer where inputs are large
(volumes, say), and looked at on all of them. A network that cannot be had on random inputs is
optimised without.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table

from onnxcp import Machine, OnnxcpError, load
from onnxcp.profiling.compare import compare
from onnxcp.profiling.inputs import random_feeds
from onnxcp.profiling.machine import runnable_feeds
from onnxcp.profiling.session import infer

# Values in all inputs together: 16 volumes of 256x256x256, or pictures of 720x720, take too long.
ELEMENTS = 2**23

DEFAULT = "--macs 0.5 --families channel-svd,spatial-svd,tucker2"
_LOADER = """
import numpy as np

def load_data():
    with np.load({path!r}) as stored:
        arrays = dict(stored)
    for n in range({samples}):
        yield {{k.split(" ", 1)[1]: v for k, v in arrays.items() if k.split(" ", 1)[0] == str(n)}}
"""

Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """What became of one file."""

    name: str
    outcome: str
    detail: str
    speed: str
    error: str
    seconds: float
    broken: str = ""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--options", default=DEFAULT, help=f"of optimize (default: {DEFAULT})")
    parser.add_argument("--samples", type=int, default=0, help="random inputs to refit on")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for a file")
    arguments = parser.parse_args()

    rows = []
    for folder in arguments.folders:
        for path in sorted(folder.rglob("*.onnx")):
            row = examine(path, str(path.relative_to(folder)), arguments)
            rows.append(row)
            print(f"{row.outcome:11} {row.name}  {row.broken or row.detail}", file=sys.stderr)

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(box=box.SIMPLE, show_edge=False)
    for column in ("network", "outcome", "whole network", "output error", "seconds", ""):
        table.add_column(
            column, overflow="fold", justify="right" if column == "seconds" else "left"
        )
    for row in rows:
        seconds = f"{row.seconds:.0f}"
        table.add_row(
            row.name, row.outcome, row.speed, row.error, seconds, row.broken or row.detail
        )
    console.print(table)
    console.print(", ".join(f"{n} {what}" for what, n in Counter(r.outcome for r in rows).items()))
    if any(row.broken for row in rows):
        sys.exit("Some files broke a promise.")


def examine(path: Path, name: str, arguments: argparse.Namespace) -> Row:
    """Optimise one file as a user would, and check what came out."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.onnx"
        command = [sys.executable, "-m", "onnxcp", "optimize", str(path), str(output), "--json"]
        samples = _samples(path, arguments.samples)
        if samples:
            command += ["--data-loader-script", _loader(samples, Path(folder))]
        begin = time.perf_counter()
        try:
            done = subprocess.run(
                [*command, *shlex.split(arguments.options)],
                capture_output=True,
                text=True,
                timeout=arguments.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Row(name, "timed out", "", "", "", arguments.timeout, "it took too long")
        seconds = time.perf_counter() - begin
        last = (done.stderr.strip().splitlines() or [""])[-1]
        if done.returncode == 2 and last.startswith("onnxcp: ") and "Traceback" not in done.stderr:
            return Row(name, "refused", last.removeprefix("onnxcp: "), "", "", seconds)
        if done.returncode != 0 or "Traceback" in done.stderr:
            broken = f"exit code {done.returncode}: {last}"
            return Row(name, "failed", "", "", "", seconds, broken)
        return _read(name, json.loads(done.stdout), path, output, seconds, samples)


def _samples(path: Path, count: int) -> list[Feeds]:
    """Return random inputs of a network; none of one that does not run on any."""
    machine = Machine()
    try:
        session = machine.open(load(path))
        shapes = {name: v.shape for name, v in runnable_feeds(session, {}, path.name).items()}
        size = sum(math.prod(shape) for shape in shapes.values())
        count = min(count, max(2, ELEMENTS // max(size, 1)))
        return [random_feeds(session, shapes=shapes, seed=1 + n) for n in range(count)]
    except OnnxcpError:
        return []


def _loader(samples: list[Feeds], folder: Path) -> str:
    """Write a script that delivers samples."""
    stored, script = folder / "samples.npz", folder / "loader.py"
    pairs = ((n, *pair) for n, each in enumerate(samples) for pair in each.items())
    np.savez(stored, **{f"{n} {name}": values for n, name, values in pairs})
    script.write_text(_LOADER.format(path=str(stored), samples=len(samples)))
    return f"{script}:load_data"


def _read(
    name: str, record: dict, path: Path, output: Path, seconds: float, samples: list[Feeds]
) -> Row:
    outputs = record["outputs"] or []
    stated = max(map(_error, outputs), default=0.0)
    latency = record["latency"]
    speed = ""
    if latency is not None:
        speed = f"{latency['ratio']:.2f}x ({latency['low']:.2f} to {latency['high']:.2f})"
    error = f"{stated:.2g}" if outputs else ""
    if record["improved"]:
        chosen = sum(site["chosen"] is not None for site in record["sites"])
        detail, allowed = f"{chosen} of {len(record['sites'])} sites", stated * 1.01 + 1e-6
        return Row(
            name,
            "optimised",
            detail,
            speed,
            error,
            seconds,
            _changed(path, output, allowed, samples),
        )
    reasons = Counter(
        refusal["reason"]
        for entry in (*record["sites"], {"refusals": record["refusals"]})
        for refusal in entry["refusals"]
    )
    detail = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(3))
    detail = detail or ("not faster as a whole" if latency else "no Conv, Gemm or MatMul")
    changed = _changed(path, output, 0.0, samples)
    return Row(name, "left alone", detail, speed, error, seconds, changed)


def _error(output: dict) -> float:
    """One number for how an output differs: of floats relative, else the share of unequal ones."""
    if output["relative"] is not None:
        return output["relative"]
    return math.inf if output["equal"] is None else 1 - output["equal"]


def _changed(path: Path, output: Path, allowed: float, samples: list[Feeds]) -> str:
    """Say how the output differs from the input by more than is allowed, or ''."""
    machine = Machine()
    a, b = machine.open(load(path)), machine.open(load(output))
    feeds = samples or [runnable_feeds(a, {}, path.name)]
    names = [value.name for value in a.get_outputs()]
    differences = compare(lambda f: infer(a, f), lambda f: infer(b, f), feeds, names)
    for difference in differences:
        if difference.error > allowed:
            return f"output {difference.name} is off by {difference.error:.3g}"
    return ""


if __name__ == "__main__":
    main()
