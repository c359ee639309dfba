"""Moments of what a site is given and of what it ought to put out.

The rows that a site's kernel is applied to, input patches for a convolution, are drawn from every
batch and summed up at once: no patch matrix of a whole batch is ever in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.calibration.data import Data
from onnxcp.graph.site import Site
from onnxcp.linalg.moments import Accumulator, Moments

Array = npt.NDArray[Any]

LARGEST_GRAM = 5000
"""Input patches with more entries are not looked at: a Gram matrix would take 200 MB and more."""

_BLOCK = 2**26  # bytes of patches formed at once
_PER_ENTRY = 10  # rows to draw for every entry of a patch, which as many unknowns depend on
_ROWS = 50_000  # rows to draw at least, where there are so many
_SAMPLE = 16_000  # rows to keep, if they fit a block
_FEW = 1000
_HELD_OUT = 8
_JUDGES = 24  # samples to judge a network by, at least


def held_out(data: Data) -> Data | None:
    """Return the samples that no site is fitted to; None where these are too few to judge by.

    They are those of the data only where the first axis of what sites read counts samples, too.
    """
    if any(part.whole for part in data.parts):  # of which refits hold out rows
        return None
    period = _period(len(data))
    found = data.part(np.arange(len(data)) % period == period - 1)
    return found if found.used >= _JUDGES else None


def _period(samples: int) -> int:
    """Return of how many samples one is held out: of eight, or of two or three where few are."""
    return min(_HELD_OUT, max(2, samples // 2))


@dataclass(frozen=True, eq=False)
class Observed:
    """Moments at a site, group by group.

    Attributes
    ----------
    fit
        Of the samples to fit to.
    held
        Of the samples to judge by.
    """

    fit: tuple[Moments, ...]
    held: tuple[Moments, ...]

    def error(self, kernel: Array, bias: Array | None = None) -> float:
        """Return the error of a kernel ``(T, P)`` on the held-out samples, relative and squared.

        Without a bias, that which is best for the samples fitted to.
        """
        bias = self.best_bias(kernel) if bias is None else bias
        groups = len(self.held)
        parts = zip(self.held, np.split(kernel, groups), np.split(bias, groups), strict=True)
        losses = [moments.loss(part, shift) for moments, part, shift in parts]
        return sum(losses) / (sum(moments.scale for moments in self.held) or 1.0)

    def best_bias(self, kernel: Array) -> Array:
        """Return the best bias ``(T,)`` of a kernel ``(T, P)``, for the samples fitted to."""
        groups = np.split(kernel, len(self.fit))
        return np.concatenate([m.best_bias(k) for m, k in zip(self.fit, groups, strict=True)])


def can_observe(site: Site) -> bool:
    """Tell whether the moments of what a site reads can be had: not of a transposed convolution."""
    if site.geometry is not None and site.geometry.transposed:
        return False
    return math.prod(site.kernel_shape[1:]) <= LARGEST_GRAM


def observe(
    site: Site,
    pairs: Iterable[tuple[Array, Array]],
    batches: int,
    *,
    biased: bool,
    seed: int = 0,
    rows: int | None = None,
) -> Observed | None:
    """Gather the moments of a site's input rows and targets.

    Parameters
    ----------
    site
        The site; `can_observe` says that it can be done.
    pairs
        For every batch, what the site is given and what it ought to put out.
    batches
        How many batches there are.
    biased
        Whether the site may have another bias.
    seed
        Of the drawing of rows.
    rows
        How many to draw; by default as many as a fit needs.

    Returns
    -------
    Observed or None
        None if there are too few samples to hold some out, or values that are not finite.
    """
    wanted = rows or max(_ROWS, _PER_ENTRY * math.prod(site.kernel_shape[1:]))
    return _gather(site, pairs, batches, wanted, input_rows, biased, seed)


def observe_outputs(
    site: Site, pairs: Iterable[tuple[Array, Array]], batches: int, *, biased: bool, seed: int = 0
) -> Observed | None:
    """Gather the moments of what something in a site's place puts out, and of the targets.

    As `observe`; the first of a pair is an output, of the same shape as the target. None, too, if
    the Gram matrix of the outputs of a group would be larger than `LARGEST_GRAM`.
    """
    if site.outputs // site.group > LARGEST_GRAM:
        return None
    return _gather(site, pairs, batches, _ROWS, output_rows, biased, seed)


@dataclass(frozen=True, eq=False)
class Sample:
    """Some of the rows that a site's kernel is applied to, and what should come of them.

    Attributes
    ----------
    x : (n, S prod(k)) ndarray
        Group after group.
    target : (n, T) ndarray
    held : (n,) ndarray of bool
        Which rows are not to be fitted to.
    """

    x: Array
    target: Array
    held: Array


def sample(
    site: Site, pairs: Iterable[tuple[Array, Array]], batches: int, *, seed: int = 0
) -> Sample | None:
    """Draw rows as `observe` does, fewer, and keep them; None if some are not finite."""
    width = site.group * math.prod(site.kernel_shape[1:])
    wanted = max(_FEW, min(_SAMPLE, _BLOCK // (4 * width)))
    blocks = list(_drawn_rows(site, pairs, batches, wanted, input_rows, seed))
    x, target, held = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    finite = np.isfinite(x).all() and np.isfinite(target).all()
    return Sample(x, target, held) if finite else None


Rows = Iterator[tuple[Array, Array, Array]]
Draw = Callable[[Site, Array, Array, int, np.random.Generator], Rows]


def _drawn_rows(
    site: Site,
    pairs: Iterable[tuple[Array, Array]],
    batches: int,
    wanted: int,
    draw: Draw,
    seed: int,
) -> Rows:
    """Yield blocks of rows, of their targets, and of whether they are held out."""
    seen = 0
    for number, (given, target) in enumerate(pairs):
        rng, before = np.random.default_rng((seed, number)), 0
        samples = _samples(site, target)
        period = _period(samples * batches)
        for owners, x, t in draw(site, given, target, math.ceil(wanted / batches), rng):
            # Of a single sample, it is rows that are held out.
            keys = owners + seen if samples * batches > 1 else before + np.arange(len(owners))
            before += len(owners)
            yield x, t, keys % period == period - 1
        seen += samples


def _gather(
    site: Site,
    pairs: Iterable[tuple[Array, Array]],
    batches: int,
    wanted: int,
    draw: Draw,
    biased: bool,
    seed: int,
) -> Observed | None:
    fit, held = ([Accumulator(biased) for _ in range(site.group)] for _ in range(2))
    for x, t, aside in _drawn_rows(site, pairs, batches, wanted, draw, seed):
        if not (np.isfinite(x).all() and np.isfinite(t).all()):
            return None
        groups = zip(np.split(x, site.group, 1), np.split(t, site.group, 1), strict=True)
        for group, (columns, targets) in enumerate(groups):
            fit[group].add(columns[~aside], targets[~aside])
            held[group].add(columns[aside], targets[aside])
    sides = [tuple(m for each in side if (m := each.moments())) for side in (fit, held)]
    return Observed(*sides) if all(len(side) == site.group for side in sides) else None


def input_rows(site: Site, x: Array, target: Array, wanted: int, rng: np.random.Generator) -> Rows:
    """Yield blocks of rows that a site's kernel is applied to, and of what comes out of them.

    Parameters
    ----------
    site
        A Conv, Gemm or MatMul.
    x, target
        What it is given, and a tensor of the shape of its output.
    wanted
        How many rows to draw; all if there are no more.
    rng
        Draws them.

    Yields
    ------
    owners : (n,) ndarray
        Which sample of the tensors a row belongs to.
    rows : (n, S prod(k)) ndarray
        Group after group, each with input channels first.
    targets : (n, T) ndarray
    """
    if site.geometry is None:
        inputs = _as_rows(site, x, transposed=bool(site.attributes.get("transA")))
        outputs = _as_rows(site, target)
        chosen = _drawn(len(outputs), wanted, rng)
        owners = chosen // max(len(outputs) // _samples(site, target), 1)
        yield owners, inputs[chosen], outputs[chosen]
        return
    geometry = site.geometry
    pads = geometry.pads_for(x.shape[2:])
    around = zip(pads[: geometry.rank], pads[geometry.rank :], strict=True)
    # Channels last, so that the channels of one place are read in one go.
    padded = np.pad(np.moveaxis(x, 1, -1), [(0, 0), *around, (0, 0)])
    outputs = np.moveaxis(target, 1, -1)
    chosen = _drawn(math.prod(outputs.shape[:-1]), wanted, rng)
    offsets = list(np.ndindex(geometry.kernel))
    block = max(1, _BLOCK // (padded.itemsize * x.shape[1] * len(offsets)))
    for start in range(0, len(chosen), block):
        owners, *places = np.unravel_index(chosen[start : start + block], outputs.shape[:-1])
        corner = [p * s for p, s in zip(places, geometry.strides, strict=True)]
        patches = np.empty((len(owners), x.shape[1], len(offsets)), x.dtype)
        for column, offset in enumerate(offsets):
            reach = zip(corner, offset, geometry.dilations, strict=True)
            patches[:, :, column] = padded[(owners, *(c + o * d for c, o, d in reach))]
        yield owners, patches.reshape(len(owners), -1), outputs[(owners, *places)]


def output_rows(
    site: Site, output: Array, target: Array, wanted: int, rng: np.random.Generator
) -> Rows:
    """Yield rows of two tensors that both have the shape of a site's output, as `input_rows`."""
    if site.geometry is None:
        pair = [_as_rows(site, each) for each in (output, target)]
    else:
        pair = [np.moveaxis(each, 1, -1).reshape(-1, each.shape[1]) for each in (output, target)]
    chosen = _drawn(len(pair[1]), wanted, rng)
    owners = chosen // max(len(pair[1]) // _samples(site, target), 1)
    yield owners, pair[0][chosen], pair[1][chosen]


def _drawn(total: int, wanted: int, rng: np.random.Generator) -> Array:
    if wanted >= total:
        return np.arange(total)
    return np.sort(rng.choice(total, wanted, replace=False, shuffle=False))


def _samples(site: Site, target: Array) -> int:
    """Return how many samples a tensor of the shape of a site's output holds.

    Its first axis counts them, unless channels are there: then each of its rows is one.
    """
    channels_first = target.ndim < 2 or (site.weight_on_left and target.ndim == 2)
    return max(target.size // site.outputs if channels_first else len(target), 1)


def _as_rows(site: Site, values: Array, *, transposed: bool = False) -> Array:
    """Bring the channels of a matrix site's tensor to the last of two axes."""
    if site.weight_on_left or transposed:
        values = np.swapaxes(values, -1, -2) if values.ndim > 1 else values
    return values.reshape(-1, values.shape[-1])
