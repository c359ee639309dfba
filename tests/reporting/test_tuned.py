from __future__ import annotations

from dataclasses import replace

import pytest

from onnxcp.reporting.tuned import epoch_line, sentences
from tests.reporting.conftest import tuned


def test_an_epoch_is_one_line() -> None:
    (epoch,) = tuned(0.9, 0.95).epochs
    assert epoch_line(epoch, 3) == (
        "epoch 1 of 3: loss 1.5; held out: loss 1, error 0.1, same top class 95.00 %, "
        "the best so far"
    )


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (0.95, "the same top class from 90.00 % to 95.00 %"),
        (0.85, "the same top class from 90.00 % to 85.00 %"),
        (0.9, "the same top class stayed at 90.00 %"),
    ],
)
def test_what_was_gained(after: float, said: str) -> None:
    assert sentences(tuned(0.9, after)) == [
        "Fine-tuned for 1 epoch: on samples that were held out, the error of the outputs went from "
        f"0.2 to 0.1, {said}."
    ]


def test_accuracy_where_there_are_labels() -> None:
    plain = tuned(0.9, 0.95)
    before, after = replace(plain.before, accuracy=0.8), replace(plain.after, accuracy=0.85)
    (sentence,) = sentences(replace(plain, before=before, after=after))
    assert sentence.endswith(" % to 95.00 %, accuracy from 80.00 % to 85.00 %.")


def test_nothing_gained() -> None:
    assert sentences(tuned(0.9, 0.9, improved=False)) == [
        "Fine-tuned for 1 epoch: nothing was closer on samples that were held out (error 0.2, same "
        "top class 90.00 %), so the weights are what they were."
    ]


def test_what_else_is_to_be_known() -> None:
    result = replace(tuned(0.9, 0.95), grouped=False, stopped="Nothing was better for 2 epochs.")
    assert sentences(result)[1:] == [
        "The model does not say which of its weights are factors, so all had the same rate.",
        "Nothing was better for 2 epochs.",
    ]
    # An error says it then.
    assert "Nothing was better" not in " ".join(sentences(replace(result, diverged=True)))
