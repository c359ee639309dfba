"""A keyword spotter of 1-D convs over time, after TC-ResNet8.

Choi et al., "Temporal Convolution for Real-time Keyword Spotting on Mobile Devices" (2019): mel
bands are channels, and time is the only axis convolved over. Two dilated residual blocks are added
at the end, and the mel features may be learned from the waveform by one wide strided conv.
"""

from __future__ import annotations

import onnx

from models import command_line
from models.builder import GraphBuilder

BANDS = 40
# A 25 ms window every 10 ms, at 16 kHz.
WINDOW, HOP = 400, 160

# (channels in units of the width, strides, dilation) of each residual block, kernel 9
BLOCKS = ((3, 2, 1), (4, 2, 1), (6, 2, 1), (6, 1, 2), (6, 1, 4))
KERNEL = 9

# Branches at half scale: the sum of many blocks stays in range without statistics from data.
BRANCH_GAIN = 0.5


def build(
    *,
    batch: int | str = 1,
    size: int = 16000,
    waveform: bool = True,
    width: int = 8,
    classes: int = 12,
    seed: int = 0,
) -> onnx.ModelProto:
    """Write the spotter: ``audio`` or ``features`` to ``probabilities (batch, classes)``.

    Parameters
    ----------
    batch
        Batch size, or the name of a dynamic dimension.
    size
        Length of the input: samples at 16 kHz, or frames where `waveform` is false. One second
        is 16000 samples or 101 frames.
    waveform
        Whether the input is ``audio (batch, 1, size)`` or ``features (batch, 40, size)``.
    width
        Channels are multiples of this; the paper's are of 8.
    classes
        Number of keywords.
    seed
        Seeds the random weights.

    Returns
    -------
    onnx.ModelProto
        By default 164,548 parameters and 4.3 MMACs a second of audio.
    """
    net = GraphBuilder("keywords", seed=seed)
    if waveform:
        x = net.input("audio", (batch, 1, size))
        x = net.conv(
            x,
            1,
            BANDS,
            (WINDOW,),
            name="bands",
            strides=HOP,
            pads=WINDOW // 2,
            rectified=False,
        )
        x = net.relu(x)
    else:
        x = net.input("features", (batch, BANDS, size))

    channels = 2 * width
    x = net.relu(_conv_norm(net, x, BANDS, channels, 3, "stem", rectified=waveform))
    for index, (multiple, strides, dilation) in enumerate(BLOCKS):
        out = multiple * width
        x = _block(net, x, channels, out, strides, dilation, f"block{index}")
        channels = out
    x = net.flatten(net.global_average_pool(x, name="pool"))
    x = net.gemm(x, channels, classes, name="logits")
    x = net.softmax(x, name="probabilities")
    return net.model([x], doc_string="A keyword spotter with random weights")


def _block(
    net: GraphBuilder,
    x: str,
    channels: int,
    out: int,
    strides: int,
    dilation: int,
    name: str,
) -> str:
    branch = _conv_norm(
        net, x, channels, out, KERNEL, f"{name}.conv1", strides=strides, dilation=dilation
    )
    branch = _conv_norm(
        net,
        net.relu(branch),
        out,
        out,
        KERNEL,
        f"{name}.conv2",
        dilation=dilation,
        gain=BRANCH_GAIN,
    )
    if strides > 1 or channels != out:
        x = net.relu(_conv_norm(net, x, channels, out, 1, f"{name}.shortcut", strides=strides))
    return net.relu(net.add(branch, x, name=f"{name}.add"))


def _conv_norm(
    net: GraphBuilder,
    x: str,
    channels_in: int,
    channels_out: int,
    kernel: int,
    name: str,
    *,
    strides: int = 1,
    dilation: int = 1,
    gain: float = 1.0,
    rectified: bool = True,
) -> str:
    x = net.conv(
        x,
        channels_in,
        channels_out,
        (kernel,),
        name=name,
        strides=strides,
        pads=dilation * (kernel // 2),
        dilations=dilation,
        bias=False,
        rectified=rectified,
    )
    return net.batch_norm(x, channels_out, name=f"{name}.norm", gain=gain)


if __name__ == "__main__":
    command_line.main(build)
