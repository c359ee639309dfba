"""Scaling the ranks of chains so that both factors quantize well: exact, and of use."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from models.builder import GraphBuilder
from onnxcp.graph.model import Model, load
from onnxcp.precision.balance import balance
from onnxcp.precision.qdq import prepare, quantize
from onnxcp.precision.ranges import calibrate
from onnxcp.precision.watch import channel_maxima
from onnxcp.profiling.machine import Machine
from tests.networks import Array, initializers, model_of, noise, run
from tests.quantized import branch, error, network, samples

MACHINE = Machine()


def spoiled(proto: onnx.ModelProto, first: str, second: str, scale: Array, axis: int) -> None:
    """Choose a bad gauge for two factors: the product stays what it was."""
    tensors = {each.name: each for each in proto.graph.initializer}
    for name, by, along in ((first, scale, 0), (second, 1 / scale, axis)):
        for each in (f"{name}.weight", f"{name}.bias"):
            if each.endswith("bias") and name == second:
                continue
            values = onnx.numpy_helper.to_array(tensors[each])
            shape = [-1 if a == along else 1 for a in range(values.ndim)]
            new = (values * by.reshape(shape)).astype(np.float32)
            tensors[each].CopyFrom(onnx.numpy_helper.from_array(new, each))


SCALE = np.array([1, 30, 0.02, 5, 0.1, 1], np.float32)


@pytest.fixture
def bad() -> onnx.ModelProto:
    proto = network()
    spoiled(proto, "one/0", "one/1", SCALE, 1)
    return proto


def quantized(model: Model) -> Model:
    return quantize(model, calibrate(model, samples()))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_what_the_network_computes_stays(bad: onnx.ModelProto, alpha: float) -> None:
    made, count = balance(prepare(load(bad)), samples(), MACHINE, alpha)
    assert count == 2
    assert error(made, bad) < 1e-5


def test_a_bad_gauge_is_made_good(bad: onnx.ModelProto) -> None:
    prepared = prepare(load(bad))
    made, _ = balance(prepared, samples(), MACHINE)
    before, after = (error(quantized(each), bad) for each in (prepared, made))
    assert after < before / 2


def test_ranks_come_to_one_range_where_the_second_has_a_scale_for_each() -> None:
    g = GraphBuilder("middle")
    x = g.input("image", ["N", 3, 8, 8])
    x = g.conv(x, 3, 6, 1, name="a")
    x = g.conv(x, 6, 6, 3, name="b", pads=1, group=6)
    proto = g.model([g.conv(x, 6, 4, 1, name="c")])
    spoiled(proto, "a", "b", SCALE, 0)
    made, count = balance(prepare(load(proto)), samples(), MACHINE)
    assert count == 2
    assert error(made, proto) < 1e-5
    # What the first makes of samples has one largest magnitude in all ranks.
    (between,) = (node.output[0] for node in made.proto.graph.node if node.name == "a")
    sizes = channel_maxima(made, {between: 1}, samples(), MACHINE)[between]
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-4)
    assert {each.dtype for each in initializers(made.proto).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("op", "transposed"), [("Gemm", False), ("Gemm", True), ("MatMul", False)])
def test_products_with_matrices_in_a_row(op: str, transposed: bool) -> None:
    """Ranks are along the last axis of what lies between, and either axis of a matrix."""
    rng = np.random.default_rng(3)
    rank = np.array([1, 30, 0.02, 5, 0.1, 1], np.float32)
    a = rng.standard_normal((12, 6)).astype(np.float32) * rank
    b = rng.standard_normal((6, 5)).astype(np.float32) / rank[:, None]
    weights = {"a": a.T if transposed else a, "b": b.T if transposed else b}
    attributes = {"transB": 1} if transposed else {}
    more = {"Gemm": (["c"], ["d"]), "MatMul": ([], [])}[op]
    if op == "Gemm":
        weights |= {"c": rank * noise(6, seed=4), "d": noise(5, seed=5)}
    nodes = [
        onnx.helper.make_node(op, ["x", "a", *more[0]], ["h"], name="one", **attributes),
        onnx.helper.make_node(op, ["h", "b", *more[1]], ["y"], name="two", **attributes),
    ]
    shape = (8, 12) if op == "Gemm" else (8, 3, 12)
    proto = model_of(nodes, inputs={"x": ("N", *shape[1:])}, weights=weights)
    batches = [{"x": noise(*shape, seed=k)} for k in range(4)]
    exact = np.concatenate([run(load(proto), each)[0] for each in batches])

    def off(model: Model) -> float:
        got = np.concatenate([run(model, each)[0] for each in batches])
        return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))

    prepared = prepare(load(proto))
    made, count = balance(prepared, batches, MACHINE)
    assert count == 1
    assert off(made) < 1e-5
    before, after = (off(quantize(each, calibrate(each, batches))) for each in (prepared, made))
    assert after < before / 2


def test_what_is_transposed_ahead_of_a_product_is_no_rank() -> None:
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "a"], ["h"], name="one"),
        onnx.helper.make_node("Gemm", ["h", "b"], ["y"], name="two", transA=1),
    ]
    weights = {"a": noise(4, 6), "b": noise(8, 5)}
    proto = model_of(nodes, inputs={"x": (8, 4)}, weights=weights)
    assert balance(prepare(load(proto)), [{"x": noise(8, 4)}], MACHINE)[1] == 0


def test_what_something_else_reads_is_left_alone() -> None:
    g = GraphBuilder("read twice")
    x = g.input("image", ["N", 3, 8, 8])
    a = g.conv(x, 3, 6, 1, name="a")
    b = g.conv(a, 6, 6, 1, name="b")
    proto = g.model([g.add(a, b, name="sum")])
    prepared = prepare(load(proto))
    made, count = balance(prepared, samples(), MACHINE)
    assert count == 0
    assert made is prepared


def test_a_relu_between_is_no_chain() -> None:
    g = GraphBuilder("relu")
    x = g.relu(g.conv(g.input("image", ["N", 3, 8, 8]), 3, 6, 1, name="a"))
    proto = g.model([g.conv(x, 6, 6, 1, name="b")])
    assert balance(prepare(load(proto)), samples(), MACHINE)[1] == 0


def test_a_rank_that_is_never_used_stays(bad: onnx.ModelProto) -> None:
    for tensor in bad.graph.initializer:
        if tensor.name in ("one/0.weight", "one/0.bias"):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    made, _ = balance(prepare(load(bad)), samples(), MACHINE)
    assert all(np.isfinite(each).all() for each in initializers(made.proto).values())
    assert error(made, bad) < 1e-5


def test_what_a_branch_reads_is_no_affair_of_two_layers() -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["a"], name="one"),
        make("Conv", ["a", "v"], ["y"], name="two"),
        make("If", ["c"], ["z"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg")),
    ]
    condition = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, ())
    weights = {"w": noise(6, 4, 1, 1), "v": noise(5, 6, 1, 1)}
    proto = model_of(nodes, inputs={"x": (2, 4, 3, 3)}, outputs=["y", "z"], weights=weights)
    proto.graph.input.append(condition)
    feeds = {"x": noise(2, 4, 3, 3, seed=1), "c": np.array(True)}
    _, count = balance(load(proto), [feeds], Machine())
    assert count == 0
