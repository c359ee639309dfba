"""The claims of the four papers that this began with, and what was measured here.

    python -m benchmarks.seeds --assets FOLDER [--papers cp,unified,coupled,cosine]
                               [--characters FILE]

FOLDER is that of `benchmarks.closed_form`. A row for each paper: what it says of its own networks,
what came of the same method here, on a trained network and in one run, and the ratio of the two
where they are of one kind. `cp` is fine-tuned on characters that `models.charnet.render` draws
(`--characters` keeps them for the next time); nothing else is trained.

- cp: Lebedev et al., ICLR 2015, abstract (a network for characters, on a CPU).
- unified: Ma et al., arXiv 1807.10119 v1, abstract (VGG-16 for ImageNet; here one for CIFAR-10).
- coupled: Sun et al., IEEE JSTSP 15(3), 2021, table of ResNet-18 for CIFAR-10 before fine-tuning,
  at 2.7 to 2.8 times fewer parameters; here ResNet-20, 2 times fewer.
- cosine: Zhang, Liu, Weng, J. Real-Time Image Processing 20(4):64, 2023, abstract (AlexNet, VGG and
  ResNet-50; here VGG-16 for CIFAR-10 and the network for characters), without refits, as there.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cosine_svd, coupled, finetune, sparse_low_rank
from benchmarks.closed_form import TASKS
from onnxcp import Context, Goal, RefitSettings, Settings, load, optimize
from onnxcp.graph.summary import summarize
from onnxcp.passes import find_pass
from onnxcp.planning.cosine import CosineSvd

Lines = Iterator["Line"]

PAPER_SPEEDUP = 8.5  # Lebedev et al.
PAPER_FASTER = 2.2  # Ma et al., with more than 4 times fewer parameters
PAPER_AHEAD = 93.14 - 93.03  # Sun et al., points of top-1 of coupled over independent trains
FEWER_TRAINS = 2.0
PAPER_LEFT = 0.5  # Zhang et al., share of the parameters


@dataclass(frozen=True)
class Line:
    """What a paper says, what was measured, on what, and the ratio where there is one."""

    paper: str
    claim: str
    network: str
    measured: str
    ratio: str = ""


def cp(arguments: argparse.Namespace) -> Lines:
    """Factorise a whole network by CP, and fine-tune it."""
    result = finetune.faster_characters(
        finetune.SPEEDUP, finetune.CHARNET_TRAINING, arguments.characters
    )
    seen = result.verification
    assert seen is not None
    assert seen.accuracy is not None
    before, after = (100 * each for each in seen.accuracy)
    yield Line(
        "Lebedev et al. 2015",
        f"{PAPER_SPEEDUP}x, 91 to 90 %",
        "CharNet, batch 32",
        f"{seen.trial}, {before:.2f} to {after:.2f} %",
        f"{seen.trial.ratio / PAPER_SPEEDUP:.2f}",
    )


def unified(arguments: argparse.Namespace) -> Lines:
    """Replace layers by sums of a sparse and a low-rank part."""
    record = sparse_low_rank.optimize(
        arguments.assets, ["--macs=0.2", "--families", "sparse-low-rank"]
    )
    latency, scores = record["latency"], record["accuracy"]
    fewer = record["before"]["parameters"] / record["after"]["parameters"]
    yield Line(
        "Ma et al. 2018",
        f"> 4 times fewer parameters, {PAPER_FASTER}x",
        "VGG-16, CIFAR-10, batch 8",
        f"{fewer:.2f} times fewer, {latency['ratio']:.2f}x ({latency['low']:.2f} to "
        f"{latency['high']:.2f}), {100 * scores['before']:.2f} to {100 * scores['after']:.2f} %",
        f"{latency['ratio'] / PAPER_FASTER:.2f}",
    )


def trains(arguments: argparse.Namespace) -> Lines:
    """Couple tensor trains, without any training."""
    task = TASKS["resnet20"](arguments.assets)
    original = find_pass("fold-batchnorm")().run(load(task.model), Context()).model
    before = summarize(original, {})
    removed = before.parameters - int(before.parameters / FEWER_TRAINS)
    scores = {
        kind: task.score(method(original, removed, coupled.contexts(None)))
        for kind, method in coupled.METHODS.items()
    }
    alone = scores.pop("independent")
    kind = max(scores, key=lambda each: scores[each])
    yield Line(
        "Sun et al. 2021",
        f"{PAPER_AHEAD:+.2f} points over independent trains",
        f"ResNet-20, CIFAR-10, {FEWER_TRAINS:g} times fewer",
        f"{alone:.1f} to {scores[kind]:.1f} % ({kind}): {scores[kind] - alone:+.1f} points",
    )


def cosine(arguments: argparse.Namespace) -> Lines:
    """Choose SVDs by cosine similarity, without training."""
    for network in cosine_svd.networks(arguments.assets, ["charnet", "vgg16"]):
        settings = Settings(
            goal=Goal(min_agreement=0.99),
            preset=CosineSvd(),
            refit=RefitSettings("none"),
            input_shapes={network.input: (network.batch, *network.samples.shape[1:])},
        )
        result = optimize(network.model, settings, data={network.input: network.samples})
        after, seen = result.after or result.before, result.verification
        left = after.parameters / result.before.parameters
        macs = (after.macs or 0) / (result.before.macs or 1)
        scores = [network.accuracy(each) for each in (network.model, result.model)]
        yield Line(
            "Zhang et al. 2023",
            "parameters -50 %, FLOPs -20 %, < 1 %",
            network.name,
            f"parameters {left - 1:+.0%}, multiply-adds {macs - 1:+.0%}, "
            f"{scores[0]:.2f} to {scores[1]:.2f} %"
            + ("" if seen is None else f", {seen.trial.ratio:.2f}x"),
            f"{(1 - left) / (1 - PAPER_LEFT):.2f}",
        )


PAPERS: dict[str, Callable[[argparse.Namespace], Lines]] = {
    "cp": cp,
    "unified": unified,
    "coupled": trains,
    "cosine": cosine,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    option = parser.add_argument
    option("--assets", type=Path, required=True, help="folder of networks and data")
    option("--papers", default=",".join(PAPERS), help="default: %(default)s")
    option("--characters", type=Path, help="npz file of characters, written if it is not there")
    arguments = parser.parse_args()
    print("| paper | its claim | here | measured | ratio |")
    print("|---|---|---|---|---|")
    failed = False
    for name in arguments.papers.split(","):
        try:  # what one paper takes is not to be lost for another one's sake
            for each in PAPERS[name](arguments):
                row = each.paper, each.claim, each.network, each.measured, each.ratio
                print(f"| {' | '.join(row)} |", flush=True)
        except Exception:  # whatever it is, it is shown, and the script fails in the end
            traceback.print_exc()
            print(f"| {name} | | | failed | |", flush=True)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
