"""What families are worth on CUDA, and whether a plan made on the CPU serves there.

    python -m benchmarks.cuda [--provider cuda] [--networks vgg16,resnet50,alexnet,charnet]
        [--batches 1,32] [--families cp3,cp4,...] [--share 0.25]
    python -m benchmarks.cuda --provider cpu --networks tiny --batches 1   # a dry run

For each network and batch every family is offered at a share of the multiply-adds of each site,
timed in the place of the site alone, and taken where it is faster by 5 % at least: as `onnxcp
optimize --macs 0.25 --families F --providers cuda` decides, with random weights, since time does
not depend on them. A network that is not faster as a whole gives the half of its sites back that
gained least, until it is, or is the dense one again: never slower. Beside it stands what the same
family comes to when it is planned on the CPU and run on the provider.

Weights are random and of 32 bits; inputs and outputs stay on the device. TF32 is on, as ONNX
Runtime has it; --provider 'cuda{use_tf32=0}' turns it off.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnxruntime as ort

from models import alexnet, resnet, vgg
from models.charnet import build as charnet
from onnxcp import Model, load
from onnxcp.graph.refusal import Refusal
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.graph.summary import counted_tensors, summarize
from onnxcp.planning.blocks import rank_block
from onnxcp.planning.cache import Cache
from onnxcp.planning.decide import Target
from onnxcp.planning.latency import WORTHWHILE, SiteBench, with_random_weights
from onnxcp.planning.offer import Offer
from onnxcp.profiling.environment import cpu_name
from onnxcp.profiling.inputs import Shape
from onnxcp.profiling.machine import Machine, observe_shapes, runnable_feeds
from onnxcp.profiling.providers import split_providers
from onnxcp.profiling.session import Feeds, Runner
from onnxcp.profiling.timing import Trial, in_turns
from onnxcp.rewriting import families, fold

NETWORKS: Mapping[str, Callable[[int], onnx.ModelProto]] = {
    "vgg16": lambda batch: vgg.build(batch=batch),
    "resnet50": lambda batch: resnet.build(depth=50, batch=batch),
    "alexnet": lambda batch: alexnet.build(batch=batch),
    "charnet": lambda batch: charnet.build(batch=batch),
    "tiny": lambda batch: vgg.build(batch=batch, size=32, width=32, classes=10),
}
DEFAULT = ("vgg16", "resnet50", "alexnet", "charnet")
FAMILIES = ("cp3", "cp4", "tucker2", "channel-svd", "spatial-svd", "output-first-svd",
            "tensor-train", "sparse-low-rank")  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A network, and what plans for it start from.

    Attributes
    ----------
    original, folded
        As it is, and with BatchNormalization folded, which sites are found in.
    sites, shapes, feeds
        Of the folded network.
    """

    original: Model
    folded: Model
    sites: Sequence[Site]
    shapes: Mapping[str, Shape]
    feeds: Feeds


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--networks", default=",".join(DEFAULT))
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=0, help="within a node, on the CPU")
    arguments = parser.parse_args()
    device = Machine(split_providers(arguments.provider, "+"), arguments.threads)
    host = Machine(("cpu",), arguments.threads)
    print("\n".join(versions()))
    print(f"{arguments.share:g} of the MACs of each site; ms are medians; 95 % intervals")
    print()
    head = ("network", "batch", "family", "sites", "MACs", "dense", "plan", "faster", "CPU's plan")
    line = "{:9} {:>5} {:16} {:>7} {:>5} {:>8} {:>8} {:>22} {:>22}"
    print(line.format(*head))
    for name in arguments.networks.split(","):
        for batch in map(int, arguments.batches.split(",")):
            network = prepare(load(NETWORKS[name](batch)), host)
            for family in arguments.families.split(","):
                cells = compared(network, family, arguments.share, device, host)
                print(line.format(name, batch, family, *cells), flush=True)


def versions() -> list[str]:
    """Say what measures: processor, device, driver, and libraries."""
    lines = [
        f"processor    {cpu_name()}",
        f"ONNX Runtime {ort.__version__}, {', '.join(ort.get_available_providers())}",
        f"built with   CUDA {getattr(ort, 'cuda_version', '') or 'none'}",
        f"Python       {platform.python_version()}, {platform.platform()}",
    ]
    if shutil.which("nvidia-smi"):
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        lines += [f"device       {each}" for each in done.stdout.splitlines()]
    libraries = sorted(
        f"{each.name} {each.version}"
        for each in importlib.metadata.distributions()
        if (each.name or "").startswith(("nvidia-", "tensorrt"))
    )
    return [*lines, *(f"library      {each}" for each in libraries)]


def prepare(model: Model, host: Machine) -> Prepared:
    """Fold, find sites, and run once for shapes that cannot be inferred."""
    feeds = runnable_feeds(host.open(model), {}, model.name)
    folded, _ = fold(model)
    shapes = infer_shapes(folded, {name: value.shape for name, value in feeds.items()})
    sites, _ = find_sites(folded)
    needed = counted_tensors(folded) | {site.input for site in sites}
    if missing := needed - shapes.keys():
        shapes |= observe_shapes(folded, missing, feeds, host)
    return Prepared(model, folded, sites, shapes, feeds)


def compared(
    network: Prepared, family: str, share: float, device: Machine, host: Machine
) -> list[str]:
    """Plan with one family on both machines, run both plans on the device; return a row."""
    own = settled(network, planned(network, family, share, device), device)
    theirs = planned(network, family, share, host)
    rivals = [built(network, own), built(network, theirs)]
    dense, plan, ported = raced(network, rivals, device)
    before = summarize(network.folded, network.shapes).macs
    after = summarize(rivals[0], observed(rivals[0], network, host)).macs
    kept = 1.0 if not before or after is None else after / before
    faster = "stays dense" if not own else str(plan)
    return [
        f"{len(own)}/{len(network.sites)}",
        f"{kept:.0%}",
        f"{1e3 * dense:.3f}",
        f"{1e3 * (plan.b.median if own else dense):.3f}",
        said(faster),
        said(str(ported)) if theirs else "stays dense",
    ]


def said(text: str) -> str:
    """Shorten a trial to its ratio and interval."""
    return text.partition(",")[0] + (")" if "(" in text else "")


def planned(
    network: Prepared, family: str, share: float, machine: Machine
) -> dict[Site, tuple[Offer, Trial]]:
    """Return what a family offers at each site and is faster there, by sites."""
    target, kind = Target(share), families()[family]
    block = rank_block(machine, Cache(None))
    chosen: dict[Site, tuple[Offer, Trial]] = {}
    for site in network.sites:
        shape = network.shapes.get(site.input)
        if shape is None or kind.applies(site) is not None:
            continue
        offers = []
        for form in kind.forms():
            ranks = target.ranks(form, site, block, shape)
            if not isinstance(ranks, Refusal):
                offers.append(Offer.of(site, form, ranks, shape))
        if not offers:
            continue
        bench = SiteBench(network.folded, site, shape, machine)
        trials = bench.trials([offer.sketch for offer in offers])
        offer, trial = max(zip(offers, trials, strict=True), key=lambda each: each[1].ratio)
        if trial.faster and trial.ratio >= WORTHWHILE:
            chosen[site] = offer, trial
    return chosen


def settled(
    network: Prepared, chosen: dict[Site, tuple[Offer, Trial]], machine: Machine
) -> dict[Site, tuple[Offer, Trial]]:
    """Give sites back, those first that gained least, until the whole network is faster."""
    while chosen:
        _, trial, _ = raced(network, [built(network, chosen)] * 2, machine)
        if trial.faster:
            break
        clearest = sorted(chosen, key=lambda site: -chosen[site][1].low)
        chosen = {site: chosen[site] for site in clearest[: len(clearest) // 2]}
    return chosen


def built(network: Prepared, chosen: Mapping[Site, tuple[Offer, Trial]]) -> Model:
    """Put chains of random weights in; with none the network is the dense one."""
    if not chosen:
        return network.original
    return splice(
        network.folded,
        {
            site: (offer.family.name, with_random_weights(offer.sketch, seed))
            for seed, (site, (offer, _)) in enumerate(chosen.items())
        },
    )


def raced(
    network: Prepared, rivals: Sequence[Model], machine: Machine
) -> tuple[float, Trial, Trial]:
    """Time the dense network and two others in turns."""
    runs = [Runner(machine.open(model), network.feeds).run for model in (network.original, *rivals)]
    first, second = in_turns(runs, warmup=10, min_seconds=2.0, max_seconds=30.0)
    return first.a.median, first, second


def observed(model: Model, network: Prepared, host: Machine) -> dict[str, Shape]:
    """Return the shapes of a rewritten network's tensors."""
    shapes = infer_shapes(model, {name: value.shape for name, value in network.feeds.items()})
    if missing := counted_tensors(model) - shapes.keys():
        shapes |= observe_shapes(model, missing, network.feeds, host)
    return shapes


if __name__ == "__main__":
    main()
