from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcp.graph.model import Model, load
from onnxcp.passes import PassManager
from onnxcp.pipeline import parse_pipeline
from onnxcp.profiling import breakdown
from onnxcp.profiling.breakdown import Breakdown, Part, break_down, chain_owner, with_names
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.nodes import NodeTime
from tests.networks import model_of, noise

ONE = Machine(intra_op_num_threads=1)
FAMILIES = ("cp4", "channel-svd", "tucker2")
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def network() -> Model:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["h"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "v"], ["y"], name="fc"),
    ]
    weights = {"w": noise(16, 16, 3, 3), "v": noise(16, 5)}
    return load(model_of(nodes, inputs={"x": ("N", 16, 8, 8)}, weights=weights))


FEEDS = {"x": noise(4, 16, 8, 8)}
FLOPS = {"conv": 2 * 4 * 16 * 16 * 9 * 64, "fc": 2 * 4 * 16 * 5}


class TestChainOwner:
    @pytest.mark.parametrize(
        ("name", "owner"),
        [
            ("conv2/cp4/0", "conv2"),
            ("/block/conv/channel-svd/12", "/block/conv"),
            ("conv2/cp4/2/over", "conv2"),
            ("conv2", "conv2"),
            ("/block/conv/0", "/block/conv/0"),
            ("conv2/cp4/x", "conv2/cp4/x"),
            ("conv2/cp5/0", "conv2/cp5/0"),
            ("cp4/0", "cp4/0"),
        ],
    )
    def test_by_name(self, name: str, owner: str) -> None:
        assert chain_owner(network(), FAMILIES)(name) == owner

    def test_without_families_every_node_is_its_own(self) -> None:
        assert chain_owner(network(), ())("conv2/cp4/0") == "conv2/cp4/0"

    def test_by_the_nodes_that_the_model_was_rewritten_from(self) -> None:
        names = {"conv1", "/block", "/block/conv"}
        owner = chain_owner(network(), FAMILIES, names)
        for name in ("conv1/over", "conv1/a/b", "conv1/cp4/0", "conv1"):
            assert owner(name) == "conv1"
        assert owner("/block/conv") == "/block/conv"
        assert owner("/block/conv/rest") == "/block/conv"
        assert owner("/new/conv") == "/new/conv"
        assert owner("conv10") == "conv10"

    def test_by_the_factors_that_a_node_reads(self) -> None:
        passes = parse_pipeline('tucker2{rank=4,nodes="conv"}')
        rewritten = PassManager(passes).run(network())[0]
        proto = onnx.ModelProto()
        proto.CopyFrom(rewritten.proto)
        chain = [node for node in proto.graph.node if node.op_type == "Conv"]
        assert len(chain) == 3
        for position, node in enumerate(chain):
            node.name = f"renamed{position}"
        owner = chain_owner(load(proto), ())
        assert {owner(node.name) for node in chain} == {"conv"}
        assert owner("fc") == "fc"


class TestBreakDown:
    def test_sites_and_their_operations(self) -> None:
        found = break_down(network(), FEEDS, ONE, families=FAMILIES, iterations=3)
        parts = {part.name: part for part in found.sites}
        assert {"conv", "fc"} <= set(parts)
        for name, flops in FLOPS.items():
            assert parts[name].flops == flops
        assert parts["pool"].flops is None
        assert found.seconds == pytest.approx(sum(part.seconds for part in found.operators))
        assert found.fallen_back == ()

    def test_a_chain_is_summed_under_its_site(self) -> None:
        passes = parse_pipeline('tucker2{rank=4,nodes="conv"}')
        rewritten = PassManager(passes).run(network())[0]
        found = break_down(rewritten, FEEDS, ONE, families=FAMILIES, iterations=3)
        (chain,) = [part for part in found.sites if "conv" in part.name]
        assert chain.name == "conv"
        assert chain.nodes == 3
        # 16 → 4, 3×3 on 4 channels, 4 → 16, on four maps of 8×8.
        assert chain.flops == 2 * 4 * 64 * (16 * 4 + 4 * 4 * 9 + 4 * 16)

    def test_shapes_that_are_not_inferred_are_seen_by_running(self) -> None:
        nodes = [
            helper.make_node("Reshape", ["x", "s"], ["h"]),
            helper.make_node("MatMul", ["h", "w"], ["y"], name="mm"),
        ]
        weights = {"w": noise(6, 5)}
        model = model_of(nodes, inputs={"x": ("N", 6)}, weights=weights)
        shape = helper.make_tensor_value_info("s", onnx.TensorProto.INT64, (2,))
        model.graph.input.append(shape)
        feeds = {"x": noise(3, 6), "s": np.array([3, 6])}
        found = break_down(load(model), feeds, ONE, iterations=2)
        assert {part.name: part.flops for part in found.sites}["mm"] == 2 * 3 * 6 * 5

    @pytest.mark.parametrize("turned", [0, 1])
    def test_rows_of_a_product_are_those_of_its_output(self, turned: int) -> None:
        node = helper.make_node("Gemm", ["x", "w"], ["y"], name="fc", transA=turned)
        shape = (6, 3) if turned else (3, 6)
        model = model_of([node], inputs={"x": shape}, weights={"w": noise(6, 5)})
        found = break_down(load(model), {"x": noise(*shape)}, ONE, iterations=2)
        assert {part.name: part.flops for part in found.sites}["fc"] == 2 * 3 * 6 * 5

    def test_names_are_made_where_there_are_none(self) -> None:
        proto = onnx.ModelProto()
        proto.CopyFrom(network().proto)
        for node in proto.graph.node:
            node.ClearField("name")
        model = load(proto)
        assert [node.name for node in with_names(model).proto.graph.node] == ["h", "p", "f", "y"]
        assert with_names(with_names(model)) is not model
        found = break_down(model, FEEDS, ONE, iterations=2)
        assert {"h", "y"} <= {part.name for part in found.sites}


class TestFallenBack:
    TIMES = (
        NodeTime("conv", "Conv", CUDA, 3e-3),
        NodeTime("Memcpy", "MemcpyToHost", CUDA, 1e-3),
        NodeTime("pool", "GlobalAveragePool", CPU, 2e-3),
        NodeTime("fused fc", "FusedGemm", CPU, 4e-3),
    )

    @pytest.fixture(autouse=True)
    def profiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def profile_named(model: Model, *_: object, **__: object) -> object:
            return model, self.TIMES

        monkeypatch.setattr(breakdown, "profile_named", profile_named)

    def test_nodes_on_the_cpu_are_named_as_in_the_model(self) -> None:
        found = break_down(network(), FEEDS, Machine(("cuda{use_tf32=0}", "cpu")))
        assert found.fallen_back == ("pool", "fc")
        assert found.fallen_seconds == pytest.approx(6e-3)
        assert found.seconds == pytest.approx(10e-3)

    def test_nothing_falls_back_from_the_cpu(self) -> None:
        assert break_down(network(), FEEDS, Machine(("cpu", "cuda"))).fallen_back == ()
        assert break_down(network(), FEEDS, Machine(())).fallen_back == ()

    def test_copies_belong_to_no_node(self) -> None:
        found = break_down(network(), FEEDS, Machine(("cuda",)))
        assert {part.name: part.seconds for part in found.sites}[""] == 1e-3
        assert [part.name for part in found.operators] == [
            *("FusedGemm", "Conv", "GlobalAveragePool", "MemcpyToHost")
        ]


def test_speed() -> None:
    assert Part("a", 0.5, 3e9).speed == 6e9
    assert Part("a", 0.5).speed is None
    assert Part("a", 0.0, 3e9).speed is None
    assert Breakdown((Part("a", 1.0), Part("b", 2.0)), ()).seconds == 3.0
