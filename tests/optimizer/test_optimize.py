"""The main job, with made-up timings: what is decided must not depend on how busy a machine is."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxcp
from models.builder import GraphBuilder
from onnxcp import Machine, OnnxcpError, optimize
from onnxcp.errors import DataError, ModelError, PassError
from onnxcp.graph.refusal import Reason
from onnxcp.planning.goal import Goal
from tests.optimizer.conftest import SLOWER, WITHIN, low_rank, network, run, settings


def shaped_by_an_input() -> onnx.ModelProto:
    """A network that runs only on values that mean something: one input is a shape."""
    g = GraphBuilder("shaped")
    x = g.input("image", ["N", 3, "H", 16])
    x = g.conv(x, 3, 32, 3, name="body", pads=1, weight=low_rank(32, 3, 3, 2, 0))
    proto = g.model([x])
    graph = proto.graph
    form = onnx.helper.make_tensor_value_info("form", onnx.TensorProto.INT64, [2])
    graph.input.append(form)
    graph.node.append(onnx.helper.make_node("Reshape", [x, "form"], ["flat"]))
    flat = onnx.helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, [None, None])
    graph.output[0].CopyFrom(flat)
    return proto


@pytest.mark.usefixtures("timings")
class TestWhatIsTimed:
    CHOICE: ClassVar = {"energy": WITHIN, "families": ("channel-svd",)}

    @staticmethod
    def samples(batch: int = 3, count: int = 8) -> list[dict[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        images = rng.standard_normal((count, batch, 3, 24, 16)).astype(np.float32)
        return [{"image": each, "form": np.array([batch, -1])} for each in images]

    def test_samples_where_random_values_would_not_do(self) -> None:
        with pytest.raises(ModelError, match="cannot run"):
            optimize(shaped_by_an_input(), settings(**self.CHOICE))
        result = optimize(shaped_by_an_input(), settings(**self.CHOICE), data=self.samples())
        assert result.improved
        assert result.shapes["image"] == (3, 3, 24, 16)

    @pytest.mark.parametrize(
        ("shapes", "timed"),
        [({}, (1, 3, 16, 16)), ({"image": (4, 3, 16, 16)}, (4, 3, 16, 16))],
        ids=["one", "as-many-as-asked-for"],
    )
    def test_samples(self, shapes: dict[str, tuple[int, ...]], timed: tuple[int, ...]) -> None:
        images = np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)
        result = optimize(
            network(), settings(**self.CHOICE, input_shapes=shapes), data={"image": images}
        )
        assert result.shapes["image"] == timed

    def test_random_values_of_the_shape_that_was_asked_for(self) -> None:
        images = np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)
        shapes = {"image": (32, 3, 16, 16)}
        result = optimize(
            network(), settings(**self.CHOICE, input_shapes=shapes), data={"image": images}
        )
        assert result.shapes["image"] == (32, 3, 16, 16)


@pytest.mark.usefixtures("timings")
class TestImproved:
    def test_low_rank_sites_become_chains_that_compute_the_same(self) -> None:
        source = network()
        before = source.SerializeToString()
        result = optimize(source, settings(energy=WITHIN, families=("channel-svd",)))
        assert result.improved
        assert source.SerializeToString() == before
        chosen = {d.site.name: d.option.ranks for d in result.decisions if d.option is not None}
        assert chosen == {"body": (8,), "tail": (8,)}
        assert result.verification is not None
        assert result.verification.differences[0].relative < 1e-5
        image = np.random.default_rng(1).standard_normal((5, 3, 16, 16)).astype(np.float32)
        np.testing.assert_allclose(
            run(result.model.proto, image), run(source, image), rtol=1e-4, atol=1e-5
        )

    def test_counts_before_and_after(self) -> None:
        result = optimize(network(), settings(energy=WITHIN, families=("channel-svd",)))
        assert result.after is not None
        stem, body, tail = 3 * 32 * 9 * 256, 32 * 48 * 9 * 256, 48 * 48 * 9 * 64
        assert result.before.macs == stem + body + tail + 480
        body, tail = (32 * 9 + 48) * 8 * 256, (48 * 9 + 48) * 8 * 64
        assert result.after.macs == stem + body + tail + 480
        # BatchNormalization went, two chains brought a node more each.
        assert result.after.nodes == result.before.nodes - 1 + 2
        assert result.after.parameters < result.before.parameters

    def test_batch_normalization_is_folded_ahead_of_the_factorisation(self) -> None:
        result = optimize(network(), settings(macs=0.5))
        assert not any(n.op_type == "BatchNormalization" for n in result.model.proto.graph.node)
        assert result.records[0].text == "fold-batchnorm"
        assert result.records[0].changed

    @pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
    def test_a_share_of_macs_is_kept_to_at_every_site(self, share: float) -> None:
        result = optimize(network(), settings(macs=share))
        options = [decision.option for decision in result.decisions if decision.option is not None]
        macs = {decision.site: decision.macs for decision in result.decisions}
        assert options
        assert all(option.macs <= share * macs[option.site] for option in options)

    def test_the_closest_family_is_taken_at_a_share_of_macs(self) -> None:
        result = optimize(network(), settings(macs=0.4))
        body = next(d for d in result.decisions if d.site.name == "body")
        assert body.option is not None
        assert body.result is not None
        # The kernel has channel rank 8, which channel-svd meets at this cost and nothing else can.
        assert body.option.family.name == "channel-svd"
        assert body.result.error < 1e-5
        beaten = [r.reason for r in body.refusals]
        assert beaten == [Reason.INACCURATE] * 4

    def test_ranks_are_rounded(self) -> None:
        result = optimize(network(), settings(round_to=16, macs=0.6, families=("channel-svd",)))
        ranks = [d.option.ranks[0] for d in result.decisions if d.option is not None]
        assert ranks
        assert all(rank % 16 == 0 for rank in ranks)

    @pytest.mark.parametrize("error", [1e-3, 0.05, 0.3])
    def test_energy_is_another_word_for_error(self, error: float) -> None:
        """Of a kernel: an error of e leaves 1 - e² of its squared norm."""
        asked = settings(energy=1 - error**2, families=("tucker2",))
        assert asked.target is not None
        assert asked.target.max_error == pytest.approx(error)
        results = [d.result for d in optimize(network(), asked).decisions if d.result is not None]
        assert results
        assert all(result.error <= error for result in results)

    def test_all_of_the_energy_but_for_rounding(self) -> None:
        result = optimize(network(), settings(energy=1.0, families=("channel-svd",)))
        chosen = {d.site.name: d.option.ranks for d in result.decisions if d.option is not None}
        assert chosen == {"body": (8,), "tail": (8,)}

    def test_nodes_are_selected_by_pattern(self) -> None:
        result = optimize(network(), settings(macs=0.5, nodes="b* t*", exclude="tail"))
        assert [d.site.name for d in result.decisions if d.option is not None] == ["body"]
        tail = next(d for d in result.decisions if d.site.name == "tail")
        assert tail.refusals[0].reason is Reason.EXCLUDED

    def test_a_pipeline_runs_in_place_of_the_menu(self) -> None:
        text = 'fold-batchnorm,channel-svd{rank=8,nodes="body"}'
        result = optimize(network(), settings(passes=text))
        assert result.improved
        assert result.decisions == ()
        assert [record.text for record in result.records] == [
            "fold-batchnorm",
            'channel-svd{rank=8,nodes="body"}',
        ]

    def test_a_fixed_batch_is_kept_to(self) -> None:
        image = np.zeros((7, 3, 16, 16), np.float32)
        result = optimize(network(batch=2), settings(macs=0.5), data={"image": image})
        assert result.shapes["image"] == (2, 3, 16, 16)
        assert not result.data_is_random

    def test_shapes_can_be_given(self) -> None:
        result = optimize(network(), settings(macs=0.5, input_shapes={"image": (4, 3, 16, 16)}))
        assert result.shapes["image"] == (4, 3, 16, 16)


class TestHandedBack:
    def test_nothing_faster_alone(self, timings: Callable[..., None]) -> None:
        timings(alone=SLOWER)
        source = network()
        result = optimize(source, settings(macs=0.5))
        assert not result.improved
        assert result.model.proto is source
        assert result.verification is None
        body = next(d for d in result.decisions if d.site.name == "body")
        assert {r.reason for r in body.refusals} == {Reason.NOT_FASTER}

    def test_not_faster_as_a_whole(self, timings: Callable[..., None]) -> None:
        timings(whole=SLOWER)
        source = network()
        result = optimize(source, settings(macs=0.5))
        assert not result.improved
        assert result.model.proto is source
        assert result.verification is not None
        assert "not faster" in result.verdict

    @pytest.mark.usefixtures("timings")
    def test_nothing_within_the_error(self) -> None:
        g = GraphBuilder("full rank")
        x = g.input("image", [1, 16, 12, 12])
        model = g.model([g.conv(x, 16, 32, 3, name="c", pads=1)])
        result = optimize(model, settings(energy=WITHIN))
        assert not result.improved
        reasons = {refusal.reason for refusal in result.decisions[0].refusals}
        assert reasons == {Reason.NO_REDUCTION}

    @pytest.mark.usefixtures("timings")
    def test_no_site_at_all(self) -> None:
        g = GraphBuilder("relu")
        result = optimize(g.model([g.relu(g.input("x", [1, 4]), name="y")]), settings())
        assert not result.improved
        assert result.decisions == ()

    @pytest.mark.usefixtures("timings")
    def test_a_pass_that_changes_nothing(self) -> None:
        result = optimize(network(), settings(passes='cp3{rank=4,nodes="nothing*"}'))
        assert not result.improved
        assert result.verification is None


@pytest.mark.usefixtures("timings")
class TestData:
    def test_labels_give_accuracy_of_both(self) -> None:
        rng = np.random.default_rng(0)
        image = rng.integers(0, 255, (40, 3, 16, 16), dtype=np.uint8)
        label = run(network(), image.astype(np.float32)).argmax(axis=1)
        result = optimize(
            network(),
            settings(energy=WITHIN, families=("channel-svd",)),
            labelled={"image": image, "label": label},
        )
        assert result.verification is not None
        assert result.verification.accuracy == (1.0, 1.0)
        assert result.verification.differences[0].top1_agreement == 1.0

    def test_a_function_scores_both(self) -> None:
        seen = []

        def evaluate(session: ort.InferenceSession) -> float:
            seen.append(session)
            return float(len(seen))

        result = optimize(network(), settings(macs=0.5), evaluate=evaluate)
        assert result.verification is not None
        assert result.verification.accuracy == (1.0, 2.0)

    def test_a_function_that_fails_is_named(self) -> None:
        def evaluate(_: ort.InferenceSession) -> float:
            raise KeyError("top1")

        with pytest.raises(OnnxcpError, match=r"evaluation function failed: KeyError: 'top1'"):
            optimize(network(), settings(macs=0.5), evaluate=evaluate)

    def test_labels_are_asked_for(self) -> None:
        image = np.zeros((4, 3, 16, 16), np.float32)
        with pytest.raises(DataError, match="no array 'label'"):
            optimize(network(), settings(), labelled={"image": image})


@pytest.mark.usefixtures("timings")
class TestBadRequests:
    @pytest.mark.parametrize(
        ("options", "error", "sentence"),
        [
            ({"macs": 0.0}, OnnxcpError, r"must lie in \(0, 1\]; 0 does not"),
            ({"macs": {"*": 0.5, "body": 1.5}}, OnnxcpError, r"must lie in \(0, 1\]; 1.5 does not"),
            ({"energy": 2.0}, OnnxcpError, r"must lie in \(0, 1\]; 2 does not"),
            ({"energy": -1.0}, OnnxcpError, r"must lie in \(0, 1\]; -1 does not"),
            ({"macs": 0.5, "energy": 0.9}, OnnxcpError, "Give one of macs, energy and a goal"),
            ({"macs": 0.5, "goal": Goal(max_error=0.1)}, OnnxcpError, "Give one of macs, energy"),
            ({"energy": 0.9, "goal": Goal(speedup=2)}, OnnxcpError, "Give one of macs, energy"),
            ({"round_to": 0}, OnnxcpError, "cannot be rounded to multiples of 0"),
            ({"frontier": (2.0, 1.0)}, OnnxcpError, "numbers above 1"),
            (
                {"goal": Goal(max_accuracy_drop=0.01)},
                OnnxcpError,
                "needs labelled data or a function that scores",
            ),
            ({"families": ("cp5",)}, PassError, "no family 'cp5'; there are: channel-svd"),
            ({"families": ("fold-batchnorm",)}, PassError, "no family 'fold-batchnorm'"),
            ({"passes": "cp3{rank=0}"}, PassError, "'rank' of pass 'cp3' is 0"),
            ({"input_shapes": {"x": (1,)}}, DataError, "no input 'x'"),
            ({"input_shapes": {"image": (1, 4, 16, 16)}}, DataError, "image"),
        ],
    )
    def test_is_one_sentence(
        self, options: dict[str, object], error: type[Exception], sentence: str
    ) -> None:
        with pytest.raises(error, match=sentence):
            optimize(network(), settings(**options))

    def test_a_model_that_does_not_load(self) -> None:
        model = network()
        model.graph.node[0].op_type = "Convolve"
        with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
            optimize(model, settings())

    def test_shapes_that_cannot_be_guessed(self) -> None:
        g = GraphBuilder("seven")
        x = g.input("x", ["n", "m"])
        y = g.reshape(x, [7, 11], name="y")
        with pytest.raises(ModelError, match=r"Give its input shapes; x:1,512 was tried"):
            optimize(g.model([y]), settings())


def test_the_public_names_are_there() -> None:
    for name in onnxcp.__all__:
        assert getattr(onnxcp, name).__doc__
    assert set(onnxcp.__all__) <= set(dir(onnxcp))
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        _ = onnxcp.optimise
    assert Machine().providers == ("cpu",)
