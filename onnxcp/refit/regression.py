"""What the fits of a site share: regression on its moments, and what a fit came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.calibration.statistics import Observed
from onnxcp.factorize import Factorized
from onnxcp.linalg.moments import Moments, penalty, ridge

Array = npt.NDArray[Any]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the ridge, from weak to strong."""

_PLENTY = 4  # rows for each unknown of an output, from which on the weakest ridge will do


@dataclass(frozen=True, eq=False)
class Trial:
    """Factors that were fitted, the bias that goes with them, and their squared error."""

    choice: Factorized
    factors: tuple[Array, ...]
    bias: Array
    error: float

    @property
    def kernel(self) -> Array:
        """The kernel that the factors stand for, ``(T, P)``."""
        site = self.choice.site
        return self.choice.family.kernel(site, self.factors).reshape(site.outputs, -1)


def regression(seen: Observed, prior: Array) -> tuple[Array, float]:
    """Regress targets on inputs, group by group, with a ridge as strong as held-out data ask for.

    Returns the kernel ``(T, P)`` and its squared error.
    """
    best: tuple[Array, float] | None = None
    priors = np.split(prior, len(seen.fit))
    plenty = all(moments.count >= _PLENTY * len(moments.xx) for moments in seen.fit)
    for strength in STRENGTHS[:1] if plenty else STRENGTHS:
        groups = zip(seen.fit, priors, strict=True)
        kernel = np.concatenate([ridge(moments, each, strength) for moments, each in groups])
        error = seen.error(kernel)
        if best is not None and error >= best[1]:
            break
        best = kernel, error
    assert best is not None
    return best


def metric(moments: Moments) -> Array:
    """Return the covariance of input patches, positive definite, in the type to work in."""
    gram = moments.gram.copy()
    np.fill_diagonal(gram, gram.diagonal() + penalty(moments, STRENGTHS[0]))
    return gram
