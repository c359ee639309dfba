"""Biases in refits: means come out right, and operators without one stay so."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcp.graph.model import Model
from onnxcp.refit import Refit
from tests.networks import Array, model_of, noise, run
from tests.refits import SAMPLES, SITES, choices_for, fit, fitted, matrix, samples_for, smooth


class TestBias:
    def fit(self, proto: onnx.ModelProto) -> tuple[Model, Refit]:
        model = Model(proto)
        done = fit(proto, choices_for(model, "channel-svd"), samples_for(proto))
        (found,) = done.values()
        return fitted(model, done), found

    @pytest.mark.parametrize(
        "name", ["conv", "no bias", "grouped", "transposed", "Gemm, alpha and beta",
                 "Gemm, bias of one row", "Gemm, bias of one number", "Gemm without bias"],
    )  # fmt: skip
    def test_makes_the_means_right(self, name: str) -> None:
        """On the samples that are fitted to."""
        rewritten, found = self.fit(SITES[name])
        values = samples_for(SITES[name])
        values = values[np.arange(SAMPLES) % 8 != 7]
        one, other = (run(each, {"x": values})[0] for each in (rewritten, SITES[name]))
        axes = (0, *range(2, one.ndim))
        spread = np.std(other)
        np.testing.assert_allclose(one.mean(axes), other.mean(axes), atol=1e-4 * spread)
        assert found.result is not None
        assert found.result.bias is not None
        assert found.result.bias.shape == (one.shape[1],)
        assert len(rewritten.proto.graph.node[-1].input) == 3

    @pytest.mark.parametrize("name", ["MatMul", "MatMul of 3 axes", "left"])
    def test_is_none_where_the_operator_has_none(self, name: str) -> None:
        rewritten, found = self.fit(SITES[name])
        assert found.result is not None
        assert found.result.bias is None
        assert all(len(node.input) == 2 for node in rewritten.proto.graph.node)

    def test_is_as_it_was_where_it_does_not_count(self) -> None:
        rewritten, found = self.fit(SITES["Gemm, no beta"])
        assert found.result is not None
        assert found.result.bias is None
        assert found.improved
        assert rewritten.proto.graph.node[-1].input[2] == "b"

    @pytest.mark.parametrize("rows", [5, 16])
    def test_that_is_no_vector_leaves_the_weights_alone(self, rows: int) -> None:
        """One for every row of a batch of fixed size."""
        weights = {"w": noise(10, 14), "b": noise(rows, 14, seed=1)}
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="m")
        proto = model_of([node], inputs={"x": (rows, 10)}, weights=weights)
        model = Model(proto)
        choices = choices_for(model, "channel-svd")
        done = fit(proto, choices, samples_for(proto))
        ((site, found),) = done.items()
        assert found.result is choices[site][0]
        assert math.isnan(found.before)
        assert math.isnan(found.after)
        assert not found.improved

    def test_that_is_computed_leaves_the_weights_alone(self) -> None:
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["b"], axes=[0, 2, 3], keepdims=0),
            helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv"),
        ]
        proto = model_of(
            nodes, inputs={"x": ("n", 8, 6, 7)}, weights={"w": noise(8, 8, 3, 3)}
        )  # fmt: skip
        choices = choices_for(Model(proto), "channel-svd")
        ((site, found),) = fit(proto, choices, smooth(SAMPLES, 8, 6, 7)).items()
        assert found.result is choices[site][0]

    @pytest.mark.parametrize("bias", [None, noise(14)])
    def test_of_a_product_that_does_not_count(self, bias: Array | None) -> None:
        proto = matrix("Gemm", bias, alpha=0.0)
        choices = choices_for(Model(proto), "channel-svd")
        ((site, found),) = fit(proto, choices, samples_for(proto)).items()
        assert found.result is choices[site][0]
