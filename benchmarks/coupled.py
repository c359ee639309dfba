"""Coupled tensor trains against independent ones, at equal parameters of the whole network.

    python -m benchmarks.coupled --assets FOLDER [--networks resnet20,vdsr,vgg16] [--ratios 2,3,4]
                                 [--epochs N] [--refit] [--deep FILE [--deep-epochs N]]

FOLDER is that of `benchmarks.closed_form`. Every network is brought to 2, 3 and 4 times fewer
parameters: with a tensor train (Tucker-2) for each layer by itself, with layers of one shape fully
coupled, and with layers that agree in all but their input channels partially coupled. Whole numbers
of ranks aside, all three have the same number of weights; the same layers are replaced, where there
is another to couple them with. Columns are the score from the weights alone, after the refit in
closed form on samples without labels (`--refit`), and after fine-tuning towards the original
(`--epochs`), also without labels, starting from the weights.

`--deep FILE` adds a ResNet-56 for CIFAR-10: FILE is written if it is not there, trained towards
ResNet-20 on `cifar10_train4000` from random weights, which takes hours on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import closed_form
from benchmarks.closed_form import MACHINE, TASKS, Task, family
from models.builder import GraphBuilder
from onnxcp import Context, Model, Site, Training, find_sites, load, save
from onnxcp.calibration.data import Data, load_data
from onnxcp.factorize import Factorized
from onnxcp.graph.splice import splice
from onnxcp.graph.summary import summarize
from onnxcp.linalg.coupled_ranks import train_parameters
from onnxcp.passes import ShrinkPass, find_pass
from onnxcp.pipeline import parse_pipeline
from onnxcp.profiling.inputs import session_inputs
from onnxcp.refit import RefitSettings, refit
from onnxcp.refit.inputs import input_grams
from onnxcp.tuning import finetune

Array = npt.NDArray[Any]
Method = Callable[[Model, int, Context], Model]

TRAINING = {
    "resnet20": Training(batch=64, rate=1e-3, augment="flip,crop:4"),
    "vdsr": Training(batch=16, rate=5e-4),
    "vgg16": Training(batch=64, rate=5e-4, augment="flip,crop:4"),
}
DEEP_TRAINING = Training(batch=64, rate=3e-3, augment="flip,crop:4", label_weight=0.5)
DEEP_BLOCKS = 9  # of each of the three stages: 56 layers
PATCHES = 16  # draws of closed_form's patches to train on


def independent(model: Model, removed: int, context: Context) -> Model:
    """Give every layer a train of its own, at one share of its weights."""
    sites = alike(model)
    share = 1 - removed / sum(site.parameters for site in sites)
    tucker = family("tucker2")
    found: dict[Site, Factorized] = {}
    for site in sites:
        path = (tucker.ranks_on_path(site, step / 256) for step in range(1, 257))
        budget = share * site.parameters
        pairs = [(p, q) for p, q in path if train_parameters(site.kernel_shape, (p, q)) <= budget]
        found[site] = tucker.apply(site, max(pairs))
    if context.refit is not None:
        found = dict(context.refit(model, found))
    return splice(model, {site: (tucker.name, each.chain) for site, each in found.items()})


def coupled(text: str) -> Method:
    """Return a method that couples layers by the pass with some options."""

    def method(model: Model, removed: int, context: Context) -> Model:
        (each,) = parse_pipeline(f"coupled-tensor-train{{{text}}}")
        assert isinstance(each, ShrinkPass)
        return each.keeping(model, removed).run(model, context).model

    return method


METHODS: Mapping[str, Method] = {
    "independent": independent,
    "fully coupled": coupled("partial=false"),
    "partially coupled": coupled("partial=true"),
}


def alike(model: Model) -> list[Site]:
    """Return the layers that another one has output channels and spatial axes in common with."""
    sites = [
        site
        for site in find_sites(model)[0]
        if site.op == "Conv" and site.group == 1 and max(site.kernel_shape[2:]) > 1
    ]
    counts = Counter((site.kernel_shape[0], *site.kernel_shape[2:]) for site in sites)
    return [s for s in sites if counts[(s.kernel_shape[0], *s.kernel_shape[2:])] > 1]


def contexts(data: Data | None) -> Context:
    """Return what a pass may know: nothing, or samples to measure errors on and to refit to."""
    if data is None:
        return Context()
    samples = data

    def refitted(model: Model, results: Mapping[Site, Factorized]) -> dict[Site, Any]:
        choices = {site: (each,) for site, each in results.items()}
        done = refit(model, choices, samples, MACHINE, RefitSettings())
        return dict(results) | {site: each.result for site, each in done.items() if each.result}

    def grams(model: Model, sites: Any) -> dict[Site, Array]:
        return input_grams(model, sites, samples, MACHINE, RefitSettings())

    return Context(refit=refitted, grams=grams)


def compare(name: str, task: Task, arguments: argparse.Namespace) -> None:
    """Print a row for every ratio and method."""
    original = find_pass("fold-batchnorm")().run(load(task.model), Context()).model
    before = summarize(original, {})
    score = task.score(original)
    print(f"{name}: {score:.2f} {task.unit}, {before.parameters:,} parameters, {before.nbytes:,} B")
    print(
        f"  {'fewer':5} {'trains':18} {'parameters':>10} {'bytes':>10}  weights    refit    tuned"
    )
    data = load_data(task.draw(0), session_inputs(MACHINE.open(original)))
    training = dataclasses.replace(TRAINING[name.split("-")[0]], epochs=arguments.epochs or 1)
    for ratio in (float(Fraction(each)) for each in arguments.ratios.split(",")):
        removed = before.parameters - int(before.parameters / ratio)
        for kind in arguments.methods.split(","):
            begin, method = time.perf_counter(), METHODS[kind]
            plain = method(original, removed, contexts(None))
            seconds = time.perf_counter() - begin
            after = summarize(plain, {})
            scores = [task.score(plain)]
            scores.append(
                task.score(method(original, removed, contexts(data)))
                if arguments.refit
                else float("nan")
            )
            scores.append(float("nan"))
            if arguments.epochs:
                tuned = finetune(plain, original, training_data(name, arguments, task), training)
                scores[-1] = task.score(tuned.model)
            line = f"  {ratio:5g} {kind:18} {after.parameters:10,} {after.nbytes:10,}"
            columns = " ".join(f"{each:8.2f}" for each in scores)
            print(line, columns, f" ({seconds:.0f} s)", flush=True)


def training_data(name: str, arguments: argparse.Namespace, task: Task) -> Array:
    """Return what to train on, without labels."""
    if name == "vdsr":
        return np.concatenate([task.draw(seed) for seed in range(1, 1 + PATCHES)])
    _, pool, _, pixels = {
        "vgg16": (*closed_form.VGG, closed_form.VGG_PIXELS),
    }.get(name, (*closed_form.RESNET, closed_form.RESNET_PIXELS))
    return closed_form.pictures(pool, pixels, arguments.assets)[0]


def deep(arguments: argparse.Namespace) -> Task:
    """Return the task of ResNet-20 with a ResNet-56, which is trained first if there is none."""
    task = TASKS["resnet20"](arguments.assets)
    if not arguments.deep.exists():
        _, pool, _ = closed_form.RESNET
        pictures, labels = closed_form.pictures(pool, closed_form.RESNET_PIXELS, arguments.assets)
        training = dataclasses.replace(
            DEEP_TRAINING,
            epochs=arguments.deep_epochs,
            checkpoint=arguments.deep.with_suffix(".checkpoint"),
            resume=True,
        )
        samples = {"input": pictures, "label": labels}
        start = Model(deep_network())
        tuned = finetune(start, load(task.model), samples, training)
        save(tuned.model, arguments.deep)
    return dataclasses.replace(task, model=arguments.deep)


def deep_network() -> Any:
    """Return a ResNet-56 for 32x32 pictures (He et al. 2015, section 4.2) with random weights."""
    net = GraphBuilder("resnet56")

    def conv_norm(x: str, inputs: int, outputs: int, name: str, strides: int, kernel: int) -> str:
        options = {"strides": strides, "pads": kernel // 2, "bias": False}
        x = net.conv(x, inputs, outputs, kernel, name=f"{name}.conv", **options)
        return net.batch_norm(x, outputs, name=f"{name}.bn", gain=1.0)

    x = net.relu(conv_norm(net.input("input", ("batch", 3, 32, 32)), 3, 16, "stem", 1, 3))
    channels = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(DEEP_BLOCKS):
            name, strides = f"layer{stage}.{block}", 2 if stage and not block else 1
            branch = net.relu(conv_norm(x, channels, width, f"{name}.1", strides, 3))
            branch = conv_norm(branch, width, width, f"{name}.2", 1, 3)
            if width != channels:
                x = conv_norm(x, channels, width, f"{name}.shortcut", strides, 1)
            x, channels = net.relu(net.add(branch, x, name=f"{name}.add")), width
    x = net.flatten(net.global_average_pool(x, name="pool"))
    return net.model([net.gemm(x, 64, 10, name="logits")], doc_string="ResNet-56 for CIFAR-10")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coupled", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    option = parser.add_argument
    option("--assets", type=Path, required=True, help="folder of networks and data")
    option("--networks", default="resnet20,vdsr,vgg16", help="default: %(default)s")
    option("--ratios", default="2,3,4", help="of parameters (default: %(default)s)")
    option("--methods", default=",".join(METHODS), help="default: %(default)s")
    option("--epochs", type=int, default=0, help="of fine-tuning (default: none)")
    option("--refit", action="store_true", help="refit to samples, too")
    option("--deep", type=Path, metavar="FILE", help="ResNet-56, trained if it is not there")
    option("--deep-epochs", type=int, default=60, help="default: %(default)s")
    arguments = parser.parse_args()
    for name in filter(None, arguments.networks.split(",")):
        compare(name, TASKS[name](arguments.assets), arguments)
    if arguments.deep is not None:
        compare("resnet20-deep", deep(arguments), arguments)


if __name__ == "__main__":
    main()
