"""A classifier, a rewritten copy of it, and samples to train on."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcp import Context, FactorizePass, Model, load
from onnxcp.passes import find_pass
from onnxcp.training import Finetuned, Training
from onnxcp.tuning import finetune
from tests.cli.conftest import CLASSES, network, samples
from tests.networks import noise

QUICK = Training(epochs=2, batch=16, device="cpu", rate=3e-3)


def rewritten(
    model: onnx.ModelProto | Model, *, family: str = "cp3", rank: int | tuple[int, ...] = 6
) -> Model:
    kind = find_pass(family)
    assert issubclass(kind, FactorizePass)
    return kind(rank=rank, nodes="conv").run(load(model), Context()).model


def teacher() -> onnx.ModelProto:
    return network()


def student() -> Model:
    return rewritten(network())


def with_idle_weights() -> Model:
    """Return the student with a weight that nothing reads, and one that no output depends on."""
    model = student()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.node.append(helper.make_node("Conv", ["x", "idle"], ["unread"], name="idle"))
    for name in ("idle", "spare"):
        proto.graph.initializer.append(numpy_helper.from_array(noise(3, 16, 1, 1), name))
    return model.with_proto(proto)


@functools.cache
def tuned(optimizer: str = QUICK.optimizer, augment: str = QUICK.augment) -> Finetuned:
    """Return what comes of the student in a quick training: the same every time."""
    settings = replace(QUICK, optimizer=optimizer, augment=augment)
    return finetune(student(), teacher(), data(), settings)


def data(count: int = 80, *, labelled: bool = False) -> dict[str, Any]:
    arrays: dict[str, Any] = {"x": samples(count)}
    if labelled:
        arrays["label"] = np.arange(count) % CLASSES
    return arrays
