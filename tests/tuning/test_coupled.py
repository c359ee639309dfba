"""Factors that several layers share stay one tensor in PyTorch and on the way back."""

from __future__ import annotations

from pathlib import Path

import torch

from onnxcp.graph.model import Model, load, save
from onnxcp.passes import Context
from onnxcp.pipeline import parse_pipeline
from onnxcp.training import Training
from onnxcp.tuning import finetune, from_torch, to_torch
from tests.networks import difference, noise, run
from tests.repeated import readers, repeated, shared

FULLY = [(3, 6, 1, 1), (3, 3, 3, 3), (6, 3, 1, 1)]
TRAINING = Training(epochs=3, batch=16, device="cpu", rate=3e-3)


def teacher() -> Model:
    return repeated(batch="n")


def student(text: str = "common=3,independent=1,partial=false") -> Model:
    (each,) = parse_pipeline(f"coupled-tensor-train{{{text}}}")
    return each.run(teacher(), Context()).model


def shared_names(model: Model) -> set[str]:
    return {name for name, count in readers(model).items() if count > 1}


def test_a_shared_factor_is_one_parameter_with_the_gradients_of_all_its_readers() -> None:
    model = student()
    module = to_torch(model)
    tensors = dict(module.named_tensors())
    assert set(tensors) == {tensor.name for tensor in model.proto.graph.initializer}
    module(torch.from_numpy(noise(2, 6, 8, 8, seed=1))).square().sum().backward()
    gradients = dict(zip(tensors, (p.grad for p in module.parameters()), strict=True))
    assert all(gradients[name] is not None for name in shared_names(model))


def test_tensors_come_back_as_they_went() -> None:
    model = student()
    assert from_torch(model, to_torch(model)) is model
    module = to_torch(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.01)
    back = from_torch(model, module)
    assert shared(back) == FULLY
    made = module(torch.from_numpy(noise(2, 6, 8, 8, seed=1))).detach().numpy()
    assert difference(run(back, {"x": noise(2, 6, 8, 8, seed=1)})[0], made) < 1e-5


def test_fine_tuning_keeps_factors_shared_and_comes_closer(tmp_path: Path) -> None:
    model = student()
    found = finetune(model, teacher(), {"x": noise(96, 6, 8, 8, seed=4)}, TRAINING)
    assert found.improved
    assert found.after.error < found.before.error
    assert shared_names(found.model) == shared_names(model)
    assert found.model.file_nbytes == model.file_nbytes
    moved = [
        name for name in shared_names(model) if stored(model, name) != stored(found.model, name)
    ]
    assert len(moved) == 3
    save(found.model, tmp_path / "tuned.onnx")
    assert shared(load(tmp_path / "tuned.onnx")) == FULLY


def stored(model: Model, name: str) -> bytes:
    return next(t.raw_data for t in model.proto.graph.initializer if t.name == name)
