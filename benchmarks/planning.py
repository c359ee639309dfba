"""Whether plans come true: forecasts against the clock, mixed families against single ones.

    python -m benchmarks.planning [--assets FOLDER] [--parts forecast,cost,families]
        [--networks charnet,resnet18,...] [--targets 1.5,2,3] [--speedup 2]

CharNet comes with the project; ResNet-18 and VGG-16 at 224x224 have random weights. FOLDER holds
`models/` and `data/` of the others, as for `benchmarks.closed_form`.

- forecast: plans for several speed-ups. The first expectation is the table's, layer by layer; the
  last is the one after correction by the whole network, which the plan is made with. Both against
  what the whole network then took.
- cost: seconds that a plan takes with nothing measured before, and with everything.
- families: networks built for one speed-up, from all families and from each alone: the speed-up
  that was measured and the error of the outputs, on the samples fitted to.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.closed_form import TASKS
from models import resnet, vgg
from onnxcp import Goal, Model, OnnxcpError, RefitSettings, Settings, load, make_plan, optimize
from onnxcp.rewriting import families

HERE = Path(__file__).parents[1]


@dataclass(frozen=True, eq=False)
class Network:
    """A network, the shape that it is timed with, and samples where there are any."""

    name: str
    model: Model
    shapes: dict[str, tuple[int, ...]]
    data: Any = None


def networks(assets: Path | None, names: Sequence[str]) -> Iterator[Network]:
    """Yield the networks that are asked for and can be had."""
    charnet = HERE / "models" / "charnet"
    for name in names:
        if name == "charnet":
            data = charnet / "calibration.npz"
            shapes = {"image": (32, 1, 24, 24)}
            yield Network(name, load(charnet / "charnet.onnx"), shapes, data)
        elif name in ("resnet18", "vgg16-224"):
            proto = resnet.build() if name == "resnet18" else vgg.build()
            yield Network(name, Model(proto), {"image": (1, 3, 224, 224)})
        elif assets is None:
            print(f"{name}: left out, for want of --assets", file=sys.stderr)
        elif name == "squeezenet":
            model = load(assets / "models/squeezenet11_fp16_opset7.onnx")
            yield Network(name, model, {})
        else:
            task = TASKS[name](assets)
            shape = (1, 1, 96, 96) if name == "vdsr" else (8, *task.shape[1:])
            yield Network(name, load(task.model), {"input": shape}, {"input": task.draw(0)})


def settings(network: Network, cache: Path, goal: Goal, **options: Any) -> Settings:
    """Return settings for a goal."""
    return Settings(goal=goal, input_shapes=network.shapes, cache_dir=cache, **options)


def forecast(network: Network, cache: Path, targets: Sequence[float]) -> None:
    """Print what was expected and what was measured at several targets."""
    for target in targets:
        goal = Goal(speedup=target)
        _, planned = make_plan(network.model, settings(network, cache, goal), data=network.data)
        if not planned.rounds or planned.kept is None:
            print(f"  {network.name:10} {target:5.2f}x  {planned.shortfall}")
            continue
        first, last = planned.rounds[0], planned.kept
        offs = []
        for each in (first, last):
            assert each.before is not None
            assert each.after is not None
            # The original may run slower or faster now than when it was timed for the forecast.
            expected = each.forecast.after / each.forecast.before
            offs.append(expected / (each.after / each.before) - 1)
        measured = last.before / last.after if last.before and last.after else 0.0
        print(
            f"  {network.name:10} {target:5.2f}x  measured {measured:5.2f}x "
            f"({measured / target - 1:+6.1%} of the target)  expected latency off by "
            f"{offs[0]:+6.1%} at first, {offs[1]:+6.1%} at last  {planned.shortfall}",
            flush=True,
        )


def cost(network: Network, target: float) -> None:
    """Print how long planning takes, cold and warm."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            chosen = settings(network, Path(folder), Goal(speedup=target))
            make_plan(network.model, chosen, data=network.data)
            seconds.append(time.perf_counter() - begin)
    print(f"  {network.name:10} cold {seconds[0]:6.1f} s   warm {seconds[1]:6.1f} s", flush=True)


def mixed(network: Network, cache: Path, speedup: float, refit: str) -> None:
    """Print what all families together come to at a speed-up, and each by itself."""
    for names in ((), *((name,) for name in families())):
        label = names[0] if names else "all families"
        chosen = settings(
            network, cache, Goal(speedup=speedup), families=names, refit=RefitSettings(refit)
        )
        try:
            result = optimize(network.model, chosen, data=network.data)
        except OnnxcpError as error:
            print(f"  {network.name:10} {label:13} {error}", flush=True)
            continue
        seen = result.verification
        if seen is None or result.planned is None:
            shortfall = result.planned.shortfall if result.planned is not None else ""
            print(f"  {network.name:10} {label:13} {result.verdict} {shortfall}", flush=True)
            continue
        error = max(each.error for each in seen.differences)
        print(
            f"  {network.name:10} {label:13} {seen.trial.ratio:5.2f}x "
            f"({seen.trial.low:.2f} to {seen.trial.high:.2f})  output error {error:.4f}  "
            f"{result.planned.shortfall}",
            flush=True,
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    option = parser.add_argument
    option("--assets", type=Path, help="folder of networks and data")
    option("--parts", default="forecast,cost,families", help="default: %(default)s")
    option(
        "--networks",
        default="charnet,resnet18,vgg16-224,resnet20,vdsr,vgg16,squeezenet",
        help="default: %(default)s",
    )
    option("--targets", default="1.5,2,3", help="of forecasts (default: %(default)s)")
    option("--speedup", type=float, default=2.0, help="of the families (default: %(default)s)")
    option("--refit", default="all", help="scope of refits (default: %(default)s)")
    option("--cache-dir", type=Path, help="by default a new one")
    arguments = parser.parse_args()
    parts, targets = arguments.parts.split(","), [float(x) for x in arguments.targets.split(",")]
    with tempfile.TemporaryDirectory() as fresh:
        cache = arguments.cache_dir or Path(fresh)
        for network in networks(arguments.assets, arguments.networks.split(",")):
            print(network.name)
            if "forecast" in parts:
                forecast(network, cache, targets)
            if "cost" in parts:
                cost(network, targets[0])
            if "families" in parts:
                mixed(network, cache, arguments.speedup, arguments.refit)


if __name__ == "__main__":
    main()
