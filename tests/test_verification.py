"""What is measured of a rewrite in numbers, and the user's function, which does no harm."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.cp import Cp3

from onnxcp import verification
from onnxcp.calibration.data import load_data
from onnxcp.errors import OnnxcpError
from onnxcp.factorize import Factorized
from onnxcp.graph.model import Model
from onnxcp.graph.splice import replace_kernels, splice
from onnxcp.profiling.compare import OutputDifference
from onnxcp.profiling.inputs import session_inputs
from onnxcp.profiling.machine import Machine
from onnxcp.verification import output_differences, rounding_error, tolerable, total_error
from tests.networks import Array, conv_model, difference, feeds_for, noise, only_site, run

MACHINE = Machine(intra_op_num_threads=1)


def test_what_it_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    def evaluate(session: Any) -> float:
        print("scoring")
        return 0.5

    assert verification._evaluated(evaluate, None) == 0.5
    assert capsys.readouterr() == ("", "scoring\n")


def test_its_exit_is_an_error() -> None:
    def evaluate(session: Any) -> float:
        sys.exit(3)

    with pytest.raises(OnnxcpError, match=r"^The evaluation function failed: SystemExit: 3\.$"):
        verification._evaluated(evaluate, None)


class TestRoundingError:
    """Of a chain, held against the one kernel that it stands for."""

    def of(self, result: Factorized, model: Model, x: Array) -> float:
        site = only_site(model)
        return rounding_error(model, site, result, {"x": x}, MACHINE)

    @pytest.mark.parametrize("bias", [None, noise(6, seed=4)])
    @pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
    def test_does_not_count_what_was_cut_away(self, op: str, bias: Array | None) -> None:
        model = Model(conv_model(op=op, batch=2))
        site = only_site(model)
        family = ChannelSvd()
        result = family.measured(site, (1,), family.apply(site, (1,)).factors, bias)
        assert result.error > 0.5
        error = self.of(result, model, feeds_for(model.proto)["x"])
        assert error < 1e-6
        assert tolerable(site, error)

    def test_is_that_of_terms_that_cancel(self) -> None:
        """Two components of opposite sign, a million times what is left of them."""
        model = Model(conv_model(bias=False))
        site = only_site(model)
        first, depthwise, last = Cp3().apply(site, (4,)).factors
        first[1], depthwise[1] = first[0], depthwise[0]
        last[:, 1] = -last[:, 0] + 1e-6 * last[:, 1]
        last[:, :2] *= 1e6
        result = Cp3().measured(site, (4,), (first, depthwise, last))
        x = feeds_for(model.proto)["x"]
        chain, whole = (
            run(each, {"x": x})[0].astype(np.float64)
            for each in (
                splice(model, {site: ("chain", result.chain)}),
                replace_kernels(model, {site: result.kernel}),
            )
        )
        expected = difference(chain, whole)
        error = self.of(result, model, x)
        assert error > 1e-4
        assert expected / 3 < error < 3 * expected
        assert not tolerable(site, error)

    @pytest.mark.filterwarnings("ignore:overflow")
    def test_that_is_not_finite_is_not_tolerable(self) -> None:
        model = Model(conv_model(dtype=np.float16))
        site = only_site(model)
        first, last = ChannelSvd().apply(site, (6,)).factors
        result = ChannelSvd().measured(site, (6,), (first * 1e5, last * 1e-5))
        assert result.error < 1e-6, "but for half precision it would do"
        assert not tolerable(site, self.of(result, model, feeds_for(model.proto)["x"]))


def test_nan_is_not_tolerable() -> None:
    site = only_site(conv_model())
    assert not tolerable(site, math.nan)
    assert tolerable(site, 0.0)


class TestDifferences:
    def scaled(self, factor: float) -> tuple[Model, Model]:
        model = Model(conv_model(bias=False, batch="n"))  # type: ignore[arg-type]
        site = only_site(model)
        return model, replace_kernels(model, {site: np.float32(factor) * site.kernel()})

    def test_are_of_the_samples_where_there_are_any(self) -> None:
        model, other = self.scaled(1.25)
        session = MACHINE.open(model)
        samples = load_data({"x": noise(5, 4, 9, 10)}, session_inputs(session))
        feeds = {"x": np.zeros((2, 4, 9, 10), np.float32)}
        (found,) = output_differences(
            model, other, machine=MACHINE, feeds=feeds, samples=samples
        )  # fmt: skip
        assert found.name == "y"
        assert found.relative == pytest.approx(0.25, rel=1e-5)
        (alone,) = output_differences(model, other, machine=MACHINE, feeds=feeds)
        assert alone.max_abs == 0

    def test_add_up_over_outputs(self) -> None:
        one, other = OutputDifference("a", relative=0.5), OutputDifference("b", equal=0.75)
        assert total_error([one, other]) == 0.75
        assert total_error([]) == 0

    def test_are_infinite_where_one_overflows(self) -> None:
        broken = OutputDifference("a", relative=math.nan, finite_b=False)
        assert total_error([OutputDifference("b", relative=0.1), broken]) == math.inf
        both = OutputDifference("a", relative=0.1, finite_a=False, finite_b=False)
        assert total_error([both]) == 0.1
