from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxcp.errors import ModelError
from onnxcp.profiling.inputs import random_feeds
from onnxcp.profiling.nodes import NodeTime, node_origins, node_times, profile_nodes, sum_by
from onnxcp.profiling.session import open_session


def build(text: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """A model from ONNX text, with random weights of the shapes given."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "local" : 1]> {text}')
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        values = rng.random(shape, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def profile(model: onnx.ModelProto, **options: int) -> tuple[NodeTime, ...]:
    content = model.SerializeToString()
    feeds = random_feeds(open_session(content))
    return profile_nodes(content, feeds, **{"warmup": 1, "iterations": 3, **options})


def origins(model: onnx.ModelProto) -> list[str | None]:
    origin = node_origins(model.graph)
    return sorted(filter(None, {origin(time.name) for time in profile(model)}))


RESIDUAL = build(
    """g (float[1,16,6,6] x) => (float[1,10] y) {
        [conv1] c1 = Conv <pads = [1,1,1,1]> (x, w1, b)
        [relu1] r1 = Relu(c1)
        [conv2] c2 = Conv <pads = [1,1,1,1]> (r1, w2)
        [add] a = Add(c2, r1)
        [relu2] r2 = Relu(a)
        [conv3] c3 = Conv <pads = [1,1,1,1]> (r2, w3)
        [norm] n = BatchNormalization(c3, b, b, b, b)
        [clip] k = HardSigmoid(n)
        [pool] p = GlobalAveragePool(k)
        [flat] f = Flatten(p)
        [fc] y = Gemm <transB = 1> (f, w4)
    }""",
    w1=(16, 16, 3, 3),
    w2=(16, 16, 3, 3),
    w3=(16, 16, 3, 3),
    w4=(10, 16),
    b=(16,),
)

LINE = build(
    """g (float[1,4,6] x) => (float[1,5] y) {
        [conv] c = Conv(x, w)
        [relu] r = Relu(c)
        [flat] f = Flatten(r)
        [fc] h = Gemm(f, v, b)
        [relu2] i = Relu(h)
        [mm] m = MatMul(i, u)
        [add] y = Add(m, b)
    }""",
    w=(4, 4, 3),
    v=(16, 5),
    u=(5, 5),
    b=(5,),
)


class TestProfileNodes:
    def test_every_node_has_a_time(self) -> None:
        times = profile(LINE)
        assert [time.name for time in times if time.op_type == "Flatten"] == ["flat"]
        assert all(time.seconds_per_run >= 0 for time in times)
        assert {time.provider for time in times} == {"CPUExecutionProvider"}

    def test_fused_nodes_belong_to_the_one_with_the_weights(self) -> None:
        assert origins(LINE) == ["conv", "fc", "flat", "mm"]

    def test_blocked_layout(self) -> None:
        # On machines without the blocked layout the same nodes are left, under their own names.
        assert {"conv1", "conv2", "conv3", "pool", "flat", "fc"} <= set(origins(RESIDUAL))

    def test_nodes_of_bodies_are_counted_once(self) -> None:
        loop = build(
            """g (float[50,50] x) => (float[50,50] y)
            <int64 n = {5}, bool go = {1}> {
                [loop] y = Loop(n, go, x) <body = b (int64 i, bool c, float[50,50] s)
                    => (bool d, float[50,50] t) { d = Identity(c) [erf] t = Erf(s) }>
            }"""
        )
        times = profile(loop)
        assert {time.op_type for time in times} == {"Loop", "Identity", "Erf"}
        assert all(time.seconds_per_run >= 0 for time in times)

    def test_nothing_is_left_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        profile(LINE)
        assert list(tmp_path.iterdir()) == []

    def test_errors_name_the_model(self) -> None:
        with pytest.raises(ModelError, match="cannot run 'line'"):
            profile_nodes(LINE.SerializeToString(), {}, label="'line'")


def event(
    name: str, start: int, length: int, *, cat: str = "Node", index: int = 0, **args: str
) -> dict[str, Any]:
    args = {"op_name": "Op", "provider": "P", "node_index": str(index), **args}
    return {"cat": cat, "name": name, "ts": start, "dur": length, "args": args}


END = {"cat": "Session", "name": "model_run", "ts": 0, "dur": 0, "args": {}}


class TestNodeTimes:
    def test_median_over_the_runs_that_count(self) -> None:
        events: list[dict[str, Any]] = []
        for length in (1000, 3, 4, 90):
            events += [event("a_kernel_time", 0, length), END]
        (time,) = node_times(events, skip=1)
        assert time == NodeTime("a", "Op", "P", pytest.approx(4e-6))

    def test_nodes_of_the_same_name_are_told_apart(self) -> None:
        events = [
            event("ReorderInput_kernel_time", 0, 3, index=7),
            event("ReorderInput_kernel_time", 5, 9, index=8),
            END,
        ]
        assert [time.seconds_per_run for time in node_times(events)] == pytest.approx([3e-6, 9e-6])

    def test_a_body_is_subtracted_from_the_node_around_it(self) -> None:
        # Events are written when they end: the body before the loop.
        events = [
            event("before_kernel_time", 0, 10, index=1),
            event("body_kernel_time", 12, 20, index=2),
            event("body_kernel_time", 40, 30, index=2),
            event("loop_kernel_time", 10, 70, index=3),
            event("after_kernel_time", 80, 5, index=4),
            END,
        ]
        times = {time.name: round(time.seconds_per_run * 1e6) for time in node_times(events)}
        assert times == {"before": 10, "loop": 20, "body": 50, "after": 5}

    def test_a_body_that_does_not_always_run(self) -> None:
        events = [event("then_kernel_time", 0, 5), END, END, END]
        assert [time.seconds_per_run for time in node_times(events)] == [0.0]

    def test_kernels_replace_the_time_of_launching_them(self) -> None:
        kernel: dict[str, Any] = {"cat": "Kernel", "parent_name": "conv_kernel_time"}
        events = [
            event("conv_kernel_time", 0, 2, index=1),
            event("implicit_gemm", 1, 300, **kernel),
            event("add_bias", 301, 40, **kernel),
            event("host_kernel_time", 3, 8, index=2),
            event("memcpy", 5, 60, cat="Kernel"),
            END,
        ]
        times = {time.name: round(time.seconds_per_run * 1e6) for time in node_times(events)}
        assert times == {"conv": 340, "host": 8}

    def test_other_events_are_no_nodes(self) -> None:
        load = {"cat": "Session", "name": "model_loading_array", "ts": 0, "dur": 9, "args": {}}
        assert node_times([load, event("a_fence_before", 0, 1), END, {}]) == ()


class TestNodeOrigins:
    @pytest.mark.parametrize(
        ("reported", "node"),
        [
            ("conv1", "conv1"),
            ("r1_nchwc", "conv1"),
            ("c1_nchwc", "conv1"),
            ("c2_nchwc", "conv2"),
            ("k_nchwc", "conv3"),
            ("p_nchwc", "pool"),
            ("fused fc", "fc"),
            ("fc/MatMulAddFusion", "fc"),
            ("fc/QuickGeluFusion/", "fc"),
            ("ReorderInput", None),
            ("unknown_nchwc", None),
            ("Conv_3", None),
        ],
    )
    def test_names_of_onnx_runtime(self, reported: str, node: str | None) -> None:
        assert node_origins(RESIDUAL.graph)(reported) == node

    def test_slashes_in_names(self) -> None:
        model = build("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
        model.graph.node[0].name = "/block/relu"
        assert node_origins(model.graph)("/block/relu") == "/block/relu"
        assert node_origins(model.graph)("/block/relu/SomeFusion/") == "/block/relu"


def test_sum_by_owner() -> None:
    times = [
        NodeTime(name, "Op", "P", seconds)
        for name, seconds in [("a1", 1.0), ("a2", 2.0), ("b", 4.0), ("ReorderInput", 8.0)]
    ]
    owners = {"a1": "a", "a2": "a", "b": "b"}
    assert Counter(sum_by(times, owners.get)) == {"a": 3.0, "b": 4.0, "": 8.0}
