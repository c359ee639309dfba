"""How a network is quantized, and choosing that on samples that were held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcp.graph.model import Model
from onnxcp.precision.amend import WEIGHTED
from onnxcp.precision.balance import balance
from onnxcp.precision.bias import correct_biases
from onnxcp.precision.processor import saturates
from onnxcp.precision.qdq import (
    Ranges,
    activations,
    exactly,
    matches,
    prepare,
    quantize,
)
from onnxcp.precision.ranges import METHODS, assumed, calibrate
from onnxcp.profiling.compare import Batch, first_samples
from onnxcp.profiling.machine import Machine, watch
from onnxcp.profiling.session import Runner
from onnxcp.profiling.timing import paired

HELD_OUT = 0.25  # share of the samples that ranges are judged on
_BIAS_SAMPLES = 64
_SUSPECTS = 12  # layers that are tried in float
_WORTH = 0.25  # share of the squared error that a layer must be the reason for to stay float,
_COST = 1.05  # at most so many times the time
_KEPT = 4
_NAMED = 3  # inputs to name; exporters made all weights of a network inputs once


@dataclass(frozen=True)
class Recipe:
    """How to quantize.

    Attributes
    ----------
    method
        How ranges are found: one of `onnxcp.precision.ranges.METHODS`.
    keep
        Names of nodes that stay float, as patterns of a shell (`qdq.exactly`).
    balanced
        Whether ranks between factors in a row are scaled first.
    corrected
        Whether biases are corrected afterwards.
    """

    method: str = METHODS[0]
    keep: tuple[str, ...] = ()
    balanced: bool = True
    corrected: bool = True


Progress = Callable[[str], None]


def lower(
    model: Model,
    recipe: Recipe,
    batches: Sequence[Batch],
    machine: Machine,
    progress: Progress = lambda _: None,
) -> tuple[Model, tuple[str, ...]]:
    """Quantize a network.

    Returns
    -------
    model : Model
        The quantized network.
    notes : tuple of str
        What was done, in sentences.

    Raises
    ------
    ModelError
        If it cannot be quantized.
    """
    prepared = prepare(model)
    notes = [f"ranges by {recipe.method}"]
    if model.opset != prepared.opset:
        notes.append(f"opset raised from {model.opset} to {prepared.opset}, which int8 needs")
    gone = sorted(_inputs(model) - _inputs(prepared))
    if gone:
        some = ", ".join(gone[:_NAMED]) + (
            f" and {len(gone) - _NAMED} more" if gone[_NAMED:] else ""
        )
        notes.append(f"no inputs any more, since they had a default: {some}")
    nodes = (node.name for node in prepared.proto.graph.node if node.op_type in WEIGHTED)
    kept = [name for name in nodes if matches(name, recipe.keep)]
    if kept:
        notes.append(f"in float: {', '.join(kept)}")
    ready = _Ready.of(prepared, recipe, batches, machine, progress)
    if ready.balanced:
        notes.append(f"{ready.balanced} pairs of factors balanced")
    return ready.quantized(recipe.keep), tuple(notes)


def stand_in(model: Model, keep: Sequence[str] = ()) -> Model:
    """Quantize a network that is only timed: its ranges are made up."""
    prepared = prepare(model)
    return _quantizer(assumed(prepared), keep)(prepared)


def tune(
    model: Model,
    recipe: Recipe,
    batches: Sequence[Batch],
    machine: Machine,
    progress: Progress = lambda _: None,
    methods: Sequence[str] = METHODS,
) -> Recipe:
    """Choose how ranges are found, and which layers stay float, by what held-out samples say.

    A layer stays float if a quarter of the squared error of the outputs is due to it, and the
    network is measured to take at most 5 % longer with it: the layers after which the error has
    grown most are tried, each by itself, then together, the worst first.

    Parameters
    ----------
    model
        The network in float.
    recipe
        What to start from; what it keeps is kept.
    batches
        Samples; the last quarter is held out.
    machine
        Where to run them.
    progress
        Called with what is being done.
    methods
        Of finding ranges, to choose from.

    Raises
    ------
    ModelError
        If the network cannot be quantized.
    """
    cut = max(1, round((1 - HELD_OUT) * len(batches)))
    fitted, judged = batches[:cut], batches[cut:] or batches
    prepared = prepare(model)
    if recipe.balanced:
        prepared, _ = balance(prepared, fitted, machine)
    floats = set(activations(prepared))
    outputs = [each.name for each in prepared.proto.graph.output if each.name in floats]
    if not outputs:  # words or sequences: nothing to measure a distance of
        return recipe
    wanted = list(watch(prepared, outputs, judged, machine))

    def error(candidate: Model) -> float:
        """Return the squared relative error of all outputs together."""
        found = watch(candidate, outputs, judged, machine)
        return _distance(list(found), wanted)

    errors: dict[str, tuple[float, Ranges]] = {}
    ranges: Ranges
    for method in methods:
        progress(f"ranges by {method}")
        ranges = calibrate(prepared, fitted, method)
        errors[method] = error(_quantizer(ranges, recipe.keep)(prepared)), ranges
    method = min(errors, key=lambda each: errors[each][0])
    worst, ranges = errors[method]
    kept = list(recipe.keep)
    quantized = _quantizer(ranges, kept)(prepared)
    due = {}
    for name in _suspects(prepared, quantized, judged, machine):
        progress(f"{name} in float")
        due[name] = 1 - error(_quantizer(ranges, [*kept, exactly(name)])(prepared)) / (worst or 1.0)
    for name in sorted(due, key=lambda each: -due[each])[:_KEPT]:
        if due[name] < _WORTH:
            break
        with_it = _quantizer(ranges, [*kept, exactly(name)])(prepared)
        now = error(with_it)
        if now > (1 - _WORTH) * worst or _slower(quantized, with_it, judged[0], machine):
            continue
        worst, quantized = now, with_it
        kept.append(exactly(name))
    return replace(recipe, method=method, keep=tuple(kept))


def spare(
    model: Model,
    recipe: Recipe,
    batches: Sequence[Batch],
    machine: Machine,
    progress: Progress = lambda _: None,
    *,
    enough: Callable[[Model], bool],
) -> Recipe:
    """Keep as few more layers in float as are enough, where a recipe loses more than it may.

    Those after which the error grows most are the first. More of them are taken to lose no more, so
    their number is doubled until they are enough, and then halved in between.

    Parameters
    ----------
    model, recipe, batches, machine, progress
        As of `lower`.
    enough
        Tells whether a network is close enough to the original.

    Returns
    -------
    Recipe
        That given where the network in float, or with all layers in float but one, is not enough.
    """
    if not enough(model):
        return recipe
    ready = _Ready.of(prepare(model), recipe, batches, machine, progress)
    steps = _by_step(ready.model, ready.quantized(recipe.keep), batches, machine)
    names = [exactly(name) for name in steps if not matches(name, recipe.keep)]

    def kept(count: int) -> tuple[str, ...]:
        return *recipe.keep, *names[:count]

    few, most = 0, len(names)  # few are not enough; all would be no int8 any more
    while most - few > 1:
        found = most < len(names)
        count = (few + most) // 2 if found else min(2 * few or 1, most - 1)
        progress(f"{count} more layer{'s' * (count > 1)} in float")
        if enough(ready.quantized(kept(count))):
            most = count
        else:
            few = count
    return recipe if most == len(names) else replace(recipe, keep=kept(most))


@dataclass(frozen=True, eq=False)
class _Ready:
    """A network that is prepared, and its ranges; `quantized` whatever stays float."""

    model: Model
    balanced: int
    ranges: Ranges
    samples: Sequence[Batch]
    machine: Machine
    corrected: bool
    progress: Progress

    @classmethod
    def of(
        cls,
        prepared: Model,
        recipe: Recipe,
        batches: Sequence[Batch],
        machine: Machine,
        progress: Progress,
    ) -> _Ready:
        count = 0
        if recipe.balanced:
            progress("balancing factors")
            prepared, count = balance(prepared, batches, machine)
        progress("calibrating")
        ranges = calibrate(prepared, batches, recipe.method)
        return cls(prepared, count, ranges, batches, machine, recipe.corrected, progress)

    def quantized(self, keep: Sequence[str]) -> Model:
        """Quantize it but for the layers that stay float."""
        quantized, model = _quantizer(self.ranges, keep), self.model
        if self.corrected:
            self.progress("correcting biases")
            few = first_samples(self.samples, _BIAS_SAMPLES)
            model = correct_biases(model, quantized, few, self.machine)
        return quantized(model)


def _quantizer(ranges: Ranges, keep: Sequence[str]) -> Callable[[Model], Model]:
    def quantizer(model: Model) -> Model:
        return quantize(model, ranges, keep=keep, reduce_range=saturates())

    return quantizer


def _inputs(model: Model) -> set[str]:
    return {each.name for each in model.proto.graph.input}


def _suspects(
    model: Model, quantized: Model, batches: Sequence[Batch], machine: Machine
) -> list[str]:
    """Return the layers that the error may be due to: first, last, and the largest steps."""
    names = _by_step(model, quantized, batches, machine)
    ends = [node.name for node in model.proto.graph.node if node.name in names]
    return list(dict.fromkeys([*ends[:1], *ends[-1:], *names[:_SUSPECTS]]))


def _by_step(
    model: Model, quantized: Model, batches: Sequence[Batch], machine: Machine
) -> list[str]:
    """Return the layers, those first after which the error has grown most."""
    nodes = {node.name: node for node in model.proto.graph.node if node.op_type in WEIGHTED}
    there = {node.name: node.output[0] for node in quantized.proto.graph.node}
    names = [name for name in nodes if name in there]
    wanted = watch(model, [nodes[name].output[0] for name in names], batches[:1], machine)
    got = watch(quantized, [there[name] for name in names], batches[:1], machine)
    (a,), (b,) = list(wanted), list(got)
    errors = [
        _distance([{"y": b[there[name]]}], [{"y": a[nodes[name].output[0]]}]) for name in names
    ]
    steps = dict(zip(names, np.diff(errors, prepend=0.0), strict=True))
    return sorted(steps, key=lambda name: -steps[name])


def _slower(before: Model, after: Model, batch: Batch, machine: Machine) -> bool:
    a, b = (Runner(machine.open(each), batch).run for each in (before, after))
    return paired(a, b, rounds=12, min_seconds=0.3, max_seconds=3.0).ratio < 1 / _COST


def _distance(got: Sequence[Batch], wanted: Sequence[Batch]) -> float:
    """Return the squared relative distance of tensors, infinite if any is not finite."""
    total, whole = 0.0, 0.0
    for one, other in zip(got, wanted, strict=True):
        for name, value in other.items():
            exact = value.astype(np.float64)
            total += float(np.sum((one[name] - exact) ** 2))
            whole += float(np.sum(exact**2))
    return total / (whole or 1.0) if np.isfinite(total) else np.inf
