"""How long a profile takes, and whether two profiles of one file agree.

    python -m benchmarks.profiling [--model FILE] [--batch N] [--times 6] [--options "..."]

A profile of a network of about 1 ms should take less than 10 s, and two profiles of the same file
on a quiet machine should agree within 3 %. Each profile is a command of its own, as a user types
it. By default CharNet at the batch that takes about 1 ms here. Run it when nothing else does: what
the profiles themselves say of the machine is printed with them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHARNET = Path(__file__).parents[1] / "models" / "charnet" / "charnet.onnx"
WANTED_SECONDS, WANTED_AGREEMENT = 10.0, 0.03


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", type=Path, default=CHARNET)
    parser.add_argument("--batch", type=int, help="by default the one that takes about 1 ms")
    parser.add_argument("--times", type=int, default=6)
    parser.add_argument("--options", default="", help="of profile")
    arguments = parser.parse_args()
    batch, options = arguments.batch, shlex.split(arguments.options)
    if batch is None:
        row, _ = profile(arguments.model, 1, ["--iterations", "50", *options])
        batch = max(1, round(1e-3 / row["model"]["latency"]["median"]))
    print(f"{arguments.model.name}, batch {batch}")
    print(f"{'median':>10} {'interval':>20} {'wall time':>10}   the machine")
    medians, walls, levels, paces = [], [], [], []
    for _ in range(arguments.times):
        row, wall = profile(arguments.model, batch, options)
        noise, interval = row["noise"], row["model"]["interval"]
        medians.append(row["model"]["latency"]["median"])
        walls.append(wall)
        levels.append(noise["level"])
        paces.append(noise["seconds"])
        shown = " to ".join(f"{1e3 * end:.3f}" for end in interval) if interval else "none"
        print(
            f"{1e3 * medians[-1]:7.3f} ms {shown:>20} {wall:8.1f} s   {noise['level']}: "
            f"{noise['apart']:.1%} apart, {noise['drift']:.1%} drift, {noise['within']:.1%} by "
            f"itself, {noise['interrupted']:.0%} interrupted, identical work "
            f"{1e6 * paces[-1]:.0f} us",
            flush=True,
        )
    print(f"longest profile: {max(walls):.1f} s (wanted: below {WANTED_SECONDS:g} s)")
    every = list(zip(medians, paces, strict=True))
    quiet = [each for each, level in zip(every, levels, strict=True) if level == "quiet"]
    for what, found, alike in (
        ("all", every, math.inf),
        ("quiet by their own judgement", quiet, math.inf),
        ("quiet, and of machines as fast within 3 %", quiet, WANTED_AGREEMENT),
    ):
        pairs = [
            apart(a, b)
            for (a, first), (b, second) in itertools.combinations(found, 2)
            if apart(first, second) <= alike
        ]
        agreeing = sum(pair <= WANTED_AGREEMENT for pair in pairs)
        print(
            f"pairs of profiles, {what}: {agreeing} of {len(pairs)} agree within "
            f"{WANTED_AGREEMENT:.0%}, at worst {max(pairs, default=0.0):.1%} apart"
        )


def apart(a: float, b: float) -> float:
    """Return by how much the larger of two is larger."""
    return max(a, b) / min(a, b) - 1


def profile(model: Path, batch: int, options: list[str]) -> tuple[dict[str, Any], float]:
    """Run the command; return its one row and the seconds that it took."""
    command = [sys.executable, "-m", "onnxcp", "profile", str(model), "--json", "-q"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--batch-sizes", str(batch), *options], stdout=subprocess.PIPE, check=True
    )
    wall = time.perf_counter() - start
    (row,) = json.loads(done.stdout)["rows"]
    return row, wall


if __name__ == "__main__":
    main()
