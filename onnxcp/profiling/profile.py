"""Profiling a network, alone or against another, on several machines and with several batches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxcp.errors import ModelError
from onnxcp.graph.model import Model
from onnxcp.profiling.breakdown import Breakdown, break_down, node_names
from onnxcp.profiling.fresh import Fresh, start_fresh
from onnxcp.profiling.inputs import Shape, check_feeds, random_feeds, session_inputs, with_batch
from onnxcp.profiling.machine import Machine, runnable_feeds
from onnxcp.profiling.noise import Claim, Noise, claim, noise_of, probe
from onnxcp.profiling.product import Ceiling, measure_ceiling, weight_type
from onnxcp.profiling.providers import CPU, full_name
from onnxcp.profiling.session import Feeds, Runner
from onnxcp.profiling.timing import Latency, Run, Trial, measure, paired
from onnxcp.profiling.warmup import WarmUp, warm_up
from onnxcp.progress import Progress, silent

# So many runs support a 99th percentile.
_RUNS = 100
_LEAST_SECONDS = 3.0
_MOST_SECONDS = 20.0
_PAIRED_SECONDS = 60.0

# Where its weights lie in memory moves a network by up to 2 %, so several sessions are opened,
# unless that takes long.
_SESSIONS = 3
_WARM_SECONDS = 2.0
_QUICK_SECONDS = 0.5


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes
    ----------
    warmup
        Runs before the first that counts, at least; more follow until times are stable.
    iterations
        Runs that count, or clean pairs of them. None: for three seconds, and longer for networks of
        more than 30 ms, up to 100 runs or 20 s.
    per_node
        Whether to look into the network: at sites, operators, and the ceiling of the machine.
    families
        Names of families, by which nodes of chains are known.
    """

    warmup: int = 3
    iterations: int | None = None
    per_node: bool = False
    families: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timed:
    """What was measured of one network.

    Attributes
    ----------
    latency
        Of its runs; with inputs and outputs on the device, where there is one.
    warmup
        What came before.
    copying
        The same with copies from the host and back; None where there is no device.
    fresh
        What it takes of a process of its own; None where such a process does not run.
    breakdown
        Where the time goes; None if nobody asked.
    drift
        How much the median of the runs changed within one session, the most of all.
    """

    latency: Latency
    warmup: WarmUp
    copying: Latency | None = None
    fresh: Fresh | None = None
    breakdown: Breakdown | None = None
    drift: float = 0.0


@dataclass(frozen=True)
class Setting:
    """Where and how something was measured.

    Attributes
    ----------
    machine
        Providers and threads.
    batch
        Samples per run; None where the inputs have no common first axis.
    """

    machine: Machine
    batch: int | None

    def __str__(self) -> str:
        threads = self.machine.intra_op_num_threads
        parts = ["+".join(self.machine.providers)]
        parts += [f"{threads} thread{'s' * (threads > 1)}"] if threads else []
        parts += [f"batch {self.batch}"] if self.batch is not None else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Row:
    """What was measured in one setting.

    Attributes
    ----------
    setting
        On which machine, with which batch.
    shapes
        Shapes of the inputs.
    timed, baseline
        The network, and the one it was held against, if any.
    trial
        The baseline (a) against the network (b), paired.
    noise
        How noisy the machine was before, after, and while the network ran.
    ceiling
        What the machine can do at best; None if nobody asked, or it has no such product.
    """

    setting: Setting
    shapes: Mapping[str, Shape]
    timed: Timed
    noise: Noise
    baseline: Timed | None = None
    trial: Trial | None = None
    ceiling: Ceiling | None = None

    @property
    def claim(self) -> Claim | None:
        """What may be said of the network against the baseline."""
        return None if self.trial is None else claim(self.trial, self.noise)


_Found = tuple[Timed, Timed | None, Trial | None]


def profile(
    model: Model,
    machines: Sequence[Machine],
    *,
    baseline: Model | None = None,
    batches: Sequence[int] = (),
    shapes: Mapping[str, Shape] | None = None,
    effort: Effort | None = None,
    progress: Progress = silent,
) -> tuple[Row, ...]:
    """Profile a network on every machine with every batch.

    Every row has sessions of its own, which see one shape only.

    Parameters
    ----------
    model
        The network.
    machines
        Where to run it.
    baseline
        What to hold it against.
    batches
        Samples per run; none: as `shapes` say, and else 1.
    shapes
        Shapes of inputs by name, where they are not those that the network fixes or leaves to us.
    effort
        How much to measure.
    progress
        Told how far the work is.

    Raises
    ------
    DataError
        If shapes or batches do not fit the network, or the two want other inputs.
    ModelError
        If ONNX Runtime cannot load or run a network.
    ProviderError
        If a provider is unknown, missing, or does not start.
    """
    effort = effort or Effort()
    progress("finding shapes", 0, 1)
    every = _shapes(model, machines[0], shapes or {}, batches)
    for machine in machines[1:]:
        machine.open(model)  # what is missing is missing now, and not after minutes
    total, rows = len(machines) * len(every), list[Row]()
    for machine in machines:
        progress("looking at the machine", len(rows), total)
        check = probe(machine)
        checks = [check()]
        kind = weight_type(model.proto)
        ceiling = measure_ceiling(machine, kind) if effort.per_node else None
        taken: list[tuple[dict[str, Shape], _Found]] = []
        for wanted in every:
            progress("timing", len(rows) + len(taken), total)
            taken.append((wanted, _timed(model, baseline, machine, wanted, effort)))
        checks.append(check())
        noise = noise_of(checks)
        if ceiling is not None:  # a ceiling is the most: the machine may have been slow before
            ceiling = _higher(ceiling, measure_ceiling(machine, kind))
        for wanted, (timed, before, trial) in taken:
            seen = replace(noise, within=timed.drift)
            setting = Setting(machine, batch_of(wanted))
            rows.append(Row(setting, wanted, timed, seen, before, trial, ceiling))
    return tuple(rows)


def batch_of(shapes: Mapping[str, Shape]) -> int | None:
    """Return the first extent that all inputs have; None where they do not, or are scalars."""
    firsts = {shape[0] for shape in shapes.values() if shape}
    return firsts.pop() if len(firsts) == 1 else None


def _shapes(
    model: Model, machine: Machine, shapes: Mapping[str, Shape], batches: Sequence[int]
) -> list[dict[str, Shape]]:
    session = machine.open(model)
    specs = session_inputs(session)
    found = {
        name: value.shape for name, value in runnable_feeds(session, shapes, model.name).items()
    }
    return [with_batch(specs, found, batch) for batch in batches] or [found]


def _higher(one: Ceiling, other: Ceiling | None) -> Ceiling:
    return one if other is None or one.flops >= other.flops else other


def _timed(
    model: Model,
    baseline: Model | None,
    machine: Machine,
    shapes: Mapping[str, Shape],
    effort: Effort,
) -> _Found:
    if baseline is None:
        timed = _alone(model, machine, shapes, effort)
        return timed, None, None
    runner, warm, feeds = _ready(model, machine, shapes, effort)
    against, warm_against, _ = _ready(baseline, machine, shapes, effort)
    quick = effort.iterations is None
    trial = paired(
        against.run,
        runner.run,
        warmup=1,
        rounds=effort.iterations or _RUNS,
        min_seconds=_LEAST_SECONDS if quick else 0.0,
        max_seconds=_MOST_SECONDS if quick else _PAIRED_SECONDS,
    )
    copying, copying_against = _copying(runner, effort), _copying(against, effort)
    del runner, against
    names = node_names(baseline.proto.graph)
    inside = _inside(model, machine, feeds, trial.b, effort, names)
    inside_against = _inside(baseline, machine, feeds, trial.a, effort)
    return (
        Timed(trial.b, warm, copying, *inside, trial.b.drift),
        Timed(trial.a, warm_against, copying_against, *inside_against, trial.a.drift),
        trial,
    )


def _alone(model: Model, machine: Machine, shapes: Mapping[str, Shape], effort: Effort) -> Timed:
    """Time a network by itself, in several sessions one after the other."""
    start = time.perf_counter()
    runner, warm, feeds = _ready(model, machine, shapes, effort)
    quick = time.perf_counter() - start - warm.seconds < _QUICK_SECONDS
    sessions = _SESSIONS if quick and effort.iterations is None else 1
    seconds = _seconds(warm.last) / sessions
    warms, found = [warm], [_measured(runner.run, effort, seconds)]
    copying = _copying(runner, effort)
    for _ in range(sessions - 1):
        runner, warm, _ = _ready(model, machine, shapes, effort)
        warms.append(warm)
        found.append(_measured(runner.run, effort, seconds))
    del runner
    latency = Latency(
        tuple(second for each in found for second in each.samples),
        sum(each.discarded for each in found),
        all(each.clean for each in found),
    )
    together = WarmUp(
        sum(each.runs for each in warms),
        sum(each.seconds for each in warms),
        all(each.stable for each in warms),
        warms[-1].last,
    )
    # Between sessions it is the place of the weights in memory that changes, not the machine.
    drift = max(each.drift for each in found)
    inside = _inside(model, machine, feeds, latency, effort)
    return Timed(latency, together, copying, *inside, drift)


def _ready(
    model: Model, machine: Machine, shapes: Mapping[str, Shape], effort: Effort
) -> tuple[Runner, WarmUp, Feeds]:
    """Open a session that sees one shape only, and warm it up."""
    session = machine.open(model)
    feeds = random_feeds(session, shapes=shapes)
    check_feeds(session, feeds)
    runner = Runner(session, feeds, label=f"'{model.name}'")
    return runner, warm_up(runner.run, least=effort.warmup, max_seconds=_WARM_SECONDS), feeds


def _measured(run: Run, effort: Effort, seconds: float) -> Latency:
    return measure(run, warmup=0, iterations=effort.iterations, seconds=seconds)


def _seconds(run: float) -> float:
    return min(max(_RUNS * run, _LEAST_SECONDS), _MOST_SECONDS)


def _copying(runner: Runner, effort: Effort) -> Latency | None:
    if not runner.on_device:
        return None
    warm = warm_up(runner.run_with_copies, least=effort.warmup, max_seconds=_WARM_SECONDS)
    return _measured(runner.run_with_copies, effort, _seconds(warm.last))


def _inside(
    model: Model,
    machine: Machine,
    feeds: Feeds,
    latency: Latency,
    effort: Effort,
    ancestors: Collection[str] = (),
) -> tuple[Fresh | None, Breakdown | None]:
    """Measure what the sessions that were timed must be out of the way for."""
    shapes = {name: value.shape for name, value in feeds.items()}
    fresh: Fresh | None = None
    # The network ran here: what may fail is the process, and a profile can do without.
    with contextlib.suppress(ModelError, OSError):
        fresh = start_fresh(model, machine, shapes)
    # Nodes fall back to the CPU silently, so that is looked at in any case.
    if not effort.per_node and _host_only(machine):
        return fresh, None
    runs = effort.iterations or min(50, max(5, round(1.0 / latency.median)))
    return fresh, break_down(
        model, feeds, machine, families=effort.families, ancestors=ancestors, iterations=runs
    )


def _host_only(machine: Machine) -> bool:
    return not machine.providers or full_name(machine.providers[0]) == CPU
