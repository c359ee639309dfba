"""Zeros for what a rank has beyond what its neighbours can feed."""

from __future__ import annotations

import numpy as np

from onnxcp.factorize import Floats


def padded(factor: Floats, *sizes: int) -> Floats:
    """Fill the first axes of a factor up with zeros, to the sizes given."""
    lacking = [(0, size - had) for size, had in zip(sizes, factor.shape, strict=False)]
    return np.pad(factor, [*lacking, *((0, 0) for _ in factor.shape[len(sizes) :])])
