"""Compare what two models compute, batch by batch, so that outputs are never all in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcp.errors import DataError

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
#: Runs a model on one batch and returns its outputs in a fixed order.
Infer = Callable[[Batch], Sequence[Array]]


def batch_size(feeds: Batch) -> int:
    """Return how many samples feeds hold."""
    return max((len(value) for value in feeds.values() if value.ndim), default=1)


def first_samples(batches: Iterable[Batch], count: int) -> list[Batch]:
    """Return the first batches that hold so many samples together."""
    found: list[Batch] = []
    for batch in batches:
        if count <= 0:
            break
        found.append(batch)
        count -= batch_size(batch)
    return found


# More classes than this are a vocabulary or an embedding, not a classification.
_MAX_CLASSES = 100_000


@dataclass(frozen=True)
class OutputDifference:
    """How one output of model b differs from that of model a, over all batches.

    Attributes
    ----------
    name
        The output.
    problem
        Why the outputs cannot be compared, as a sentence; "" if they can.
    max_abs, mean_abs
        Largest and mean |b - a|. None unless the output is of floats.
    relative
        ‖b - a‖ / ‖a‖, Frobenius, over all batches together. None unless of floats.
    cosine
        Cosine of the angle between a and b, over all batches together. None unless of floats.
    equal
        Share of equal elements, where the output is of whole numbers, truth values or strings.
    top1_agreement
        Share of samples with the same largest class. None unless the output is of floats and of
        shape N×C or N×C×1×1, with 2 to 100 000 classes.
    kl
        Mean Kullback-Leibler divergence, in nats, of the classes that b gives from those of a:
        softmax of the scores, or the scores themselves where they are probabilities. None as
        `top1_agreement`, and where it is not finite.
    finite_a, finite_b
        Whether all values are finite. Equal infinities, and two NaNs, count as no difference; any
        other pair with a non-finite value is an infinite one, and `cosine` leaves such pairs out.
    """

    name: str
    problem: str = ""
    max_abs: float | None = None
    mean_abs: float | None = None
    relative: float | None = None
    cosine: float | None = None
    equal: float | None = None
    top1_agreement: float | None = None
    kl: float | None = None
    finite_a: bool = True
    finite_b: bool = True

    @property
    def error(self) -> float:
        """One number: `relative`, or the share of unequal elements, or inf if not comparable."""
        if self.relative is not None:
            return self.relative
        return math.inf if self.equal is None else 1 - self.equal


def compare(
    run_a: Infer, run_b: Infer, batches: Iterable[Batch], names: Sequence[str]
) -> tuple[OutputDifference, ...]:
    """Run two models on the same batches and compare their outputs.

    Parameters
    ----------
    run_a
        The reference.
    run_b
        What is compared with it.
    batches
        Feeds; read once, one at a time.
    names
        Names of the outputs, in the order in which both models return them.

    Raises
    ------
    DataError
        If there are no batches, or a model does not return one output for every name.
    """
    sums = [_Sums(name) for name in names]
    empty = True
    for batch in batches:
        empty = False
        outputs_a, outputs_b = run_a(batch), run_b(batch)
        for which, outputs in (("first", outputs_a), ("second", outputs_b)):
            if len(outputs) != len(names):
                raise DataError(
                    f"The {which} model has {len(outputs)} outputs, not the {len(names)} to "
                    f"compare: {', '.join(map(repr, names))}."
                )
        for total, a, b in zip(sums, outputs_a, outputs_b, strict=True):
            total.add(a, b)
    if empty:
        raise DataError("There is no data to compare the models on.")
    return tuple(total.result() for total in sums)


def accuracy(run: Infer, batches: Iterable[Batch], labels: Array, output: int = 0) -> float:
    """Return the share of samples whose largest output is at the class of their label.

    Parameters
    ----------
    run
        The model.
    batches
        Feeds; read once, one at a time.
    labels
        The class of every sample of all batches, in their order.
    output
        Which output holds the scores (N×C, N×C×1×1) or the classes themselves (N whole numbers).

    Raises
    ------
    DataError
        If the output is not of such a shape, or there are not as many labels as samples.
    """
    labels = np.asarray(labels).reshape(-1)
    right = samples = 0
    for batch in batches:
        classes = _classes(run(batch)[output])
        expected = labels[samples : samples + len(classes)]
        samples += len(classes)
        if samples <= len(labels):
            right += int(np.count_nonzero(classes == expected))
    if samples != len(labels) or not samples:
        raise DataError(f"There are {len(labels)} labels for {samples} samples.")
    return right / samples


def _classes(output: Array) -> Array:
    if output.ndim == 1 and output.dtype.kind in "iu":
        return output
    scores = _scores(output)
    if scores is None:
        raise DataError(
            "Accuracy needs an output of class scores, samples × classes, and this one is of "
            f"shape {output.shape} and type {output.dtype}."
        )
    classes: Array = np.argmax(scores, axis=1)
    return classes


def _scores(output: Array) -> Array | None:
    """Return class scores as samples × classes, or None if that is not what the output is."""
    if output.ndim == 4 and output.shape[2:] == (1, 1):
        output = output[:, :, 0, 0]
    if output.ndim != 2 or not _is_float(output) or not 2 <= output.shape[1] <= _MAX_CLASSES:
        return None
    return output


def _is_float(array: Array) -> bool:
    # bfloat16 and the float8 types of ml_dtypes are of kind V; structured types do not occur.
    return array.dtype.kind in "fV"


class _Sums:
    """What has to be kept of one output while batches pass."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problem = ""
        self.floats = True
        self.count = 0
        self.equal = 0
        self.max_abs = self.sum_abs = 0.0
        self.square_difference = self.square_a = 0.0
        self.dot = self.finite_square_a = self.finite_square_b = 0.0
        self.finite_a = self.finite_b = True
        self.samples = self.agreeing = 0
        self.divergence = 0.0

    def add(self, a: Array, b: Array) -> None:
        self.problem = self.problem or _mismatch(self.name, a, b)
        if self.problem:
            return
        self.count += a.size
        self.floats = _is_float(a)
        if self.floats:
            self._add_floats(a, b)
        else:
            self.equal += int(np.count_nonzero(a == b))

    def _add_floats(self, a: Array, b: Array) -> None:
        scores_a, scores_b = _scores(a), _scores(b)
        if scores_a is not None and scores_b is not None:
            self.samples += len(scores_a)
            same = np.argmax(scores_a, axis=1) == np.argmax(scores_b, axis=1)
            self.agreeing += int(np.count_nonzero(same))
            self.divergence += _divergence(scores_a, scores_b)

        a, b = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
        finite_a, finite_b = np.isfinite(a), np.isfinite(b)
        self.finite_a &= bool(finite_a.all())
        self.finite_b &= bool(finite_b.all())
        both = finite_a & finite_b
        if not both.all():
            alike = (a == b) | (np.isnan(a) & np.isnan(b))
            if not (both | alike).all():
                self.max_abs = self.sum_abs = self.square_difference = math.inf
            self.square_a += float(np.sum(np.square(a[finite_a & ~both])))
            a, b = a[both], b[both]
        difference = np.abs(b - a)
        square_a = float(a @ a)
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        self.sum_abs += float(difference.sum())
        self.square_difference += float(difference @ difference)
        self.square_a += square_a
        self.finite_square_a += square_a
        self.finite_square_b += float(b @ b)
        self.dot += float(a @ b)

    def _kl(self) -> float | None:
        known = self.samples and math.isfinite(self.divergence)
        return max(self.divergence, 0.0) / self.samples if known else None

    def result(self) -> OutputDifference:
        if self.problem:
            return OutputDifference(self.name, problem=self.problem)
        if not self.floats:
            return OutputDifference(self.name, equal=_share(self.equal, self.count))
        return OutputDifference(
            self.name,
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / max(self.count, 1),
            relative=_ratio(math.sqrt(self.square_difference), math.sqrt(self.square_a)),
            cosine=_cosine(self.dot, self.finite_square_a, self.finite_square_b),
            top1_agreement=_share(self.agreeing, self.samples) if self.samples else None,
            kl=self._kl(),
            finite_a=self.finite_a,
            finite_b=self.finite_b,
        )


def _divergence(a: Array, b: Array) -> float:
    """Return the divergence of classes, summed over samples; NaN where values are not finite."""
    with np.errstate(all="ignore"):
        first, second = _log_probabilities(a), _log_probabilities(b)
        terms = np.exp(first) * (first - second)
    return float(np.sum(terms, where=first != -np.inf))


def _log_probabilities(scores: Array) -> Array:
    scores = scores.astype(np.float64)
    if scores.min(initial=0.0) >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        # A class that has lost all of its probability to rounding counts as one of float32 would.
        return np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    shifted: Array = scores - scores.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _mismatch(name: str, a: Any, b: Any) -> str:
    """Say why two outputs cannot be compared; "" if they can."""
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return f"Output '{name}' is no tensor, and only tensors are compared."
    if a.shape != b.shape:
        return f"Output '{name}' is of shape {a.shape} in one model and {b.shape} in the other."
    if _is_float(a) != _is_float(b):
        return f"Output '{name}' is of type {a.dtype} in one model and {b.dtype} in the other."
    return ""


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _ratio(difference: float, reference: float) -> float:
    if difference == 0:
        return 0.0
    return difference / reference if reference else math.inf


def _cosine(dot: float, square_a: float, square_b: float) -> float:
    if square_a == 0 or square_b == 0:
        return 1.0 if square_a == square_b else 0.0
    return max(-1.0, min(1.0, dot / math.sqrt(square_a) / math.sqrt(square_b)))
