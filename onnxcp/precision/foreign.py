"""Calling the quantizer, its calibrators and the float16 converter of ONNX Runtime."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from onnxcp.errors import ModelError, OnnxcpError


@contextmanager
def foreign(failure: str) -> Iterator[None]:
    """Keep what these tools log and print off the terminal, and say in a sentence that they failed.

    They raise whatever the library beneath them raises, and have no error of their own, so any
    error but ours is theirs.

    Parameters
    ----------
    failure
        What cannot be done to which model: the beginning of the sentence.

    Raises
    ------
    ModelError
        If anything is raised within.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # where they cannot optimise, they go on without, and say so
    try:
        with contextlib.redirect_stdout(None):
            yield
    except OnnxcpError:
        raise
    except Exception as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(f"{failure}: {detail}.") from error
    finally:
        logging.disable(before)
