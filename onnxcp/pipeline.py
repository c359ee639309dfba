"""Pipeline text: ``fold-batchnorm,cp4{rank=64,nodes="conv2*"}``.

Grammar::

    pipeline := pass ("," pass)*
    pass     := NAME [ "{" [ option ("," option)* ] "}" ]
    option   := NAME "=" value
    value    := INT | FLOAT | "true" | "false" | "none" | WORD | STRING | "(" [ INT ("," INT)* ] ")"

Where an option is a text, what stands there without quotes is taken to the letter: ``nodes=007``.
Parsing undoes formatting: ``str`` of each pass, joined by commas, parses to equal passes.
"""

from __future__ import annotations

import json
import re
import types
import typing
from dataclasses import dataclass, fields
from typing import Any

from onnxcp.errors import PassError
from onnxcp.passes import Pass, find_pass, format_option

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<word>[\w*?./\[\]:+-]+)
      | (?P<mark>[{}(),=])
    )""",
    re.VERBOSE,
)
_INT = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|nan)")
_NAMED = {"true": True, "false": False, "none": None}


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """Make the passes that a pipeline text describes.

    Raises
    ------
    PassError
        If the text is not well formed, or names a pass or an option that there is not, or gives an
        option a value that it does not take.
    """
    return _Parser(text).pipeline()


@dataclass(frozen=True)
class _Word:
    """A value without quotes: a number or a name for one, or a text."""

    text: str

    @property
    def value(self) -> object:
        if _INT.fullmatch(self.text):
            return int(self.text)
        if _FLOAT.fullmatch(self.text):
            return float(self.text)
        return _NAMED.get(self.text, self.text)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(f"'{text[position:].strip()[:20]}' is not understood")
            assert match.lastgroup is not None
            self._tokens.append((match.lastgroup, match.group(match.lastgroup)))
            position = match.end()

    def pipeline(self) -> tuple[Pass, ...]:
        passes = [self._pass()]
        while self._tokens:
            self._expect(",")
            passes.append(self._pass())
        return tuple(passes)

    def _pass(self) -> Pass:
        kind = find_pass(self._word("the name of a pass"))
        given: dict[str, Any] = {}
        if self._next_is("{"):
            self._expect("{")
            while not self._next_is("}"):
                if given:
                    self._expect(",")
                key = self._word("the name of an option").replace("-", "_")
                if key in given:
                    raise self._error(f"option '{key}' is given twice")
                self._expect("=")
                given[key] = _convert(kind, key, self._value())
            self._expect("}")
        return kind(**given)

    def _value(self) -> object:
        kind, token = self._take("a value")
        if kind == "word":
            return _Word(token)
        if kind == "string":
            try:
                return json.loads(token)
            except ValueError:
                raise self._error(f"{token} is not a text as JSON writes it") from None
        if token != "(":
            raise self._error(f"a value was expected, not '{token}'")
        items: list[object] = []
        while not self._next_is(")"):
            if items:
                self._expect(",")
            item = self._value()
            items.append(item.value if isinstance(item, _Word) else item)
        self._expect(")")
        return tuple(items)

    def _next_is(self, mark: str) -> bool:
        return bool(self._tokens) and self._tokens[0] == ("mark", mark)

    def _take(self, wanted: str) -> tuple[str, str]:
        if not self._tokens:
            raise self._error(f"{wanted} was expected at its end")
        return self._tokens.pop(0)

    def _word(self, wanted: str) -> str:
        kind, token = self._take(wanted)
        if kind != "word":
            raise self._error(f"{wanted} was expected, not '{token}'")
        return token

    def _expect(self, mark: str) -> None:
        _, token = self._take(f"'{mark}'")
        if token != mark:
            raise self._error(f"'{mark}' was expected, not '{token}'")

    def _error(self, what: str) -> PassError:
        return PassError(f'In the pipeline "{self._text}", {what}.')


def _convert(kind: type[Pass], key: str, value: object) -> object:
    """Check a value against the type of an option; an int serves as a float."""
    hints = typing.get_type_hints(kind)
    if key not in {f.name for f in fields(kind)}:
        known = ", ".join(f.name for f in fields(kind)) or "none"
        raise PassError(f"Pass '{kind.name}' has no option '{key}'; its options are: {known}.")
    hint = hints[key]
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    allowed = typing.get_args(hint) if is_union else (hint,)
    meant = value.value if isinstance(value, _Word) else value
    if any(_fits(meant, each) for each in allowed):
        return meant
    if float in allowed and _fits(meant, int):
        return float(typing.cast(int, meant))
    if str in allowed and isinstance(value, _Word):
        return value.text
    names = " or ".join(_type_name(each) for each in allowed)
    raise PassError(
        f"Option '{key}' of pass '{kind.name}' takes {names}, not {format_option(meant)}."
    )


def _fits(value: object, kind: Any) -> bool:
    if kind is types.NoneType:
        return value is None
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, int) for item in value)
    return type(value) is kind


def _type_name(kind: Any) -> str:
    if kind is types.NoneType:
        return "none"
    if typing.get_origin(kind) is tuple:
        return "a tuple of ints"
    return {int: "an int", float: "a number", bool: "true or false", str: "a text"}.get(
        kind, str(kind)
    )
