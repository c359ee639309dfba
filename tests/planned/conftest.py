"""Planning for a small network from end to end, with made-up time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models.builder import GraphBuilder
from onnxcp import Optimized, Settings, optimize
from onnxcp.graph.model import Model
from onnxcp.graph.shapes import infer_shapes
from onnxcp.graph.summary import summarize
from onnxcp.planning import offer
from onnxcp.planning.goal import Goal
from onnxcp.planning.plan import Plan, Row
from onnxcp.refit import RefitSettings
from tests.clockwork import Clockwork, by_macs
from tests.networks import Array

LINEAR = RefitSettings(target="linear")
NAMES = ("one", "two", "three", "four")
SIZE = 8


def kernel(outputs: int, inputs: int, seed: int) -> Array:
    """Return a 3x3 kernel whose singular values fall off, as those of trained networks do."""
    rng = np.random.default_rng(seed)
    u, _, v = np.linalg.svd(rng.standard_normal((outputs, inputs * 9)), full_matrices=False)
    values = 0.8 ** np.arange(len(v))
    scale = np.sqrt(2 * outputs / np.sum(values**2))
    return (scale * (u * values) @ v).reshape(outputs, inputs, 3, 3).astype(np.float32)


def network(batch: int | str = "N") -> onnx.ModelProto:
    """Four convolutions, of which the last has BatchNormalization, and a small classifier."""
    g = GraphBuilder("small")
    x = g.input("image", [batch, 8, SIZE, SIZE])
    x = g.relu(g.conv(x, 8, 16, 3, name="one", pads=1, weight=kernel(16, 8, 1)))
    x = g.relu(g.conv(x, 16, 24, 3, name="two", pads=1, weight=kernel(24, 16, 2)))
    x = g.relu(g.conv(x, 24, 32, 3, name="three", pads=1, weight=kernel(32, 24, 3)))
    x = g.conv(x, 32, 40, 3, name="four", pads=1, weight=kernel(40, 32, 4))
    x = g.relu(g.batch_norm(x, 40, name="norm"))
    x = g.flatten(g.global_average_pool(x, name="pool"), name="flat")
    return g.model([g.gemm(x, 40, 10, name="scores")])


def smooth(n: int, seed: int = 0) -> Array:
    """Return samples in which neighbours and channels hang together."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 8, SIZE, SIZE))
    for axis in (2, 3):
        x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
    x += 2 * x.mean(axis=1, keepdims=True)
    return (x / 10).astype(np.float32)


DATA = {"image": smooth(32)}
data_or_none = pytest.mark.parametrize("data", [None, DATA], ids=["no data", "data"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    """Return made-up time; half as many ranks as usual are offered, which is quicker."""
    monkeypatch.setattr(offer, "SHARES", offer.SHARES[::2])
    return Clockwork(monkeypatch)


class Shared:
    """What the tests here measure of one network: once, since it is the same for all of them."""

    folder: Path | None = None


@pytest.fixture(scope="session", autouse=True)
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    Shared.folder = tmp_path_factory.mktemp("cache")
    yield
    Shared.folder = None


def settings(**options: Any) -> Settings:
    """Return settings of the family that is quickest to decompose."""
    usual = {
        "round_to": 1,
        "families": ("channel-svd",),
        "refit": LINEAR,
        "cache_dir": Shared.folder,
    }
    assert Shared.folder is not None
    return Settings(**{**usual, **options})


def planned(data: Any = None, proto: onnx.ModelProto | None = None, **options: Any) -> Optimized:
    return optimize(proto or network(), settings(**options), data=data)


@functools.cache
def made(goal: Goal, with_data: bool = False) -> Optimized:
    """Return what comes of a goal where time is by multiply-adds everywhere."""
    return planned(DATA if with_data else None, goal=goal)


def serialized(result: Optimized) -> bytes:
    return result.model.proto.SerializeToString(deterministic=True)


def chosen(result: Optimized) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        each.site.name: (each.option.family.name, each.option.ranks)
        for each in result.decisions
        if each.option is not None
    }


def rows(plan: Plan | None) -> dict[str, Row]:
    assert plan is not None
    return {row.site: row for row in plan.sites}


def error(result: Optimized) -> float:
    assert result.verification is not None
    return sum(each.error**2 for each in result.verification.differences) ** 0.5


def penalty(names: tuple[str, ...], factor: float = 10.0) -> Callable[[Model, int], float]:
    """Let a network take much longer as soon as chains of certain sites are in it."""

    def seconds(model: Model, macs: int) -> float:
        prefixes = tuple(f"{name}/" for name in names)
        slow = any(node.name.startswith(prefixes) for node in model.proto.graph.node)
        return by_macs(model, macs) * (factor if slow else 1.0)

    return seconds


def macs_of(proto: onnx.ModelProto) -> int:
    model = Model(proto)
    macs = summarize(model, infer_shapes(model, {"image": (1, 8, SIZE, SIZE)})).macs
    assert macs is not None
    return macs


def run(model: onnx.ModelProto, image: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"image": image})[0]
    return found
