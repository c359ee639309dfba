"""CharNet as ONNX, with random or given weights.

The network of Jaderberg et al. 2014, "Deep features for text spotting", which Lebedev et al. 2015
speed up by CP decomposition: four convolutions with maxout on a grey picture of 24×24::

    9×9 1→96, maxout 2 | 9×9 48→128, maxout 2 | 8×8 64→512, maxout 4 | 1×1 128→144, maxout 4

A maxout takes the largest of channels that stand C / k apart: Split and Max.

    python -m models.charnet.build --help
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from models import command_line
from models.builder import Dimension, GraphBuilder

LAYERS = (  # name, kernel, channels in, channels out, maxout
    ("conv1", 9, 1, 96, 2),
    ("conv2", 9, 48, 128, 2),
    ("conv3", 8, 64, 512, 4),
    ("conv4", 1, 128, 144, 4),
)


def build(*, batch: Dimension = "N", seed: int = 0) -> onnx.ModelProto:
    """Write CharNet with random weights: ``image`` to ``probabilities (batch, 36)``.

    Parameters
    ----------
    batch
        Batch size, or the name of a dynamic dimension.
    seed
        Seeds the random weights.

    Returns
    -------
    onnx.ModelProto
        2,621,904 parameters and 36.0 MMACs a picture.
    """
    return _build(batch, seed, {})


def build_from(weights: Mapping[str, np.ndarray], *, batch: Dimension = "N") -> onnx.ModelProto:
    """Build CharNet with given weights.

    Parameters
    ----------
    weights
        float32 arrays ``conv1.weight`` (T, S, k, k) and ``conv1.bias`` (T,), and so on to
        ``conv4``; those left out are random.
    batch
        As of `build`.

    Returns
    -------
    onnx.ModelProto
        As of `build`.
    """
    return _build(batch, 0, weights)


def _build(batch: Dimension, seed: int, given: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    g = GraphBuilder("charnet", seed=seed)
    x = g.input("image", [batch, 1, 24, 24])
    for name, kernel, inputs, outputs, pieces in LAYERS:
        x = g.conv(
            x,
            inputs,
            outputs,
            kernel,
            name=name,
            weight=given.get(f"{name}.weight"),
            bias=given.get(f"{name}.bias", True),
            rectified=False,
        )
        x = _maxout(g, x, pieces, name=f"maxout{name[-1]}")
    x = g.softmax(g.flatten(x, name="scores"), name="probabilities")
    return g.model([x], doc_string="CharNet: characters 0-9 and A-Z in 24x24 grey pictures, 0..255")


def _maxout(g: GraphBuilder, x: str, pieces: int, *, name: str) -> str:
    parts = g.split(x, pieces, name=f"{name}/split")
    return g.node("Max", parts, name=name)


if __name__ == "__main__":
    command_line.main(build)
