"""The fit of what comes out of a ReLU after a site, by turns (see `onnxcp.linalg.rectified`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.calibration.statistics import Sample
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site
from onnxcp.graph.view import GraphView
from onnxcp.linalg.moments import Accumulator, ridge
from onnxcp.linalg.rectified import PENALTIES, rectified_error, rectified_targets
from onnxcp.refit.regression import STRENGTHS, Trial

Array = npt.NDArray[Any]


def rectified_sites(model: Model, sites: Iterable[Site]) -> set[Site]:
    """Return the sites whose output nothing but a ReLU reads."""
    view = GraphView(model.proto.graph)
    relus = {
        node.input[0]
        for node in model.proto.graph.node
        if node.op_type == "Relu" and node.domain in ("", "ai.onnx")
    }
    return {
        site
        for site in sites
        if site.output in relus and view.readers[site.output] == 1 and site.gain > 0
    }


class BehindRelu:
    """Some rows that a site's kernel is applied to, and what its ReLU should make of them.

    Parameters
    ----------
    site
        The site.
    rows
        A sample of its rows.
    """

    def __init__(self, site: Site, rows: Sample) -> None:
        self._site = site
        self._rows = rows

    def error(self, kernel: Array, bias: Array) -> float:
        """Return the error behind the ReLU of a kernel ``(T, P)``, on the rows held out."""
        return self._error(self._outputs(kernel) + bias)

    def fit(self, start: Trial, goal: Array, grams: Sequence[Array]) -> Trial:
        """Fit factors, and return the best there were on the way.

        Parameters
        ----------
        start
            Where to start; its error may be any.
        goal : (T, P) ndarray
            The kernel that is closest to what the site ought to put out before the ReLU.
        grams
            Covariances of the input patches, as of `FactorizePass.refine`.
        """
        site, rows, family = self._site, self._rows, start.choice.family
        fitted, use = self._outputs(goal), ~rows.held
        made = self._outputs(start.kernel) + start.bias
        best = trial = replace(start, error=self._error(made))
        for strength in PENALTIES:
            aims = rectified_targets(rows.target, made, strength)
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
        return rectified_error(self._rows.target[held], made[held])
