"""Train the weights beside this file until the network gives what a teacher gives.

    python finetune.py --teacher original.onnx --data train.npz --epochs 5
    onnxcp import-torch MODEL weights.safetensors -o trained.onnx

The npz has an array for each input of the network, samples along the first axis; no labels are
needed. The weights are overwritten when all epochs are over. This file is yours: change it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from onnxcp.files import atomic_writer
from onnxcp.tuning import to_torch

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model.onnx"
WEIGHTS = FOLDER / "weights.safetensors"


def main() -> None:
    """Load, train and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, required=True, help="the network as it was")
    parser.add_argument("--data", type=Path, required=True, help="an npz file of samples")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-4)
    options = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = to_torch(MODEL)
    student.load_tensors(load_file(WEIGHTS))
    student.to(device).train()
    teacher = to_torch(options.teacher).to(device).eval().requires_grad_(False)
    with np.load(options.data) as arrays:
        samples = [torch.from_numpy(arrays[name]) for name in student.input_names]

    optimizer = torch.optim.AdamW(student.parameters(), options.rate)
    for epoch in range(options.epochs):
        total = 0.0
        for chosen in torch.randperm(len(samples[0])).split(options.batch):
            batch = [x[chosen].to(device) for x in samples]
            loss = distance(student(*batch), teacher(*batch))
            optimizer.zero_grad()
            loss.backward()
            # The gradients of factors can explode where the product is balanced badly.
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            total += loss.item() * len(chosen)
        print(f"epoch {epoch + 1}: loss {total / len(samples[0]):.6g}")

    with atomic_writer(WEIGHTS) as stream:
        stream.write(save({name: x.cpu().contiguous() for name, x in student.named_tensors()}))


def distance(found: Tensor | tuple[Tensor, ...], wanted: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the squared error of all outputs, each relative to its size."""
    if isinstance(found, Tensor) and isinstance(wanted, Tensor):
        return F.mse_loss(found, wanted) / wanted.square().mean()
    return torch.stack([distance(a, b) for a, b in zip(found, wanted, strict=True)]).sum()


if __name__ == "__main__":
    main()
