"""C3D: Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks" (2015).

Eight 3×3×3 convs, five pools and three Gemm; narrow by default.
"""

from __future__ import annotations

import onnx

from models import command_line
from models.builder import GraphBuilder

# (convs, channels in units of the width) of each stage; a max pool ends a stage.
STAGES = ((1, 1), (1, 2), (2, 4), (2, 8), (2, 8))


def build(
    *,
    batch: int | str = 1,
    frames: int = 16,
    size: int = 112,
    width: int = 8,
    classes: int = 101,
    seed: int = 0,
) -> onnx.ModelProto:
    """Write C3D: ``clip (batch, 3, frames, size, size)`` to ``logits (batch, classes)``.

    Parameters
    ----------
    batch
        Batch size, or the name of a dynamic dimension.
    frames
        Length of the clip, at least 16.
    size
        Side of the frames in pixels, at least 16.
    width
        Channels of the first conv; the other convs and the two hidden Gemm, of 64 times as many
        features, follow. The paper has 64.
    classes
        Number of logits.
    seed
        Seeds the random weights.

    Returns
    -------
    onnx.ModelProto
        1,272,261 parameters and 0.72 GMACs a clip by default.
    """
    net = GraphBuilder("c3d", seed=seed)
    x = clip = net.input("clip", (batch, 3, frames, size, size))
    channels = 3
    for stage, (convs, multiple) in enumerate(STAGES, start=1):
        for index in range(convs):
            x = net.conv(
                x,
                channels,
                multiple * width,
                (3, 3, 3),
                name=f"conv{stage}{'ab'[index]}",
                pads=1,
                rectified=x != clip,
            )
            x = net.relu(x)
            channels = multiple * width
        # Time is first pooled in the second stage; the last pool pads, for 112 / 16 is odd.
        kernel = (1, 2, 2) if stage == 1 else (2, 2, 2)
        pads = (0, 1, 1) if stage == len(STAGES) else (0, 0, 0)
        x = net.max_pool(x, kernel, name=f"pool{stage}", pads=pads)

    features = channels * (frames // 16) * (size // 32 + 1) ** 2
    hidden = 64 * width
    x = net.flatten(x)
    x = net.relu(net.gemm(x, features, hidden, name="fc6"))
    x = net.relu(net.gemm(x, hidden, hidden, name="fc7"))
    x = net.gemm(x, hidden, classes, name="logits")
    return net.model([x], doc_string="C3D with random weights")


if __name__ == "__main__":
    command_line.main(build)
