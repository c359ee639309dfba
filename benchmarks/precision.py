"""int8 alone, low rank alone, and both: what each is worth, and what it costs.

    python -m benchmarks.precision [--assets FOLDER] [--networks charnet,vgg16,resnet20,...]
        [--batches 1,8] [--goal min_agreement=0.97] [--samples N] [--parts networks,balance]

FOLDER holds `models/` and `data/`, as for `benchmarks.closed_form`. Networks are planned by
`onnxcp optimize` for one goal in both precisions, by default the share of samples that must keep
their top class, VDSR for a relative error; samples are those that chains are fitted to, and no
label is looked at. The accuracy (or
PSNR) that is printed is on others. At each batch all networks are timed in turns, in three sessions
of each: the median of the three.

`balance` quantizes ResNet-20 at half of its multiply-adds with factors as they are, balanced, with
corrected biases, and with both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import cosine_svd
from benchmarks.closed_form import TASKS
from onnxcp import Goal, Machine, Model, OnnxcpError, Settings, load, optimize
from onnxcp.precision.recipe import Recipe, lower
from onnxcp.profiling.session import Runner
from onnxcp.profiling.timing import Trial, in_turns
from onnxcp.verification import output_differences, whole_error

Array = npt.NDArray[Any]
Score = Callable[[Model], float]

MACHINE = Machine()
SESSIONS = 3
CALIBRATED = 256
VDSR_ERROR = 0.01  # of the outputs, which are pictures: about 0.2 dB


@dataclass(frozen=True, eq=False)
class Case:
    """A network, samples, what scores it on others, and what to aim at."""

    name: str
    model: Model
    input: str
    samples: Array
    score: Score
    unit: str
    goal: Goal


def cases(assets: Path | None, names: Sequence[str], goal: Goal) -> Iterator[Case]:
    """Yield the networks that are asked for and can be had."""
    for name in names:
        if name == "vdsr" and assets is not None:
            task = TASKS[name](assets)
            own = Goal(max_error=VDSR_ERROR) if goal.scored else goal
            yield Case(name, load(task.model), "input", task.draw(0), task.score, "dB", own)
            continue
        for each in cosine_svd.networks(assets, [name]):
            network = replace(each, model=cosine_svd.with_any_batch(each.model, each.input))
            model, samples = network.model, network.samples
            yield Case(name, model, each.input, samples, network.accuracy, "%", goal)


def compare(case: Case, batch: int, cache: Path) -> None:
    """Print the rows of one network at one batch."""
    shape = (batch, *case.samples.shape[1:])
    made: dict[str, Model] = {"original": case.model}
    told = []
    for precision in ("fp32", "int8"):
        settings = Settings(
            goal=case.goal,
            input_shapes={case.input: shape},
            machine=Machine(precision=precision),
            cache_dir=cache,
        )
        begin = time.perf_counter()
        result = optimize(case.model, settings, data={case.input: case.samples})
        seconds = time.perf_counter() - begin
        if precision == "fp32":
            made["low rank alone"] = result.model
        else:
            if result.steps:
                made["int8 alone"] = result.steps[0].model
            made["both"] = result.model
        told.append(f"    {precision}: {result.verdict} {result.told} ({seconds:.0f} s)")
    feeds = {case.input: case.samples[:batch].astype(np.float32)}
    trials = in_sessions([*made.values()], feeds)
    base = trials.get(list(made).index("int8 alone")) if "int8 alone" in made else None
    for number, (label, model) in enumerate(made.items()):
        trial = trials.get(number)
        times = (
            "1.00x"
            if trial is None
            else f"{trial.ratio:.2f}x ({trial.low:.2f} to {trial.high:.2f})"
        )
        over = "" if trial is None or base is None else f"{trial.ratio / base.ratio:.2f}"
        if label == "both" and model is made.get("int8 alone"):
            over = "the same network"
        print(
            f"  {case.name:10} {batch:3}  {label:15} {case.score(model):7.2f} {case.unit:2}  "
            f"{times:24}  {over}",
            flush=True,
        )
    print("\n".join(told), flush=True)


def in_sessions(models: Sequence[Model], feeds: dict[str, Array]) -> dict[int, Trial]:
    """Time the first network against the others in turns: the median of a few sessions of each."""
    found: list[list[Trial]] = []
    for _ in range(SESSIONS):
        runs = [Runner(MACHINE.open(model), feeds).run for model in models]
        found.append(in_turns(runs, rounds=40, min_seconds=3.0, max_seconds=60.0))
    median = {}
    for number, trials in enumerate(zip(*found, strict=True), start=1):
        middle = statistics.median(each.ratio for each in trials)
        median[number] = next(each for each in trials if each.ratio == middle)
    return median


def balancing(assets: Path) -> None:
    """Print what balanced factors and corrected biases are worth on ResNet-20."""
    (case,) = cases(assets, ["resnet20"], Goal())
    data = {case.input: case.samples}
    low = optimize(case.model, Settings(macs=0.5), data=data).model
    batches = [{case.input: case.samples[start : start + 32]} for start in range(0, CALIBRATED, 32)]
    print(f"  original {case.score(case.model):.2f} %, half of the MACs {case.score(low):.2f} %")
    held = {case.input: case.samples[-500:]}
    for balanced in (False, True):
        for corrected in (False, True):
            recipe = Recipe(balanced=balanced, corrected=corrected)
            made, _ = lower(low, recipe, batches, MACHINE)
            added = whole_error(output_differences(low, made, machine=MACHINE, feeds=held))
            print(
                f"  balanced {balanced!s:5}  biases corrected {corrected!s:5}  "
                f"{case.score(made):.2f} %  error that int8 adds {added:.4f}",
                flush=True,
            )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    option = parser.add_argument
    option("--assets", type=Path, help="folder of networks and data")
    option("--networks", default="charnet,vgg16,resnet20,squeezenet,vdsr")
    option("--batches", default="1,8")
    option("--goal", default="min_agreement=0.97", help="of onnxcp.Goal (default: %(default)s)")
    option("--samples", type=int, help="to fit to at most (default: all that there are)")
    option("--parts", default="networks,balance")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if "networks" in parts:
        print("  network    batch  what              score     times as fast             over int8")
        name, _, value = arguments.goal.partition("=")
        goal = Goal(**{name: float(value)})
        for whole in cases(arguments.assets, arguments.networks.split(","), goal):
            case = replace(whole, samples=whole.samples[: arguments.samples])
            with tempfile.TemporaryDirectory() as cache:
                for batch in map(int, arguments.batches.split(",")):
                    try:
                        compare(case, batch, Path(cache))
                    except OnnxcpError as problem:
                        print(f"  {case.name:10} {batch:3}  {problem}", flush=True)
    if "balance" in parts and arguments.assets is not None:
        balancing(arguments.assets)


if __name__ == "__main__":
    main()
