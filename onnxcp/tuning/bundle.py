"""Weights as safetensors under the names of the ONNX file, and a script to train them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from onnxcp.errors import DataError
from onnxcp.tuning.module import OnnxModule


def weights_bytes(module: OnnxModule) -> bytes:
    """Return the tensors of a network in the format of safetensors."""
    return save({name: tensor.cpu().contiguous() for name, tensor in module.named_tensors()})


def load_weights(path: Path) -> dict[str, Tensor]:
    """Load tensors by name.

    Raises
    ------
    DataError
        If the file is missing, cannot be read or is not of safetensors.
    """
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"There is no file '{path}'.") from None
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except SafetensorError:
        raise DataError(f"'{path}' is not a safetensors file, or is truncated.") from None


def script(model: str) -> str:
    """Return a script that trains the weights beside a model file of this name."""
    text = Path(__file__).with_name("example.py").read_text(encoding="utf-8")
    return text.replace('"model.onnx"', json.dumps(model))
