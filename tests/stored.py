"""Models in files, with data inside and outside."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
from onnx.external_data_helper import convert_model_to_external_data

from tests.networks import conv_model


def large() -> onnx.ModelProto:
    """Return a model with a weight above, and a bias below, the size that is stored outside."""
    return conv_model((3, 3), channels=(8, 16))


def stored_outside(folder: Path, *, sizes: int = 0, location: str = "weights.bin") -> Path:
    """Write `large` as onnx does, with its data in another file."""
    path = folder / "model.onnx"
    proto = large()
    convert_model_to_external_data(proto, location=location, size_threshold=sizes)
    onnx.save(proto, path)
    return path


def is_a_sentence(text: str) -> bool:
    """Tell whether a message is one line that begins and ends as a sentence does."""
    return re.fullmatch(r"[A-Z'][^\n]*[^.\n]\.", text) is not None
