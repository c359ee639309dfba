"""ResNet-18 and ResNet-50: He et al., "Deep Residual Learning for Image Recognition" (2015).

As in torchvision: post-activation blocks (v1), projection shortcuts where the shape changes
(option B), and in ResNet-50 the stride in the 3×3 conv. Convs have no bias; BatchNormalization
follows each as its own node.
"""

from __future__ import annotations

import onnx

from models import command_line
from models.builder import GraphBuilder

# depth: (blocks of each stage, channels out of a block over the channels within)
DEPTHS = {18: ((2, 2, 2, 2), 1), 50: ((3, 4, 6, 3), 4)}

# Branches at half scale: the sum of many blocks stays in range without statistics from data.
BRANCH_GAIN = 0.5


def build(
    *,
    depth: int = 18,
    batch: int | str = 1,
    size: int = 224,
    width: int = 64,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """Write a ResNet: ``image (batch, 3, size, size)`` to ``logits (batch, classes)``.

    Parameters
    ----------
    depth
        18, of basic blocks, or 50, of bottlenecks.
    batch
        Batch size, or the name of a dynamic dimension.
    size
        Side of the image in pixels.
    width
        Channels of the first conv; the others follow.
    classes
        Number of logits.
    seed
        Seeds the random weights.

    Returns
    -------
    onnx.ModelProto
        At the default width and size, 11,689,512 parameters and 1.81 GMACs an image for
        ResNet-18, 25,557,032 and 4.09 for ResNet-50.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {sorted(DEPTHS)}, not {depth}")
    stages, expansion = DEPTHS[depth]

    net = GraphBuilder(f"resnet{depth}", seed=seed)
    x = net.input("image", (batch, 3, size, size))
    x = net.relu(_conv_norm(net, x, 3, width, 7, "conv1", "bn1", strides=2, rectified=False))
    x = net.max_pool(x, 3, name="maxpool", strides=2, pads=1)
    channels = width
    for stage, blocks in enumerate(stages):
        inner = width * 2**stage
        for index in range(blocks):
            strides = 2 if stage and not index else 1
            prefix = f"layer{stage + 1}.{index}"
            x = _block(net, x, channels, inner, expansion, strides, prefix)
            channels = inner * expansion
    x = net.flatten(net.global_average_pool(x, name="avgpool"))
    x = net.gemm(x, channels, classes, name="logits")
    return net.model([x], doc_string=f"ResNet-{depth} with random weights")


def _block(
    net: GraphBuilder,
    x: str,
    channels: int,
    inner: int,
    expansion: int,
    strides: int,
    prefix: str,
) -> str:
    outer = inner * expansion
    # (channels out, kernel, strides) of each conv of the branch
    convs = [(inner, 3, strides), (inner, 3, 1)]
    if expansion > 1:
        convs = [(inner, 1, 1), (inner, 3, strides), (outer, 1, 1)]

    branch, width = x, channels
    for index, (out, kernel, step) in enumerate(convs, start=1):
        last = index == len(convs)
        branch = _conv_norm(
            net,
            branch,
            width,
            out,
            kernel,
            f"{prefix}.conv{index}",
            f"{prefix}.bn{index}",
            strides=step,
            gain=BRANCH_GAIN if last else 1.0,
        )
        branch, width = branch if last else net.relu(branch), out

    if strides > 1 or channels != outer:
        names = (f"{prefix}.downsample.0", f"{prefix}.downsample.1")
        x = _conv_norm(net, x, channels, outer, 1, *names, strides=strides)
    return net.relu(net.add(branch, x, name=f"{prefix}.add"))


def _conv_norm(
    net: GraphBuilder,
    x: str,
    channels_in: int,
    channels_out: int,
    kernel: int,
    conv: str,
    norm: str,
    *,
    strides: int = 1,
    gain: float = 1.0,
    rectified: bool = True,
) -> str:
    x = net.conv(
        x,
        channels_in,
        channels_out,
        kernel,
        name=conv,
        strides=strides,
        pads=kernel // 2,
        bias=False,
        rectified=rectified,
    )
    return net.batch_norm(x, channels_out, name=norm, gain=gain)


if __name__ == "__main__":
    command_line.main(build)
