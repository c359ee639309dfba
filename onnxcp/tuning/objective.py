"""What training makes small: the distance of a network's outputs to those of its teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxcp.errors import DataError
from onnxcp.training import Score, Training

_MAX_CLASSES = 100_000  # as `onnxcp.profiling.compare` has it
_SCORES, _PROBABILITIES, _VALUES = "scores", "probabilities", "values"

Outputs = Sequence[Tensor]


class Objective:
    """Compares outputs, each in the way of its kind, which the teacher's first outputs show.

    Class scores and probabilities (N×C, N×C×1×1) are compared by the Kullback-Leibler divergence
    of their softmaxes at a temperature T, times T², so that gradients keep their size (Hinton et
    al. 2015, section 2.1); all else of floating point by its squared error, relative to the square
    of what it should be. The rest is left alone.

    Attributes
    ----------
    weights
        Of the terms: outputs, those matched within the network, and labels.
    """

    def __init__(
        self,
        names: Sequence[str],
        wanted: Outputs,
        matched: int,
        training: Training,
        labelled: bool,
    ) -> None:
        self._temperature = training.temperature
        self._kinds = [_kind(each) for each in wanted]
        self._own = len(wanted) - matched
        self._used = [n for n, kind in enumerate(self._kinds) if kind is not None]
        if not any(n < self._own for n in self._used):
            raise DataError(
                f"No output is of floating point, to be trained: {', '.join(map(repr, names))}."
            )
        classes = (n for n, kind in enumerate(self._kinds[: self._own]) if _has_classes(kind))
        self._classes = next(classes, None)
        self._count = 0 if self._classes is None else _flat(wanted[self._classes]).shape[1]
        self._labelled = labelled and self._classes is not None
        share = training.match / max(matched, 1)
        weights = [1.0 if n < self._own else share for n in self._used]
        self.weights = torch.tensor([*weights, training.label_weight], dtype=torch.float64)

    def check(self, labels: npt.NDArray[np.int64] | None) -> None:
        """Refuse labels that are no classes of the output that has classes.

        Raises
        ------
        DataError
            If they are not, or if no output has classes.
        """
        if labels is None:
            return
        if self._classes is None:
            raise DataError("There are labels, and no output is of classes.")
        if labels.min() < 0 or labels.max() >= self._count:
            raise DataError(
                f"Labels reach from {labels.min()} to {labels.max()}, and there are {self._count} "
                "classes."
            )

    def terms(self, found: Outputs, wanted: Outputs, labels: Tensor | None) -> Tensor:
        """Return, for every term, a distance and what to divide it by; sums over samples.

        Those of several batches can be added.
        """
        rows = [self._distance(str(self._kinds[n]), found[n], wanted[n]) for n in self._used]
        rows.append(self._to_labels(found, labels))
        return torch.stack([torch.stack(row) for row in rows])

    def loss(self, terms: Tensor) -> Tensor:
        """Return one number from terms."""
        ratios = terms[:, 0] / terms[:, 1].clamp_min(torch.finfo(terms.dtype).tiny)
        return (self.weights.to(ratios) * ratios).sum()

    def facts(self, found: Outputs, wanted: Outputs, labels: Tensor | None) -> Tensor:
        """Return sums that a score is made of besides: error, agreement and accuracy."""
        zero = torch.zeros((), dtype=torch.float64, device=found[0].device)
        error, square, same, right = zero, zero, zero, zero
        for n in self._used:
            if n < self._own:
                error = error + (found[n].double() - wanted[n].double()).square().sum()
                square = square + wanted[n].double().square().sum()
        count = zero
        if self._classes is not None:
            top = _flat(found[self._classes]).argmax(dim=1)
            same = (top == _flat(wanted[self._classes]).argmax(dim=1)).sum().double()
            count = zero + len(top)
            if labels is not None:
                right = (top == labels).sum().double()
        return torch.stack([error, square, same, right, count])

    def score(self, terms: Tensor, facts: Tensor) -> Score:
        """Return the score that sums over all batches come to."""
        error, square, same, right, count = facts.tolist()
        return Score(
            loss=float(self.loss(terms)),
            error=(error / square) ** 0.5 if square else float(error > 0),
            agreement=same / count if count else None,
            accuracy=right / count if count and self._labelled else None,
        )

    def _distance(self, kind: str, found: Tensor, wanted: Tensor) -> list[Tensor]:
        if kind == _VALUES:
            return [(found - wanted).square().sum(), wanted.square().sum()]
        t = self._temperature
        a = F.log_softmax(_logits(kind, found) / t, dim=1)
        b = F.log_softmax(_logits(kind, wanted) / t, dim=1)
        divergence = F.kl_div(a, b, reduction="sum", log_target=True)
        return [t * t * divergence.clamp_min(0), divergence.new_tensor(len(found))]

    def _to_labels(self, found: Outputs, labels: Tensor | None) -> list[Tensor]:
        if labels is None or not self._labelled or self._classes is None:
            zero = found[self._used[0]].new_zeros(())
            return [zero, zero]
        kind = self._kinds[self._classes]
        logits = _logits(kind, found[self._classes])
        return [F.cross_entropy(logits, labels, reduction="sum"), logits.new_tensor(len(labels))]


def _kind(output: Tensor) -> str | None:
    if not output.is_floating_point():
        return None
    flat = output.ndim == 4 and output.shape[2:] == (1, 1)
    if not (output.ndim == 2 or flat) or not 2 <= output.shape[1] <= _MAX_CLASSES:
        return _VALUES
    scores = _flat(output)
    sums = scores.sum(dim=1)
    likely = bool((scores >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    return _PROBABILITIES if likely else _SCORES


def _has_classes(kind: str | None) -> bool:
    return kind in (_SCORES, _PROBABILITIES)


def _flat(output: Tensor) -> Tensor:
    return output.reshape(len(output), -1)


def _logits(kind: str | None, output: Tensor) -> Tensor:
    scores = _flat(output)
    # A class that has lost its probability to rounding has no gradient, either.
    return scores.clamp_min(1e-12).log() if kind == _PROBABILITIES else scores
