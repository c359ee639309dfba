"""Whether plans come true: forecasts against the clock, mixed families against single ones.

    python -m benchmarks.planning [--assets FOLDER] [--parts forecast,cost,families]
        [--networks charnet,resnet18,...] [--targets 1.5,2,3] [--speedup 2] [--samples N]

CharNet comes with the project; ResNet-18 and VGG-16 at 224x224 have random weights. FOLDER holds
`models/` and `data/` of the others, as for `benchmarks.closed_form`.

- forecast: plans for several speed-ups. The first expectation is the table's, layer by layer; the
  last is the one after correction by the whole network, which the plan is made with. Both against
  what the whole network then took.
- cost: seconds that a plan takes with nothing measured before, and with everything.
- families: networks built for a speed-up, from all families and from each alone: the speed-up
  that was measured, all in turns, the error of the outputs on samples that nothing was fitted to
  and, of classifiers, the divergence of the classes there, which plans make least; and how the
  mixture compares with the best family at the same speed. For that, families that come near it
  are built for a second speed-up.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import cosine_svd
from benchmarks.closed_form import MACHINE, TASKS
from models import resnet, vgg
from onnxcp import (
    Goal,
    Model,
    OnnxcpError,
    RefitSettings,
    Settings,
    load,
    make_plan,
    optimize,
)
from onnxcp.calibration.data import load_data
from onnxcp.profiling.compare import compare
from onnxcp.profiling.inputs import session_inputs
from onnxcp.profiling.machine import runnable_feeds
from onnxcp.profiling.session import Runner, infer
from onnxcp.profiling.timing import in_turns
from onnxcp.rewriting import families

Samples = Mapping[str, npt.NDArray[Any]]

HERE = Path(__file__).parents[1]
PARTS = ("calibration", "test")
BATCH = 32
MIXTURE, FURTHER, NEAR = "all families", 1.15, 1.5
SPEEDUPS = {"charnet": 4.0, "resnet20": 1.3, "vdsr": 2.0, "vgg16": 2.5, "squeezenet": 1.3}


@dataclass(frozen=True, eq=False)
class Network:
    """A network, the shapes that it is timed with, and samples where there are any.

    Attributes
    ----------
    name, model, shapes
        The network.
    speedup
        To compare families at: one that most of them can reach.
    data, held
        Samples to plan with and fit to, and others to judge by.
    """

    name: str
    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    speedup: float = 2.0
    data: Samples | None = None
    held: Samples | None = None


def networks(assets: Path | None, names: Sequence[str]) -> Iterator[Network]:
    """Yield the networks that are asked for and can be had."""
    for name in names:
        if name == "charnet":
            yield charnet()
        elif name in ("resnet18", "vgg16-224"):
            proto = resnet.build() if name == "resnet18" else vgg.build()
            yield Network(name, Model(proto), {"image": (1, 3, 224, 224)})
        elif assets is None:
            print(f"{name}: left out, for want of --assets", file=sys.stderr)
        elif name == "squeezenet":
            yield squeezenet(assets)
        else:
            task = TASKS[name](assets)
            shape = (1, 1, 96, 96) if name == "vdsr" else (8, *task.shape[1:])
            data, held = split({"input": task.draw(0)})
            model = load(task.model)
            yield Network(name, model, {"input": shape}, SPEEDUPS[name], data, held)


def charnet() -> Network:
    """Return the network that comes with the project."""
    folder = HERE / "models" / "charnet"
    data, held = ({"image": np.load(folder / f"{name}.npz")["image"]} for name in PARTS)
    model, shapes = load(folder / "charnet.onnx"), {"image": (32, 1, 24, 24)}
    return Network(
        "charnet", model, shapes, SPEEDUPS["charnet"], data, {"image": held["image"][:1000]}
    )


def squeezenet(assets: Path) -> Network:
    """Return a classifier of 224x224 pictures."""
    known = cosine_svd.squeezenet(assets)
    data, held = ({known.input: each} for each in (known.samples, known.held))
    shapes = {known.input: (known.batch, *known.samples.shape[1:])}
    return Network("squeezenet", known.model, shapes, SPEEDUPS["squeezenet"], data, held)


def fewer(network: Network, most: int | None) -> Network:
    """Return a network with so many samples at most."""
    if most is None or network.data is None:
        return network
    return replace(network, data={name: each[:most] for name, each in network.data.items()})


def split(samples: Samples) -> tuple[Samples, Samples]:
    """Put every fourth sample aside."""
    (count,) = {len(each) for each in samples.values()}
    aside = np.arange(count) % 4 == 3
    first, second = ({n: v[part] for n, v in samples.items()} for part in (~aside, aside))
    return first, second


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


@dataclass(frozen=True, eq=False)
class Built:
    """A network that was built from some families, and how far its outputs are off."""

    label: str
    model: Model
    measured: float
    error: float
    divergence: float


def mixed(network: Network, cache: Path, speedup: float, refit: str) -> None:
    """Print what all families together come to at a speed-up, and each by itself.

    Plans hit what they aim at within some percent, so errors are compared at the speed of the
    mixture: those of a family are interpolated between its two networks. All of them are timed in
    turns, in one run.
    """

    def build(label: str, goal: float) -> Built | None:
        begin = time.perf_counter()
        names = () if label == MIXTURE else (label,)
        chosen = settings(
            network, cache, Goal(speedup=goal), families=names, refit=RefitSettings(refit)
        )
        try:
            result = optimize(network.model, chosen, data=network.data)
        except OnnxcpError as problem:
            print(f"  {network.name:10} {label:12} {problem}", flush=True)
            return None
        if not result.improved or result.verification is None:
            print(f"  {network.name:10} {label:12} {result.verdict}", flush=True)
            return None
        made = Built(
            label, result.model, result.verification.trial.ratio, *off(network, result.model)
        )
        seconds = time.perf_counter() - begin
        print(
            f"  {network.name:10} {label:12} for {goal:.2f}x: {made.measured:.2f}x  output error "
            f"{made.error:.4f}  divergence {made.divergence:.5f}  ({seconds:.0f} s)",
            flush=True,
        )
        return made

    mixture = build(MIXTURE, speedup)
    if mixture is None:
        return
    networks_built = [mixture]
    for name, family in families().items():
        first = None if family.named_only else build(name, speedup)
        if first is None:
            continue
        networks_built.append(first)
        # One that is much faster may be as close at the mixture's speed.
        if first.error < NEAR * mixture.error or first.measured > FURTHER * mixture.measured:
            slower = first.measured < mixture.measured
            second = build(name, speedup * (FURTHER if slower else 1 / FURTHER))
            networks_built += [] if second is None else [second]
    models = [network.model, *(each.model for each in networks_built)]
    feeds = runnable_feeds(MACHINE.open(network.model), network.shapes, network.name)
    runs = [Runner(MACHINE.open(model), feeds).run for model in models]
    trials = in_turns(runs, rounds=60, min_seconds=5.0, max_seconds=120.0)
    curves: dict[str, list[tuple[float, Built]]] = {}
    for each, trial in zip(networks_built, trials, strict=True):
        curves.setdefault(each.label, []).append((trial.ratio, each))
        print(f"  {network.name:10} {each.label:12} {trial}  {each.error:.4f}", flush=True)
    ((speed, _),) = curves.pop(MIXTURE)
    for measure in ("error", "divergence"):
        own = getattr(mixture, measure)
        at = {
            label: level([(x, getattr(each, measure)) for x, each in points], speed)
            for label, points in curves.items()
        }
        best = min(at, key=lambda label: at[label], default="")
        if best and own > 0:
            print(
                f"  {network.name:10} at {speed:.2f}x, {measure}: {MIXTURE} {own:.4f}, best of one "
                f"{best} {at[best]:.4f} ({own / at[best] - 1:+.0%})",
                flush=True,
            )


def level(points: Sequence[tuple[float, float]], speed: float) -> float:
    """Return what is off at a speed, on the line through two networks in logarithms of both.

    Of one network it is what that is off by, if it is no slower than the speed by a twentieth.
    """
    if len(points) == 1:
        ((x, y),) = points
        return y if x > 0.95 * speed else math.inf
    speeds, values = np.log(np.array(sorted(points)).T)
    place = np.log(speed)
    if place > speeds[1] + 0.1:
        return math.inf  # the family does not come to that speed
    slope = max((values[1] - values[0]) / max(speeds[1] - speeds[0], 0.02), 0.0)
    return float(np.exp(values[0] + slope * (place - speeds[0])))


def off(network: Network, built: Model) -> tuple[float, float]:
    """Return how far outputs are off on the samples that were put aside.

    Returns
    -------
    error
        Relative.
    divergence
        Of the classes; of what is no classifier, the square of the error.
    """
    assert network.held is not None
    before, after = (functools.partial(infer, MACHINE.open(m)) for m in (network.model, built))
    specs = session_inputs(MACHINE.open(network.model))
    names = [each.name for each in network.model.proto.graph.output]
    batches = load_data(network.held, specs).batches(BATCH)
    found = max(compare(before, after, batches, names), key=lambda each: each.error)
    return found.error, found.error**2 if found.kl is None else found.kl


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
    option("--speedup", type=float, help="of the families (default: for each network its own)")
    option("--refit", default="all", help="scope of refits (default: %(default)s)")
    option("--samples", type=int, help="to plan with and refit to, at most")
    option("--cache-dir", type=Path, help="by default a new one")
    arguments = parser.parse_args()
    parts, targets = arguments.parts.split(","), [float(x) for x in arguments.targets.split(",")]
    with tempfile.TemporaryDirectory() as fresh:
        cache = arguments.cache_dir or Path(fresh)
        for network in networks(arguments.assets, arguments.networks.split(",")):
            network = fewer(network, arguments.samples)
            print(network.name)
            if "forecast" in parts:
                forecast(network, cache, targets)
            if "cost" in parts:
                cost(network, targets[0])
            if "families" in parts and network.data is not None:
                mixed(network, cache, arguments.speedup or network.speedup, arguments.refit)


if __name__ == "__main__":
    main()
