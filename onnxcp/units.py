"""Numbers as people read them: short, with units, the same in every table and page."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "–"

_DECIMAL = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))
_BYTES = ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"))
_SECONDS = ((1.0, " s"), (1e-3, " ms"), (1e-6, " µs"))


def count(value: float | None) -> str:
    """Return a count with three digits and a decimal prefix: ``1.85 G``; None is a dash."""
    if value is None:
        return NONE
    for size, unit in _DECIMAL:
        if value >= size:
            return digits(value / size) + unit
    return f"{value:.0f}"


def nbytes(value: float) -> str:
    """Return a size in bytes: ``528 MiB``."""
    for size, unit in _BYTES:
        if value >= size:
            return digits(value / size) + unit
    return f"{value:.0f} B"


def seconds(value: float | None) -> str:
    """Return a time in seconds as ``11.8 ms``; None is a dash."""
    if value is None:
        return NONE
    for size, unit in _SECONDS:
        if value >= size:
            return digits(value / size) + unit
    return f"{value * 1e9:.0f} ns"


def share(value: float | None, decimals: int = 0) -> str:
    """Return a share of 1 as a percentage: ``12 %``; small ones do not become 0."""
    if value is None:
        return NONE
    least = 10.0 ** -(decimals + 2)
    if 0 < value < least:
        return f"<{least:.{decimals}%}".replace("%", " %")
    return f"{value:.{decimals}%}".replace("%", " %")


def error(value: float | None) -> str:
    """Return an error with three digits: ``0.0345``, ``1.2e-07``; None and NaN are a dash."""
    return NONE if value is None or math.isnan(value) else f"{value:.3g}"


def errors(before: float, after: float) -> str:
    """Return an error before and after: ``0.42 → 0.31``; one number where it did not fall."""
    return f"{error(before)} → {error(after)}" if after < before else error(after)


def samples(count: int) -> str:
    """Return how many samples: ``1,024 samples``."""
    return f"{count:,} sample{'' if count == 1 else 's'}"


def ratio(value: float | None) -> str:
    """Return how many times: ``6.78×``; None and NaN are a dash."""
    return NONE if value is None or math.isnan(value) else f"{digits(value)}×"


def faster(value: float) -> str:
    """Return how many times faster: ``6.78× faster``; ``0.970× as fast`` of what is no faster."""
    return f"{ratio(value)} {'faster' if value > 1 else 'as fast'}"


def interval(low: float, high: float) -> str:
    """Return an interval of two ratios: ``6.70 to 6.85``."""
    return f"{digits(low)} to {digits(high)}"


def change(before: float | None, after: float | None) -> str:
    """Return how much less or more `after` is: ``−88 %``; nothing where either is unknown."""
    if not before or after is None:
        return ""
    return f"{after / before - 1:+.0%}".replace("%", " %").replace("-", "−")


def points(before: float, after: float) -> str:
    """Return the difference of two shares of 1 in percentage points: ``−0.6 points``."""
    return f"{100 * (after - before):+.2f} points".replace("-", "−")


def score(value: float, *, custom: bool = False) -> str:
    """Return a share of right classes as ``94.20 %``; a custom score in its own unit."""
    return f"{value:.6g}" if custom else share(value, 2)


def shape(extents: Sequence[int] | None) -> str:
    """Return a shape as ``32×1×24×24``; a scalar is ``scalar`` and None a dash."""
    if extents is None:
        return NONE
    return "×".join(map(str, extents)) or "scalar"


def digits(value: float) -> str:
    """Return three significant digits without an exponent."""
    if not math.isfinite(value) or value == 0:
        return f"{value:.0f}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(places, 4)}f}"
