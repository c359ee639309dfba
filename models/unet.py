"""A small U-Net: Ronneberger, Fischer and Brox (2015), with padded convs.

Zero padding keeps the sides, so that skip connections need no cropping and the output is as large
as the input.
"""

from __future__ import annotations

import onnx

from models import command_line
from models.builder import GraphBuilder


def build(
    *,
    batch: int | str = 1,
    size: int = 128,
    channels: int = 1,
    width: int = 16,
    levels: int = 3,
    classes: int = 2,
    seed: int = 0,
) -> onnx.ModelProto:
    """Write a U-Net: ``image (batch, channels, size, size)`` to ``logits (batch, classes, ...)``.

    Parameters
    ----------
    batch
        Batch size, or the name of a dynamic dimension.
    size
        Side of the image in pixels, a multiple of ``2**levels``.
    channels
        Channels of the image.
    width
        Channels of the first level; each level below has twice as many. The paper has 64.
    levels
        How often the image is halved. The paper has 4.
    classes
        Number of logits of each pixel.
    seed
        Seeds the random weights.

    Returns
    -------
    onnx.ModelProto
        481,762 parameters and 0.58 GMACs an image by default.
    """
    if size % 2**levels:
        raise ValueError(f"size must be a multiple of {2**levels}, not {size}")

    net = GraphBuilder("unet", seed=seed)
    x = image = net.input("image", (batch, channels, size, size))
    skips = []
    for level in range(levels):
        x = _two_convs(net, x, channels, width * 2**level, f"down{level}", rectified=x != image)
        skips.append(x)
        x = net.max_pool(x, 2, name=f"down{level}.pool")
        channels = width * 2**level
    x = _two_convs(net, x, channels, 2 * channels, "bottom")
    for level in reversed(range(levels)):
        out = width * 2**level
        x = net.conv_transpose(x, 2 * out, out, 2, name=f"up{level}.upsample", strides=2)
        x = net.concat([skips[level], x], name=f"up{level}.concat")
        x = _two_convs(net, x, 2 * out, out, f"up{level}")
    x = net.conv(x, width, classes, 1, name="logits")
    return net.model([x], doc_string="A small U-Net with random weights")


def _two_convs(
    net: GraphBuilder,
    x: str,
    channels_in: int,
    channels_out: int,
    name: str,
    *,
    rectified: bool = True,
) -> str:
    x = net.conv(x, channels_in, channels_out, 3, name=f"{name}.conv1", pads=1, rectified=rectified)
    x = net.conv(net.relu(x), channels_out, channels_out, 3, name=f"{name}.conv2", pads=1)
    return net.relu(x)


if __name__ == "__main__":
    command_line.main(build)
