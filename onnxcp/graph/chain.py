"""What a site becomes: a few small operators in a row, or rows that are summed, all exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.graph.geometry import Geometry
from onnxcp.graph.site import Site

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ConvStep:
    """One convolution of a chain, without bias.

    Attributes
    ----------
    kernel
        ``(T, S / group, *k)``, also where the geometry is transposed.
    geometry
        Strides, pads, dilations of this step.
    group
        Number of groups.
    """

    kernel: Floats
    geometry: Geometry
    group: int = 1


@dataclass(frozen=True, eq=False)
class MatrixStep:
    """One matrix product of a chain: `matrix` of shape (T, S) applied to the last channel axis."""

    matrix: Floats


@dataclass(frozen=True, eq=False)
class PickStep:
    """A choice of channels for the steps after it: `channels`, ``(s,)``, are their numbers."""

    channels: Indices


Step = ConvStep | MatrixStep | PickStep
Row = tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class Chain:
    """Steps applied one after the other, in place of one site; or several such rows, summed.

    No step but the last has a bias, so that zero padding stays exact.

    Attributes
    ----------
    steps
        The steps; a single one is the site itself with another weight.
    bias
        What the last step adds, ``(T,)``. None: what the site adds.
    ranks
        Of the decomposition that it comes from, as its family counts them; empty if it comes from
        none.
    beside
        Further rows of steps, which read what the first step reads. What each of them makes is
        added to what the last step makes.
    """

    steps: Row
    bias: Floats | None = None
    ranks: tuple[int, ...] = ()
    beside: tuple[Row, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows of steps that are summed, that with the bias first."""
        return self.steps, *self.beside

    @property
    def parameters(self) -> int:
        """Number of weights, bias excluded; the number of a channel counts as one."""
        return sum(step_weight(step).size for row in self.rows for step in row)


def with_kernel(site: Site, kernel: Floats, bias: Floats | None = None) -> Chain:
    """Return the site itself with another kernel ``(T, S / group, *k)``, and perhaps bias."""
    if site.geometry is None:
        return Chain((MatrixStep(kernel),), bias)
    return Chain((ConvStep(kernel, site.geometry, site.group),), bias)


def step_weight(step: Step) -> npt.NDArray[Any]:
    """Return the weight of a step, in the layout ``(T, S / group, *k)`` or ``(T, S)``.

    Of a choice of channels, it is their numbers.
    """
    match step:
        case ConvStep():
            return step.kernel
        case MatrixStep():
            return step.matrix
        case PickStep():
            return step.channels


def site_macs(site: Site, input_shape: Sequence[int]) -> int:
    """Count the multiply-adds of a site for one sample (the first axis is the batch).

    Parameters
    ----------
    site
        The site as it is in the model.
    input_shape
        Shape of the tensor that it reads, batch included.
    """
    if site.geometry is None:
        return site.parameters * positions(site, input_shape)
    return _conv_macs(site.kernel_shape, site.geometry, input_shape[2:])[0]


def chain_macs(site: Site, chain: Chain, input_shape: Sequence[int]) -> int:
    """Count the multiply-adds of a chain in the place of a site, for one sample.

    Each step is counted on the grid that it really runs on: a 1x1 convolution ahead of a strided
    one runs on the input's grid.
    """
    return sum(_row_macs(site, row, input_shape) for row in chain.rows)


def _row_macs(site: Site, row: Row, input_shape: Sequence[int]) -> int:
    total, size = 0, tuple(input_shape[2:])
    for step in row:
        if isinstance(step, MatrixStep):
            total += step.matrix.size * positions(site, input_shape)
        elif isinstance(step, ConvStep):
            macs, size = _conv_macs(step.kernel.shape, step.geometry, size)
            total += macs
    return total


def positions(site: Site, input_shape: Sequence[int]) -> int:
    """Return how many vectors of one sample a matrix site is applied to."""
    if site.op == "Gemm" or len(input_shape) < 2:
        return 1
    if site.weight_on_left:
        return math.prod(input_shape[1:-2]) * input_shape[-1]
    return math.prod(input_shape[1:-1])


def _conv_macs(
    kernel_shape: Sequence[int], geometry: Geometry, size: Sequence[int]
) -> tuple[int, tuple[int, ...]]:
    """Return the multiply-adds of a convolution and the spatial shape of what it makes."""
    out = geometry.output_size(size)
    # Every entry of the kernel is used once per output position; of a transposed one, per input.
    grid = size if geometry.transposed else out
    return math.prod(kernel_shape) * math.prod(grid), out
