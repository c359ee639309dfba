"""CharNet at the ranks of Lebedev et al. 2015: CP of rank 64 on conv2 and conv3, weights only.

    python -m benchmarks.charnet

Prints the measured speed-up of the whole network at batch 32 and 1, and the accuracy on the shipped
test set, without the fine-tuning that the paper adds.
"""

from __future__ import annotations

from pathlib import Path

from onnxcp import Settings, optimize

FOLDER = Path(__file__).parent.parent / "models" / "charnet"
PIPELINES = (
    'cp4{rank=64,nodes="conv2 conv3"}',
    'cp3{rank=64,nodes="conv2 conv3"}',
    'cp4{rank=128,nodes="conv2"},cp4{rank=64,nodes="conv3"}',
    'cp3{rank=128,nodes="conv2"},cp3{rank=64,nodes="conv3"}',
)


def main() -> None:
    """Measure and print."""
    print(f"{'pipeline':60} {'batch':>5} {'ms':>6} {'ms':>6} {'speed-up':>24} {'accuracy':>14}")
    for text in PIPELINES:
        for batch in (32, 1):
            result = optimize(
                FOLDER / "charnet.onnx",
                Settings(passes=text, input_shapes={"image": (batch, 1, 24, 24)}),
                labelled=FOLDER / "test.npz",
            )
            seen = result.verification
            assert seen is not None
            assert seen.accuracy is not None
            a, b = (latency.median * 1e3 for latency in (seen.trial.a, seen.trial.b))
            t = seen.trial
            speed = f"{t.ratio:.2f}x ({t.low:.2f} to {t.high:.2f})"
            before, after = (f"{score:.1%}" for score in seen.accuracy)
            print(f"{text:60} {batch:5} {a:6.2f} {b:6.2f} {speed:>24} {before:>6} {after:>6}")


if __name__ == "__main__":
    main()
