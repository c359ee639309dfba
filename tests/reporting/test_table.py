from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from onnxcp.optimizer import Optimized
from onnxcp.profiling.compare import OutputDifference
from onnxcp.reporting import table
from tests.reporting.conftest import (
    CALIBRATION,
    LABELLED,
    NOTHING,
    PLAN,
    SHORT,
    THREE_TIMES,
    Make,
)


def printed(item: RenderableType, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=80, markup=False, force_terminal=terminal)
    console.print(item)
    text = stream.getvalue()
    assert max(map(len, text.splitlines()), default=0) <= 80 or terminal
    return text


def test_before_and_after(make: Make) -> None:
    text = printed(table.before_after(make(labelled=LABELLED)))
    for words in ("before", "after", "parameters", "2.00× (1.90 to 2.10)", "accuracy"):
        assert words in text
    assert "\x1b" not in text


def test_sites_and_nodes_left_alone(make: Make) -> None:
    result = make()
    assert "conv" in printed(table.sites(result))
    assert "it is depthwise" in printed(table.left_alone(result))


def test_sites_that_were_refitted(make: Make) -> None:
    text = printed(table.sites(make(data=CALIBRATION)))
    assert "output error" in text
    assert "weight error" not in text
    assert len(re.findall(r"[0-9.]+ → [0-9.]+", text)) == 2


def test_sites_of_which_no_output_error_is_known(unknown: Optimized) -> None:
    text = printed(table.sites(unknown))
    assert re.search("%  +–  ", text)
    assert "nan" not in text


def test_sites_after_a_refit_that_was_given_up(given_up: Optimized) -> None:
    assert "weight error" in printed(table.sites(given_up))


def test_times_that_were_only_reckoned(make: Make) -> None:
    result = make()
    assert "≈" not in printed(table.sites(result))
    conv, fc = result.decisions
    assert conv.option is not None
    timing = replace(conv.option.timing, measured=False)
    (chosen, *others) = conv.candidates
    chosen = replace(chosen, option=replace(conv.option, timing=timing))
    conv = replace(conv, candidates=(chosen, *others))
    assert "≈3.00×" in printed(table.sites(replace(result, decisions=(conv, fc))))


class TestPlans:
    def test_rounds(self) -> None:
        text = printed(table.rounds(THREE_TIMES))
        assert "\x1b" not in text
        for words in ("expected", "measured", "found", "3.03×", "3.01×", "0.0351", "94.12 %"):
            assert words in text
        assert re.search(r"^2 .* taken *$", text, re.MULTILINE)

    def test_a_score_of_a_function(self) -> None:
        assert "0.9412" in printed(table.rounds(THREE_TIMES, custom_score=True))

    def test_without_scores_there_is_no_column_for_them(self) -> None:
        only = replace(THREE_TIMES, rounds=THREE_TIMES.rounds[:1])
        assert "score" not in printed(table.rounds(only))
        assert "score" in printed(table.rounds(THREE_TIMES))

    def test_the_frontier(self) -> None:
        text = printed(table.frontier([NOTHING, THREE_TIMES, SHORT]))
        assert re.search(r"^2× .* no plan *$", text, re.MULTILINE)
        assert re.search(r"^3× .* 94.12 % *$", text, re.MULTILINE)
        assert re.search(r"^8× .* 0.366 .* out of reach *$", text, re.MULTILINE)

    def test_sites_of_a_plan(self) -> None:
        text = printed(table.planned_sites(PLAN))
        for words in ("left alone: it makes", "tucker2, rank 48×64", "12.3 ms", "345 µs", "0.0123"):
            assert words in text
        assert re.search(r"^by hand +cp3, rank 96 +– +– +–$", text, re.MULTILINE)


def test_passes_with_what_they_noted(make: Make) -> None:
    result = make()
    assert "fold-batchnorm" in printed(table.passes(result, notes=True))


def test_the_verdict_is_one_sentence(make: Make) -> None:
    for result in (make(), make(network_ratio=1.0), make(chain_ratio=1.0)):
        text = table.verdict(result).plain
        assert text.endswith(".")
        assert not text.endswith("..")


def test_colour_gives_way_to_no_color(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    verdict = table.verdict(make())
    assert "\x1b[1;32m" in printed(verdict, terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "32m" not in printed(verdict, terminal=True)


def test_brackets_in_names_are_kept() -> None:
    assert "[bold]conv[/bold]" in printed(table.plain(["name"], [["[bold]conv[/bold]"]]))


def test_long_names_are_folded_and_never_cut() -> None:
    name = "/encoder/layer.11/attention/output/dense/MatMul_with_a_very_long_name"
    text = printed(table.plain(("name", "kernel=", "n>"), [[name, "512×512×3×3", "1.85 G"]]))
    assert "512×512×3×3" in text
    assert "…" not in text


def test_differences() -> None:
    outputs = [
        (OutputDifference("y", "", 0.1, 0.01, 0.02, 0.9999, None, 0.5), False),
        (OutputDifference("k", equal=0.75), False),
        (OutputDifference("s", problem="It is no tensor."), False),
        (OutputDifference("z", "", 0.0, 0.0, 0.0, 1.0), True),
    ]
    text = printed(table.differences(outputs))
    for words in ("0.02", "0.999900", "50.00 %", "75.00 % equal", "no tensor", "yes"):
        assert words in text
