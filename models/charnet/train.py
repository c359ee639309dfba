"""Train CharNet on rendered characters and write the files beside this one.

Needs the extra `train` and the Debian fonts of `models.charnet.fonts`; users of the shipped files
need neither::

    python -m models.charnet.train

The network is trained on pictures of 0 to 255, brought to mean 0 and deviation 1 by two constants;
the first convolution of the shipped network takes these constants in, which is exact because it
has no padding. AdamW with dropout ahead of the last two convolutions and the cosine schedule;
polarity, contrast, brightness and place vary from one presentation to the next. The network is
written after every epoch, so that a run cut short leaves its last whole epoch.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from models.charnet.build import build_from
from models.charnet.fonts import split
from models.charnet.render import render

HERE = Path(__file__).parent
MEAN, DEVIATION = 127.5, 64.0

TRAIN_SEED, CALIBRATION_SEED, TEST_SEED = 1, 2, 3

BATCH, WARM_UP = 128, 200
"""Pictures in a step, and steps over which the learning rate grows."""


class CharNet(nn.Module):
    """The network of Jaderberg et al. 2014, on standardised pictures ``(N, 1, 24, 24)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 96, 9)
        self.conv2 = nn.Conv2d(48, 128, 9)
        self.conv3 = nn.Conv2d(64, 512, 8)
        self.conv4 = nn.Conv2d(128, 144, 1)
        for layer in self.children():
            nn.init.normal_(layer.weight, std=math.sqrt(1 / layer.weight[0].numel()))
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores ``(N, 36)``."""
        x = maxout(self.conv1(x), 2)
        x = functional.dropout2d(maxout(self.conv2(x), 2), 0.1, self.training)
        x = functional.dropout(maxout(self.conv3(x), 4), 0.4, self.training)
        return maxout(self.conv4(x), 4).flatten(1)


def maxout(x: torch.Tensor, pieces: int) -> torch.Tensor:
    """Take the largest of `pieces` channels that stand C / pieces apart."""
    # The gradient of torch.amax shares ties out and takes four times as long.
    first, *rest = x.chunk(pieces, dim=1)
    for other in rest:
        first = torch.maximum(first, other)
    return first


def train(
    network: CharNet,
    pictures: np.ndarray,
    labels: np.ndarray,
    epochs: int,
    *,
    learning_rate: float,
    weight_decay: float,
    minutes: float = math.inf,
) -> Iterator[CharNet]:
    """Train a network in place and yield it after every epoch; prints loss and score.

    Ends after so many epochs or minutes, whichever comes first: the learning rate falls along a
    cosine of the larger share used up.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    batches = len(pictures) // BATCH
    begin, losses, hits = time.time(), [], []

    def used(step: int) -> float:
        return max(step / (epochs * batches), (time.time() - begin) / (60 * minutes))

    def rate(step: int) -> float:
        return min(step / WARM_UP, 1) * 0.5 * (1 + math.cos(math.pi * min(used(step), 1)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    rng = np.random.default_rng(0)
    while used(len(losses)) < 1:
        network.train()
        for chosen in rng.permutation(len(pictures))[: batches * BATCH].reshape(batches, BATCH):
            if used(len(losses)) >= 1:
                break
            y = torch.from_numpy(labels[chosen])
            scores = network(vary(standardise(pictures[chosen])))
            loss = functional.cross_entropy(scores, y)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            hits.append((scores.argmax(1) == y).float().mean().item())
            if len(losses) % 100 == 0:
                print(
                    f"step {len(losses)}/{epochs * batches} loss {np.mean(losses[-100:]):.3f} "
                    f"accuracy {np.mean(hits[-100:]):.3f} {time.time() - begin:.0f} s",
                    flush=True,
                )
        yield network.eval()


def standardise(pictures: np.ndarray) -> torch.Tensor:
    """Bring uint8 pictures to about mean 0 and deviation 1."""
    return (torch.from_numpy(pictures).float() - MEAN) / DEVIATION


def vary(x: torch.Tensor) -> torch.Tensor:
    """Change polarity, contrast and brightness of each picture, and shift the batch by a pixel."""
    sign = torch.randint(0, 2, (len(x), 1, 1, 1)) * 2.0 - 1
    contrast = torch.empty(len(x), 1, 1, 1).uniform_(0.7, 1.3)
    x = x * sign * contrast + torch.randn(len(x), 1, 1, 1) * 0.15
    down, right = (int(n) for n in torch.randint(0, 3, (2,)))
    wide = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    return wide[:, :, down : down + x.shape[2], right : right + x.shape[3]]


def unshipped(model: onnx.ModelProto) -> CharNet:
    """Return a shipped network as torch's, for standardised pictures."""
    weights = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}
    weights["conv1.bias"] += MEAN * weights["conv1.weight"].sum((1, 2, 3))
    weights["conv1.weight"] *= DEVIATION
    network = CharNet()
    network.load_state_dict(weights)
    return network


def shipped(network: CharNet) -> onnx.ModelProto:
    """Return the network as ONNX, for pictures of 0 to 255."""
    weights = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    first = weights["conv1.weight"] / DEVIATION
    weights["conv1.bias"] -= MEAN * first.sum(axis=(1, 2, 3))
    weights["conv1.weight"] = first
    return build_from(weights)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.charnet.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--pictures", type=int, default=200_000, help="default: 200000")
    parser.add_argument("--epochs", type=int, default=4, help="default: 4")
    parser.add_argument("--resume", type=Path, help="go on from this charnet.onnx")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak (default: 1e-3)")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="default: 0.1")
    parser.add_argument("--minutes", type=float, default=math.inf, help="default: no limit")
    parser.add_argument("--workers", type=int, default=2, help="rendering processes (default: 2)")
    parser.add_argument("--output", type=Path, default=HERE, help="folder (default: this one)")
    options = parser.parse_args()

    train_faces, test_faces = split()
    calibration, _ = render(train_faces, 1000, CALIBRATION_SEED)
    test, test_labels = render(test_faces, 5400, TEST_SEED)
    np.savez_compressed(options.output / "calibration.npz", image=calibration)
    np.savez_compressed(options.output / "test.npz", image=test, label=test_labels)
    pictures, labels = render(train_faces, options.pictures, TRAIN_SEED, workers=options.workers)

    torch.manual_seed(0)
    start = unshipped(onnx.load(options.resume)) if options.resume else CharNet()
    for network in train(
        start,
        pictures,
        labels,
        options.epochs,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        minutes=options.minutes,
    ):
        with torch.no_grad():
            guesses = torch.cat([network(standardise(x)) for x in np.array_split(test, 20)])
        print(f"test accuracy {(guesses.argmax(1).numpy() == test_labels).mean():.4f}", flush=True)
        onnx.save(shipped(network), options.output / "charnet.onnx")


if __name__ == "__main__":
    main()
