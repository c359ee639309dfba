from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from onnxcp.factorize import FactorizePass
from onnxcp.graph.model import load
from onnxcp.graph.site import Site, find_sites
from onnxcp.passes import find_pass
from onnxcp.planning.latency import Timing
from onnxcp.planning.option import Candidate, Decision, Option
from onnxcp.reporting import spectra as module
from onnxcp.reporting.spectra import BOTTOM, LEFT, RIGHT, TOP, Spectrum, curve, spectra
from tests.networks import model_of, noise

KERNEL = noise(12, 8, 3, 3)
GROUPED = noise(12, 4, 3, 3)


def site_of(kernel: np.ndarray, group: int = 1) -> Site:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=group)
    model = model_of([node], inputs={"x": (1, 8, 9, 9)}, weights={"w": kernel})
    (site,) = find_sites(load(model))[0]
    return site


def decision(name: str, ranks: tuple[int, ...], site: Site) -> Decision:
    family = find_pass(name)()
    assert isinstance(family, FactorizePass)
    option = Option(site, family, ranks, 1, Timing(2e-3, 1e-3, 1.9, 2.1))
    return Decision(site, 2, (Candidate(option, family.apply(site, ranks)),))


def values(matrix: np.ndarray) -> np.ndarray:
    found = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return np.asarray(found)


# What channel SVD cuts, and the two sides of Tucker-2; the roots of eigenvalues are less exact.
OUTPUTS = values(KERNEL.reshape(12, -1))
INPUTS = values(KERNEL.swapaxes(0, 1).reshape(8, -1))


def share(found: np.ndarray, rank: int) -> float:
    return float(np.square(found[:rank]).sum() / np.square(found).sum())


@pytest.mark.parametrize(
    ("name", "ranks", "cut", "bound"),
    [
        ("channel-svd", (5,), [OUTPUTS], False),
        ("tucker2", (3, 6), [INPUTS, OUTPUTS], False),
        ("cp3", (7,), [OUTPUTS], True),
        ("cp3", (40,), [OUTPUTS], True),
    ],
)
def test_what_is_cut_where(
    name: str, ranks: tuple[int, ...], cut: list[np.ndarray], bound: bool
) -> None:
    found = spectra([decision(name, ranks, site_of(KERNEL))])
    assert len(found) == len(cut)
    for each, rank, expected in zip(found, ranks, cut, strict=True):
        assert (each.site, each.count, each.bound) == ("conv", len(expected), bound)
        assert each.rank == min(rank, len(expected))
        assert each.kept == pytest.approx(share(expected, rank))
        # Kept with four digits.
        assert each.values == pytest.approx(tuple(expected / expected[0]), abs=1e-4)


def test_a_layer_that_stays_has_no_rank() -> None:
    (found,) = spectra([Decision(site_of(KERNEL), 2)])
    assert (found.rank, found.kept, found.bound) == (None, None, False)
    assert found.matrix == ", 12×72 matrix"


def test_groups_are_taken_together() -> None:
    (found,) = spectra([decision("channel-svd", (2,), site_of(GROUPED, 2))])
    groups = [values(part.reshape(6, -1)) for part in np.split(GROUPED, 2)]
    both = np.sqrt(sum(np.square(each) for each in groups))
    assert found.kept == pytest.approx(share(both, 2))


def test_what_takes_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = decision("tucker2", (3, 6), site_of(KERNEL))
    monkeypatch.setattr(module, "_SLOW", 0)
    (found,) = spectra([made])
    assert (found.rank, found.bound) == (6, True)
    monkeypatch.setattr(module, "_WORK", 0)
    assert spectra([made]) == []


def test_long_spectra_are_thinned_out() -> None:
    kernel = noise(300, 300, 1, 1)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    model = model_of([node], inputs={"x": (1, 300, 4, 4)}, weights={"w": kernel})
    (found,) = spectra([Decision(find_sites(load(model))[0][0], 2)])
    assert found.count == 300
    assert len(found.values) == 96
    assert (found.values[0], found.values[-1] < 0.01) == (1.0, True)


class TestCurve:
    SEEN = Spectrum("conv", "", 5, (1.0, 0.8, 0.6, 0.4, 0.2), rank=2, kept=0.7)

    def points(self, area: str) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, _, y in (pair.partition(",") for pair in area.split())]

    def test_the_areas_meet_at_the_cut(self) -> None:
        drawn = curve(self.SEEN)
        kept, rest = self.points(drawn.kept), self.points(drawn.rest)
        assert kept[0] == (LEFT, BOTTOM)
        assert kept[1] == (LEFT, TOP)
        assert kept[-1] == rest[0] == (drawn.cut, BOTTOM)
        assert rest[-1] == (RIGHT, BOTTOM)
        # Between the second value and the third.
        assert drawn.cut == LEFT + (RIGHT - LEFT) * 1.5 / 4

    def test_at_full_rank_all_is_kept(self) -> None:
        drawn = curve(replace(self.SEEN, rank=5))
        assert drawn.rest == ""
        assert drawn.cut == RIGHT

    def test_without_a_rank_nothing_is_marked(self) -> None:
        drawn = curve(replace(self.SEEN, rank=None, kept=None))
        assert (drawn.kept, drawn.cut) == ("", None)
        assert self.points(drawn.rest)[-1] == (RIGHT, BOTTOM)

    def test_a_single_value(self) -> None:
        drawn = curve(Spectrum("conv", "", 1, (1.0,), rank=1, kept=1.0))
        assert drawn.kept
