"""The page as a browser shows it, on a phone and on a screen, by day and by night."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from onnxcp.optimizer import Optimized
from onnxcp.verification import Step
from tests.reporting.conftest import CALIBRATION, LABELLED, SHORT, THREE_TIMES, Make, rendered

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VIEWS = [{"width": width, "dark": dark} for width in (360, 1280) for dark in (False, True)]
HARNESS = Path(__file__).with_name("browser.html")


@dataclass(frozen=True)
class Seen:
    """What each view showed, and what the browser complained of."""

    views: list[dict[str, Any]]
    console: list[str]


@pytest.fixture
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("the report was not looked at in a browser: there is no Chromium or Chrome")
    return found


def look(browser: str, page: str, folder: Path) -> Seen:
    """Load a page in frames of several widths, in a browser that reaches no network."""

    def literal(value: object) -> str:
        return json.dumps(value).replace("<", "\\u003c")

    text = HARNESS.read_text(encoding="utf-8")
    for name, value in (("views", VIEWS), ("page", page)):
        text = text.replace(f"{{{{ {name} }}}}", literal(value))
    harness = folder / "harness.html"
    harness.write_text(text, encoding="utf-8")
    options = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
        *("--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000"),
    )
    command = [browser, *options, "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page was not looked at: {done.stderr}"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(json.loads(html.unescape(found[1])), console)


@pytest.fixture
def everything(make: Make) -> Optimized:
    """A result with all that a page can show."""
    result = make(data=CALIBRATION, labelled=LABELLED)
    seen = result.verification
    assert seen is not None
    steps = (Step("a lower precision alone", result.model, seen.trial, seen.differences, 0.5),)
    return replace(result, planned=THREE_TIMES, frontier=(THREE_TIMES, SHORT), steps=steps)


BROKEN = """<!doctype html><html lang="en"><body style="background: #fff">
<p style="color: #999">faint</p>
<div style="width: 2000px">wide</div>
<img src="https://localhost/never.png" alt="fetched">
<svg role="img" width="100" height="20"><text x="90" y="14">cut off</text><path d="none"/></svg>
</body></html>"""


def test_in_a_browser(browser: str, everything: Optimized, tmp_path: Path) -> None:
    """Every picture shows, nothing is fetched, cut off, too wide or too faint."""
    would_tell(look(browser, BROKEN, tmp_path))
    seen = look(browser, rendered(everything), tmp_path)
    assert seen.console == []
    for view, asked in zip(seen.views, VIEWS, strict=True):
        assert (view["width"], view["seesDark"]) == (asked["width"], asked["dark"])
        # Bars, frontiers, a graph before and after, spectra.
        assert view["pictures"] >= 10
        assert view["words"] > 150
        for what in ("fetched", "empty", "cut", "faint", "nameless"):
            assert view[what] == [], (asked, what)
        assert view["wide"] <= 0, asked


def would_tell(seen: Seen) -> None:
    """Check that what is wrong with `BROKEN` was seen: all that is looked for in a page."""
    assert len(seen.console) == len(VIEWS)
    assert all("<path>" in line for line in seen.console)
    for view in seen.views:
        assert view["faint"] == ["faint: 2.85"]
        assert set(view["cut"]) == {"cut off"}
        assert view["wide"] > 0
        assert view["empty"] == ['<path d="none"></path>']
        assert len(view["nameless"]) == 1
        assert view["fetched"] == ["https://localhost/never.png"]
