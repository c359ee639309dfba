"""Multiply-adds and parameters, held to figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.cp import Cp3, Cp4
from onnxcp_passes.spatial_svd import SpatialSvd
from onnxcp_passes.tucker import Tucker2

from onnxcp.factorize import FactorizePass
from onnxcp.graph.chain import (
    Chain,
    ConvStep,
    MatrixStep,
    PickStep,
    chain_macs,
    positions,
    site_macs,
)
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.site import Site
from tests.networks import conv_model, model_of, noise, only_site


def conv_site(**options: object) -> Site:
    """Return a site of 4 -> 6 channels and a 3x3 kernel; what it reads is 8 x 10."""
    return only_site(conv_model((3, 3), size=(8, 10), **options))  # type: ignore[arg-type]


INPUT = (2, 4, 8, 10)
WEIGHTS = 6 * 4 * 9


@pytest.mark.parametrize(
    ("options", "macs"),
    [
        ({}, WEIGHTS * 6 * 8),
        ({"pads": (1, 1, 1, 1)}, WEIGHTS * 8 * 10),
        ({"strides": (2, 2)}, WEIGHTS * 3 * 4),
        ({"strides": (2, 1), "pads": (1, 0, 0, 2)}, WEIGHTS * 4 * 10),
        ({"dilations": (2, 3)}, WEIGHTS * 4 * 4),
        ({"auto_pad": "SAME_UPPER", "strides": (2, 3)}, WEIGHTS * 4 * 4),
        ({"auto_pad": "VALID", "strides": (1, 3)}, WEIGHTS * 6 * 3),
        ({"group": 2}, WEIGHTS // 2 * 6 * 8),
        ({"bias": False}, WEIGHTS * 6 * 8),
        # A transposed convolution uses its whole kernel at every position of the input.
        ({"op": "ConvTranspose"}, WEIGHTS * 8 * 10),
        ({"op": "ConvTranspose", "strides": (2, 2), "group": 2}, WEIGHTS // 2 * 8 * 10),
    ],
)
def test_a_convolution(options: dict[str, object], macs: int) -> None:
    site = conv_site(**options)
    assert site_macs(site, INPUT) == macs
    assert site_macs(site, (100, *INPUT[1:])) == macs, "for one sample, whatever the batch"


STRIDED = {"strides": (2, 2), "pads": (1, 1, 1, 1)}  # 8 x 10 -> 4 x 5


@pytest.mark.parametrize(
    ("family", "ranks", "options", "macs"),
    [
        # k conv 4 -> 3 on the output's grid, 1x1 conv 3 -> 6 on it too.
        (ChannelSvd(), (3,), STRIDED, (4 * 3 * 9 + 3 * 6) * 4 * 5),
        # 3x1 conv, strided down: 4 -> 5 on 4 x 10; 1x3 conv, strided across: 5 -> 6 on 4 x 5.
        (SpatialSvd(), (5,), STRIDED, 4 * 5 * 3 * 4 * 10 + 5 * 6 * 3 * 4 * 5),
        # 1x1 conv 4 -> 2 on the input's grid; k conv 2 -> 3 and 1x1 conv 3 -> 6 on the output's.
        (Tucker2(), (2, 3), STRIDED, 4 * 2 * 8 * 10 + (2 * 3 * 9 + 3 * 6) * 4 * 5),
        # 1x1 conv 4 -> 7 on the input's grid; depthwise k conv and 1x1 conv 7 -> 6 on the output's.
        (Cp3(), (7,), STRIDED, 4 * 7 * 8 * 10 + (7 * 9 + 7 * 6) * 4 * 5),
        # the same with depthwise 3x1 on 4 x 10 and depthwise 1x3 on 4 x 5.
        (Cp4(), (7,), STRIDED, 4 * 7 * 8 * 10 + 7 * 3 * 4 * 10 + (7 * 3 + 7 * 6) * 4 * 5),
        # Each of two groups has the ranks.
        (ChannelSvd(), (2,), {"group": 2}, (4 * 2 * 9 + 2 * 6) * 6 * 8),
        (Tucker2(), (1, 2), {"group": 2}, 4 * 1 * 8 * 10 + (2 * 1 * 2 * 9 + 2 * 6) * 6 * 8),
        # Transposed to 17 x 21: only the 1x1 conv behind it runs on the output's grid.
        (
            ChannelSvd(),
            (3,),
            {"op": "ConvTranspose", "strides": (2, 2)},
            4 * 3 * 9 * 8 * 10 + 3 * 6 * 17 * 21,
        ),
        # Down on 8 x 10 to 17 x 10; across on that to 17 x 21.
        (
            SpatialSvd(),
            (5,),
            {"op": "ConvTranspose", "strides": (2, 2)},
            4 * 5 * 3 * 8 * 10 + 5 * 6 * 3 * 17 * 10,
        ),
        # Where the stride outgrows the kernel, SAME does not reach 32: 8 x 10 becomes 31 x 20.
        (
            ChannelSvd(),
            (1,),
            {"op": "ConvTranspose", "strides": (4, 2), "auto_pad": "SAME_UPPER"},
            4 * 9 * 8 * 10 + 6 * 31 * 20,
        ),
    ],
)
def test_a_chain(
    family: FactorizePass, ranks: tuple[int, ...], options: dict[str, object], macs: int
) -> None:
    site = conv_site(**options)
    assert chain_macs(site, family.sketch(site, ranks), INPUT) == macs


@pytest.mark.parametrize(
    ("op", "left", "shape", "vectors"),
    [
        ("Gemm", False, (5, 8), 1),
        ("MatMul", False, (8,), 1),
        ("MatMul", False, (5, 8), 1),
        ("MatMul", False, (2, 5, 8), 5),
        ("MatMul", False, (2, 3, 5, 8), 15),
        ("MatMul", True, (8, 5), 5),
        ("MatMul", True, (2, 8, 5), 5),
        ("MatMul", True, (2, 3, 8, 5), 15),
    ],
)
def test_a_matrix_is_applied_to_every_vector_of_a_sample(
    op: str, left: bool, shape: tuple[int, ...], vectors: int
) -> None:
    weight = noise(6, 8) if left else noise(8, 6)
    node = helper.make_node(op, ["w", "x"] if left else ["x", "w"], ["y"], name="product")
    site = only_site(model_of([node], inputs={"x": shape}, weights={"w": weight}))
    assert positions(site, shape) == vectors
    assert site_macs(site, shape) == 48 * vectors
    chain = Chain((MatrixStep(noise(2, 8)), MatrixStep(noise(6, 2))))
    assert chain_macs(site, chain, shape) == (16 + 12) * vectors


def test_parameters_are_those_of_all_steps_without_bias() -> None:
    geometry = Geometry.pointwise(2)
    steps = (
        ConvStep(np.zeros((3, 4, 1, 1), np.float32), geometry),
        ConvStep(np.zeros((3, 1, 3, 3), np.float32), geometry, 3),
    )
    assert Chain(steps).parameters == 12 + 27
    site = conv_site()
    assert site.parameters == WEIGHTS
    assert ChannelSvd().sketch(site, (3,)).parameters == 4 * 3 * 9 + 3 * 6


def test_a_sketch_takes_no_memory() -> None:
    chain = ChannelSvd().sketch(conv_site(), (10**9,))
    assert chain.parameters == 10**9 * (4 * 9 + 6)


def test_rows_that_are_summed_are_counted_together() -> None:
    """What picks channels multiplies nothing; their numbers are stored like weights."""
    site = conv_site(**STRIDED)
    assert site.geometry is not None
    low = ChannelSvd().sketch(site, (3,))
    point = ConvStep(np.zeros((6, 2, 1, 1)), replace(site.geometry, kernel=(1, 1), pads=(0,) * 4))
    chain = replace(low, beside=((PickStep(np.array([0, 2])), point),))
    assert chain.rows == (low.steps, *chain.beside)
    assert chain_macs(site, chain, INPUT) == chain_macs(site, low, INPUT) + 6 * 2 * 4 * 5
    assert chain.parameters == low.parameters + 6 * 2 + 2
