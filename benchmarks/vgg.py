"""VGG-16 at 224x224 (random weights): how long optimising takes, and how much of it is realised.

    python -m benchmarks.vgg [--options "--macs 0.25 --families cp3"]

Prints wall time, peak memory, and the measured speed-up of the whole network over the reduction of
its multiply-adds. Random weights have flat spectra: errors are not what a trained network shows.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

from models.vgg import build

DEFAULT = "--macs 0.25 --families cp3"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vgg", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--options", default=DEFAULT, help=f"of optimize (default: {DEFAULT})")
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, output = Path(folder) / "vgg16.onnx", Path(folder) / "out.onnx"
        onnx.save(build(batch=arguments.batch), model)
        command = [sys.executable, "-m", "onnxcp", "optimize", str(model), str(output), "--json"]
        begin = time.perf_counter()
        done = subprocess.run(
            [*command, *shlex.split(arguments.options)], stdout=subprocess.PIPE, check=True
        )
        seconds = time.perf_counter() - begin
    # In KiB, of the largest child: there is only one. (Bytes on macOS.)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    record = json.loads(done.stdout)
    print(f"VGG-16, batch {arguments.batch}, {arguments.options}")
    print(f"  wall time          {seconds:.0f} s")
    print(f"  peak memory        {peak / 2**30:.2f} GiB")
    latency = record["latency"]
    if latency is None:
        sys.exit("  nothing was rewritten")
    reduction = record["before"]["macs"] / record["after"]["macs"]
    ratio, low, high = (latency[key] for key in ("ratio", "low", "high"))
    print(f"  multiply-adds      {reduction:.2f} times fewer")
    print(f"  measured speed-up  {ratio:.2f}x ({low:.2f} to {high:.2f}, {latency['pairs']} pairs)")
    print(f"  realised share     {ratio / reduction:.2f} ({low / reduction:.2f} at the lower end)")
    for site in record["sites"]:
        chosen = site["chosen"]
        if chosen is not None:
            ranks = "x".join(map(str, chosen["ranks"]))
            share = site["macs"] / chosen["macs"]
            alone = chosen["alone"]["ratio"]
            print(
                f"    {site['name']:8} {chosen['family']} {ranks:5} {share:4.1f} times fewer",
                end="",
            )
            print(f" multiply-adds, {alone:4.2f}x alone, weight error {chosen['weight_error']:.3f}")


if __name__ == "__main__":
    main()
