"""What is done to pictures on their way into training, so that few count for many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxcp.errors import DataError

Batch = dict[str, Tensor]
Augment = Callable[[Batch, torch.Generator], Batch]
"""Given the inputs of a batch by name, and what to draw from, returns others of the same shapes."""


def parse_augment(text: str) -> Augment:
    """Return what a text such as ``"flip,crop:4"`` says, one after the other.

    ``flip`` mirrors half of the pictures left to right; ``crop:4`` moves each by up to 4 pixels in
    either direction, where its borders are repeated. All inputs of four axes, N×C×H×W, are taken
    for pictures, and those of one sample are treated alike.

    Raises
    ------
    DataError
        If there is no such augmentation, or its number is none.
    """
    steps = [_parsed(part.strip()) for part in text.split(",")] if text.strip() else []

    def apply(batch: Batch, generator: torch.Generator) -> Batch:
        pictures = {name: x for name, x in batch.items() if x.ndim == 4}
        for step in steps:
            pictures = step(pictures, generator)
        return {**batch, **pictures}

    return apply


def _parsed(text: str) -> Augment:
    name, colon, number = text.partition(":")
    if name == "flip" and not colon:
        return _flip
    if name == "crop" and number.isdecimal() and int(number) > 0:
        margin = int(number)
        return lambda batch, generator: _crop(batch, generator, margin)
    raise DataError(f"There is no augmentation '{text}'; there are: flip, crop:PIXELS.")


def _flip(batch: Batch, generator: torch.Generator) -> Batch:
    mirrored = torch.rand(_count(batch), 1, 1, 1, generator=generator) < 0.5
    return {name: torch.where(mirrored, x.flip(3), x) for name, x in batch.items()}


def _crop(batch: Batch, generator: torch.Generator, margin: int) -> Batch:
    places = torch.randint(0, 2 * margin + 1, (_count(batch), 2), generator=generator).tolist()
    return {name: _cut(x, places, margin) for name, x in batch.items()}


def _count(batch: Batch) -> int:
    return max((len(x) for x in batch.values()), default=0)


def _cut(x: Tensor, places: list[list[int]], margin: int) -> Tensor:
    height, width = x.shape[2:]
    rows, columns = (torch.arange(-margin, n + margin).clamp(0, n - 1) for n in x.shape[2:])
    wide = x[:, :, rows][:, :, :, columns]
    cuts = [
        each[:, top : top + height, left : left + width]
        for each, (top, left) in zip(wide, places, strict=True)
    ]
    return torch.stack(cuts)
