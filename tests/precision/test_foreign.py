"""Tools that are not ours: silent, and what they raise is a sentence."""

from __future__ import annotations

import logging

import pytest

from onnxcp.errors import ModelError, OnnxcpError
from onnxcp.precision.foreign import foreign


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("of all\nthese lines."), "'net' cannot be quantized: of all."),
        (RuntimeError(), "'net' cannot be quantized: RuntimeError."),
        (OSError(28, "No space left on device"), "'net' cannot be quantized: [Errno 28] No space"),
    ],
)
def test_what_is_raised_is_a_sentence(error: Exception, sentence: str) -> None:
    with pytest.raises(ModelError) as caught, foreign("'net' cannot be quantized"):
        raise error
    assert str(caught.value).startswith(sentence)


def test_our_own_errors_and_interrupts_pass() -> None:
    for error in (OnnxcpError("ours."), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, foreign("it cannot be done"):
            raise error
        assert caught.value is error


def test_nothing_is_printed_or_logged_within(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with foreign("it cannot be done"):
        print("much")
        logging.getLogger("root").error("more")
    assert capsys.readouterr() == ("", "")
    assert not caplog.records
    logging.getLogger("root").error("heard")
    assert [each.message for each in caplog.records] == ["heard"]
