"""Compare PyTorch with ONNX Runtime on every network in some folders.

    python -m benchmarks.bridge FOLDER ...

For each .onnx file: whether `onnxcp.tuning.to_torch` takes it, or why not; and the largest relative
difference of its outputs, as the Frobenius norm of the difference over that of what ONNX Runtime
gives for the same random inputs; of an output whose root mean square is below 1e-3, over as many
entries of 1e-3, and its row says so: detectors find nothing in noise, and of numbers below -18 ONNX
Runtime takes the sigmoid to be that of -18. The last column is the same difference between PyTorch
in single and in double precision; where it is far smaller, the rounding errors are those of ONNX
Runtime, which computes a file in half precision in that. A file that ONNX Runtime does not run has
nothing to be compared with.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from onnxcp import Machine, OnnxcpError, load
from onnxcp.profiling.machine import runnable_feeds
from onnxcp.profiling.session import infer
from onnxcp.tuning import to_torch

SMALL = 1e-3


@dataclass(frozen=True)
class Row:
    """What became of a file."""

    name: str
    outcome: str
    difference: float | None = None
    rounding: float | None = None


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    files = [(path, root) for root in arguments.folders for path in sorted(root.rglob("*.onnx"))]
    rows = [compared(path, str(path.relative_to(root))) for path, root in files]
    print("| file | PyTorch | to ONNX Runtime | to double |\n|---|---|---|---|")
    for row in rows:
        numbers = ["" if n is None else f"{n:.1e}" for n in (row.difference, row.rounding)]
        print(f"| {row.name} | {row.outcome} | {numbers[0]} | {numbers[1]} |")
    supported = sum(row.difference is not None for row in rows)
    print(f"\n{supported} of {len(rows)} files compared", file=sys.stderr)


def compared(path: Path, name: str) -> Row:
    """Run a network in both."""
    try:
        module = to_torch(path).eval()
    except OnnxcpError as error:
        return Row(name, str(error).partition(": ")[2] or str(error))
    try:
        session = Machine().open(load(path))
        feeds = runnable_feeds(session, {}, path.name)
        expected = infer(session, feeds)
    except OnnxcpError as error:
        return Row(name, f"ONNX Runtime does not run it: {error}")
    found = run(module, feeds)
    exact = run(module.double(), feeds)
    faint = any(size(value) < SMALL for value in expected)
    outcome = "supported (an output is nearly zero)" if faint else "supported"
    return Row(name, outcome, worst(found, expected), worst(found, exact))


def run(module: torch.nn.Module, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Compute the outputs."""
    with torch.no_grad():
        found = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    return [value.numpy() for value in (found if isinstance(found, tuple) else (found,))]


def worst(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Return the largest difference of an output."""
    return max(map(difference, found, expected), default=0.0)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the root mean square of the difference over that of what was expected."""
    if found.shape != expected.shape:
        return float("inf")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    gap = np.subtract(a, b, where=~same, out=np.zeros_like(a))
    return size(gap) / max(size(np.where(np.isfinite(b), b, 0.0)), SMALL)


def size(values: np.ndarray) -> float:
    """Return the root mean square."""
    numbers = values.astype(np.float64)
    return float(np.sqrt(np.mean(np.square(numbers)))) if numbers.size else 0.0


if __name__ == "__main__":
    main()
