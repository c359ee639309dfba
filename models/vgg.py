"""VGG-16 and VGG-19: Simonyan and Zisserman, "Very Deep Convolutional Networks" (2014), D and E."""

from __future__ import annotations

import onnx

from models import command_line
from models.builder import GraphBuilder

# (convs, channels in units of the width) of each stage; a 2×2 max pool ends a stage.
DEPTHS = {
    16: ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)),
    19: ((2, 1), (2, 2), (4, 4), (4, 8), (4, 8)),
}


def build(
    *,
    depth: int = 16,
    batch: int | str = 1,
    size: int = 224,
    width: int = 64,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """Write a VGG: ``image (batch, 3, size, size)`` to ``logits (batch, classes)``.

    Parameters
    ----------
    depth
        16 or 19 layers with weights.
    batch
        Batch size, or the name of a dynamic dimension.
    size
        Side of the image in pixels, at least 32.
    width
        Channels of the first conv; the other convs and the two hidden Gemm, of 64 times as many
        features, follow.
    classes
        Number of logits.
    seed
        Seeds the random weights.

    Returns
    -------
    onnx.ModelProto
        138,357,544 parameters and 15.47 GMACs an image at the default width and size for VGG-16,
        143,667,240 and 19.63 for VGG-19.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {sorted(DEPTHS)}, not {depth}")
    net = GraphBuilder(f"vgg{depth}", seed=seed)
    x = image = net.input("image", (batch, 3, size, size))
    channels = 3
    for stage, (convs, multiple) in enumerate(DEPTHS[depth], start=1):
        for index in range(1, convs + 1):
            x = net.conv(
                x,
                channels,
                multiple * width,
                3,
                name=f"conv{stage}_{index}",
                pads=1,
                rectified=x != image,
            )
            x = net.relu(x)
            channels = multiple * width
        x = net.max_pool(x, 2, name=f"pool{stage}")

    hidden = 64 * width
    x = net.flatten(x)
    x = net.relu(net.gemm(x, channels * (size // 32) ** 2, hidden, name="fc6"))
    x = net.relu(net.gemm(x, hidden, hidden, name="fc7"))
    x = net.gemm(x, hidden, classes, name="logits")
    return net.model([x], doc_string=f"VGG-{depth} with random weights")


if __name__ == "__main__":
    command_line.main(build)
