"""AlexNet: Krizhevsky, Sutskever and Hinton (2012), in the single-tower form of Caffe.

Convs 2, 4 and 5 are grouped in two, a leftover of the two GPUs of the paper; responses are
normalised after ReLU 1 and 2. Caffe's ``bvlc_alexnet`` has these layer names and k = 1 in the
normalisation where the paper has 2.
"""

from __future__ import annotations

import onnx

from models import command_line
from models.builder import GraphBuilder


def build(
    *,
    batch: int | str = 1,
    size: int = 227,
    width: int = 96,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """Write AlexNet: ``image (batch, 3, size, size)`` to ``logits (batch, classes)``.

    Parameters
    ----------
    batch
        Batch size, or the name of a dynamic dimension.
    size
        Side of the image in pixels, at least 67.
    width
        Channels of the first conv, a multiple of 6; the others and the hidden layers follow.
    classes
        Number of logits.
    seed
        Seeds the random weights.

    Returns
    -------
    onnx.ModelProto
        60,965,224 parameters and 0.72 GMACs an image at the default width and size.
    """
    if width % 6:
        raise ValueError(f"width must be a multiple of 6, not {width}")
    wide, wider, hidden = width * 8 // 3, width * 4, width * 128 // 3

    net = GraphBuilder("alexnet", seed=seed)
    x = net.input("image", (batch, 3, size, size))
    x = net.relu(net.conv(x, 3, width, 11, name="conv1", strides=4, rectified=False))
    x = _normalise(net, x, "norm1")
    x = net.max_pool(x, 3, name="pool1", strides=2)
    x = net.relu(net.conv(x, width, wide, 5, name="conv2", pads=2, group=2))
    x = _normalise(net, x, "norm2")
    x = net.max_pool(x, 3, name="pool2", strides=2)
    x = net.relu(net.conv(x, wide, wider, 3, name="conv3", pads=1))
    x = net.relu(net.conv(x, wider, wider, 3, name="conv4", pads=1, group=2))
    x = net.relu(net.conv(x, wider, wide, 3, name="conv5", pads=1, group=2))
    x = net.max_pool(x, 3, name="pool5", strides=2)

    side = (size - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    x = net.flatten(x)
    x = net.relu(net.gemm(x, wide * side**2, hidden, name="fc6"))
    x = net.relu(net.gemm(x, hidden, hidden, name="fc7"))
    x = net.gemm(x, hidden, classes, name="logits")
    return net.model([x], doc_string="AlexNet with random weights")


def _normalise(net: GraphBuilder, x: str, name: str) -> str:
    return net.node("LRN", [x], name=name, size=5, alpha=1e-4, beta=0.75, bias=1.0)


if __name__ == "__main__":
    command_line.main(build)
