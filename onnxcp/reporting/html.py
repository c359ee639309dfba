"""A page as HTML that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import PurePath

from jinja2 import Environment, FunctionLoader, StrictUndefined

from onnxcp import units
from onnxcp.reporting import drawing, picture, spectra
from onnxcp.reporting.drawing import Drawing, lay_out
from onnxcp.reporting.facts import SiteLine
from onnxcp.reporting.page import Page
from onnxcp.reporting.spectra import Curve, Spectrum, curve

_SHOWN = 6  # layers that are drawn openly; the others wait to be unfolded


@dataclass(frozen=True)
class Bars:
    """Two times as bars.

    Attributes
    ----------
    before, after
        The times, as text.
    before_width, after_width
        Their lengths in percent of the longest bar of the figure.
    ratio
        How many times faster, or as fast, as text.
    about
        Whether the second time was not measured but reckoned from others.
    """

    before: str
    after: str
    before_width: float
    after_width: float
    ratio: str
    about: bool = False


@dataclass(frozen=True)
class Layer:
    """A layer that was rewritten: what it became, drawn, and the spectra behind its ranks."""

    name: str
    decision: str
    before: Drawing | None
    after: Drawing | None
    curves: tuple[tuple[Spectrum, Curve], ...]


def render(page: Page) -> str:
    """Return a page as HTML."""
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    times = [line.alone.before if line.alone else line.seconds or 0.0 for line in page.sites]
    longest = max(times, default=0.0)
    layers, others = _layers(page), _left_alone(page)
    return environment.get_template("report.html.j2").render(
        page=page,
        name=PurePath(page.model).name,
        units=units,
        whole=None if page.times is None else _bars(*page.times),
        axes=picture,
        box=drawing,
        field=spectra,
        layers=layers[:_SHOWN],
        more_layers=layers[_SHOWN:],
        others=others,
        notes=[note.replace(" %", "\N{NO-BREAK SPACE}%") for note in page.notes],
        sites=[(line, _alone(line, longest)) for line in page.sites],
    )


def _template(name: str) -> tuple[str, None, Callable[[], bool]]:
    folder = resources.files("onnxcp.reporting").joinpath("templates")
    return folder.joinpath(name).read_text(encoding="utf-8"), None, lambda: True


def _layers(page: Page) -> list[Layer]:
    """Return the layers that were rewritten, in the order of the network."""
    drawn = {each.site: each for each in page.wirings}
    replaced = {line.name: line.decision for line in page.sites if line.alone is not None}
    names = [*replaced, *(name for name in drawn if name not in replaced)]
    return [
        Layer(
            name=name,
            decision=replaced.get(name, ""),
            before=lay_out(drawn[name].before) if name in drawn else None,
            after=lay_out(drawn[name].after) if name in drawn else None,
            curves=tuple((each, curve(each)) for each in page.spectra if each.site == name),
        )
        for name in names
    ]


def _left_alone(page: Page) -> list[tuple[Spectrum, Curve]]:
    """Return the spectra of the layers that kept their shape."""
    replaced = {line.name for line in page.sites if line.alone is not None}
    return [(each, curve(each)) for each in page.spectra if each.site not in replaced]


def _alone(line: SiteLine, longest: float) -> Bars | None:
    """Return the bars of a site: twice the same where it stays, none where it was not timed."""
    if line.alone is not None:
        timing = line.alone
        return replace(_bars(timing.before, timing.after, longest), about=not timing.measured)
    return None if line.seconds is None else _bars(line.seconds, line.seconds, longest)


def _bars(before: float, after: float, longest: float = 0.0) -> Bars:
    """Return bars of two times in seconds; the longest of all is of full width."""
    longest = longest or max(before, after)
    return Bars(
        before=units.seconds(before),
        after=units.seconds(after),
        before_width=round(100 * before / longest, 2),
        after_width=round(min(100.0, 100 * after / longest), 2),
        ratio=units.faster(before / after),
    )
