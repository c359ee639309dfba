"""Sparse plus low rank: what it is worth on real layers, and on a whole network.

    python -m benchmarks.sparse_low_rank --assets FOLDER [--parts layers,structure,ends,network]

FOLDER is that of `benchmarks.closed_form`. Nothing is trained, and no label is looked at but to
score. Errors are of what comes out of the ReLU behind a layer, relative, on rows held out.

- layers: of VGG-16 and ResNet-20 for CIFAR-10, at equal parameters: channel SVD, and sums of a
  channel SVD and a small convolution, fitted ahead of the ReLU by least squares and behind it by
  turns; the published relaxation (ADMM with norms), its penalties such that as many parameters are
  left, and the same support and rank without shrinking. Other families last.
- structure: single weights against whole groups at equal parameters, and what a runtime makes of
  either: the time of a layer is measured, alone in a graph.
- ends: the two ways to end a sum of a channel SVD and a centre tap, an Add, or one convolution of
  what Concat has joined; and the two ways to take channels, Gather, or a Slice where they lie
  side by side. Between two convolutions of random weights, times of all three together.
- network: `onnxcp optimize` on the whole network, for 4 times fewer parameters and 3 times the
  speed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.closed_form import (
    BATCH,
    MACHINE,
    RESNET,
    RESNET_PIXELS,
    VGG,
    VGG_PIXELS,
    Plan,
    family,
    pictures,
)
from models.builder import GraphBuilder
from onnxcp import FactorizePass, Model, Refusal, Site, load
from onnxcp.calibration.data import load_data
from onnxcp.calibration.statistics import Observed, Sample, sample
from onnxcp.calibration.stream import Stream
from onnxcp.factorize import Ranks
from onnxcp.linalg.activations import relu
from onnxcp.linalg.moments import reduced_rank
from onnxcp.linalg.sparse_low_rank_admm import Penalties, Relaxed, debiased, solve_relaxed
from onnxcp.planning.latency import SiteBench, timing_of
from onnxcp.profiling.inputs import session_inputs
from onnxcp.profiling.session import Runner
from onnxcp.profiling.timing import paired
from onnxcp.refit.activation import BehindActivation
from onnxcp.refit.regression import Trial, metric
from onnxcp.refit.stops import observe_stop, pairs_of

Array = npt.NDArray[Any]

# Numbers of sites: 128 to 128 and 256 to 256 channels, and 16 to 16 and 32 to 32.
LAYERS = ((VGG, VGG_PIXELS, (3, 5)), (RESNET, RESNET_PIXELS, (3, 9)))
SHARES = (0.25, 0.5)  # of a layer's parameters
PICTURES = 512
ROWS = 2000  # that the relaxed problem is solved on, which takes all of them in every iteration
ITERATIONS = 100
RATIOS = {"positions": 0.6, "inputs": 0.2}  # of the group norm over the nuclear norm
HALVINGS = 7
ROUNDS = 15  # of iterative hard thresholding
OTHERS = ("spatial-svd", "output-first-svd", "cp3")
ENDS = ((16, 32), (64, 56), (64, 8), (128, 28), (256, 14), (512, 14))  # channels, and size
FEWER, FASTER, DROP = 4.0, 3.0, 1.0


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of the network with what it is given.

    Attributes
    ----------
    model, site
        A network, and the layer in it.
    seen
        Moments of its input patches and outputs.
    rows
        Some of these patches and outputs.
    shape
        Of its input.
    """

    model: Model
    site: Site
    seen: Observed
    rows: Sample
    shape: tuple[int, ...]

    @property
    def weight(self) -> Array:
        """The kernel as a matrix (T, P)."""
        return self.site.kernel().reshape(self.site.outputs, -1)

    @property
    def gram(self) -> Array:
        """Covariance of the patches, (P, P)."""
        return metric(self.seen.fit[0])

    @property
    def bias(self) -> Array:
        """What the layer adds."""
        return self.seen.best_bias(self.weight)

    def error(self, weight: Array, bias: Array | None = None) -> float:
        """Return the error behind the ReLU, with the best bias ahead of it if none is given."""
        shift = self.seen.best_bias(weight) if bias is None else bias
        return float(BehindActivation(self.site, relu(), self.rows).error(weight, shift) ** 0.5)

    def ranks(self, kind: FactorizePass, share: float) -> Ranks | None:
        """Return the ranks at which a family keeps a share of the parameters; None if it cannot."""
        # Without borders and strides, parameters are multiply-adds of one output.
        found = kind.applies(self.site) or kind.ranks_for_macs(self.site, share)
        return None if isinstance(found, Refusal) else found

    def fitted(self, kind: FactorizePass, ranks: Ranks) -> Trial:
        """Fit a family ahead of the ReLU."""
        choice, site = kind.apply(self.site, ranks), self.site
        targets, grams = site.group_kernels(), [self.gram]
        starts = [choice.factors, kind.whitened(site, ranks, targets, grams)]
        trials = []
        for start in starts:
            if start is not None:
                factors = kind.refine(site, start, targets, grams)
                weight = kind.kernel(site, factors).reshape(site.outputs, -1)
                bias = self.seen.best_bias(weight)
                trials.append(Trial(choice, factors, bias, self.error(weight, bias)))
        return min(trials, key=lambda trial: trial.error)

    def behind(self, trial: Trial) -> Trial:
        """Go on behind the ReLU."""
        found = BehindActivation(self.site, relu(), self.rows).fit(trial, self.weight, [self.gram])
        return Trial(found.choice, found.factors, found.bias, found.error**0.5)


def layers(at: Path) -> Iterator[Layer]:
    """Yield the layers with what they are given in the original networks."""
    for (model, calibration, _), pixels, numbers in LAYERS:
        plan = Plan.of(load(at / f"models/{model}.onnx"), (1, 3, 32, 32))
        images = pictures(calibration, pixels, at)[0][:PICTURES]
        data = load_data(images, session_inputs(MACHINE.open(plan.model)))
        sites = [plan.sites[index] for index in numbers]
        count = data.batch_count(BATCH)
        with Stream(plan.model, sites, data.batches(BATCH), MACHINE) as stream:
            for stop in stream:
                seen, rows = observe_stop(stop, count), sample(stop.site, pairs_of(stop), count)
                assert seen is not None
                assert rows is not None
                yield Layer(plan.model, stop.site, seen, rows, plan.shapes[stop.site.input])


def groups_of(kind: str, site: Site) -> Array:
    """Return the columns of each group of a kernel: of input channels, or of positions."""
    columns = np.arange(site.parameters // site.outputs).reshape(site.kernel_shape[1], -1)
    return columns if kind == "inputs" else np.ascontiguousarray(columns.T)


def relaxed(layer: Layer, groups: Array, ratio: float, parameters: float) -> Relaxed:
    """Solve the published problem; the largest of what keeps to a number of parameters."""
    weight, use = layer.weight.astype(np.float64), np.flatnonzero(~layer.rows.held)[:ROWS]
    x = layer.rows.x[use].astype(np.float64)
    bias = layer.bias
    wanted = np.maximum(x @ weight.T + bias, 0)
    outputs, inputs = weight.shape
    scale = float(np.linalg.norm(weight, 2)) * float(np.linalg.norm(x, 2)) ** 2 / len(x)
    best: Relaxed | None = None
    low, high = -16.0, 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        level = scale * 2.0**middle
        penalties = Penalties(ratio * level, level)
        found = solve_relaxed(
            x, wanted, relu(), groups, penalties, weight=weight, bias=bias, iterations=ITERATIONS
        )
        size = found.rank * (outputs + inputs) + len(found.groups) * groups.shape[1] * outputs
        if size <= parameters:
            best, high = found, middle
        else:
            low = middle
    assert best is not None, "nothing at all is within any budget"
    return best


def compare_layers(at: Path) -> None:
    """Print the table of layers."""
    forms = family("sparse-low-rank").forms()
    for layer in layers(at):
        site = layer.site
        print(f"{site.name} {site.kernel_shape}: error behind the ReLU at equal parameters")
        for share in SHARES:
            print(f"  {share:.0%} of {site.parameters} parameters")
            for kind in (family("channel-svd"), *forms, *map(family, OTHERS)):
                ranks = layer.ranks(kind, share)
                if ranks is None:
                    continue
                plain = layer.fitted(kind, ranks)
                name = f"{kind.name} {getattr(kind, 'support', '')}".strip()
                size = "x".join(map(str, ranks))
                both = f"{plain.error:.4f} ahead, {layer.behind(plain).error:.4f} behind"
                print(f"    {name:24} {size:14} {both}", flush=True)
            for kind_of_group in RATIOS:
                groups = groups_of(kind_of_group, site)
                begin = time.perf_counter()
                found = relaxed(layer, groups, RATIOS[kind_of_group], share * site.parameters)
                fit = debiased(found, groups, layer.weight, layer.gram)
                errors = layer.error(found.weight, found.bias), layer.error(fit.weight)
                seconds = time.perf_counter() - begin
                converged = "converged" if found.converged else "not converged"
                print(
                    f"    ADMM, {kind_of_group:18} rank {found.rank}, {len(found.groups)} groups: "
                    f"{errors[0]:.4f}, without shrinking {errors[1]:.4f} "
                    f"({seconds:.0f} s, {converged}, residual {found.primal[-1]:.1e})",
                    flush=True,
                )


def unstructured(layer: Layer, rank: int, entries: int) -> float:
    """Fit a low rank and single weights by turns (iterative hard thresholding)."""
    weight, gram = layer.weight.astype(np.float64), layer.gram.astype(np.float64)
    step = 1 / float(np.linalg.norm(gram, 2))
    sparse = np.zeros_like(weight)
    best = np.inf
    for _ in range(ROUNDS):
        first, last = reduced_rank(weight - sparse, gram, rank)
        low = last @ first
        for _ in range(ROUNDS):
            sparse = sparse - step * (sparse + low - weight) @ gram
            flat = np.abs(sparse).reshape(-1)
            flat = np.where(flat >= np.partition(flat, -entries)[-entries], 1.0, 0.0)
            sparse = sparse * flat.reshape(sparse.shape)
        best = min(best, layer.error(low + sparse))
    return float(best)


def compare_structures(at: Path) -> None:
    """Print what single weights and groups come to, and what either takes."""
    svd = family("channel-svd")
    for layer in layers(at):
        site = layer.site
        bench = SiteBench(layer.model, site, layer.shape, MACHINE)
        print(f"{site.name} {site.kernel_shape}")
        for share in SHARES:
            chains, names = [], []
            for kind in (svd, *family("sparse-low-rank").forms(), *map(family, OTHERS)):
                ranks = layer.ranks(kind, share)
                if ranks is not None:
                    chains.append(kind.sketch(site, ranks))
                    error = layer.fitted(kind, ranks).error
                    name = f"{kind.name} {getattr(kind, 'support', '')}".strip()
                    names.append(f"{name:24} {error:.4f}")
            for name, trial in zip(names, bench.trials(chains), strict=True):
                print(f"  {share:.0%} {name}  {timing_of(trial)}", flush=True)
            per_rank = sum(layer.weight.shape)
            whole = int(share * site.parameters)
            for part in (0.25, 0.5, 0.75):
                rank = max(1, int((1 - part) * whole / per_rank))
                error = unstructured(layer, rank, whole - rank * per_rank)
                what = f"rank {rank} and {whole - rank * per_rank} single weights"
                print(f"  {share:.0%} {what:36} {error:.4f}  a dense convolution to any runtime")


def sums(channels: int, end: str) -> Model:
    """Return a network whose middle layer is a channel SVD of a quarter, and what is beside it."""
    g = GraphBuilder(end)
    rank = max(4, channels * channels * 9 // (4 * channels * 10))
    few = max(1, channels // 8)
    x = g.input("x", ["N", channels, "H", "W"])
    a = g.relu(g.conv(x, channels, channels, 3, name="a", pads=1), name="ra")
    low = g.conv(a, channels, rank, 3, name="low", pads=1, bias=False)
    if end == "concat":
        joined = g.node("Concat", [low, a], name="joined", axis=1)
        made = g.conv(joined, rank + channels, channels, 1, name="end")
    else:
        if end == "add":
            small = g.conv(a, channels, channels, 1, name="small", bias=False)
        else:
            if end == "gather":
                chosen = np.sort(np.random.default_rng(0).permutation(channels)[:few])
                picked = [g.initializer("chosen", chosen.astype(np.int64))]
                taken = g.node("Gather", [a, *picked], name="taken", axis=1)
            else:
                ends = {"first": 0, "behind": few, "axis": 1}
                where = [g.initializer(name, np.array([n])) for name, n in ends.items()]
                taken = g.node("Slice", [a, *where], name="taken")
            small = g.conv(taken, few, channels, 3, name="small", pads=1, bias=False)
        last = g.conv(low, rank, channels, 1, name="last")
        made = g.node("Add", [last, small], name="made")
    b = g.relu(made, name="rb")
    return Model(g.model([g.conv(b, channels, channels, 3, name="b", pads=1)]))


def compare_ends(_: Path) -> None:
    """Print what the ends of sums take against each other."""
    print("channels size batch  Concat over Add         Slice over Gather")
    for (channels, size), batch in itertools.product(ENDS, (1, 8)):
        shape = (batch, channels, size, size)
        feeds = {"x": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
        told = []
        for pair in (("concat", "add"), ("slice", "gather")):
            runs = [Runner(MACHINE.open(sums(channels, end)), feeds).run for end in pair]
            trial = paired(*runs, rounds=40, min_seconds=1.5, max_seconds=8.0)
            told.append(f"{trial.ratio:.3f} ({trial.low:.3f} to {trial.high:.3f})")
        print(f"{channels:8} {size:4} {batch:5}  {told[0]:22}  {told[1]}", flush=True)


def optimize(at: Path, options: Sequence[str]) -> dict[str, Any]:
    """Run the whole job on the network, and return the record of it."""
    model, calibration, test = VGG
    with tempfile.TemporaryDirectory() as folder:
        samples, scored = Path(folder) / "samples.npz", Path(folder) / "scored.npz"
        np.savez(samples, input=pictures(calibration, VGG_PIXELS, at)[0])
        images, labels = pictures(test, VGG_PIXELS, at)
        np.savez(scored, input=images, label=labels)
        command = [sys.executable, "-m", "onnxcp", "optimize", str(at / f"models/{model}.onnx")]
        command += [str(Path(folder) / "out.onnx"), "--json", "--calibration-data", str(samples)]
        command += ["--eval-data", str(scored), "--input-shapes", "input:8,3,32,32", *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode > 1:
        sys.exit(f"{' '.join(options)}: exit code {done.returncode}")
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def tell(at: Path, options: Sequence[str]) -> None:
    """Run the whole job on the network, and print what came of it."""
    begin = time.perf_counter()
    record = optimize(at, options)
    seconds = time.perf_counter() - begin
    latency, scores = record["latency"], record["accuracy"]
    if latency is None:
        print(f"{' '.join(options)}: nothing was rewritten")
        return
    fewer = record["before"]["parameters"] / record["after"]["parameters"]
    lost = 100 * (scores["before"] - scores["after"])
    reached = fewer >= FEWER and latency["ratio"] >= FASTER and lost <= DROP
    chosen = [site["chosen"]["family"] for site in record["sites"] if site["chosen"]]
    became = ", ".join(f"{chosen.count(name)} {name}" for name in dict.fromkeys(chosen))
    print(f"{' '.join(options)}: {became}")
    print(
        f"  {fewer:.2f} times fewer parameters, {latency['ratio']:.2f}x "
        f"({latency['low']:.2f} to {latency['high']:.2f}), {100 * scores['after']:.2f} % of "
        f"{100 * scores['before']:.2f} %, {seconds:.0f} s: {'reached' if reached else 'missed'}",
        flush=True,
    )


def compare_networks(at: Path) -> None:
    """Print what the network comes to with and without the family."""
    svds = "channel-svd,spatial-svd,cp3,tucker2"
    for families in ("channel-svd", "sparse-low-rank", svds, f"{svds},sparse-low-rank"):
        for goal in ("--macs=0.2", f"--target-speedup={1.1 * FASTER}"):
            tell(at, [goal, "--families", families])


PARTS = {
    "layers": compare_layers,
    "structure": compare_structures,
    "ends": compare_ends,
    "network": compare_networks,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparse_low_rank", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    option = parser.add_argument
    option("--assets", type=Path, required=True, help="folder of networks and data")
    option("--parts", default=",".join(PARTS), help="default: %(default)s")
    arguments = parser.parse_args()
    for part in arguments.parts.split(","):
        PARTS[part](arguments.assets)


if __name__ == "__main__":
    main()
