"""What a network that was built teaches of its layers, for the next plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from onnxcp.building import Builder
from onnxcp.graph.chain import Chain
from onnxcp.graph.site import Site
from onnxcp.planning.distortion import Effect, Probe
from onnxcp.planning.goal import Goal
from onnxcp.planning.search import Attempt
from onnxcp.rewriting import Rewrite
from tests.clockwork import Clockwork
from tests.planned.conftest import DATA, planned

GOAL = Goal(speedup=3.0)


def lessons_of(
    monkeypatch: pytest.MonkeyPatch, data: Any = DATA, **times: float
) -> dict[str, float]:
    """Return what the first network teaches, where some sites add so many times what they do."""
    probe, look = Probe.__call__, Builder.site_lessons
    seen: list[dict[str, float]] = []

    def adding(self: Probe, site: Site, chain: Chain) -> Effect:
        effect = probe(self, site, chain)
        return replace(effect, relative=times.get(site.name, 1.0) * effect.relative)

    def noted(self: Builder, attempt: Attempt[Rewrite]) -> dict[Site, float]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Probe, "__call__", adding)
            found = look(self, attempt)
        seen.append({site.name: factor for site, factor in found.items()})
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Builder, "site_lessons", noted)
        planned(data, goal=GOAL)
    return seen[0]


@pytest.mark.usefixtures("clock")
def test_each_site_is_looked_at_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = lessons_of(monkeypatch)
    assert len(usual) > 2
    low, *_, high = sorted(usual, key=lambda name: usual[name])
    assert 0.25 <= usual[low] < 1 < usual[high] <= 4
    more = lessons_of(monkeypatch, **{high: 1.2})
    assert more == pytest.approx({**usual, high: min(1.2 * usual[high], 4)})
    most = lessons_of(monkeypatch, **{high: 1e6, low: 1e-6})
    assert most == pytest.approx({**usual, high: 4, low: 0.25})


def test_without_samples_there_is_nothing_to_learn(
    clock: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lessons_of(monkeypatch, data=None) == {}
