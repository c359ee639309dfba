"""Refits within the main job: what they gain, and where they are left out."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxcp import Optimized, Settings, optimize
from onnxcp.refit import RefitSettings
from tests.networks import model_of, noise
from tests.optimizer.conftest import SLOWER, network, run, settings


def smooth(n: int, seed: int = 0) -> np.ndarray:
    """Pictures in which neighbours and colours hang together."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((n, 3, 16, 16))
    for axis in (2, 3):
        image = image + np.roll(image, 1, axis) + np.roll(image, 2, axis)
    image += 2 * image.mean(axis=1, keepdims=True)
    return (image / 10).astype(np.float32)


def off(model: onnx.ModelProto, image: np.ndarray) -> float:
    """Relative error of the outputs of a rewritten network."""
    right = run(network(), image)
    return float(np.linalg.norm(run(model, image) - right) / np.linalg.norm(right))


def stored(model: onnx.ModelProto, prefix: str) -> dict[str, bytes]:
    return {t.name: t.raw_data for t in model.graph.initializer if t.name.startswith(prefix)}


DATA = {"image": smooth(64)}
FRESH = smooth(64, seed=1)


def reducing(**options: object) -> Settings:
    """To so little that it shows, by two families that are quick to decompose."""
    return settings(**{"macs": 0.15, "families": ("channel-svd", "spatial-svd"), **options})


@functools.cache
def without_data() -> Optimized:
    return optimize(network(), reducing())


@functools.cache
def with_data() -> Optimized:
    return optimize(network(), reducing(), data=DATA)


@pytest.mark.usefixtures("timings")
class TestRefits:
    def test_bring_outputs_closer_on_other_samples(self) -> None:
        alone = without_data()
        result = with_data()
        assert result.improved
        assert off(result.model.proto, FRESH) < 0.8 * off(alone.model.proto, FRESH)

    def test_are_judged_by_what_was_held_out(self) -> None:
        image = smooth(400)
        result = optimize(network(), reducing(), data={"image": image})
        assert (result.judges, len(result.held)) == (50, 1)
        assert result.held[0].error == pytest.approx(off(result.model.proto, image[7::8]), rel=1e-3)
        assert result.verification is not None
        whole = result.verification.differences[0].error
        assert whole == pytest.approx(off(result.model.proto, image), rel=1e-3)
        assert whole != result.held[0].error
        # With less to judge by, or nothing to fit to, there is only one kind of number.
        assert (with_data().judges, with_data().held) == (0, ())
        assert (without_data().judges, without_data().held) == (0, ())

    def test_of_layers_of_tokens_nothing_is_held_out_by_samples(self) -> None:
        """Refits hold out rows, of which every sample has some."""
        nodes = [
            onnx.helper.make_node("Reshape", ["x", "rows"], ["t"], name="tokens"),
            onnx.helper.make_node("Gemm", ["t", "w"], ["y"], name="fc"),
        ]
        weights = {"rows": np.array([-1, 32]), "w": noise(32, 32)}
        proto = model_of(nodes, inputs={"x": ("N", 16, 32)}, weights=weights)
        mixed = np.einsum("nts,sd->ntd", noise(400, 16, 4, seed=1), noise(4, 32, seed=2))
        chosen = Settings(macs=0.4, families=("channel-svd",), round_to=1, cached=False)
        result = optimize(proto, chosen, data={"x": mixed.astype(np.float32)})
        assert result.improved
        assert (result.judges, result.held) == (0, ())

    def test_what_they_gained_is_told(self) -> None:
        result = with_data()
        assert result.verification is not None
        assert [each.name for each in result.unfitted] == ["scores"]
        assert result.verification.differences[0].error < 0.8 * result.unfitted[0].error
        alone = without_data()
        assert alone.unfitted == ()
        assert off(alone.model.proto, DATA["image"]) == pytest.approx(
            result.unfitted[0].error, rel=1e-3
        )
        for decision in result.decisions:
            if decision.option is not None:
                assert decision.refit is not None
                assert decision.refit.after <= decision.refit.before
                assert decision.refit.result is decision.result

    def test_are_as_good_as_what_is_spliced_in(self) -> None:
        """The network that is handed out is made of the very chains that were decided on."""
        result = with_data()
        values = {
            t.name: onnx.numpy_helper.to_array(t) for t in result.model.proto.graph.initializer
        }
        for decision in result.decisions:
            if decision.result is not None:
                (label, chain), name = decision.chain, decision.site.name
                for position, step in enumerate(chain.steps):
                    kernel = values[f"{decision.site.weight}/{label}/{position}"]
                    np.testing.assert_array_equal(kernel, step.kernel.astype(np.float32))
                nodes = [n for n in result.model.proto.graph.node if n.name.startswith(f"{name}/")]
                assert len(nodes) == len(chain.steps)

    def test_are_given_up_where_outputs_are_no_closer(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone = without_data()
        errors = iter([2.0, 1.0])  # with the refit, and without
        monkeypatch.setattr("onnxcp.rewriting.total_error", lambda _: next(errors))
        result = optimize(network(), reducing(), data=DATA)
        assert result.improved
        assert result.model.proto.SerializeToString() == alone.model.proto.SerializeToString()
        assert all(decision.refit is None for decision in result.decisions)

    @pytest.mark.parametrize("text", ["cp3{macs=0.5}", "fold-batchnorm,channel-svd{macs=0.15}"])
    def test_of_what_passes_replace(self, text: str) -> None:
        alone = optimize(network(), settings(passes=text))
        result = optimize(network(), settings(passes=text), data=DATA)
        assert [r.text for r in result.records] == [r.text for r in alone.records]
        assert len(result.model.proto.graph.node) == len(alone.model.proto.graph.node)
        assert off(result.model.proto, FRESH) < 0.8 * off(alone.model.proto, FRESH)
        assert result.decisions == ()

    @pytest.mark.parametrize("text", ["", "cp3{macs=0.5}"])
    def test_are_left_out_where_the_scope_is_none(self, text: str) -> None:
        options = {"passes": text} if text else {}
        none = reducing(**options, refit=RefitSettings(scope="none"))
        result = optimize(network(), none, data=DATA)
        alone = optimize(network(), reducing(**options)) if text else without_data()
        assert result.model.proto.SerializeToString() == alone.model.proto.SerializeToString()
        assert result.unfitted == ()
        assert not result.data_is_random

    @pytest.mark.parametrize("scope", ["all", "factorised"])
    def test_of_sites_that_stay(self, scope: str) -> None:
        """The classifier is too small to be replaced; errors reach it."""
        options = reducing(refit=RefitSettings(scope=scope))
        usual = options == reducing()
        result = with_data() if usual else optimize(network(), options, data=DATA)
        scores = next(d for d in result.decisions if d.site.name == "scores")
        assert scores.option is None
        (node,) = (n for n in result.model.proto.graph.node if n.name == "scores")
        if scope == "all":
            assert scores.refit is not None
            assert scores.refit.dense is not None
            assert list(node.input[1:]) == ["scores.weight/refit", "scores.bias/refit/bias"]
        else:
            assert scores.refit is None
            assert list(node.input[1:]) == ["scores.weight", "scores.bias"]

    def test_leave_excluded_sites_alone(self) -> None:
        result = optimize(network(), reducing(exclude="tail scores"), data=DATA)
        original = network()
        assert stored(result.model.proto, "scores") == stored(original, "scores")
        tail = next(d for d in result.decisions if d.site.name == "tail")
        assert tail.refit is None
        assert tail.chain is None
        without = optimize(network(), reducing(exclude="tail scores"))
        assert stored(result.model.proto, "tail") == stored(without.model.proto, "tail")
        assert stored(result.model.proto, "body") != stored(without.model.proto, "body")

    def test_give_the_same_network_every_time(self) -> None:
        first, second = (
            each.model.proto for each in (with_data(), optimize(network(), reducing(), data=DATA))
        )
        assert first.SerializeToString() == second.SerializeToString()

    @pytest.mark.parametrize("scored", [False, True])
    def test_labels_are_not_looked_at(self, scored: bool) -> None:
        label = np.arange(64) % 10
        options = {"labelled": {"image": FRESH, "label": label}} if scored else {}
        data = DATA if scored else DATA | {"label": label}
        result = optimize(network(), reducing(), data=data, **options)
        plain = with_data().model.proto.SerializeToString()
        assert result.model.proto.SerializeToString() == plain

    def test_without_data_nothing_is_fitted_to_what_is_labelled(self) -> None:
        labelled = {"image": FRESH, "label": np.arange(64) % 10}
        result = optimize(network(), reducing(), labelled=labelled)
        alone = without_data()
        assert result.model.proto.SerializeToString() == alone.model.proto.SerializeToString()

    def test_of_a_network_of_a_fixed_batch(self) -> None:
        result = optimize(network(batch=2), reducing(), data=DATA)
        open_batch = with_data()
        assert result.verification is not None
        assert open_batch.verification is not None
        found, expected = (each.verification.differences[0].error for each in (result, open_batch))
        assert found == pytest.approx(expected, rel=0.05)

    @pytest.mark.filterwarnings("error")
    def test_of_data_that_do_not_vary(self) -> None:
        image = np.zeros((7, 3, 16, 16), np.float32)
        result = optimize(network(), reducing(), data={"image": image})
        assert result.verification is not None
        assert result.verification.differences[0].finite_b

    def test_with_nothing_to_replace_nothing_is_fitted(self, timings: Callable[..., None]) -> None:
        timings(alone=SLOWER)
        result = optimize(network(), reducing(), data=DATA)
        assert not result.improved
        assert result.unfitted == ()
