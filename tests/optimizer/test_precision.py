"""Low rank and a lower precision together: planned by the clock, stepped through, never slower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models.builder import GraphBuilder
from onnxcp import OnnxcpError, Optimized, Settings, load, optimize
from onnxcp.calibration.data import load_data
from onnxcp.graph.model import Model
from onnxcp.graph.segment import take_out
from onnxcp.graph.site import find_sites
from onnxcp.lowering import as_deployed, as_timed
from onnxcp.optimizer import make_plan
from onnxcp.passes import Context, LowerPass, find_pass
from onnxcp.planning.goal import Goal
from onnxcp.planning.plan import load_plan, save_plan
from onnxcp.precision import recipe
from onnxcp.precision.qdq import exactly, is_quantized
from onnxcp.precision.recipe import Recipe
from onnxcp.profiling.inputs import session_inputs
from onnxcp.profiling.machine import Machine
from onnxcp.refit import PREFIXES, RefitSettings
from onnxcp.reporting.facts import notes
from onnxcp.work import some_batches
from tests.clockwork import MINIMUM, SECONDS, Clockwork
from tests.networks import conv_model, difference, feeds_for, run

INT8 = Machine(precision="int8")


def network() -> onnx.ModelProto:
    """Return two layers; the second is worth cutting."""
    g = GraphBuilder("layers")
    x = g.input("image", ["N", 4, 8, 8])
    x = g.relu(g.conv(x, 4, 16, 3, name="one", pads=1), name="r")
    rng = np.random.default_rng(0)
    low = rng.standard_normal((24, 4)) @ rng.standard_normal((4, 16 * 9)) / 24
    x = g.conv(x, 16, 24, 3, name="two", pads=1, weight=low.reshape(24, 16, 3, 3).astype("f4"))
    return g.model([g.relu(x, name="y")])


DATA = {"image": np.random.default_rng(1).standard_normal((64, 4, 8, 8)).astype(np.float32)}


def taking(share: float, besides: float = 0.0) -> Callable[[Model, int], float]:
    """Return a clock by which int8 takes a share of the time of float, and something besides."""

    def seconds(model: Model, macs: int) -> float:
        if is_quantized(model):
            return MINIMUM + SECONDS * (share * macs + besides)
        return MINIMUM + SECONDS * macs

    return seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    """Return made-up time in which int8 is four times as fast."""
    made = Clockwork(monkeypatch)
    made.whole = made.alone = taking(0.25)
    monkeypatch.setattr("onnxcp.precision.recipe.paired", made.paired)
    return made


def optimized(
    data: Any = DATA, machine: Machine = INT8, evaluate: Any = None, **options: Any
) -> Optimized:
    usual = {
        "round_to": 1, "cached": False, "families": ("channel-svd",), "nodes": "two",
        "goal": Goal(macs=0.5),
    }  # fmt: skip
    settings = Settings(**{**usual, "machine": machine, **options})
    return optimize(network(), settings, data=data, evaluate=evaluate)


def result_session(result: Optimized) -> Any:
    return Machine(intra_op_num_threads=1).open(result.model)


class TestTogether:
    def test_every_step_is_timed_and_told(self, clock: Clockwork) -> None:
        result = optimized()
        assert result.improved
        assert is_quantized(result.model)
        assert result.precision == "int8"
        names = ["int8 alone", "low rank alone", "low rank, then int8"]
        assert [step.name for step in result.steps] == names
        alone, low, both = (step.trial.ratio for step in result.steps)
        assert alone == pytest.approx(4, rel=0.02)
        assert both > alone > low > 1
        assert result.steps[-1].model is result.model
        assert "Low rank and int8 together are" in result.told
        said = notes(result)
        assert result.told in said
        assert any(each.startswith("For int8: ranges by ") for each in said)

    def test_the_interface_is_what_it_was(self, clock: Clockwork) -> None:
        result = optimized()
        original, made = network().graph, result.model.proto.graph
        for before, after in ((original.input, made.input), (original.output, made.output)):
            assert [each.name for each in before] == [each.name for each in after]
            assert after[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        exact = run(network(), DATA)[0]
        assert difference(run(result.model, DATA)[0], exact) < 0.1

    def test_multiply_adds_and_parameters_are_those_ahead_of_it(self, clock: Clockwork) -> None:
        result = optimized()
        assert result.after is not None
        assert result.after.macs is not None
        assert result.after.macs <= 0.5 * (result.before.macs or 0)
        assert result.after.parameters < result.before.parameters
        assert result.after.nbytes == result.model.file_nbytes

    def test_a_speed_up_is_one_over_the_original(self, clock: Clockwork) -> None:
        result = optimized(goal=Goal(speedup=6.0))
        assert result.verification is not None
        assert result.verification.trial.ratio >= 6 * 0.97
        assert result.steps[0].trial.ratio < 5

    def test_a_plan_knows_its_precision_and_comes_out_the_same(
        self, clock: Clockwork, tmp_path: Path
    ) -> None:
        first = optimized()
        assert first.plan is not None
        assert first.plan.finish.startswith("quantize")
        save_plan(first.plan, tmp_path / "plan.yaml")
        plan = load_plan(tmp_path / "plan.yaml")
        again = optimized(machine=Machine(), plan=plan, goal=Goal())
        assert again.precision == "int8"
        one, other = (each.model.proto.SerializeToString() for each in (first, again))
        assert one == other

    def test_refits_make_good_for_rounding_where_asked(self, clock: Clockwork) -> None:
        found = {}
        for prefix in PREFIXES:
            settings = RefitSettings(prefix=prefix)
            result = optimized(refit=settings, nodes=Settings().nodes, goal=Goal(macs=0.35))
            assert is_quantized(result.model)
            found[prefix] = result.steps[1].model.proto.SerializeToString()
        assert found["full"] != found["deployed"]

    def test_layers_that_stay_float_are_not_rounded_for_refits(self, clock: Clockwork) -> None:
        def part(name: str) -> bool:
            batch = {"x": DATA["image"][:8]}
            context = Context(samples=lambda _: [batch])
            (site, *_), _ = find_sites(load(network()))
            alone, _ = take_out(load(network()), site)
            lower = find_pass("quantize")(keep="one tw*")
            assert isinstance(lower, LowerPass)
            return is_quantized(lower.part(alone, name, context))

        assert [part(name) for name in ("one", "two", "three")] == [False, False, True]

    def test_half_precision_goes_the_same_way(
        self, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        half = onnx.TensorProto.FLOAT16

        def seconds(model: Model, macs: int) -> float:
            kinds = {each.data_type for each in model.proto.graph.initializer}
            return MINIMUM + SECONDS * macs * (0.5 if half in kinds else 1)

        clock.whole = clock.alone = seconds
        result = optimized(machine=Machine(precision="fp16"))
        assert result.precision == "fp16"
        assert {each.data_type for each in result.model.proto.graph.initializer} == {half}
        assert result.steps[0].trial.ratio == pytest.approx(2, rel=0.02)


class TestNeverSlower:
    def test_float_is_kept_where_int8_is_not_faster(self, clock: Clockwork) -> None:
        clock.whole = clock.alone = taking(1.0)
        result = optimized()
        assert result.improved
        assert not is_quantized(result.model)
        assert result.precision == "fp32"
        assert result.told.startswith("int8 is not faster here (1.00x")
        assert result.told in notes(result)

    def test_int8_alone_where_no_layer_is_faster_factorised(self, clock: Clockwork) -> None:
        clock.alone = taking(0.25, besides=1e9)  # so much that chains make no difference
        result = optimized(goal=Goal(speedup=5.0))
        assert result.improved
        assert is_quantized(result.model)
        assert [step.name for step in result.steps] == ["int8 alone"]
        assert result.told == "No layer is faster factorised in int8, so this is int8 alone."

    def test_sites_are_given_back_where_both_are_no_faster_than_int8(
        self, clock: Clockwork
    ) -> None:
        def verified(model: Model, macs: int) -> float:
            return 1e-6 if is_quantized(model) else 1e-5

        clock.verified = verified
        result = optimized()
        assert [step.name for step in result.steps] == ["int8 alone"]
        assert not any(each.chain for each in result.decisions)
        assert result.model is result.steps[0].model

    def test_float_is_kept_where_chains_are_too_small_for_integers(self, clock: Clockwork) -> None:
        full = 64 * 9 * (4 * 16 + 16 * 24)
        clock.whole = clock.alone = taking(0.1, besides=0.6 * full)
        result = optimized()
        assert result.improved
        assert not is_quantized(result.model)
        assert result.precision == "fp32"
        assert "Factorised layers are not faster in int8 here" in result.told
        assert result.steps[0].name == "int8 alone"


class TestGoalsOfLoss:
    """What is deployed is held against them, and not what it was made from."""

    def test_an_error_that_int8_exceeds_keeps_float(self, clock: Clockwork) -> None:
        result = optimized(goal=Goal(max_error=0.002))
        assert result.precision == "fp32"
        assert "Int8 alone has an error of the outputs of 0.0" in result.told
        assert result.told.endswith("so fp32 is kept.")
        assert [step.name for step in result.steps] == ["int8 alone"]
        exact, got = (run(each, DATA)[0] for each in (network(), result.model))
        assert difference(got, exact) <= 0.002

    def test_an_error_that_it_keeps_to_counts_rounding(self, clock: Clockwork) -> None:
        result = optimized(goal=Goal(max_error=0.05))
        assert result.precision == "int8"
        assert result.improved
        exact, got = (run(each, DATA)[0] for each in (network(), result.model))
        found = difference(got, exact)
        assert found <= 0.05
        assert result.planned is not None
        assert result.planned.kept is not None
        assert result.planned.kept.error == pytest.approx(found, rel=0.3)

    def test_a_score_that_it_misses_keeps_float(self, clock: Clockwork) -> None:
        exact = run(network(), DATA)[0]

        def score(session: Any) -> float:
            return 1 - 20 * difference(session.run(None, DATA)[0], exact)

        result = optimized(goal=Goal(max_accuracy_drop=0.01), evaluate=score)
        assert result.precision == "fp32"
        assert result.improved
        assert "Int8 alone has a score of 0." in result.told
        assert score(result_session(result)) >= 0.99


class TestLayersInFloat:
    def test_are_chosen_for_the_chains_and_not_for_what_they_replace(
        self, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        plain = recipe.tune

        def tune(model: Model, *args: Any, **kwargs: Any) -> Recipe:
            found = plain(model, *args, **kwargs)
            names = [n.name for n in model.proto.graph.node if n.op_type == "Conv"]
            seen.append((names, kwargs.get("methods")))
            return replace(found, keep=(exactly(names[-1]),) if len(names) == 3 else ())

        monkeypatch.setattr("onnxcp_passes.quantize.tune", tune)
        result = optimized()
        (first, every), (second, one) = seen
        assert (len(first), len(second)) == (2, 3)
        assert every is None
        assert one is not None
        assert len(one) == 1
        assert any(f"in float: {second[-1]}" in each for each in result.steps[-1].notes)
        assert result.plan is not None
        assert f'keep="{second[-1]}"' in result.plan.finish

    def test_are_as_many_as_an_error_that_is_asked_for_takes(
        self, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("onnxcp_passes.quantize.tune", lambda _, recipe, *__, **___: recipe)
        exact = run(network(), DATA)[0]

        def loses(*keep: str) -> float:
            made, _ = recipe.lower(load(network()), Recipe(keep=keep), [DATA], Machine())
            return difference(run(made, DATA)[0], exact)

        limit = (loses() * max(loses("one"), loses("two"))) ** 0.5
        result = optimized(goal=Goal(max_error=limit))
        assert result.precision == "int8"
        alone = result.steps[0]
        assert any(each.startswith("in float: ") for each in alone.notes)
        assert is_quantized(alone.model)
        for made in (alone.model, result.model):
            assert difference(run(made, DATA)[0], exact) <= limit
        assert result.plan is not None
        assert "keep=" in result.plan.finish
        again = optimized(goal=Goal(), plan=result.plan)
        assert again.model.proto.SerializeToString() == result.model.proto.SerializeToString()


class TestErrors:
    def test_without_samples(self) -> None:
        with pytest.raises(OnnxcpError, match=r"needs samples .*: give --calibration-data"):
            optimized(data=None)

    def test_a_network_in_integers_already(self) -> None:
        quantized = as_timed(load(network()), "int8")
        with pytest.raises(OnnxcpError, match="quantized already: give the float model, and"):
            optimize(quantized, Settings(machine=INT8, cached=False), data=DATA)

    def test_a_network_of_float16(self) -> None:
        proto = conv_model(dtype=np.float16)
        with pytest.raises(OnnxcpError, match=r"'tiny' is of float16, .*: give it in float32"):
            optimize(proto, Settings(machine=INT8, cached=False), data=feeds_for(proto))

    def test_of_a_prefix_that_is_not_deployed(self) -> None:
        with pytest.raises(OnnxcpError, match=r"only on the way to a lower precision: give --pr"):
            optimized(machine=Machine(), refit=RefitSettings(prefix="deployed"))

    def test_beside_passes(self) -> None:
        with pytest.raises(OnnxcpError, match="let them end with that for int8"):
            optimized(passes="fold-batchnorm", goal=Goal())

    def test_a_plan_says_where_it_stays_float(self, clock: Clockwork) -> None:
        clock.whole = clock.alone = taking(1.0)
        settings = Settings(machine=INT8, cached=False, round_to=1, goal=Goal(speedup=1.2))
        _, planned = make_plan(network(), settings, data=DATA)
        assert "int8 is not faster here" in planned.shortfall


class TestByHand:
    def test_as_a_pass_of_a_pipeline(self, clock: Clockwork) -> None:
        text = 'channel-svd{rank=4,nodes="two"},quantize{method="minmax",keep="one"}'
        result = optimized(passes=text, machine=Machine(), goal=Goal())
        assert is_quantized(result.model)
        assert any("in float: one" in each.notes for each in result.records)

    def test_a_model_as_it_would_be_deployed(self) -> None:
        model = load(network())
        assert as_deployed(model, "fp32", None, Machine()) is model
        assert as_timed(model, "fp32") is model
        quantized = as_timed(model, "int8")
        assert is_quantized(quantized)
        assert as_timed(quantized, "int8") is quantized


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize(("there", "wanted", "got"), [(300, 256, 256), (40, 256, 40), (1, 256, 1)])
def test_as_many_samples_as_are_wanted(batch: int | str, there: int, wanted: int, got: int) -> None:
    g = GraphBuilder("one")
    x = g.input("image", [batch, 4])
    specs = session_inputs(Machine().open(load(g.model([g.relu(x, name="y")]))))
    data = load_data(np.zeros((there, 4), np.float32), specs)
    batches = some_batches(data, wanted)
    assert sum(len(each["image"]) for each in batches) == got
    assert len(batches) >= min(8, there), "so that some can be held out"
