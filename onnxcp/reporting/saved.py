"""Reading back what `onnxcp optimize --json` printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from onnxcp.errors import RecordError
from onnxcp.reporting.html import render
from onnxcp.reporting.page import Page
from onnxcp.reporting.record import SCHEMA

_HOW = "is no record that `onnxcp optimize --json` printed"


def load_page(path: Path) -> Page:
    """Return the page that is kept in a record.

    Raises
    ------
    RecordError
        If the file cannot be read, is no record of the main job, or one of another schema.
    """
    record = _parsed(path)
    if not isinstance(record, dict) or "schema" not in record:
        raise RecordError(f"'{path}' {_HOW}: there is no 'schema' in it.")
    if record["schema"] != SCHEMA:
        raise RecordError(
            f"'{path}' is a record of schema {record['schema']!r}; this onnxcp reads {SCHEMA}."
        )
    if "report" not in record:
        raise RecordError(f"'{path}' {_HOW}: there is no 'report' in it.")
    try:
        return TypeAdapter(Page).validate_python(record["report"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("report", *first["loc"])))
        said = first["msg"][:1].lower() + first["msg"][1:]
        raise RecordError(f"'{path}' {_HOW}: in '{where}', {said}.") from error


def rendered(path: Path) -> str:
    """Return the page that is kept in a record as HTML.

    Raises
    ------
    RecordError
        As `load_page`, or if what it tells cannot be drawn: numbers that contradict each other.
    """
    page = load_page(path)
    try:
        text = render(page)
        text.encode()
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        said = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise RecordError(f"'{path}' {_HOW}: its report cannot be drawn ({said}).") from error
    return text


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RecordError(f"There is no file '{path}'.") from None
    except IsADirectoryError:
        raise RecordError(f"'{path}' is a directory; name the file of a record.") from None
    except (OSError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "it is nested too deeply"
        raise RecordError(f"Cannot read '{path}': {reason}.") from error
    except ValueError as error:  # no JSON, no UTF-8, or a name that no file can have
        raise RecordError(f"'{path}' {_HOW}: {str(error).rstrip('.')}.") from error
