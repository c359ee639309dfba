"""The fit of what comes out of an activation after a site, by turns.

What an activation hides need not be right: below zero a ReLU makes the same of everything. Fitting
what comes out is no least-squares problem, but becomes one by a penalty: targets are chosen between
what a chain makes now and what the activation should put out, the chain is fitted to them, and so
on in turn (Zhang et al. 2016, section 3.2; `onnxcp.linalg.activations` for others than a ReLU).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxcp.calibration.statistics import Sample
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site
from onnxcp.graph.view import GraphView
from onnxcp.graph.walk import attributes
from onnxcp.linalg.activations import Activation, Maxout, clip, leaky_relu, relative_error, relu
from onnxcp.linalg.moments import Accumulator, ridge
from onnxcp.refit.regression import STRENGTHS, Trial

Array = npt.NDArray[Any]


PENALTIES = (0.05, 0.2, 1.0)
"""Weights of the penalty, one for each turn: from free to strict."""

_BOUNDLESS = 3e38  # what an older Clip is given for no limit


def activations_behind(model: Model, sites: Iterable[Site]) -> dict[Site, Activation]:
    """Return the activations of the sites whose output nothing but an activation reads.

    They are those of what a site makes before its gain: Relu, LeakyRelu, PRelu with constant slopes
    of channels, Clip with constant limits, and a maxout, which is a Max of all parts of a Split.
    """
    view = GraphView(model.proto.graph)
    nodes = {
        node.input[0]: node
        for node in model.proto.graph.node
        if node.domain in ("", "ai.onnx") and node.input
    }
    found = {}
    for site in sites:
        if view.readers[site.output] == 1 and site.gain > 0 and site.output in nodes:
            activation = _activation(site, nodes[site.output], view)
            if activation is not None:
                found[site] = activation
    return found


def _activation(site: Site, node: onnx.NodeProto, view: GraphView) -> Activation | None:
    match node.op_type:
        case "Relu":
            return relu()
        case "LeakyRelu":
            return leaky_relu(float(attributes(node).get("alpha", 0.01)))
        case "PRelu":
            slopes = view.constant(node.input[1])
            return None if slopes is None else _prelu(site, np.asarray(slopes, np.float32))
        case "Clip":
            limits = _limits(node, view)
            if limits is None or not np.isfinite(limits).any() or limits[0] > limits[1]:
                return None
            return clip(limits[0] / site.gain, limits[1] / site.gain)
        case "Split":
            return _maxout(site, node, view)
        case _:
            return None


def _maxout(site: Site, split: onnx.NodeProto, view: GraphView) -> Maxout | None:
    """Return the maxout of a Split into equal channels, all of which one Max reads."""
    parts, channels = list(split.output), site.spatial_rank + 1
    reading = [node for node in view.graph.node if parts[0] in node.input]
    if site.weight_on_left or any(view.readers[name] != 1 for name in parts) or not reading:
        return None
    largest = reading[0]
    if largest.op_type != "Max" or largest.domain not in ("", "ai.onnx"):
        return None
    # Counted from the back, where the batch may have any number of axes.
    axis = attributes(split).get("axis", 0)
    if axis != -channels and not (site.op != "MatMul" and axis == 1):
        return None
    if sorted(largest.input) != sorted(parts) or not view.splits_evenly(split, site.outputs):
        return None
    return Maxout(len(parts))


def _prelu(site: Site, slopes: Array) -> Activation | None:
    """Return a PRelu whose slopes are one, or one for each channel; None of any other."""
    if slopes.size == 1:
        return leaky_relu(float(slopes.reshape(-1)[0]))
    after = site.spatial_rank
    channels = slopes.shape[slopes.ndim - after - 1] if slopes.ndim > after else 0
    if site.weight_on_left or channels != site.outputs or slopes.size != channels:
        return None
    return leaky_relu(slopes.reshape(-1))


def _limits(node: onnx.NodeProto, view: GraphView) -> tuple[float, float] | None:
    """Return the limits of a Clip, infinite where it has none; None if they are not constant."""
    found = []
    options = attributes(node)
    for position, (name, none) in enumerate((("min", -np.inf), ("max", np.inf)), 1):
        value = options.get(name, none)
        if len(node.input) > position and node.input[position]:
            constant = view.constant(node.input[position])
            if constant is None:
                return None
            value = float(np.asarray(constant, np.float64).reshape(-1)[0])
        found.append(none if abs(value) > _BOUNDLESS else float(value))
    return found[0], found[1]


class BehindActivation:
    """Some rows that a site's kernel is applied to, and what its activation should make of them.

    Parameters
    ----------
    site
        The site.
    activation
        What reads its output, see `activations_behind`.
    rows
        A sample of its rows.
    """

    def __init__(self, site: Site, activation: Activation, rows: Sample) -> None:
        self._site = site
        self._activation = activation
        self._rows = rows

    def error(self, kernel: Array, bias: Array) -> float:
        """Return the error behind the activation of a kernel ``(T, P)``, on the rows held out."""
        return self._error(self._outputs(kernel) + bias)

    def fit(self, start: Trial, goal: Array, grams: Sequence[Array]) -> Trial:
        """Fit factors, and return the best there were on the way.

        Parameters
        ----------
        start
            Where to start; its error may be any.
        goal : (T, P) ndarray
            The kernel that is closest to what the site ought to put out before the activation.
        grams
            Covariances of the input patches, as of `FactorizePass.refine`.
        """
        site, rows, family = self._site, self._rows, start.choice.family
        fitted, use = self._outputs(goal), ~rows.held
        wanted = self._activation(rows.target)
        made = self._outputs(start.kernel) + start.bias
        best = trial = replace(start, error=self._error(made))
        for strength in PENALTIES:
            aims = self._activation.prox(wanted, made, strength)
            mixed = list(self._regressions(fitted[use], aims[use], goal))
            targets = [each.reshape(-1, *site.kernel_shape[1:]) for each in mixed]
            factors = family.refine(site, trial.factors, targets, grams, 1)
            trial = replace(trial, factors=factors)
            through = self._outputs(trial.kernel)
            shift = np.zeros(site.outputs)
            if site.bias_gain:
                shift = (aims[use] - through[use]).mean(axis=0, dtype=np.float64)
            made = through + shift
            trial = replace(trial, bias=shift, error=self._error(made))
            best = min(best, trial, key=lambda each: each.error)
        return best

    def _regressions(self, fitted: Array, aims: Array, goal: Array) -> Iterator[Array]:
        """Yield for every group the kernel ``(T / G, P)`` that makes closest to the aims.

        Regressed on what the goal makes and not on patches: so there are as many unknowns per
        output as there are outputs, which a sample of rows is enough for.
        """
        groups = self._site.group
        parts = (np.split(each, groups, axis=1) for each in (fitted, aims))
        for x, t, kernel in zip(*parts, np.split(goal, groups), strict=True):
            accumulator = Accumulator(self._site.bias_gain != 0)
            accumulator.add(x, t)
            moments = accumulator.moments()
            assert moments is not None, "some rows are always fitted to"
            yield ridge(moments, np.eye(len(kernel)), STRENGTHS[0]) @ kernel

    def _outputs(self, kernel: Array) -> Array:
        groups, x = self._site.group, self._rows.x
        kernels = np.split(kernel.astype(x.dtype), groups)
        parts = zip(np.split(x, groups, axis=1), kernels, strict=True)
        return np.concatenate([rows @ part.T for rows, part in parts], axis=1)

    def _error(self, made: Array) -> float:
        held = self._rows.held
        return relative_error(self._activation, self._rows.target[held], made[held])
