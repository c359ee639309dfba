"""How pictures become inputs, as text: ``resize=256,crop=224,mean=0.485:0.456:0.406``.

Grammar::

    text    := option ("," option)*
    option  := "resize=" size | "crop=" size | "layout=" ("nchw" | "nhwc")
             | "channels=" ("rgb" | "bgr" | "grey") | "scale=" number | "mean=" numbers
             | "std=" numbers | "interpolation=" ("bilinear" | "bicubic" | "nearest")
    size    := N | HEIGHT "x" WIDTH
    numbers := number (":" number)*
    number  := FLOAT | FLOAT "/" FLOAT

Parsing undoes formatting: ``str`` of a `Preprocess` parses to an equal one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from onnxcp.errors import DataError

Size = int | tuple[int, int]
Layout = Literal["nchw", "nhwc"]
Channels = Literal["rgb", "bgr", "grey"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]


@dataclass(frozen=True)
class Preprocess:
    """What is done to every picture, in this order: resize, crop, channels, layout, numbers.

    Attributes
    ----------
    resize
        Length of the shorter side in pixels, which keeps the proportions, or (height, width)
        exactly. By default pictures are stretched to the model's size, or left as they are where
        only `crop` is given.
    crop
        Side of the square, or (height, width), to keep of the middle. By default the model's
        size where `resize` keeps the proportions and the model fixes its size; else all is kept.
    layout
        Order of the axes. By default nchw where axis 1 of the input is 1 or 3, nhwc where axis 3
        is.
    channels
        By default grey where the input has one channel, else rgb.
    scale
        What pixels of 0 to 255 are multiplied by. By default 1/255 for an input of floats: they
        are then in 0..1. An input of uint8 gets the pixels as they are.
    mean, std
        One for all channels or one for each, in the order they are fed in and in units after
        scaling: a pixel x becomes (scale x - mean) / std. By default 0 and 1.
    interpolation
        Of the resizing. Pillow's, which smooths where it shrinks.

    Raises
    ------
    DataError
        If a value is none of those allowed.
    """

    resize: Size | None = None
    crop: Size | None = None
    layout: Layout | None = None
    channels: Channels | None = None
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            size = getattr(self, name)
            if size is not None and min((size,) if isinstance(size, int) else size) < 1:
                raise _wrong(name, _format(name, size), _SIZE)
        for name, kind in _WORDS.items():
            word = getattr(self, name)
            if word is not None and word not in get_args(kind):
                raise _wrong(name, word, " or ".join(get_args(kind)))
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise _wrong("scale", _format("scale", self.scale), "a number above 0, such as 1/255")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise _wrong("std", _format("std", self.std), "numbers above 0")
        top = 255 * (1 / 255 if self.scale is None else self.scale)
        if not all(0 <= value <= top for value in self.mean):
            raise _wrong(
                "mean",
                _format("mean", self.mean),
                f"numbers that scaled pixels have, 0 to {top:g} (with scale=1: 0 to 255)",
            )

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read a text of the grammar above.

        Raises
        ------
        DataError
            If the text is not well formed, or a key or value is none of those allowed.
        """
        given: dict[str, Any] = {}
        for item in text.split(","):
            key, equals, value = (part.strip() for part in item.partition("="))
            if key not in _READERS or not equals:
                raise DataError(
                    f"Cannot read '{item.strip()}' in the preprocessing '{text}'; write KEY=VALUE "
                    f"separated by commas, with the keys {', '.join(_READERS)}."
                )
            if key in given:
                raise DataError(f"The preprocessing '{text}' gives '{key}' twice.")
            given[key] = _READERS[key](key, value)
        return cls(**given)

    def __str__(self) -> str:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        usual = {each.name: each.default for each in fields(self)}
        return ",".join(
            f"{key}={_format(key, value)}" for key, value in values.items() if value != usual[key]
        )


_SIZE = "a length in pixels, such as 224, or HEIGHTxWIDTH"
_WORDS = {"layout": Layout, "channels": Channels, "interpolation": Interpolation}


def _wrong(key: str, given: str, allowed: str) -> DataError:
    return DataError(f"In the preprocessing {key} must be {allowed}, not '{given}'.")


def _size(key: str, text: str) -> Size:
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text)
    if match is None:
        raise _wrong(key, text, _SIZE)
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def _number(key: str, text: str) -> float:
    try:
        above, slash, below = text.partition("/")
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise _wrong(key, text, "a number, such as 0.5 or 1/255") from None


def _numbers(key: str, text: str) -> tuple[float, ...]:
    return tuple(_number(key, part) for part in text.split(":"))


def _word(_: str, text: str) -> str:
    return text


_READERS: dict[str, Callable[[str, str], object]] = {
    "resize": _size,
    "crop": _size,
    "layout": _word,
    "channels": _word,
    "scale": _number,
    "mean": _numbers,
    "std": _numbers,
    "interpolation": _word,
}


def _format(key: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ("x" if key in ("resize", "crop") else ":").join(map(str, value))
    return str(value)
