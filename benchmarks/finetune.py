"""What fine-tuning adds to the closed form, from the original alone as the teacher.

    python -m benchmarks.finetune --assets FOLDER [--networks resnet20,charnet,vdsr]

FOLDER holds `models/` and `data/`, as for `benchmarks.closed_form`, which compresses ResNet-20 and
VDSR here, too. Training sees `cifar10_train4000`, flipped and moved, or patches of
`train100_gray180`; CharNet, for a speed-up of the whole network, characters that
`models.charnet.render` draws in typefaces that it is not tested on (`--characters` keeps them for
the next time; drawing needs the extra `train` and the fonts). No label is looked at. What is
trained is judged by samples that were held out of these; test data only score.

`--training rate=1e-3,match=0.1` says how to train, in the words of `onnxcp.Training`.
"""

from __future__ import annotations

import argparse
import ast
import re
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import closed_form
from onnxcp import Epoch, Goal, Optimized, Settings, Training, load, optimize
from onnxcp.calibration.data import load_data
from onnxcp.files import atomic_writer
from onnxcp.graph.splice import splice
from onnxcp.profiling.inputs import session_inputs
from onnxcp.reporting.tuned import epoch_line, sentences
from onnxcp.tuning import finetune

Array = npt.NDArray[Any]

CHARNET = Path(__file__).parent.parent / "models" / "charnet"
CHARACTERS, CHARACTERS_SEED = 40_000, 11
SPEEDUP = 9.0  # to plan for
FASTER, DROP = 8.5, 0.5  # of the whole network at batch 32, and points of accuracy


@dataclass(frozen=True)
class Case:
    """A network of `closed_form`: shares to try, goals by share, and how to train.

    A goal below zero is relative to the score of the original.
    """

    shares: tuple[float, ...]
    goals: dict[float, float]
    training: Training


CASES = {
    "resnet20": Case(
        (0.4,), {0.4: 88.5}, Training(epochs=40, batch=64, rate=1e-3, augment="flip,crop:4")
    ),
    "vdsr": Case((1 / 3,), {1 / 3: -0.25}, Training(epochs=6, batch=16, rate=5e-4)),
}
CHARNET_TRAINING = Training(epochs=8, batch=128, rate=1e-3, factor_rate=1.0)
PATCHES = 16  # draws of closed_form's patches to train on


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    option = parser.add_argument
    option("--assets", type=Path, required=True, help="folder of networks and data")
    option("--networks", default="resnet20,charnet,vdsr", help="default: %(default)s")
    option("--shares", default="", help="such as 0.4,0.2; by default those with a goal")
    option("--epochs", type=int, help="by default what each network has")
    option("--training", default="", metavar="KEY=VALUE,...", help="other settings of training")
    option("--characters", type=Path, help="npz file of characters, written if it is not there")
    option("--speedup", type=float, default=SPEEDUP, help="to plan for (default: %(default)s)")
    arguments = parser.parse_args()
    for name in arguments.networks.split(","):
        if name == "charnet":
            characters(arguments)
        else:
            compressed(name, arguments)


def compressed(name: str, arguments: argparse.Namespace) -> None:
    """Compress a network in closed form, fine-tune it, and score both."""
    case, task = CASES[name], closed_form.TASKS[name](arguments.assets)
    original = load(task.model)
    plan = closed_form.Plan.of(original, task.shape)
    specs = session_inputs(closed_form.MACHINE.open(plan.model))
    families = [closed_form.family(each) for each in closed_form.FAMILIES.split(",")]
    best = task.score(original)
    shares = [float(Fraction(each)) for each in arguments.shares.split(",") if each]
    for share in shares or case.shares:
        choices = plan.choices(families, share)
        fit = closed_form.refitted(plan, choices, load_data(task.draw(0), specs), 0)
        start = splice(plan.model, fit.chains)
        before = task.score(start)
        kept = plan.kept(fit.chains)
        unit = task.unit
        print(f"{name}, {kept:.3f} of the MACs: {best:.2f} {unit}, closed form {before:.2f} {unit}")
        training = adjusted(case.training, arguments)
        begin = time.monotonic()
        data = samples(name, arguments.assets, task)
        tuned = finetune(start, original, data, training, told=teller(training, begin))
        seconds = time.monotonic() - begin
        print(*sentences(tuned), sep="\n")
        goal = case.goals.get(share)
        goal = best + goal if goal is not None and goal < 0 else goal
        found = task.score(tuned.model)
        verdict = "" if goal is None else f", to reach {goal:.2f}: {said(found >= goal)}"
        print(f"{name}: fine-tuned {found:.2f} {unit} in {seconds:.0f} s{verdict}", flush=True)


def samples(name: str, assets: Path, task: closed_form.Task) -> Array:
    """Return what to train on, without labels."""
    if name == "vdsr":
        return np.concatenate([task.draw(seed) for seed in range(1, 1 + PATCHES)])
    return closed_form.pictures(closed_form.RESNET[1], closed_form.RESNET_PIXELS, assets)[0]


def faster_characters(speedup: float, training: Training, path: Path | None) -> Optimized:
    """Make CharNet faster by a factor, and train what comes of it on drawn characters."""
    return optimize(
        CHARNET / "charnet.onnx",
        Settings(
            goal=Goal(speedup=speedup),
            input_shapes={"image": (32, 1, 24, 24)},
            training=training,
        ),
        data=CHARNET / "calibration.npz",
        labelled=CHARNET / "test.npz",
        training_data={"image": drawn(path)},
        told=teller(training, time.monotonic()),
    )


def characters(arguments: argparse.Namespace) -> None:
    """Make CharNet faster by a factor, with fine-tuning, and measure."""
    training = adjusted(CHARNET_TRAINING, arguments)
    result = faster_characters(arguments.speedup, training, arguments.characters)
    seen = result.verification
    assert seen is not None
    assert seen.accuracy is not None
    for decision in result.decisions:
        option = decision.option
        print(f"  {decision.site.name}: {'as it was' if option is None else option}")
    print(*([] if result.finetuned is None else sentences(result.finetuned)), sep="\n")
    before, after = (100 * each for each in seen.accuracy)
    print(f"charnet: {seen.trial}, accuracy {before:.2f} to {after:.2f} %")
    fast, close = seen.trial.ratio >= FASTER, before - after <= DROP
    print(f"  {FASTER}x: {said(fast)}; {DROP} points: {said(close)}")


def drawn(path: Path | None) -> Array:
    """Return characters, from a file if it is there."""
    if path is not None and path.exists():
        with np.load(path) as arrays:
            return np.asarray(arrays["image"])
    from models.charnet.fonts import split
    from models.charnet.render import render

    image, _ = render(split()[0], CHARACTERS, CHARACTERS_SEED, workers=2)
    if path is not None:
        with atomic_writer(path) as stream:
            np.savez_compressed(stream, image=image)
    return image


def said(reached: bool) -> str:
    """Return a word for whether a goal was reached."""
    return "yes" if reached else "no"


def teller(training: Training, begin: float) -> Any:
    """Return what prints a line after every epoch."""

    def told(epoch: Epoch) -> None:
        line = epoch_line(epoch, training.epochs)
        print(f"  {time.monotonic() - begin:5.0f} s {line}", flush=True)

    return told


def adjusted(training: Training, arguments: argparse.Namespace) -> Training:
    """Return how to train, with what the command line says."""
    # A comma within a value, as in augment=flip,crop:4, is not before a key.
    parts = filter(None, re.split(r",(?=\w+=)", arguments.training))
    changes = {key: value(text) for key, _, text in (part.partition("=") for part in parts)}
    if arguments.epochs is not None:
        changes["epochs"] = arguments.epochs
    return replace(training, **changes)


def value(text: str) -> Any:
    """Return a number where a text is one, or None."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


if __name__ == "__main__":
    main()
