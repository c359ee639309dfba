from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from onnxcp.graph.refusal import Reason, Refusal, main_refusal
from onnxcp.optimizer import Optimized
from onnxcp.planning.goal import Goal
from onnxcp.profiling.compare import OutputDifference
from onnxcp.reporting import facts
from tests.reporting.conftest import CALIBRATION, LABELLED, NOTHING, SHORT, THREE_TIMES, Make


def test_sizes_shrink(make: Make) -> None:
    rows = {row.label: row for row in facts.sizes(make())}
    assert list(rows) == ["nodes", "parameters", "MACs per sample", "file size"]
    assert rows["nodes"].before == "6"
    assert int(rows["nodes"].after) > 6
    assert rows["parameters"].change.startswith("−")


def test_measures_with_labels(make: Make) -> None:
    rows = {row.label: row for row in facts.measures(make(labelled=LABELLED))}
    assert list(rows) == [
        "median latency, batch 4",
        "90th percentile",
        "relative output error",
        "same top class",
        "accuracy, 8 samples",
    ]
    assert rows["median latency, batch 4"].before == "2.00 ms"
    assert rows["median latency, batch 4"].after == "1.00 ms"
    assert rows["median latency, batch 4"].change == "2.00× (1.90 to 2.10)"
    assert rows["accuracy, 8 samples"].change.endswith("points")
    assert [label for label, row in rows.items() if row.strong] == [
        "median latency, batch 4",
        "accuracy, 8 samples",
    ]


def test_a_layer_that_only_an_exact_pass_took_apart(make: Make) -> None:
    result = make()
    names = [node.name for node in result.model.proto.graph.node]
    model = result.model.with_proto(copy.deepcopy(result.model.proto))
    model.proto.graph.node[names.index("fc")].name = "fc/rest"
    end = replace(result.records[0], text="split-maxout", changed=True)
    _, fc = facts.site_lines(replace(result, model=model, endings=(end,)))
    assert fc.changed
    assert fc.decision.startswith("not factorised: ")
    assert fc.decision.endswith("; then split-maxout, which is exact")
    _, fc = facts.site_lines(replace(result, endings=(end,)))
    assert not fc.changed


def test_a_score_keeps_its_own_unit(make: Make) -> None:
    result = make(evaluate=lambda _: 21.5)
    row = facts.measures(result, custom_score=True)[-1]
    assert (row.label, row.before, row.after, row.change) == ("score", "21.5", "21.5", "+0")


def test_nothing_is_measured_where_nothing_was_rewritten(make: Make) -> None:
    result = make(chain_ratio=1.0)
    assert facts.measures(result) == []
    assert facts.notes(result) == []
    assert {row.after for row in facts.sizes(result)} == {"–"}


def test_sites(make: Make) -> None:
    conv, fc = facts.site_lines(make())
    assert conv.kernel == "Conv 24×16×3×3"
    assert conv.decision.split(", rank ")[0] in ("tucker2", "channel-svd")
    assert conv.macs_kept is not None
    assert conv.macs_kept <= 0.5
    assert conv.alone is not None
    assert conv.alone.ratio == 3.0
    assert fc.decision.startswith("left alone: ")
    assert (fc.macs_kept, fc.weight_error, fc.alone) == (None, None, None)


class TestRefit:
    def test_of_sites(self, make: Make) -> None:
        conv, fc = facts.site_lines(make(data=CALIBRATION))
        for line in (conv, fc):
            assert line.changed
            assert line.output_errors is not None
            assert line.output_errors[1] < line.output_errors[0]
        assert fc.decision.startswith("refitted, not replaced: it makes up")
        assert (fc.macs_kept, fc.alone) == (None, None)

    def test_of_which_no_error_is_known(self, unknown: Optimized) -> None:
        conv, fc = facts.site_lines(unknown)
        assert (conv.output_errors, fc.output_errors) == (None, None)
        assert (conv.changed, fc.changed) == (True, False)
        assert fc.decision.startswith("left alone: ")

    def test_of_the_whole(self, make: Make) -> None:
        result = make(data=CALIBRATION)
        assert facts.refitted(result)
        rows = {row.label: row for row in facts.measures(result)}
        error, top = rows["relative output error"], rows["same top class"]
        assert error.change.endswith(" before the refit")
        assert float(error.after) < float(error.change.split()[0])
        assert top.change.endswith(" % before the refit")

    def test_outputs_of_another_kind_are_not_set_side_by_side(self, make: Make) -> None:
        other = (OutputDifference("y", equal=0.5),)
        rows = facts.measures(replace(make(data=CALIBRATION), unfitted=other))
        assert [row.change for row in rows if "output" in row.label or "top" in row.label] == [
            "",
            "",
        ]

    def test_that_was_given_up_is_not_shown_in_numbers(self, given_up: Optimized) -> None:
        assert not facts.refitted(given_up)
        assert not any("refit" in row.change for row in facts.measures(given_up))


def test_the_refusal_that_came_furthest_is_the_main_one() -> None:
    early = Refusal("a", Reason.INEXPRESSIBLE, "first")
    late = Refusal("a", Reason.NOT_FASTER, "second")
    assert main_refusal([early, late]) is late
    assert main_refusal([late, early]) is late
    assert main_refusal([]) is None


def test_refusals_of_one_reason_come_together() -> None:
    many = [Refusal(name, Reason.DEPTHWISE, "thin") for name in "abcde"]
    other = Refusal("q", Reason.QUANTIZED, "coarse")
    assert facts.grouped([*many, other]) == [("a, b, c and 2 more", "thin"), ("q", "coarse")]


COMPARED = "Outputs were compared on 8 samples."


class TestNotes:
    def test_random_inputs_and_unknown_accuracy(self, make: Make) -> None:
        said = " ".join(facts.notes(make()))
        assert "random inputs" in said
        assert "Accuracy unknown" in said

    def test_little_to_say(self, make: Make) -> None:
        assert facts.notes(make(labelled=LABELLED)) == [COMPARED]

    def test_outputs_that_went_wrong(self, make: Make) -> None:
        result = make(labelled=LABELLED)
        assert result.verification is not None
        wrong = (
            OutputDifference("y", problem="Output 'y' is no tensor."),
            OutputDifference("z", max_abs=1.0, finite_b=False),
        )
        seen = replace(result.verification, differences=wrong)
        said = facts.notes(replace(result, verification=seen))
        assert said == [
            COMPARED,
            "Output 'y' is no tensor.",
            "Output 'z' holds infinite values or NaN where the original's does not.",
        ]

    def test_accuracy_is_unknown_with_calibration_data_too(self, make: Make) -> None:
        refit, accuracy = facts.notes(make(data=CALIBRATION))
        assert "on a part that was held out" in refit
        assert "compared on the 64 samples that layers were refitted to" in refit
        assert "without labels" in refit
        assert accuracy.startswith("Accuracy unknown")

    def test_a_refit_that_was_given_up(self, given_up: Optimized) -> None:
        said = facts.notes(given_up)
        assert "further from the original's" in said[0]
        assert "so the refit was given up; the outputs were compared on the 64 samples" in said[0]

    def test_a_refit_from_which_no_layer_gained(self, unknown: Optimized) -> None:
        assert "no layer gained by it" in facts.notes(unknown)[0]

    def test_a_refit_by_passes(self, make: Make) -> None:
        (said,) = facts.notes(make(labelled=LABELLED), passes_refit=True)
        assert said.startswith("What the passes replaced was refitted to the calibration data")

    def test_interrupted_timings(self, make: Make) -> None:
        result = make(labelled=LABELLED)
        assert result.verification is not None
        trial = replace(result.verification.trial, clean=False)
        seen = replace(result.verification, trial=trial)
        _, said = facts.notes(replace(result, verification=seen))
        assert "The machine was busy" in said


FORECAST = "Expected 3.03 times faster and an output error of 0.0412; measured 3.01 and 0.0351."
VERIFIED = FORECAST.replace("3.01", "2.00")
MISSED = (
    "That is less than the 3.00 times that were asked for, which the plan reached when it was "
    "timed before."
)


class TestNotesOnPlans:
    def test_how_far_the_forecast_was_from_what_was_verified(self, planned: Optimized) -> None:
        assert facts.notes(planned) == [VERIFIED, MISSED, COMPARED]

    @pytest.mark.parametrize(("wanted", "told"), [(2.05, False), (3.0, True)])
    def test_a_goal_that_was_missed_in_the_end(
        self, planned: Optimized, wanted: float, told: bool
    ) -> None:
        goal = replace(THREE_TIMES, goal=Goal(speedup=wanted))
        said = " ".join(facts.notes(replace(planned, planned=goal)))
        assert ("less than the" in said) is told

    def test_a_goal_out_of_reach_comes_first(self, planned: Optimized) -> None:
        said = facts.notes(replace(planned, planned=SHORT))
        assert said[0] == SHORT.shortfall
        assert "measured 2.00 and 0.366" in said[1]

    def test_a_goal_out_of_reach_where_nothing_was_rewritten(self, make: Make) -> None:
        result = make(chain_ratio=1.0)
        assert facts.notes(replace(result, planned=replace(SHORT, rounds=()))) == [SHORT.shortfall]
        assert facts.notes(replace(result, planned=NOTHING)) == []

    def test_layers_that_were_given_back(self, planned: Optimized) -> None:
        decisions = tuple(replace(each, candidates=()) for each in planned.decisions)
        note, more, _ = facts.notes(replace(planned, decisions=decisions))
        assert note == FORECAST
        assert more.endswith("were then given back.")

    def test_without_data_nothing_is_said_twice(self, make: Make) -> None:
        note, _, random, accuracy = facts.notes(replace(make(), planned=THREE_TIMES))
        assert note == VERIFIED
        assert "weights and random inputs alone" in random
        assert "outputs were compared on random inputs" in random
        assert accuracy.startswith("Accuracy unknown")

    def test_of_which_nothing_was_built(self) -> None:
        assert facts.plan_notes(THREE_TIMES, from_data=True) == [FORECAST]
        note, random = facts.plan_notes(THREE_TIMES, from_data=False)
        assert note == FORECAST
        assert "weights and random inputs alone" in random
        assert "accuracy is unknown" in random
        assert facts.plan_notes(SHORT, from_data=True)[0] == SHORT.shortfall


def test_outputs_that_are_no_floats(make: Make) -> None:
    result = make(labelled=LABELLED)
    assert result.verification is not None
    seen = replace(result.verification, differences=(OutputDifference("y", equal=0.75),))
    rows = {row.label: row.after for row in facts.measures(replace(result, verification=seen))}
    assert rows["equal outputs"] == "75.00 %"
