from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from onnxcp import units
from onnxcp.optimizer import Optimized
from onnxcp.planning.goal import Goal
from onnxcp.profiling.compare import OutputDifference
from onnxcp.profiling.environment import describe
from onnxcp.reporting import answers, facts
from onnxcp.verification import Step
from tests.cli.conftest import samples
from tests.reporting.conftest import CALIBRATION, JOB, LABELLED, SETTINGS, THREE_TIMES, Make


def with_outputs(result: Optimized, difference: OutputDifference) -> Optimized:
    assert result.verification is not None
    seen = replace(result.verification, differences=(difference,), accuracy=None)
    return replace(result, verification=seen)


def with_accuracy(result: Optimized, before: float, after: float) -> Optimized:
    assert result.verification is not None
    return replace(result, verification=replace(result.verification, accuracy=(before, after)))


CLOSE = OutputDifference("y", "", 0.1, 0.01, 0.05, 0.999, None, 0.99)
FAR = OutputDifference("y", "", 0.1, 0.01, 0.6, 0.8, None, 0.95)
DISAGREEING = OutputDifference("y", "", 0.1, 0.01, 0.05, 0.999, None, 0.5)


class TestSpeed:
    def test_with_its_interval(self, make: Make) -> None:
        found = answers.speed(make())
        assert found.figure == "2.00× faster"
        assert found.lines == (
            "95 % interval 1.90 to 2.10 at batch 4, from 10 runs of each in turns",
            "none was disturbed so much by other processes that it was left out",
        )

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"discarded": 7}, "7 more were disturbed by other processes, and left out"),
            ({"clean": False, "discarded": 9}, "the machine was busy: nearly every run"),
        ],
    )
    def test_on_a_machine_that_does_something_else(
        self, make: Make, change: dict[str, Any], said: str
    ) -> None:
        result = make()
        assert result.verification is not None
        trial = replace(result.verification.trial, **change)
        seen = replace(result.verification, trial=trial)
        assert answers.speed(replace(result, verification=seen)).lines[-1].startswith(said)

    def test_of_what_was_not_faster(self, make: Make) -> None:
        found = answers.speed(make(network_ratio=1.0))
        assert found.figure == "Left as it was"
        assert found.lines[0] == "rewritten, it was 1.00× as fast"

    def test_that_is_within_the_noise(self, make: Make) -> None:
        """What is not called faster in the verdict is not called so beside it."""
        found = answers.speed(make(network_ratio=1.015))
        assert (found.figure, found.lines[0]) == (
            "Left as it was",
            "rewritten, it was 1.01× as fast",
        )

    def test_where_nothing_was_rewritten(self, make: Make) -> None:
        assert answers.speed(make(chain_ratio=1.0)).lines == (
            "nothing was rewritten, so nothing was timed",
        )

    def test_of_what_was_to_be_smaller(self, make: Make) -> None:
        result = replace(make(network_ratio=1.0), improved=True)
        found = answers.speed(result)
        assert found.figure.endswith("× smaller")
        assert found.lines[0] == "1.00× as fast"


class TestCost:
    def test_in_accuracy(self, make: Make) -> None:
        found = answers.cost(with_accuracy(make(labelled=LABELLED), 0.9146, 0.9065), JOB)
        assert found.figure == "−0.81 points"
        assert found.lines[0] == "accuracy, 8 samples: 91.46 % → 90.65 %"
        assert found.lines[1].startswith("relative output error")
        assert found.lines[1].endswith(" %, on 8 samples")

    def test_on_what_was_fitted_to(self, make: Make) -> None:
        error, *_ = answers.cost(make(data=CALIBRATION), JOB).lines
        assert error.endswith(", on the 64 samples that layers were refitted to")

    def test_on_what_was_held_out(self, make: Make) -> None:
        """It is told instead: what was fitted to flatters."""
        result = make(data={"x": samples(256)})
        assert result.judges == 32
        found = answers.cost(result, JOB)
        assert found.figure == f"error {units.error(result.held[0].relative)}"
        assert found.lines[0].endswith(", on 32 samples that no layer was fitted to")
        (error, top) = (r for r in facts.measures(result) if r.label.startswith("held out: "))
        assert (error.before, error.after) == ("", found.figure.removeprefix("error "))
        assert top.label == "held out: same top class"
        said = " ".join(facts.notes(result))
        assert (
            "on all 256 samples, those fitted to among them, and on the 32 that were held out"
            in said
        )

    def test_on_random_inputs(self, make: Make) -> None:
        error, *_ = answers.cost(make(), JOB).lines
        assert error.endswith(", on random inputs, one batch of 4")

    def test_in_a_score(self, make: Make) -> None:
        job = replace(JOB, script="f.py:score")
        found = answers.cost(with_accuracy(make(), 33.25, 33.0), job)
        assert (found.figure, found.lines[0]) == ("−0.25", "score: 33.25 → 33")

    def test_in_errors_where_accuracy_is_not_known(self, make: Make) -> None:
        found = answers.cost(with_outputs(make(), CLOSE), JOB)
        assert found.figure == "error 0.05"
        assert found.lines[-1].startswith("accuracy unknown")

    @pytest.mark.parametrize("ratios", [{"network_ratio": 1.0}, {"chain_ratio": 1.0}])
    def test_of_the_original(self, make: Make, ratios: dict[str, float]) -> None:
        assert answers.cost(make(**ratios), JOB).figure == "None"


def test_the_machine(make: Make) -> None:
    machine = describe(SETTINGS.machine)
    found = answers.place(make(), machine)
    assert found.figure == machine.cpu
    said = " ".join(found.lines)
    for words in ("logical core", "ONNX Runtime", "provider cpu, fp32", "x 4×16×12×12"):
        assert words in said
    threads = answers.place(make(), replace(machine, threads="3"))
    assert ", threads: 3," in threads.lines[0]


class TestAdvice:
    def test_where_accuracy_falls(self, make: Make) -> None:
        said = answers.advice(with_accuracy(make(), 0.9146, 0.9065), JOB)
        assert said == (
            "out.onnx can take its place: inputs and outputs have the same names and shapes, and "
            "it is 2.00× faster on this machine. Deploy it if an accuracy of 90.65 % in place of "
            "91.46 % is good enough for you."
        )

    def test_where_accuracy_does_not_fall(self, make: Make) -> None:
        said = answers.advice(with_accuracy(make(), 0.9, 0.9), JOB)
        assert "nothing speaks against deploying it" in said

    def test_where_it_is_not_known(self, make: Make) -> None:
        random = answers.advice(with_outputs(make(), CLOSE), JOB)
        assert "close to the original's on random inputs" in random
        assert "(--eval-data) before you deploy it" in random
        assert "random" not in answers.advice(with_outputs(make(data=CALIBRATION), CLOSE), JOB)

    @pytest.mark.parametrize("difference", [FAR, DISAGREEING])
    def test_where_outputs_are_far_off(self, make: Make, difference: OutputDifference) -> None:
        said = answers.advice(with_outputs(make(), difference), JOB)
        assert said.startswith("Do not deploy out.onnx as it is: what it puts out is far from")
        assert "--calibration-data" in said
        fitted = answers.advice(with_outputs(make(data=CALIBRATION), difference), JOB)
        assert "--finetune" in fitted

    def test_where_nothing_changed(self, make: Make) -> None:
        assert answers.advice(make(network_ratio=1.0), JOB).startswith("Keep the network")


class TestForecasts:
    def test_of_a_plan(self, planned: Optimized) -> None:
        time, error = answers.forecasts(planned)
        # Three times faster than 2 ms was expected.
        assert (time.row.before, time.row.after) == ("660 µs", "1.00 ms")
        assert time.row.change == "+51 %"
        assert (time.predicted, time.measured) == (66.01, 100.0)
        assert (error.row.before, error.row.after, error.row.change) == (
            "0.0412",
            "0.0351",
            "−15 %",
        )

    def test_from_layers_alone(self, make: Make) -> None:
        result = make(network_ratio=5.0)  # 5 ms before, of which the layer alone saves 2 ms
        (time,) = answers.forecasts(result)
        assert time.row.label == "time, if layers saved in the network what they save alone"
        assert (time.row.before, time.row.after) == ("3.00 ms", "1.00 ms")

    def test_not_from_layers_in_a_lower_precision(self, make: Make) -> None:
        result = make(network_ratio=5.0)
        seen = result.verification
        assert seen is not None
        step = Step("low rank, then int8", result.model, seen.trial, seen.differences)
        assert answers.forecasts(replace(result, steps=(step,))) == []

    def test_of_a_plan_from_which_layers_were_given_back(self, make: Make) -> None:
        result = replace(make(network_ratio=5.0), planned=THREE_TIMES)
        fewer = replace(
            result, decisions=tuple(replace(d, candidates=()) for d in result.decisions)
        )
        assert answers.forecasts(fewer) == []

    def test_where_layers_alone_save_more_than_there_is(self, make: Make) -> None:
        assert answers.forecasts(make()) == []

    def test_where_nothing_was_rewritten(self, make: Make) -> None:
        settings = replace(SETTINGS, macs=None, goal=Goal(speedup=1.5))
        assert answers.forecasts(make(chain_ratio=1.0, settings=settings)) == []
