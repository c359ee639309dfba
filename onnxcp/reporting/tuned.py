"""What fine-tuning did, in words."""

from __future__ import annotations

from onnxcp import units
from onnxcp.training import Epoch, Finetuned, Score


def epoch_line(epoch: Epoch, total: int) -> str:
    """Return one line about an epoch, of so many."""
    best = ", the best so far" if epoch.best else ""
    text = f"epoch {epoch.number} of {total}: loss {epoch.loss:.4g}; held out: "
    return f"{text}loss {epoch.score.loss:.4g}, {_score(epoch.score)}{best}"


def sentences(result: Finetuned) -> list[str]:
    """Return what is to be said about a fine-tuning."""
    count = len(result.epochs)
    length = f"{count} epoch" if count == 1 else f"{count} epochs"
    before, after = result.before, result.after
    if result.improved:
        gains = [f"the error of the outputs went from {before.error:.3g} to {after.error:.3g}"]
        gains += _moved("the same top class", before.agreement, after.agreement)
        gains += _moved("accuracy", before.accuracy, after.accuracy)
        said = [f"Fine-tuned for {length}: on samples that were held out, {', '.join(gains)}."]
    else:
        said = [
            f"Fine-tuned for {length}: nothing was closer on samples that were held out "
            f"({_score(before)}), so the weights are what they were."
        ]
    if not result.grouped:
        said.append(
            "The model does not say which of its weights are factors, so all had the same rate."
        )
    if result.stopped and not result.diverged:
        said.append(result.stopped)
    return said


def _moved(what: str, before: float | None, after: float | None) -> list[str]:
    if before is None or after is None:
        return []
    was, now = (units.share(each, 2) for each in (before, after))
    return [f"{what} stayed at {now}" if was == now else f"{what} from {was} to {now}"]


def _score(score: Score) -> str:
    parts = [f"error {score.error:.3g}"]
    if score.agreement is not None:
        parts.append(f"same top class {units.share(score.agreement, 2)}")
    if score.accuracy is not None:
        parts.append(f"accuracy {units.share(score.accuracy, 2)}")
    return ", ".join(parts)
