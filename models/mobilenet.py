"""MobileNetV2: Sandler et al., "Inverted Residuals and Linear Bottlenecks" (2018), table 2."""

from __future__ import annotations

import onnx

from models import command_line
from models.builder import GraphBuilder

# expansion, channels out, repeats, stride of the first repeat
BOTTLENECKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST, LAST = 32, 1280

# Branches at half scale: the sum of many blocks stays in range without statistics from data.
BRANCH_GAIN = 0.5


def build(
    *,
    batch: int | str = 1,
    size: int = 224,
    width: float = 1.0,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """Write MobileNetV2: ``image (batch, 3, size, size)`` to ``logits (batch, classes)``.

    Parameters
    ----------
    batch
        Batch size, or the name of a dynamic dimension.
    size
        Side of the image in pixels.
    width
        The paper's width multiplier; channels are rounded to multiples of 8, and the last conv
        keeps its 1280 unless the multiplier exceeds 1.
    classes
        Number of logits.
    seed
        Seeds the random weights.

    Returns
    -------
    onnx.ModelProto
        3,504,872 parameters and 0.30 GMACs an image at the default width and size.
    """
    net = GraphBuilder("mobilenet_v2", seed=seed)
    x = net.input("image", (batch, 3, size, size))
    channels = _scaled(FIRST, width)
    x = _conv_norm(net, x, 3, channels, 3, "stem", strides=2, rectified=False)
    block = 0
    for expansion, unscaled, repeats, first_strides in BOTTLENECKS:
        out = _scaled(unscaled, width)
        for index in range(repeats):
            strides = 1 if index else first_strides
            x = _bottleneck(net, x, channels, out, expansion, strides, f"block{block}")
            channels = out
            block += 1
    last = _scaled(LAST, max(1.0, width))
    x = _conv_norm(net, x, channels, last, 1, "head", rectified=False)
    x = net.flatten(net.global_average_pool(x, name="pool"))
    x = net.gemm(x, last, classes, name="logits")
    return net.model([x], doc_string="MobileNetV2 with random weights")


def _bottleneck(
    net: GraphBuilder,
    x: str,
    channels: int,
    out: int,
    expansion: int,
    strides: int,
    name: str,
) -> str:
    residual = strides == 1 and channels == out
    inner = channels * expansion
    branch = x
    if expansion > 1:
        # A linear bottleneck came before, not a ReLU.
        branch = _conv_norm(net, x, channels, inner, 1, f"{name}.expand", rectified=False)
    branch = _conv_norm(
        net, branch, inner, inner, 3, f"{name}.depthwise", strides=strides, group=inner
    )
    branch = net.conv(branch, inner, out, 1, name=f"{name}.project", bias=False)
    norm_gain = BRANCH_GAIN if residual else 1.0
    branch = net.batch_norm(branch, out, name=f"{name}.project.norm", gain=norm_gain)
    return net.add(x, branch, name=f"{name}.add") if residual else branch


def _conv_norm(
    net: GraphBuilder,
    x: str,
    channels_in: int,
    channels_out: int,
    kernel: int,
    name: str,
    *,
    strides: int = 1,
    group: int = 1,
    rectified: bool = True,
) -> str:
    """Conv, BatchNormalization, ReLU6."""
    x = net.conv(
        x,
        channels_in,
        channels_out,
        kernel,
        name=name,
        strides=strides,
        pads=kernel // 2,
        group=group,
        bias=False,
        rectified=rectified,
    )
    return net.clip(net.batch_norm(x, channels_out, name=f"{name}.norm"), 0.0, 6.0)


def _scaled(channels: int, width: float) -> int:
    """Round to a multiple of 8, and never down by more than a tenth, as the authors' code does."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


if __name__ == "__main__":
    command_line.main(build)
