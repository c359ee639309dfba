"""The preset ``cosine-svd``: how fast it chooses, and what Bayesian optimisation and plans find.

    python -m benchmarks.cosine_svd [--assets FOLDER] [--parts shapes,search,plan]
        [--networks charnet,resnet20,vgg16,squeezenet] [--agreement 0.99] [--trials 100]

- shapes: seconds that the choice of form and rank takes, layer by layer, on networks of the shapes
  of AlexNet, VGG-16, VGG-19 and ResNet-50 with random weights.
- search: on trained networks, by weights and by responses, the layers and cosines that keep to an
  agreement with the original, and a Bayesian optimisation (optuna's TPE, extra `bayes`) of the same
  cosines of the same layers by the same judge, for as many trials and for `--trials` of them.
  Nothing is refitted or trained. Networks are judged by the top classes of samples for calibration;
  the accuracy that is reported is on others, on which nothing is chosen.
- plan: what `onnxcp optimize` makes of the preset and of its own plans, refitted: the plan for the
  same agreement, and the plan for the parameters that the preset came to.

FOLDER holds `models/` and `data/`, as for `benchmarks.closed_form`; CharNet comes with the project.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.closed_form import (
    MACHINE,
    RESNET,
    RESNET_PIXELS,
    VGG,
    VGG_PIXELS,
    Plan,
    family,
    pictures,
)
from models import alexnet, resnet, vgg
from onnxcp import Goal, Model, Preprocess, RefitSettings, Refusal, Settings, Site, load, optimize
from onnxcp.calibration.data import load_data
from onnxcp.graph.chain import site_macs
from onnxcp.graph.splice import splice
from onnxcp.planning.cosine import (
    FAMILIES,
    LEVELS,
    Compared,
    CosineSvd,
    Cut,
    Form,
    form_of_weights,
    worthwhile,
)
from onnxcp.planning.responses import forms_of_responses
from onnxcp.planning.strategy import accept
from onnxcp.profiling.inputs import session_inputs
from onnxcp.profiling.session import infer

Array = npt.NDArray[Any]
Chosen = Mapping[Site, Cut]

HERE = Path(__file__).parents[1]
SHAPES = {
    "AlexNet": (alexnet.build, (1, 3, 227, 227)),
    "VGG-16": (vgg.build, (1, 3, 224, 224)),
    "VGG-19": (functools.partial(vgg.build, depth=19), (1, 3, 224, 224)),
    "ResNet-50": (functools.partial(resnet.build, depth=50), (1, 3, 224, 224)),
}
SAMPLES, RESPONSES, BATCH = 1024, 256, 64
CLOSEST = 1e-3  # 1 - cosine that Bayesian optimisation begins at; above, a layer stays as it is


@dataclass(frozen=True, eq=False)
class Network:
    """A trained classifier, samples to choose by, and others with classes to report.

    Attributes
    ----------
    name, model, input
        The network and its input.
    samples
        To choose by, and to fit to.
    held, classes
        To report the accuracy on.
    batch
        To time with.
    """

    name: str
    model: Model
    input: str
    samples: Array
    held: Array
    classes: Array
    batch: int = 8

    def outputs(self, model: Model, samples: Array) -> Array:
        """Return the top class of every sample."""
        session = MACHINE.open(model)
        parts = np.array_split(samples, math.ceil(len(samples) / BATCH))
        found = [infer(session, {self.input: part})[0].argmax(axis=1) for part in parts]
        return np.concatenate([each.reshape(-1) for each in found])

    def accuracy(self, model: Model) -> float:
        """Return the share of held samples that are classified right, in percent."""
        return 100 * float(np.mean(self.outputs(model, self.held) == self.classes))


def networks(assets: Path | None, names: Sequence[str]) -> Iterator[Network]:
    """Yield the networks that are asked for and can be had."""
    for name in names:
        if name == "charnet":
            yield charnet()
        elif assets is None:
            print(f"{name}: left out, for want of --assets", file=sys.stderr)
        elif name == "squeezenet":
            yield squeezenet(assets)
        else:
            files, pixels = {"resnet20": (RESNET, RESNET_PIXELS), "vgg16": (VGG, VGG_PIXELS)}[name]
            pool, _ = pictures(files[1], pixels, assets)
            drawn = np.random.default_rng(0).choice(len(pool), SAMPLES, replace=False)
            model = load(assets / f"models/{files[0]}.onnx")
            yield Network(name, model, "input", pool[drawn], *pictures(files[2], pixels, assets))


def charnet() -> Network:
    """Return the network that comes with the project."""
    folder = HERE / "models/charnet"
    samples = np.load(folder / "calibration.npz")["image"].astype(np.float32)
    with np.load(folder / "test.npz") as test:
        held, classes = test["image"].astype(np.float32), test["label"]
    return Network("charnet", load(folder / "charnet.onnx"), "image", samples, held, classes, 32)


def squeezenet(assets: Path) -> Network:
    """Return a classifier of 224x224 pictures; of the pictures every second is held.

    It comes in half precision, for one picture at a time.
    """
    model = in_float32(load(assets / "models/squeezenet11_fp16_opset7.onnx"))
    specs = session_inputs(MACHINE.open(model))
    wanted = Preprocess(crop=(224, 224), channels="bgr", scale=1, mean=(104, 117, 123))
    folder = assets / "data/imagenet500"
    data = load_data(folder, specs, preprocess=wanted)
    batches = list(data.batches(len(data)))  # of one picture each: the network insists on that
    ((name, _),) = batches[0].items()
    images = np.concatenate([each[name] for each in batches])
    model = with_any_batch(model, name)
    lines = (folder / "labels.tsv").read_text().split("\n")
    known = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    files = sorted(each.name for each in folder.iterdir() if each.name in known)
    classes = np.array([int(known[each]) for each in files])
    return Network("squeezenet", model, name, images[::2], images[1::2], classes[1::2], batch=1)


def in_float32(model: Model) -> Model:
    """Return a network of float16 in float32, weights and tensors alike."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model.with_proto(proto)


def with_any_batch(model: Model, name: str) -> Model:
    """Return a network that takes as many samples at a time as it is given."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    for value in (*graph.input, *graph.output):
        if value.name == name or value in graph.output:
            value.type.tensor_type.shape.dim[0].dim_param = "N"
    del graph.value_info[:]
    return model.with_proto(proto)


def looked_at(plan: Plan, *, told: list[tuple[Site, float]] | None = None) -> list[Compared]:
    """Compare the weights of all sites; `told` is given what each took, in seconds."""
    found = []
    for site in plan.sites:
        start = time.perf_counter()
        shape = plan.shapes[site.input]
        macs, forms = site_macs(site, shape), []
        for each in map(family, FAMILIES):
            ranks = worthwhile(site, each, shape, macs, 1)
            if not isinstance(ranks, Refusal):
                forms.append(form_of_weights(site, each, ranks))
        found.append(Compared(site, shape, macs, tuple(forms)))
        if told is not None:
            told.append((site, time.perf_counter() - start))
    return found


def shapes() -> None:
    """Print what the choice of form and rank takes, spectra and the look into them apart."""
    print(f"{'network':<10} layers  conv: median   most  matrices: most  all   a look, per layer")
    for name, (build, shape) in SHAPES.items():
        told: list[tuple[Site, float]] = []
        compared = looked_at(Plan.of(Model(build()), shape), told=told)
        convs = [seconds for site, seconds in told if site.op == "Conv"]
        others = [seconds for site, seconds in told if site.op != "Conv"]
        start = time.perf_counter()
        for tau in LEVELS:
            for each in compared:
                each.cut(tau, "parameters")
        look = (time.perf_counter() - start) / len(LEVELS) / len(compared)
        print(
            f"{name:<10} {len(told):>6}  {1e3 * statistics.median(convs):>9.1f} ms "
            f"{1e3 * max(convs):>6.0f} ms {max(others):>8.2f} s {sum(convs + others):>8.2f} s "
            f"{1e3 * look:>8.2f} ms"
        )


class Judge:
    """Builds choices, each once, and tells how far they agree with the original.

    Parameters
    ----------
    network, plan
        The network, and its sites.
    least
        The agreement that is enough.
    """

    def __init__(self, network: Network, plan: Plan, least: float) -> None:
        self.seen: dict[frozenset[Cut], float] = {}
        self._network, self._plan, self._least = network, plan, least
        self._wanted = network.outputs(network.model, network.samples)
        self._factors: dict[tuple[Site, str], Any] = {}

    def __call__(self, chosen: Chosen) -> bool:
        """Tell whether a choice agrees enough."""
        return self.agreement(chosen) >= self._least

    def agreement(self, chosen: Chosen) -> float:
        """Return the share of samples with the same top class."""
        if not chosen:
            return 1.0
        key = frozenset(chosen.values())
        if key not in self.seen:
            made = self._network.outputs(self.built(chosen), self._network.samples)
            self.seen[key] = float(np.mean(made == self._wanted))
        return self.seen[key]

    def built(self, chosen: Chosen) -> Model:
        """Return the network of a choice; of a site and a form there is one SVD."""
        chains = {}
        for site, cut in chosen.items():
            kind, (rank,) = cut.offer.family, cut.offer.ranks
            key = site, kind.name
            if key not in self._factors:
                self._factors[key] = kind.factorize(site, kind.full_ranks(site))
            factors = kind.truncated(site, self._factors[key], rank)
            chains[site] = kind.name, kind.lower(site, factors)
        return splice(self._plan.model, chains)


def level(compared: Sequence[Compared], tau: float) -> dict[Site, Cut]:
    """Return the cuts at a cosine, those that save most first."""
    pairs = [(each, cut) for each in compared if (cut := each.cut(tau, "parameters")) is not None]
    pairs.sort(key=lambda pair: -pair[0].saving(pair[1], "parameters"))
    return {each.site: cut for each, cut in pairs}


def left(compared: Sequence[Compared], chosen: Chosen, what: str) -> float:
    """Return the share of the sites' parameters or multiply-adds that is left."""
    whole = sum(c.site.parameters if what == "parameters" else c.macs or 0 for c in compared)
    saved = sum(c.saving(chosen[c.site], what) for c in compared if c.site in chosen)
    return 1 - saved / whole


def bayes(
    compared: Sequence[Compared], judge: Judge, least: float, enough: Callable[[int], bool]
) -> tuple[Chosen, int]:
    """Optimise the cosines of all sites; return the best choice, and the trials it took.

    Of a choice that agrees too little it is told how much too little, above all that agree.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    able = [each for each in compared if each.forms]
    best: dict[str, Any] = {"left": 1.0, "chosen": {}, "at": 0}

    def objective(trial: optuna.Trial) -> float:
        chosen = {}
        for number, each in enumerate(able):
            loss = trial.suggest_float(f"site{number}", CLOSEST / 2, 1 - LEVELS[-1], log=True)
            cut = each.cut(1 - loss, "parameters") if loss >= CLOSEST else None
            if cut is not None:
                chosen[each.site] = cut
        agreement, share = judge.agreement(chosen), left(compared, chosen, "parameters")
        if agreement < least:
            return 1 + least - agreement
        if share < best["left"]:
            best.update(left=share, chosen=chosen, at=trial.number + 1)
        return share

    def stop(study: optuna.Study, trial: Any) -> None:
        if enough(trial.number + 1):
            study.stop()

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, callbacks=[stop])
    return best["chosen"], best["at"]


def search(network: Network, least: float, trials: int) -> None:
    """Print what the preset and Bayesian optimisation find within an agreement."""
    plan = Plan.of(network.model, network.samples[:1].shape)
    before = network.accuracy(network.model)
    print(f"{network.name}: {before:.2f} %, {len(plan.sites)} layers, agreement of {least:g}")
    start = time.perf_counter()
    weights = looked_at(plan)
    by_weights = time.perf_counter() - start
    start = time.perf_counter()
    responses = looked_at_responses(network, plan)
    by_responses = time.perf_counter() - start
    counts = []
    for how, compared, spent in (
        ("weights", weights, by_weights),
        ("responses", responses, by_responses),
    ):
        judge = Judge(network, plan, least)
        start = time.perf_counter()
        chosen, _ = accept([level(compared, tau) for tau in LEVELS], judge)
        seconds = time.perf_counter() - start
        counts.append(len(judge.seen))
        told = f"{spent:.1f} + {seconds:.1f} s"
        line(network, f"cosine-svd, {how}", judge, compared, chosen, told)
    for count in (counts[0], trials):
        judge = Judge(network, plan, least)
        start = time.perf_counter()
        chosen, at = bayes(weights, judge, least, lambda done, most=count: done >= most)
        told = f"{time.perf_counter() - start:.1f} s, best at {at}"
        line(network, f"Bayesian, {count} trials", judge, weights, chosen, told)


def looked_at_responses(network: Network, plan: Plan) -> list[Compared]:
    """Compare the responses of all sites."""
    worth: dict[Site, list[tuple[Any, Any]]] = {}
    for site in plan.sites:
        shape = plan.shapes[site.input]
        looks = [
            (each, worthwhile(site, each, shape, site_macs(site, shape), 1))
            for each in map(family, FAMILIES)
        ]
        worth[site] = [each for each in looks if not isinstance(each[1], Refusal)]
    parts = np.array_split(network.samples[:RESPONSES], RESPONSES // BATCH)
    batches = [{network.input: part} for part in parts]
    able = {site: each for site, each in worth.items() if each}
    forms: Mapping[Site, tuple[Form, ...]] = forms_of_responses(plan.model, able, batches, MACHINE)
    return [
        Compared(s, plan.shapes[s.input], site_macs(s, plan.shapes[s.input]), forms.get(s, ()))
        for s in plan.sites
    ]


def line(
    network: Network,
    what: str,
    judge: Judge,
    compared: Sequence[Compared],
    chosen: Chosen,
    told: str,
) -> None:
    """Print one row."""
    score = network.accuracy(judge.built(chosen)) if chosen else network.accuracy(network.model)
    sizes = [left(compared, chosen, each) for each in ("parameters", "macs")]
    print(
        f"  {what:<24} parameters {sizes[0]:>6.1%}  MACs {sizes[1]:>6.1%}  layers {len(chosen):>3}"
        f"  agreement {judge.agreement(chosen):.4f}  accuracy {score:.2f} %"
        f"  {len(judge.seen)} trials, {told}",
        flush=True,
    )


def planned(network: Network, least: float) -> None:
    """Print what the main job makes of the preset, and of its own plans."""
    agreeing = Goal(min_agreement=least)
    share = None
    for what, preset, goal, refit in (
        ("preset", CosineSvd(), agreeing, "none"),
        ("preset, refitted", CosineSvd(), agreeing, "all"),
        ("plan, refitted", None, agreeing, "all"),
        ("plan, preset's size", None, None, "all"),
    ):
        goal = goal or Goal(parameters=share)
        settings = Settings(
            goal=goal,
            preset=preset,
            refit=RefitSettings(refit),
            input_shapes={network.input: (network.batch, *network.samples.shape[1:])},
        )
        start = time.perf_counter()
        result = optimize(network.model, settings, data={network.input: network.samples})
        seconds = time.perf_counter() - start
        done = result.planned.kept if result.planned is not None else None
        if done is not None and done.parameters is not None:
            share = min(share or 1.0, done.parameters)
        after, seen = result.after or result.before, result.verification
        parameters = after.parameters / result.before.parameters
        macs = (after.macs or 0) / (result.before.macs or 1)
        print(
            f"  {what:<24} parameters {parameters:>6.1%}  MACs {macs:>6.1%}  "
            f"{'original' if seen is None else seen.trial}  "
            f"accuracy {network.accuracy(result.model):.2f} %  {seconds:.0f} s  {result.verdict}",
            flush=True,
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cosine_svd", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    option = parser.add_argument
    option("--assets", type=Path, help="folder of networks and data")
    option("--parts", default="shapes,search,plan", help="default: %(default)s")
    option("--networks", default="charnet,resnet20,vgg16,squeezenet", help="default: %(default)s")
    option("--agreement", type=float, default=0.99, help="default: %(default)s")
    option("--trials", type=int, default=100, help="of Bayesian optimisation (%(default)s)")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if "shapes" in parts:
        shapes()
    for network in networks(arguments.assets, list(filter(None, arguments.networks.split(",")))):
        if "search" in parts:
            search(network, arguments.agreement, arguments.trials)
        if "plan" in parts:
            planned(network, arguments.agreement)


if __name__ == "__main__":
    main()
