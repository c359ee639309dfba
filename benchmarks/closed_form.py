"""What refits in closed form are worth at a share of the convolutions' multiply-adds.

    python -m benchmarks.closed_form --assets FOLDER [--networks resnet20,vdsr,vgg16] [--memory]

FOLDER holds `models/` and `data/`: ResNet-20 and VGG-16 for CIFAR-10, VDSR, pictures to fit to and
others to score on. Every convolution keeps the same share of its multiply-adds, but those of less
than 2 % of the total, which stay dense. Rows differ in the fit:

- weights: closest in the Frobenius norm; channel SVD, and the first of the families;
- whitened: channel SVD closest on the inputs that a site has in the original network, as the best
  published closed forms have it;
- refit: what `onnxcp optimize` does. Every site is fitted to what the rewritten network delivers
  there, sums are made good, and each site's family is chosen on held-out samples.

Nothing is trained, and no label is looked at. The last column counts what sites became, in all
draws together. `--memory` adds what a refit of VGG-16 at 224x224 takes.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from models.vgg import build
from onnxcp import Context, FactorizePass, Machine, Model, Refusal, Site, find_sites, load
from onnxcp.calibration.data import Data, load_data
from onnxcp.calibration.statistics import observe
from onnxcp.calibration.stream import Stream
from onnxcp.factorize import Factorized
from onnxcp.graph.chain import Chain, chain_macs, site_macs
from onnxcp.graph.splice import splice
from onnxcp.passes import find_pass
from onnxcp.profiling.inputs import session_inputs
from onnxcp.profiling.machine import observe_shapes
from onnxcp.profiling.session import infer
from onnxcp.refit import Refit, RefitSettings, refit

Array = npt.NDArray[Any]
Chains = Mapping[Site, tuple[str, Chain]]
Choices = Mapping[Site, Sequence[Factorized]]
Pixels = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation

FAMILIES = "cp3,spatial-svd,channel-svd"
SMALL = 0.02  # share of the convolutions' multiply-adds below which a site stays dense
PICTURES, PATCHES, PATCH = 1024, 96, 48
SCALE = 3  # of super-resolution; as wide a border is not scored
BATCH = 32
LARGE, LARGE_SHARE = 64, 0.25  # pictures of 224x224, and share of the multiply-adds
MACHINE = Machine()


@dataclass(frozen=True, eq=False)
class Task:
    """A network, what to fit it to, and how to score it.

    Attributes
    ----------
    model
        The network.
    shape
        Of an input, to count multiply-adds on.
    draw
        Draws samples with a seed.
    score
        Scores a network; more is better.
    unit
        Of the score.
    goals
        Scores to reach, by share of multiply-adds; one below zero is relative to the original's.
    """

    model: Path
    shape: tuple[int, ...]
    draw: Callable[[int], Array]
    score: Callable[[Model], float]
    unit: str
    goals: Mapping[float, float]


def pictures(name: str, normal: Pixels, at: Path) -> tuple[Array, Array]:
    """Return standardised pictures and their classes."""
    with np.load(at / f"data/{name}.npz") as data:
        pixels, labels = data["x"], data["y"]
    mean, std = np.array(normal, np.float32)
    standard = (pixels / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(standard, -1, 1)), labels


def classifier(
    model: str, calibration: str, test: str, normal: Pixels, goals: Mapping[float, float], at: Path
) -> Task:
    """Return the task to tell pictures of 32x32 apart, scored by top-1."""

    def draw(seed: int) -> Array:
        return pool[np.random.default_rng(seed).choice(len(pool), PICTURES, replace=False)]

    def score(network: Model) -> float:
        session = MACHINE.open(network)
        batches = np.array_split(images, len(images) // 250)
        logits = [infer(session, {"input": batch})[0] for batch in batches]
        return 100 * float(np.mean(np.concatenate(logits).argmax(axis=1) == labels))

    pool, (images, labels) = pictures(calibration, normal, at)[0], pictures(test, normal, at)
    return Task(at / f"models/{model}.onnx", (1, 3, 32, 32), draw, score, "%", goals)


def super_resolution(goals: Mapping[float, float], at: Path) -> Task:
    """Return the task to sharpen pictures that were scaled up, scored by mean PSNR."""
    with np.load(at / "data/set5_x3.npz") as data:
        pairs = [(data[f"{n}_x"], data[f"{n}_y"]) for n in ("bird", "butterfly", "head", "woman")]
    blurred = np.stack([_blur(each) for each in np.load(at / "data/train100_gray180.npz")["x"]])

    def draw(seed: int) -> Array:
        places = [len(blurred), *(extent - PATCH + 1 for extent in blurred.shape[1:])]
        corners = np.random.default_rng(seed).integers(0, places, (PATCHES, 3))
        cuts = [blurred[n, None, y : y + PATCH, x : x + PATCH] for n, y, x in corners]
        return np.stack(cuts) / np.float32(255)

    def score(network: Model) -> float:
        session = MACHINE.open(network)
        return statistics.fmean(_psnr(session, *pair) for pair in pairs)

    shape = (1, 1, *pairs[0][0].shape)
    return Task(at / "models/vdsr.onnx", shape, draw, score, "dB", goals)


def _blur(picture: Array) -> Array:
    image, bicubic = Image.fromarray(picture), Image.Resampling.BICUBIC
    small = image.resize((image.width // SCALE, image.height // SCALE), bicubic)
    return np.asarray(small.resize(image.size, bicubic))


def _psnr(session: Any, picture: Array, truth: Array) -> float:
    (output,) = infer(session, {"input": picture[None, None] / np.float32(255)})
    difference = np.rint(255 * output[0, 0].clip(0, 1)) - truth.astype(np.float64)
    return float(10 * np.log10(255**2 / np.mean(difference[SCALE:-SCALE, SCALE:-SCALE] ** 2)))


RESNET = ("resnet20_cifar10", "cifar10_train4000", "cifar10_test1000")
RESNET_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RESNET_GOALS = {0.8: 91.5, 0.6: 90.0, 0.5: 88.0, 0.4: 83.0, 0.3: 74.0}
VGG = ("vgg16_cifar10jpeg", "cifar10jpeg_calib2000", "cifar10jpeg_test5000")
VGG_PIXELS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
VGG_GOALS = {0.3: 86.5, 0.2: 86.0, 0.15: 85.0, 0.1: 81.0}
TASKS: dict[str, Callable[[Path], Task]] = {
    "resnet20": functools.partial(classifier, *RESNET, RESNET_PIXELS, RESNET_GOALS),
    "vdsr": functools.partial(super_resolution, {1 / 2: -0.30, 1 / 3: -0.65}),
    "vgg16": functools.partial(classifier, *VGG, VGG_PIXELS, VGG_GOALS),
}


@dataclass(frozen=True, eq=False)
class Plan:
    """A network with its sites, and what its convolutions cost.

    Attributes
    ----------
    model
        The network.
    shapes
        Of what its sites read.
    sites
        All its sites.
    macs
        Multiply-adds of the convolutions among them.
    """

    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    sites: Sequence[Site]
    macs: Mapping[Site, int]

    @classmethod
    def of(cls, model: Model, shape: tuple[int, ...]) -> Plan:
        """Fold BatchNormalization, and count multiply-adds for an input of a shape."""
        model = find_pass("fold-batchnorm")().run(model, Context()).model
        sites, _ = find_sites(model)
        constants = {each.name for each in model.proto.graph.initializer}
        name = next(each.name for each in model.proto.graph.input if each.name not in constants)
        feeds = {name: np.zeros(shape, np.float32)}
        shapes = observe_shapes(model, {site.input for site in sites}, feeds, MACHINE)
        macs = {s: site_macs(s, shapes[s.input]) for s in sites if s.op == "Conv"}
        return cls(model, shapes, sites, macs)

    def choices(self, families: Sequence[FactorizePass], share: float) -> Choices:
        """Factorise so that a share of all multiply-adds is kept; the closest family first."""
        total = sum(self.macs.values())
        large = {site: macs for site, macs in self.macs.items() if macs >= SMALL * total}
        own = 1 - (1 - share) * total / sum(large.values())  # the rest stays dense
        found: dict[Site, list[Factorized]] = {}
        for site in large:
            for each in families:
                shape = self.shapes[site.input]
                ranks = each.applies(site) or each.ranks_for_macs(site, own, 1, shape)
                if not isinstance(ranks, Refusal):
                    found.setdefault(site, []).append(factorized(each, site, ranks))
        return {site: sorted(each, key=lambda one: one.error) for site, each in found.items()}

    def kept(self, chains: Chains) -> float:
        """Return the share of the convolutions' multiply-adds that is really kept."""
        macs = dict(self.macs)
        for site in chains.keys() & macs.keys():
            macs[site] = chain_macs(site, chains[site][1], self.shapes[site.input])
        return sum(macs.values()) / sum(self.macs.values())


def family(name: str) -> FactorizePass:
    """Return a family by its name."""
    found = find_pass(name)()
    assert isinstance(found, FactorizePass), f"{name} is no family"
    return found


@functools.cache
def factorized(kind: FactorizePass, site: Site, ranks: tuple[int, ...]) -> Factorized:
    """Decompose the weights of a site, once for all seeds."""
    return kind.apply(site, ranks)


@dataclass(frozen=True, eq=False)
class Fit:
    """What sites become, the seconds beyond decomposing weights, and errors where known."""

    chains: Chains
    seconds: float = 0.0
    refits: Mapping[Site, Refit] = field(default_factory=dict)


def unfitted(choices: Choices) -> Fit:
    """Take what is closest from the weights alone."""
    return Fit({site: (each[0].family.name, each[0].chain) for site, each in choices.items()})


def whitened(plan: Plan, choices: Choices, data: Data) -> Fit:
    """Bring every site closest to itself on the inputs that it has in the original network."""
    begin, chains = time.perf_counter(), {}
    with Stream(plan.model, list(choices), data.batches(BATCH), MACHINE) as stream:
        for stop in stream:  # none is settled: the network stays what it is
            site, (choice,) = stop.site, choices[stop.site]
            # The bias stays as well, so moments are those about zero, not about the mean.
            seen = observe(site, stop.pairs(), data.batch_count(BATCH), biased=False)
            assert seen is not None
            grams = [moments.xx for moments in seen.fit]
            factors = choice.family.refine(site, choice.factors, site.group_kernels(), grams)
            chains[site] = "whitened", choice.family.lower(site, factors)
    return Fit(chains, time.perf_counter() - begin)


def refitted(plan: Plan, choices: Choices, data: Data, seed: int) -> Fit:
    """Refit as `onnxcp optimize` does; sites that stay dense may get other weights."""
    begin = time.perf_counter()
    dense = [site for site in plan.sites if site not in choices]
    done = refit(plan.model, choices, data, MACHINE, RefitSettings(seed=seed), dense=dense)
    chains = {site: each.chain for site, each in done.items() if each.chain is not None}
    return Fit(chains, time.perf_counter() - begin, done)


def rows(
    plan: Plan, families: Sequence[FactorizePass], share: float, data: Sequence[Data]
) -> Iterator[tuple[str, list[Fit]]]:
    """Yield every kind of fit by name, with one fit for each draw of samples."""
    channel_svd = family("channel-svd")
    for each in dict.fromkeys([channel_svd, families[0]]):
        yield f"weights, {each.name}", [unfitted(plan.choices([each], share))]
    svd = plan.choices([channel_svd], share)
    yield "whitened, channel-svd", [whitened(plan, svd, samples) for samples in data]
    every = plan.choices(families, share)
    yield "refit", [refitted(plan, every, samples, seed) for seed, samples in enumerate(data)]


def compare(task: Task, arguments: argparse.Namespace) -> None:
    """Print what every kind of fit comes to at every share."""
    plan = Plan.of(load(task.model), task.shape)
    original = task.score(plan.model)
    specs = session_inputs(MACHINE.open(plan.model))
    data = [load_data(task.draw(seed), specs) for seed in range(arguments.seeds)]
    families = [family(name) for name in arguments.families.split(",")]
    shares = [float(Fraction(each)) for each in arguments.shares.split(",") if each]
    print(f"{task.model.stem}: {original:.2f} {task.unit}")
    print(f"  share   kept  {'fit':21}   mean  least   most      s  to reach")
    for share in shares or task.goals:
        goal = task.goals.get(share)
        goal = original + goal if goal is not None and goal < 0 else goal
        for kind, fits in rows(plan, families, share, data):
            scores = [task.score(splice(plan.model, fit.chains)) for fit in fits]
            kept = max(plan.kept(fit.chains) for fit in fits)
            mean, least, most = statistics.fmean(scores), min(scores), max(scores)
            seconds = statistics.fmean(fit.seconds for fit in fits)
            labels = Counter(label for fit in fits for label, _ in fit.chains.values())
            became = ", ".join(f"{count} {label}" for label, count in labels.most_common())
            reached = f"{goal:.2f} {'yes' if mean >= goal else 'no'}" if goal is not None else ""
            line = f"  {share:.3f}  {kept:.3f}  {kind:21} {mean:6.2f} {least:6.2f} {most:6.2f}"
            print(line, f"{seconds:6.1f}  {reached:9} {became}", flush=True)
            for site, each in fits[0].refits.items() if arguments.sites else ():
                label = each.chain[0] if each.chain is not None else "kept"
                print(f"    {site.name:36} {label:11} {each.before:.3f} to {each.after:.3f}")


def measure_large() -> tuple[float, float]:
    """Refit VGG-16 at 224x224; return the seconds and the peak memory of the process in GiB."""
    plan = Plan.of(Model(build(batch="batch")), (1, 3, 224, 224))
    choices = plan.choices([family("cp3")], LARGE_SHARE)
    noise = np.random.default_rng(0).standard_normal((LARGE, 3, 224, 224), np.float32)
    smooth = gaussian_filter(noise, 8, axes=(2, 3))
    data = load_data(smooth / smooth.std(), session_inputs(MACHINE.open(plan.model)))
    fit = refitted(plan, choices, data, 0)
    unit = 1 if sys.platform == "darwin" else 1024  # Bytes on macOS, else KiB.
    return fit.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.closed_form", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    option = parser.add_argument
    option("--assets", type=Path, required=True, help="folder of networks and data")
    option("--networks", default=",".join(TASKS), help="default: %(default)s")
    option("--shares", default="", help="such as 0.5,1/3; by default those with a goal")
    option("--seeds", type=int, default=3, help="draws of samples (default: %(default)s)")
    option("--families", default=FAMILIES, help="default: %(default)s")
    option("--sites", action="store_true", help="print the errors at each site, of the first draw")
    option("--memory", action="store_true", help="also refit VGG-16 at 224x224")
    arguments = parser.parse_args()
    for name in filter(None, arguments.networks.split(",")):
        compare(TASKS[name](arguments.assets), arguments)
    if arguments.memory:
        # In a process of its own, since the peak is that of a process.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            seconds, gib = pool.submit(measure_large).result()
        what = f"VGG-16 at 224x224, cp3 at {LARGE_SHARE}, {LARGE} pictures"
        print(f"{what}: {seconds:.0f} s (to reach 360), {gib:.2f} GiB at the peak (to reach 6)")


if __name__ == "__main__":
    main()
