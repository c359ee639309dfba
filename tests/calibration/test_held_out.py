"""The samples that refits hold out are those that networks are judged by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import helper

from onnxcp.calibration.data import Data, load_data
from onnxcp.calibration.statistics import _drawn_rows, held_out
from onnxcp.graph.model import load
from onnxcp.graph.site import Site, find_sites
from onnxcp.profiling.inputs import InputSpec, session_inputs
from onnxcp.profiling.machine import Machine
from tests.networks import Array, model_of, noise


@pytest.fixture(scope="module")
def site() -> Site:
    return find_sites(load(network()))[0][0]


def network() -> object:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    return model_of(nodes, inputs={"x": ("N", 2, 3, 3)}, weights={"w": noise(4, 2, 3, 3)})


def specs() -> list[InputSpec]:
    return list(session_inputs(Machine().open(load(network()))))


def numbered(count: int) -> Array:
    """Return samples that hold their numbers."""
    return np.broadcast_to(
        np.arange(count, dtype=np.float32)[:, None, None, None], (count, 2, 3, 3)
    )


def drawn(
    site: Site, given: Array, target: Array, _: int, __: object
) -> Iterator[tuple[Array, ...]]:
    yield np.arange(len(given)), given.reshape(len(given), -1), target.reshape(len(target), -1)


@pytest.mark.parametrize(("count", "size"), [(256, 32), (200, 200), (250, 1), (1000, 32)])
def test_are_the_same(site: Site, count: int, size: int) -> None:
    data = load_data({"x": numbered(count)}, specs())
    pairs = [(batch["x"], batch["x"][:, :1]) for batch in data.batches(size)]
    held, fitted = set(), set()
    for x, _, aside in _drawn_rows(site, pairs, len(pairs), count, drawn, 0):
        held |= set(x[aside, 0].tolist())
        fitted |= set(x[~aside, 0].tolist())
    judges = held_out(data)
    assert judges is not None
    assert {each["x"][0, 0, 0, 0] for each in judges.batches(1)} == held
    assert not held & fitted
    assert len(judges) == count // 8


def test_too_few_are_none() -> None:
    assert held_out(load_data({"x": numbered(100)}, specs())) is None


@pytest.mark.parametrize(
    ("batch", "count", "used"), [(32, 250, None), (24, 250, 24), (256, 1024, None)]
)
def test_of_a_network_that_insists_on_a_batch(batch: int, count: int, used: int | None) -> None:
    """What does not fill a batch cannot be run."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    proto = model_of(nodes, inputs={"x": (batch, 2, 3, 3)}, weights={"w": noise(4, 2, 3, 3)})
    fixed = list(session_inputs(Machine().open(load(proto))))
    judges = held_out(load_data({"x": numbered(count)}, fixed))
    assert (None if judges is None else judges.used) == used


def test_of_samples_of_several_shapes() -> None:
    shapes = [(60, 2, 3, 3), (140, 2, 5, 5)]
    data = load_data([{"x": noise(*shape)} for shape in shapes], specs_of_any_size())
    judges = held_out(data)
    assert judges is not None
    assert [len(part) for part in judges.parts] == [7, 18]
    assert isinstance(judges, Data)
    (first, _) = judges.parts
    np.testing.assert_array_equal(first.arrays["x"], data.parts[0].arrays["x"][7::8])


def specs_of_any_size() -> list[InputSpec]:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    proto = model_of(nodes, inputs={"x": ("N", 2, "H", "W")}, weights={"w": noise(4, 2, 3, 3)})
    return list(session_inputs(Machine().open(load(proto))))
