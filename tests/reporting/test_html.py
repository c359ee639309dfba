from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from onnxcp.optimizer import Optimized
from onnxcp.reporting.html import render
from tests.reporting.conftest import CALIBRATION, JOB, LABELLED, Make

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags close in order, and keeps what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f"{data} "


@pytest.fixture
def page(make: Make) -> Page:
    return Page(render(make(labelled=LABELLED), JOB, now=datetime(2030, 1, 2, 3, 4, tzinfo=UTC)))


def test_it_is_well_formed(page: Page) -> None:
    assert page.open == []


def test_it_needs_nothing_else(page: Page) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    linked = [attrs for _, attrs in page.tags if {"src", "href", "srcset"} & attrs.keys()]
    assert linked == []


def test_no_style_fetches_anything(make: Make) -> None:
    assert not re.search(r"url\(|@import|https?:", render(make(), JOB))


def test_the_verdict_comes_before_the_cost_and_the_cost_before_the_layers(page: Page) -> None:
    order = [
        "2.00× faster", "95 % interval 1.90 to 2.10", "latency, batch 4", "relative output error",
        "accuracy", "MACs per sample", "Layer by layer", "Not eligible", "Passes", "Measured on",
        "How to do it again",
    ]  # fmt: skip
    places = [page.text.index(words) for words in order]
    assert places == sorted(places)


def test_tables_can_be_read_aloud(page: Page) -> None:
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption")
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags


def test_ids_are_unique_and_labels_lead_to_them(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)


def test_what_it_was_measured_with(page: Page) -> None:
    for words in ("2030-01-02 03:04 UTC", "4×16×12×12", "onnxruntime", "cpu", JOB.command):
        assert words in page.text


def test_names_are_escaped(make: Make) -> None:
    text = render(make(), JOB)
    assert "net <1>.onnx" not in text
    assert "net &lt;1&gt;.onnx" in text


def test_bars_are_in_proportion(page: Page) -> None:
    bars = [attrs for tag, attrs in page.tags if tag == "rect"]
    assert [(bar["class"], float(bar["width"] or 0)) for bar in bars] == [
        ("is-before", 100.0),
        ("is-after", 50.0),
        ("is-before", 100.0),
        ("is-after", pytest.approx(100 / 3, abs=0.01)),
    ]


class TestRefit:
    def test_is_explained_and_shown(self, make: Make) -> None:
        page = Page(render(make(data=CALIBRATION), JOB))
        assert page.open == []
        for words in (
            "output error", "before the refit", "on samples that were not fitted to",
            "Labels were never looked at", "refitted, not replaced: ", "Accuracy unknown",
        ):  # fmt: skip
            assert words in page.text
        assert "weight error" not in page.text
        assert len(re.findall("output error [0-9.]+, [0-9.]+ before the refit", page.text)) == 2

    def test_of_which_no_error_is_known(self, unknown: Optimized) -> None:
        text = Page(render(unknown, JOB)).text
        assert "not refitted, weight error 0." in text
        assert "nan" not in text

    def test_that_was_given_up(self, given_up: Optimized) -> None:
        text = Page(render(given_up, JOB)).text
        assert "the refit was given up" in text
        assert "weight error" in text
        assert "Labels were never looked at" not in text

    def test_is_not_mentioned_without_data(self, page: Page) -> None:
        assert "refit" not in page.text


def test_a_network_left_alone(make: Make) -> None:
    text = Page(render(make(chain_ratio=1.0), replace(JOB, output=None))).text
    assert "Left as it was" in text
    assert "Nothing was worth rewriting" in text
    assert "is not faster, with" in text


def test_a_network_that_did_not_get_faster(make: Make) -> None:
    text = Page(render(make(network_ratio=1.0), JOB)).text
    assert "Left as it was" in text
    assert "rewritten, it was 1.00× as fast" in text
    assert "unchanged" in text
