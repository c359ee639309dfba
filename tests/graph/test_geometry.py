"""How a convolution moves: the size of what it makes, and what splitting its axes gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from onnxcp.graph.geometry import Geometry
from tests.convolutions import Case, cases, grid
from tests.networks import run

CASES = grid()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_output_size_is_that_of_onnx_runtime(case: Case) -> None:
    assert case.geometry.output_size(case.size) == run(case.model())[0].shape[2:]


@given(case=cases())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_output_size_of_any_convolution_is_that_of_onnx_runtime(case: Case) -> None:
    assert case.geometry.output_size(case.size) == run(case.model())[0].shape[2:]


@given(case=cases())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_axes_taken_one_after_the_other_make_the_same_size(case: Case) -> None:
    size = case.size
    for axis in range(case.geometry.rank):
        size = case.geometry.on_axes([axis]).output_size(size)
    assert size == case.geometry.output_size(case.size)


@given(case=cases().filter(lambda case: case.op == "Conv"))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_pads_worked_out_make_the_same_convolution(case: Case) -> None:
    pads = case.geometry.pads_for(case.size)
    kept = {key: value for key, value in case.attributes.items() if key != "auto_pad"}
    explicit = replace(case, attributes=kept | {"pads": pads})
    np.testing.assert_allclose(run(explicit.model())[0], run(case.model())[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("auto_pad", "size", "stride", "pads"),
    [
        ("SAME_UPPER", 9, 1, (1, 2)),
        ("SAME_LOWER", 9, 1, (2, 1)),
        ("SAME_UPPER", 9, 2, (1, 2)),
        ("SAME_UPPER", 10, 2, (1, 1)),
        ("SAME_LOWER", 9, 4, (2, 1)),
        ("SAME_UPPER", 8, 4, (0, 0)),
        ("SAME_LOWER", 6, 5, (2, 1)),
        ("SAME_UPPER", 10, 6, (0, 0)),
        ("VALID", 9, 1, (0, 0)),
        ("NOTSET", 9, 1, (3, 1)),
    ],
)
def test_pads_of_an_input(auto_pad: str, size: int, stride: int, pads: tuple[int, int]) -> None:
    attributes = {"auto_pad": auto_pad, "strides": (stride,), "pads": (3, 1)}
    assert Geometry.from_attributes(attributes, (4,)).pads_for((size,)) == pads


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attributes_are_read_back_as_they_were_written(case: Case) -> None:
    written = case.geometry.attributes(group=1)
    transposed = case.op == "ConvTranspose"
    again = Geometry.from_attributes(written, case.kernel, transposed=transposed)
    assert again == case.geometry


def test_what_is_left_out_has_the_defaults_of_the_operator() -> None:
    geometry = Geometry.from_attributes({}, (3, 5))
    assert geometry == Geometry((3, 5), (1, 1), (0, 0, 0, 0), (1, 1), "NOTSET")


@pytest.mark.parametrize("auto_pad", ["VALID", "SAME_UPPER", "SAME_LOWER"])
def test_pads_beside_auto_pad_count_for_nothing(auto_pad: str) -> None:
    """Some releases of ONNX Runtime refuse the two together; those that do not, ignore pads."""
    geometry = Geometry.from_attributes({"auto_pad": auto_pad.encode(), "pads": [1, 2]}, (3,))
    assert geometry.pads == (0, 0)
    assert "pads" not in geometry.attributes(group=1)


def test_an_empty_auto_pad_is_none() -> None:
    geometry = Geometry.from_attributes({"auto_pad": b"", "pads": [1, 2]}, (3,))
    assert geometry == Geometry.from_attributes({"pads": [1, 2]}, (3,))


def test_on_axes_leaves_a_1x1_convolution_elsewhere() -> None:
    whole = Geometry((3, 5), (2, 3), (1, 2, 3, 4), (1, 2), transposed=True, output_padding=(1, 2))
    assert whole.on_axes([1]) == Geometry(
        (1, 5), (1, 3), (0, 2, 0, 4), (1, 2), transposed=True, output_padding=(0, 2)
    )
    assert whole.on_axes([]) == Geometry(
        (1, 1), (1, 1), (0,) * 4, (1, 1), transposed=True, output_padding=(0, 0)
    )
    assert whole.on_axes([0, 1]) == whole
