from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from onnxcp.optimizer import Optimized
from onnxcp.planning.goal import Goal
from tests.reporting.conftest import (
    CALIBRATION,
    JOB,
    LABELLED,
    NOTHING,
    THREE_TIMES,
    Make,
    rendered,
    tuned,
)

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
    return Page(rendered(make(labelled=LABELLED), JOB, now=datetime(2030, 1, 2, 3, 4, tzinfo=UTC)))


def test_it_is_well_formed(page: Page) -> None:
    assert page.open == []


def test_it_needs_nothing_else(page: Page) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert not any({"src", "srcset"} & attrs.keys() for _, attrs in page.tags)
    targets = {f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs}
    assert {attrs["href"] for _, attrs in page.tags if "href" in attrs} <= targets


def test_no_style_fetches_anything(make: Make) -> None:
    assert not re.search(r"url\((?!#)|@import|https?:", rendered(make(), JOB))


def test_the_verdict_comes_before_the_cost_and_the_cost_before_the_layers(page: Page) -> None:
    order = [
        "How much faster?", "95 % interval 1.90 to 2.10", "At what cost?", "points",
        "On what machine?", "faster on this machine", "median latency, batch 4", "MACs per sample",
        "What was decided for every layer", "Not eligible", "What stood in the place",
        "How to do it again", "Measured on", "Seeds", "What each pass did",
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
    text = rendered(make(), JOB)
    assert "net <1>.onnx" not in text
    assert "net &lt;1&gt;.onnx" in text


def test_bars_are_in_proportion(page: Page) -> None:
    bars = [attrs for tag, attrs in page.tags if tag == "rect"]
    drawn = [(bar["class"], float(bar["width"] or 0)) for bar in bars if bar["height"] == "10"]
    assert drawn == [
        ("is-before", 100.0),
        ("is-after", 50.0),
        ("is-before", 10.0),  # the key
        ("is-after", 10.0),
        ("is-before", 100.0),
        ("is-after", pytest.approx(100 / 3, abs=0.01)),
    ]


class TestRefit:
    def test_is_explained_and_shown(self, make: Make) -> None:
        page = Page(rendered(make(data=CALIBRATION), JOB))
        assert page.open == []
        for words in (
            "output error", "before the refit", "on samples that were not fitted to",
            "Labels have no say in that", "refitted, not replaced: ", "Accuracy unknown",
        ):  # fmt: skip
            assert words in page.text
        assert "weight error" not in page.text
        assert len(re.findall("output error [0-9.]+, [0-9.]+ before the refit", page.text)) == 2

    def test_of_which_no_error_is_known(self, unknown: Optimized) -> None:
        text = Page(rendered(unknown, JOB)).text
        assert "not refitted, weight error 0." in text
        assert "nan" not in text

    def test_that_was_given_up(self, given_up: Optimized) -> None:
        text = Page(rendered(given_up, JOB)).text
        assert "the refit was given up" in text
        assert "weight error" in text
        assert "Labels have no say in that" not in text

    def test_is_not_mentioned_without_data(self, page: Page) -> None:
        assert "refit" not in page.text


def test_fine_tuning(make: Make) -> None:
    page = Page(rendered(replace(make(data=CALIBRATION), finetuned=tuned(0.9, 0.95)), JOB))
    assert (
        "the same top class from 90.00\N{NO-BREAK SPACE}% to 95.00\N{NO-BREAK SPACE}%" in page.text
    )
    assert "Errors of single layers are those before that." in page.text


class TestPlans:
    @pytest.fixture
    def page(self, planned: Optimized) -> Page:
        return Page(rendered(planned, JOB))

    def test_come_between_the_layers_and_their_drawings(self, page: Page) -> None:
        order = [
            "At what cost?", "Expected 3.03 times faster", "What was decided for every layer",
            "What other speed-ups cost", "Speed-up and output error", "out of reach",
            "What was to be expected", "Goal: 3 times faster", "2.61×", "What stood in the place",
        ]  # fmt: skip
        places = [page.text.index(words) for words in order]
        assert places == sorted(places)

    def test_tables_can_be_read_aloud(self, page: Page) -> None:
        assert page.open == []
        tags = [tag for tag, _ in page.tags]
        assert tags.count("table") == tags.count("caption")
        assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")

    def test_pictures_have_a_name_and_point_to_the_table(self, page: Page) -> None:
        ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
        assert len(set(ids)) == len(ids)
        pictures = [attrs for tag, attrs in page.tags if attrs.get("class") == "picture"]
        assert [attrs["role"] for attrs in pictures] == ["img", "img"]
        for attrs in pictures:
            assert {attrs["aria-labelledby"], attrs["aria-describedby"]} <= set(ids)
        assert "Speed-up and output error" in page.text
        assert "Speed-up and accuracy" in page.text
        assert page.text.count("The table below has the numbers.") == 2

    def test_dots_are_the_original_what_was_planned_and_what_was_taken(self, page: Page) -> None:
        kinds = [attrs["class"] for tag, attrs in page.tags if tag == "circle"]
        assert kinds == ["is-original", "is-taken", "is-plan", "is-plan"] * 2

    def test_a_network_that_was_not_taken_is_not_in_the_pictures(self, make: Make) -> None:
        result = replace(make(network_ratio=1.0), frontier=(THREE_TIMES,))
        text = rendered(result, JOB)
        assert 'class="is-taken"' not in text
        assert "the ring marks" not in text

    def test_a_frontier_of_nothing_is_a_table_alone(self, make: Make) -> None:
        page = Page(rendered(replace(make(), frontier=(NOTHING,)), JOB))
        assert "no plan" in page.text
        assert not any(attrs.get("class") == "picture" for _, attrs in page.tags)

    def test_a_score_of_a_function_keeps_its_unit(self, planned: Optimized) -> None:
        text = Page(rendered(planned, replace(JOB, script="f.py:score"))).text
        assert "Speed-up and score" in text
        assert "94.12 %" not in text[text.index("Goal: ") :]

    def test_rounds_alone(self, planned: Optimized) -> None:
        text = Page(rendered(replace(planned, frontier=()), JOB)).text
        assert "Goal: 3 times faster" in text
        assert "What other speed-ups cost" not in text

    def test_are_not_mentioned_where_there_are_none(self, make: Make) -> None:
        assert "Plan " not in Page(rendered(make(), JOB)).text


def test_times_that_were_only_reckoned(make: Make) -> None:
    result = make(settings=replace(JOB.settings, macs=None, goal=Goal(speedup=1.5)))
    (option,) = [each.option for each in result.decisions if each.option is not None]
    for measured in (True, False):
        timing = replace(option.timing, measured=measured)
        decisions = tuple(
            replace(
                each,
                candidates=tuple(
                    replace(c, option=replace(c.option, timing=timing)) for c in each.candidates
                ),
            )
            for each in result.decisions
        )
        text = Page(rendered(replace(result, decisions=decisions), JOB)).text
        assert ("about 3.00× faster" in text) is not measured
        assert ("the chain was not timed itself" in text) is not measured


def test_sites_that_stay_have_one_bar(make: Make) -> None:
    result = make(settings=replace(JOB.settings, macs=None, goal=Goal(speedup=1.5)))
    left = tuple(replace(each, candidates=()) for each in result.decisions)
    page = Page(rendered(replace(result, decisions=left)))
    assert "as before  3.00 ms" in page.text
    assert page.open == []


def test_the_title_is_the_name_of_the_file(make: Make) -> None:
    page = Page(rendered(make(), replace(JOB, model="some/where/net.onnx")))
    assert "some/where/net.onnx, digest" in page.text
    assert page.text.count("some/where/net.onnx") == 1


def test_a_network_left_alone(make: Make) -> None:
    text = Page(rendered(make(chain_ratio=1.0), replace(JOB, output=None))).text
    assert "Left as it was" in text
    assert "Nothing was worth rewriting" in text
    assert "is not faster, with" in text


def test_a_network_that_did_not_get_faster(make: Make) -> None:
    text = Page(rendered(make(network_ratio=1.0), JOB)).text
    assert "Left as it was" in text
    assert "rewritten, it was 1.00× as fast" in text
    assert "unchanged" in text


def test_a_network_not_to_be_deployed_does_not_look_like_a_success(make: Make) -> None:
    good = make(labelled=LABELLED)
    text = rendered(good)
    assert 'class="advice"' in text
    assert 'class="figure big gain"' in text
    assert good.verification is not None
    far = replace(good.verification.differences[0], relative=0.9)
    seen = replace(good.verification, differences=(far,), accuracy=None)
    text = rendered(replace(good, verification=seen))
    assert 'class="advice warned"' in text
    assert "gain" not in re.findall(r'<dd class="figure[^"]*"', text)[0]
