"""What was measured once, kept on disk: small values under structured keys.

Every value is a file of its own, ``<folder>/<kind>/<SHA-256 of the key>.json``, written whole as
soon as it is known, so a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import platformdirs

T = TypeVar("T")

_FORMAT = 1  # to be raised where what is kept changes its meaning: old files are not read then
_KIND = re.compile(r"[a-z][a-z0-9-]*")


class Cache:
    """Keeps values across runs, and within one where nothing can be kept on disk.

    Keys and values are what JSON knows: numbers, texts, booleans, None, and lists and mappings by
    text of these. Whatever the order of a key's entries, it is the same key; a tuple is a list, in
    keys and in values. None as a value cannot be told from no value.

    Several processes may use one folder at a time. A file that is damaged, or was made by another
    version, is as good as none. No failure to write stops a run: `problem` tells of it.

    Parameters
    ----------
    folder
        Where to keep values; made when the first comes. None keeps them as long as the object
        lives.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._texts: dict[tuple[str, str], str] = {}
        self._problem: str | None = None

    @classmethod
    def default(cls) -> Cache:
        """Return the cache in the place that the system has for those of a user."""
        return cls(platformdirs.user_cache_path("onnxcp"))

    @property
    def problem(self) -> str | None:
        """One sentence on why something was not kept on disk; None where all was."""
        return self._problem

    def get(self, kind: str, key: Mapping[str, Any]) -> Any | None:
        """Return the value kept under a key, or None.

        Raises
        ------
        ValueError, TypeError
            If the kind is not a word, or the key is not of what JSON knows, such as NaN.
        """
        head = _head(kind, key)
        text = self._texts.get((kind, head))
        if text is None:
            path = self._path(kind, head)
            text = None if path is None else _read(path, head)
            if text is None:
                return None
            self._texts[kind, head] = text
        return json.loads(text)

    def put(self, kind: str, key: Mapping[str, Any], value: Any, *, lasting: bool = True) -> None:
        """Keep a value under a key, in place of any other.

        Parameters
        ----------
        kind
            What is kept, a word such as ``"latency"``: keys of two kinds never meet.
        key
            All that the value depends on.
        value
            The value; finite numbers come back exactly.
        lasting
            Whether to keep it on disk, too; otherwise as long as the object lives.

        Raises
        ------
        ValueError, TypeError
            As `get`; or if the value is not of what JSON knows.
        """
        head = _head(kind, key)
        text = json.dumps(value, allow_nan=False)
        self._texts[kind, head] = text
        path = self._path(kind, head)
        if path is not None and lasting:
            self._write(path, json.dumps({**json.loads(head), "value": value}) + "\n")

    def remember(self, kind: str, key: Mapping[str, Any], make: Callable[[], T]) -> T:
        """Return the value kept under a key; where there is none, make it and keep it.

        What was just made comes as JSON gives it back, too: both ways a tuple is a list.
        """
        if self.get(kind, key) is None:
            self.put(kind, key, make())
        return cast(T, self.get(kind, key))

    def _path(self, kind: str, head: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / kind / f"{hashlib.sha256(head.encode()).hexdigest()}.json"

    def _write(self, path: Path, text: str) -> None:
        """Write a file whole or not at all; of two processes that do so, the later one's stays."""
        temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            reason = error.strerror or error
            self._problem = f"The cache in '{self._folder}' cannot be written to: {reason}."
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _head(kind: str, key: Mapping[str, Any]) -> str:
    """Return what a value's file begins with, as the one text of a key."""
    if not _KIND.fullmatch(kind):
        raise ValueError(f"A kind must be a word in small letters, not {kind!r}.")
    return _canonical({"format": _FORMAT, "key": dict(key)})


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read(path: Path, head: str) -> str | None:
    """Return the text of the value in a file; None if it is not there, damaged, or another's."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        if _canonical({"format": entry["format"], "key": entry["key"]}) != head:
            return None
        # Numbers too large for a float have become infinite; they are refused here.
        return json.dumps(entry["value"], allow_nan=False)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON.")
