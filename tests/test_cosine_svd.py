"""The preset ``cosine-svd`` from end to end, with made-up time."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models.builder import GraphBuilder
from onnxcp import (
    Goal,
    OnnxcpError,
    Optimized,
    RefitSettings,
    Settings,
    make_plan,
    optimize,
    rewriting,
)
from onnxcp.planning.cosine import LEVELS, CosineSvd
from onnxcp.planning.plan import Plan, Row, load_plan, save_plan
from onnxcp.rewriting import Rewrite
from onnxcp.work import Work
from tests.clockwork import Clockwork, by_macs
from tests.networks import Array

SIZE, CLASSES = 8, 10
NAMES = ("one", "two", "three", "hidden", "scores")
UNFITTED = RefitSettings("none")


def weight(*shape: int, seed: int, decay: float = 0.8) -> Array:
    """Return weights whose singular values fall off, as those of trained networks do."""
    rng = np.random.default_rng(seed)
    columns = int(np.prod(shape[1:]))
    u, _, v = np.linalg.svd(rng.standard_normal((shape[0], columns)), full_matrices=False)
    values = decay ** np.arange(len(v))
    scale = np.sqrt(2 * shape[0] / np.sum(values**2))
    return (scale * (u * values) @ v).reshape(shape).astype(np.float32)


@functools.cache
def network() -> onnx.ModelProto:
    """Three convolutions and two products."""
    g = GraphBuilder("small")
    x = g.input("image", ["N", 8, SIZE, SIZE])
    for name, inputs, outputs in (("one", 8, 16), ("two", 16, 24), ("three", 24, 32)):
        kernel = weight(outputs, inputs, 3, 3, seed=outputs)
        x = g.relu(g.conv(x, inputs, outputs, 3, name=name, pads=1, weight=kernel))
    x = g.flatten(g.global_average_pool(x, name="pool"), name="flat")
    x = g.relu(g.gemm(x, 32, 64, name="hidden"))
    return g.model([g.gemm(x, 64, CLASSES, name="scores")])


def smooth(n: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 8, SIZE, SIZE))
    for axis in (2, 3):
        x = x + np.roll(x, 1, axis)
    x += 2 * x.mean(axis=1, keepdims=True)
    return (x / 5).astype(np.float32)


IMAGES = smooth(160, seed=1)
DATA = {"image": smooth(64)}


def run(proto: onnx.ModelProto, images: Array) -> Array:
    session = ort.InferenceSession(proto.SerializeToString())
    return np.asarray(session.run(None, {"image": images})[0])


@functools.cache
def labels() -> Array:
    """What the network says itself, so that its accuracy is 1."""
    return np.asarray(run(network(), IMAGES).argmax(axis=1))


def labelled() -> dict[str, Array]:
    return {"image": IMAGES, "label": labels()}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    return Clockwork(monkeypatch)


def chosen(preset: CosineSvd, goal: Goal | None = None, **options: Any) -> Optimized:
    """Run the main job with the preset; what is no setting is data."""
    data = {name: options.pop(name, None) for name in ("data", "labelled", "evaluate")}
    settings = Settings(goal=goal or Goal(), preset=preset, cached=False, **options)
    return optimize(network(), settings, **data)


def rows(result: Optimized) -> dict[str, Row]:
    assert result.plan is not None
    return {row.site: row for row in result.plan.sites}


def replaced(result: Optimized) -> dict[str, tuple[Any, Any]]:
    return {n: (r.family, r.ranks) for n, r in rows(result).items() if r.family is not None}


def kept_share(result: Optimized) -> float:
    assert result.after is not None
    return result.after.parameters / result.before.parameters


class TestACosine:
    @pytest.mark.parametrize("tau", [0.8, 0.9, 0.97])
    def test_is_reached_by_every_layer_that_is_decomposed(self, tau: float) -> None:
        result = chosen(CosineSvd(tau))
        assert result.improved
        assert len(replaced(result)) >= 2
        for decision in result.decisions:
            if decision.result is None:
                keep = rows(result)[decision.site.name].keep
                assert keep is not None
                assert "break-even" in keep
                continue
            cosine = rows(result)[decision.site.name].cosine
            assert cosine is not None
            assert cosine >= tau
            # Rows hold four digits.
            error = decision.result.error
            assert cosine == pytest.approx((1 - error**2) ** 0.5, rel=1e-3)

    def test_of_lower_cosines_fewer_parameters_are_left(self) -> None:
        shares = [kept_share(chosen(CosineSvd(tau))) for tau in (0.97, 0.9, 0.8)]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > shares[-1]

    def test_takes_the_forms_that_are_named(self) -> None:
        one = chosen(CosineSvd(0.9), families=("output-first-svd",))
        assert {family for family, _ in replaced(one).values()} == {"output-first-svd"}
        assert set(replaced(one)) <= set(NAMES[:3])

    def test_rounds_ranks_up_where_asked(self) -> None:
        plain, rounded = (chosen(CosineSvd(0.8), round_to=n) for n in (None, 4))
        for name, (family, ranks) in replaced(rounded).items():
            assert ranks[0] % 4 == 0
            if replaced(plain).get(name, (None,))[0] == family:
                assert 0 <= ranks[0] - replaced(plain)[name][1][0] < 4

    def test_leaves_alone_what_is_excluded(self) -> None:
        result = chosen(CosineSvd(0.8), exclude="two")
        assert "two" not in replaced(result)
        assert rows(result)["two"].fixed

    def test_looks_at_responses_where_there_are_data(self) -> None:
        of = {
            kind: chosen(CosineSvd(0.9, of=kind), data=DATA, refit=UNFITTED)
            for kind in ("auto", "weights", "responses")
        }
        assert replaced(of["auto"]) == replaced(of["responses"]) != replaced(of["weights"])
        assert replaced(of["weights"]) == replaced(chosen(CosineSvd(0.9)))
        assert of["auto"].planned is not None
        assert "what comes out of layers" in of["auto"].planned.preset


class TestAGoal:
    @pytest.mark.parametrize("drop", [0.0, 0.05, 0.3])
    def test_of_accuracy_is_kept_to(self, drop: float) -> None:
        result = chosen(CosineSvd(), Goal(max_accuracy_drop=drop), labelled=labelled())
        assert result.planned is not None
        assert result.planned.rounds
        for done in result.planned.rounds:
            assert done.score is not None
            assert not done.kept or done.score >= 1 - drop
        if result.improved:
            assert result.verification is not None
            assert result.verification.accuracy is not None
            assert result.verification.accuracy[1] >= 1 - drop

    def test_that_allows_more_leaves_fewer_parameters(self) -> None:
        shares = [
            kept_share(chosen(CosineSvd(), Goal(max_accuracy_drop=drop), labelled=labelled()))
            for drop in (0.02, 0.3)
        ]
        assert shares[1] < shares[0] < 1

    def test_of_agreement_needs_no_labels(self) -> None:
        result = chosen(CosineSvd(), Goal(min_agreement=0.9), data=DATA, refit=UNFITTED)
        assert result.improved
        assert result.verification is not None
        agreement = result.verification.differences[0].top1_agreement
        assert agreement is not None
        assert agreement >= 0.9
        assert result.planned is not None
        kept = result.planned.kept
        assert kept is not None
        assert kept.score == pytest.approx(agreement)

    @pytest.mark.parametrize("most", [0.3])
    def test_of_an_error_is_kept_to_and_the_default(self, most: float) -> None:
        goal = Goal(max_error=most)
        result = chosen(CosineSvd(), goal, data=DATA, refit=UNFITTED)
        assert result.verification is not None
        assert result.verification.differences[0].error <= most
        assert result.planned is not None
        assert any((done.error or 0) > most for done in result.planned.rounds)

    @pytest.mark.parametrize("what", ["parameters", "macs"])
    @pytest.mark.parametrize("share", [0.4, 0.7])
    def test_of_a_share_is_reached_at_one_cosine(self, what: str, share: float) -> None:
        result = chosen(CosineSvd(fewest=what), Goal(**{what: share}))
        assert result.after is not None
        left = getattr(result.after, what) / getattr(result.before, what)
        assert 0.8 * share < left <= share * (1 + 1e-9)
        assert result.planned is not None
        (done,) = result.planned.rounds
        assert getattr(done, what) == pytest.approx(left)

    def test_out_of_reach_is_said(self) -> None:
        result = chosen(CosineSvd(), Goal(parameters=0.001))
        assert result.planned is not None
        assert result.planned.shortfall.startswith("No cosine brings it to 0.1 % of the parameters")

    def test_beside_a_cosine_decides_which_layers_are_decomposed(self) -> None:
        """The strategy as published: one threshold, and layers accepted within the loss."""
        everything = chosen(CosineSvd(LEVELS[-1]))
        some = chosen(CosineSvd(LEVELS[-1]), Goal(max_error=0.3))
        assert set(replaced(some)) < set(replaced(everything))
        for name, choice in replaced(some).items():
            assert choice == replaced(everything)[name]
        refused = set(replaced(everything)) - set(replaced(some))
        for name in refused:
            assert "misses the goal: a relative error" in str(rows(some)[name].keep)

    def test_that_allows_nothing_hands_the_original_back(self) -> None:
        result = chosen(CosineSvd(0.7), Goal(max_error=1e-6))
        assert not result.improved
        assert result.planned is not None
        assert result.planned.shortfall.startswith("No layer can be decomposed")

    def test_of_a_function_that_scores(self) -> None:
        scored: list[float] = []

        def evaluate(session: ort.InferenceSession) -> float:
            made = np.asarray(session.run(None, {"image": IMAGES[:32]})[0])
            scored.append(float(-np.linalg.norm(made - run(network(), IMAGES[:32]))))
            return scored[-1]

        goal = Goal(max_accuracy_drop=10.0)
        result = chosen(CosineSvd(), goal, evaluate=evaluate)
        assert result.planned is not None
        kept = result.planned.kept
        assert kept is not None
        assert kept.score is not None
        assert kept.score >= -10

    def test_ends_after_so_many_trials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("onnxcp.trials.MOST", 3)
        result = chosen(CosineSvd(), Goal(max_error=0.2))
        assert result.planned is not None
        assert len(result.planned.rounds) == 3
        assert "The search ended after" in result.planned.shortfall

    def test_tells_layers_that_were_not_tried_from_those_that_lose_too_much(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        missed = whys(chosen(CosineSvd(), Goal(max_error=1e-9)))
        assert any("misses the goal" in why for why in missed)
        assert not any("was tried" in why for why in missed)
        monkeypatch.setattr("onnxcp.trials.MOST", 0)
        ended = whys(chosen(CosineSvd(), Goal(max_error=1e-9)))
        assert any("the search ended before" in why for why in ended)
        assert not any("misses the goal" in why for why in ended)

    def test_names_the_cosine_that_came_to_a_share(self) -> None:
        result = chosen(CosineSvd(), Goal(parameters=0.9))
        kept = [why for why in whys(result) if "below break-even" in why]
        taken = [each.option.cosine for each in result.decisions if each.option is not None]
        assert kept
        assert all(f"a cosine of {min(taken):.4g} below" in why for why in kept)


def whys(result: Optimized) -> list[str]:
    """Return why layers stay as they are, in words."""
    return [why.detail for each in result.decisions for why in each.refusals]


class TestRefits:
    def test_follow_as_for_any_plan(self) -> None:
        goal = Goal(min_agreement=0.8)
        plain, fitted = (
            chosen(CosineSvd(), goal, data=DATA, refit=refit)
            for refit in (UNFITTED, RefitSettings("factorised", target="linear"))
        )
        assert replaced(plain) == replaced(fitted)
        assert plain.verification is not None
        assert fitted.verification is not None
        before, after = (each.verification.differences[0] for each in (plain, fitted))
        assert after.error < before.error

    def test_are_given_up_where_they_take_a_score_out_of_bounds(self) -> None:
        """Labels of a chance are what no refit knows of."""
        seen: list[float] = []

        def evaluate(session: ort.InferenceSession) -> float:
            made = np.asarray(session.run(None, {"image": IMAGES[:32]})[0])
            wanted = run(network(), IMAGES[:32])
            error = float(np.linalg.norm(made - wanted) / np.linalg.norm(wanted))
            seen.append(error)
            # Nothing is as good as a network that is neither the original nor close to it.
            return 1.0 if error == 0 or error > 0.1 else 0.0

        goal, refit = Goal(max_accuracy_drop=0.5), RefitSettings("factorised", target="linear")
        result = chosen(CosineSvd(0.8), goal, evaluate=evaluate, data=DATA, refit=refit)
        assert result.verification is not None
        assert result.verification.accuracy is not None
        assert result.verification.accuracy[1] >= 0.5

    def test_that_were_given_up_are_not_made_again_where_layers_are_given_back(
        self, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock.verified = lambda model, macs: 1e-3 if model.proto == network() else 2e-3
        built: list[Rewrite] = []
        refits: list[int] = []

        def settled(work: Work, rewrite: Rewrite) -> Rewrite:
            built.append(rewrite)
            return real(work, rewrite)

        def refit_once(*given: Any, **options: Any) -> Any:
            refits.append(len(built))
            return real_refit(*given, **options)

        real, real_refit = rewriting.settled, rewriting.refit
        monkeypatch.setattr("onnxcp.rewriting.refit", refit_once)
        for module in ("onnxcp.rewriting", "onnxcp.cosine_svd"):
            monkeypatch.setattr(f"{module}.settled", settled)
        monkeypatch.setattr("onnxcp.trials.Trials.within", lambda *_: (len(refits) < 1, 0.0))
        refit = RefitSettings("factorised", target="linear")
        result = chosen(CosineSvd(0.8), Goal(max_error=0.5), data=DATA, refit=refit)
        assert not result.improved
        assert refits == [1]  # of the first network, and of none after it
        assert len(built) > 2


class TestNeverSlower:
    def test_the_original_comes_back_and_the_verdict_says_what_was_there(
        self, clock: Clockwork
    ) -> None:
        clock.verified = lambda model, macs: 1e-3 if model.proto == network() else 2e-3
        result = chosen(CosineSvd(0.8))
        assert not result.improved
        assert result.model.proto == network()
        assert "of the parameters" in result.verdict
        assert "The rewritten network is not faster; the original is handed back" in result.verdict
        assert result.planned is not None
        assert "but is not faster" in result.planned.shortfall

    def test_layers_that_gain_nothing_are_given_back_first(self, clock: Clockwork) -> None:
        def slow_with_matrices(model: Any, macs: int) -> float:
            names = [node.name for node in model.proto.graph.node]
            return by_macs(model, macs) * (10 if any(n.startswith("hidden/") for n in names) else 1)

        clock.verified = slow_with_matrices
        result = chosen(CosineSvd(0.8))
        assert result.improved
        assert "hidden" not in replaced(result)
        assert result.planned is not None
        assert "layers were given back" in result.planned.shortfall


class TestPlans:
    def test_carried_out_again_give_the_same_network(self, tmp_path: Path) -> None:
        first = chosen(CosineSvd(0.9))
        assert first.plan is not None
        save_plan(first.plan, tmp_path / "p.yaml")
        again = optimize(network(), Settings(plan=load_plan(tmp_path / "p.yaml"), cached=False))
        assert again.model.proto == first.model.proto
        assert {n: (r.family, r.ranks, r.cosine) for n, r in rows(again).items()} == {
            n: (r.family, r.ranks, r.cosine) for n, r in rows(first).items()
        }

    def test_can_be_made_without_building_anything(self) -> None:
        settings = Settings(preset=CosineSvd(0.9), cached=False)
        plan, planned = make_plan(network(), settings)
        assert {row.site: (row.family, row.ranks) for row in plan.sites if row.family} == replaced(
            chosen(CosineSvd(0.9))
        )
        assert plan.goal == "cosine-svd at a cosine of 0.9"
        (done,) = planned.rounds
        assert done.parameters is not None

    @pytest.mark.parametrize(
        ("goal", "opening"),
        [
            (Goal(), "What an error allows shows only in networks that were built"),
            (Goal(max_accuracy_drop=0.1), "A drop of accuracy shows only"),
            (Goal(min_agreement=0.9), "Agreement shows only"),
        ],
    )
    def test_of_what_only_networks_show_are_refused(self, goal: Goal, opening: str) -> None:
        with pytest.raises(OnnxcpError, match=f"^{opening}.*optimize it"):
            make_plan(network(), Settings(goal=goal, preset=CosineSvd(), cached=False))

    def test_say_what_was_wanted(self) -> None:
        plan: Plan | None = chosen(CosineSvd(), Goal(parameters=0.6)).plan
        assert plan is not None
        assert plan.goal == "cosine-svd, 60 % of the parameters"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"macs": 0.5}, "The preset cosine-svd and macs exclude each other."),
        ({"energy": 0.5}, "The preset cosine-svd and energy exclude each other."),
        ({"passes": "cp3"}, "The preset cosine-svd and passes exclude each other."),
        ({"frontier": (2.0,)}, "The preset cosine-svd and a frontier exclude each other."),
        (
            {"goal": Goal(speedup=2)},
            "The preset cosine-svd is about parameters and multiply-adds, and cannot aim at "
            "2 times faster.",
        ),
        (
            {"goal": Goal(size=0.5)},
            "The preset cosine-svd is about parameters and multiply-adds, and cannot aim at "
            "50 % of the file's size.",
        ),
        (
            {"goal": Goal(parameters=0.5), "preset": CosineSvd(0.9)},
            "A cosine of 0.9 and a goal of 50 % of the parameters exclude each other.",
        ),
    ],
)
def test_contradictions_are_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OnnxcpError) as caught:
        Settings(**{"preset": CosineSvd(), **options})
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("preset", "options", "sentence"),
    [
        (
            CosineSvd(of="responses"),
            {},
            "Cosines of responses need samples to calibrate on.",
        ),
        (
            CosineSvd(),
            {"families": ("cp3",)},
            "cosine-svd cannot choose ranks of cp3 by one SVD; it can of: channel-svd, "
            "output-first-svd, spatial-svd.",
        ),
        (
            CosineSvd(),
            {"goal": Goal(min_agreement=0.9)},
            "An agreement needs samples, to calibrate on or with labels.",
        ),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(
    preset: CosineSvd, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(OnnxcpError) as caught:
        chosen(preset, **options)
    assert sorted(str(caught.value).split()) == sorted(sentence.split())


def test_an_agreement_is_a_goal_of_planning_by_time_too() -> None:
    goal = Goal(min_agreement=0.8)
    settings = Settings(
        goal=goal, families=("channel-svd",), round_to=1, cached=False, refit=UNFITTED
    )
    result = optimize(network(), settings, data=DATA)
    assert result.planned is not None
    assert any(done.score is not None for done in result.planned.rounds)
    kept = result.planned.kept
    assert kept is None or (kept.score or 0) >= 0.8
