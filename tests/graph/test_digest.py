"""Digests: the same for what computes the same, another for all else."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcp.graph.digest import array_digest, model_digest
from onnxcp.graph.model import load, save
from tests.networks import Array, model_of, noise
from tests.peculiar import (
    PECULIAR,
    Build,
    branching,
    every_attribute,
    plain,
    sparse,
    typed_fields,
    with_functions,
)

each_peculiar = pytest.mark.parametrize("build", PECULIAR.values(), ids=PECULIAR.keys())
Change = Callable[[onnx.ModelProto], object]


def digest(proto: onnx.ModelProto) -> str:
    return model_digest(load(proto))


def changed(build: Build, change: Change) -> str:
    proto = build()
    change(proto)
    return digest(proto)


def external(proto: onnx.ModelProto, path: Path) -> str:
    """Return the digest of a model whose weights, and even constants, were stored outside."""
    onnx.save(
        proto,
        path,
        save_as_external_data=True,
        location="data",
        size_threshold=0,
        convert_attribute=True,
    )
    return model_digest(load(path))


class TestTheSame:
    @each_peculiar
    def test_of_a_model_loaded_twice(self, build: Build, tmp_path: Path) -> None:
        proto = build()
        expected = digest(proto)
        assert re.fullmatch("[0-9a-f]{64}", expected)
        save(load(proto), tmp_path / "net.onnx")
        assert model_digest(load(tmp_path / "net.onnx")) == expected
        assert digest(build()) == expected

    @each_peculiar
    def test_where_weights_are_stored_outside(self, build: Build, tmp_path: Path) -> None:
        save(load(build()), tmp_path / "net.onnx", external=True)
        assert model_digest(load(tmp_path / "net.onnx")) == digest(build())

    @pytest.mark.parametrize("build", [plain, branching, sparse])
    def test_where_onnx_stored_all_of_them_outside(self, build: Build, tmp_path: Path) -> None:
        assert external(build(), tmp_path / "net.onnx") == digest(build())

    def test_where_they_are_in_typed_fields(self) -> None:
        assert digest(typed_fields()) == digest(plain())

    @pytest.mark.parametrize(
        "name",
        ["documented", "trained", "stale", "distributed", "ir10"],
    )
    def test_whatever_is_said_of_a_model(self, name: str) -> None:
        assert digest(PECULIAR[name]()) == digest(plain())

    def test_whatever_is_said_of_a_function(self) -> None:
        def silence(proto: onnx.ModelProto) -> None:
            for function in proto.functions:
                function.ClearField("doc_string")
                function.ClearField("metadata_props")

        assert changed(with_functions, silence) == digest(with_functions())

    @pytest.mark.parametrize("field", ["initializer", "sparse_initializer"])
    def test_in_whatever_order_weights_stand(self, field: str) -> None:
        def turn(proto: onnx.ModelProto) -> None:
            tensors = getattr(proto.graph, field)
            turned = list(tensors)[::-1]
            del tensors[:]
            tensors.extend(turned)

        assert changed(sparse, turn) == digest(sparse())

    @pytest.mark.parametrize("build", [every_attribute, with_functions])
    def test_in_whatever_order_attributes_operator_sets_and_functions_stand(
        self, build: Build
    ) -> None:
        def turn(proto: onnx.ModelProto) -> None:
            owners = [(proto, "opset_import"), (proto, "functions")]
            owners += [(node, "attribute") for node in proto.graph.node]
            owners += [(function, "attribute_proto") for function in proto.functions]
            for owner, name in owners:
                turned = list(getattr(owner, name))[::-1]
                owner.ClearField(name)
                getattr(owner, name).extend(turned)

        assert changed(build, turn) == digest(build())


def flip_a_bit(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    data = bytearray(tensor.raw_data)
    data[-1] ^= 1
    tensor.raw_data = bytes(data)


CHANGES: dict[str, Change] = {
    "a bit of a weight": flip_a_bit,
    "a weight's shape": lambda p: p.graph.initializer[0].dims.append(1),
    "a weight's type": lambda p: setattr(p.graph.initializer[1], "data_type", TensorProto.INT32),
    "a weight's name": lambda p: setattr(p.graph.initializer[1], "name", "c"),
    "a node's name": lambda p: setattr(p.graph.node[0], "name", "other"),
    "an operator": lambda p: setattr(p.graph.node[1], "op_type", "Neg"),
    "a node's domain": lambda p: setattr(p.graph.node[1], "domain", "org.example"),
    "what a node reads": lambda p: p.graph.node[0].input.pop(),
    "a node's output": lambda p: p.graph.node[1].output.append("more"),
    "the order of nodes": lambda p: p.graph.node.reverse(),
    "an attribute": lambda p: p.graph.node[0].attribute.add(name="group", type=2, i=1),
    "an attribute's value": lambda p: p.graph.node[0].attribute[0].ints.reverse(),
    "an operator set": lambda p: setattr(p.opset_import[0], "version", 18),
    "an input's shape": lambda p: p.graph.input[0].type.tensor_type.shape.dim[0].Clear(),
    "an input's name": lambda p: setattr(p.graph.input[0], "name", "other"),
    "an output more": lambda p: p.graph.output.append(p.graph.input[0]),
    "an input more": lambda p: p.graph.input.append(p.graph.output[0]),
}


def unequal_pads() -> onnx.ModelProto:
    proto = plain()
    proto.graph.node[0].attribute[0].ints[:] = [1, 1, 0, 1]
    return proto


class TestAnother:
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
    def test_where_something_counts(self, change: Change) -> None:
        assert changed(unequal_pads, change) != digest(unequal_pads())

    def test_of_every_change(self) -> None:
        digests = {changed(unequal_pads, change) for change in CHANGES.values()}
        assert len(digests) == len(CHANGES)

    def test_in_nested_graphs(self) -> None:
        def change(proto: onnx.ModelProto) -> None:
            branch = next(a for a in proto.graph.node[2].attribute if a.name == "then_branch").g
            branch.initializer[0].raw_data = noise(6, 6, 1, 1, seed=1).tobytes()

        assert changed(branching, change) != digest(branching())

    @pytest.mark.parametrize(
        "change",
        [
            lambda proto: setattr(proto.functions[1].node[0], "op_type", "ConvTranspose"),
            lambda proto: setattr(proto.functions[1].attribute_proto[0], "i", 2),
            lambda proto: setattr(proto.functions[0], "overload", ""),
            lambda proto: proto.functions.pop(),
        ],
    )
    def test_in_functions(self, change: Change) -> None:
        assert changed(with_functions, change) != digest(with_functions())

    def test_of_two_weights_that_changed_places(self) -> None:
        weights = {"v": noise(3, seed=1), "w": noise(3, seed=2)}
        nodes = [helper.make_node("Sub", ["v", "w"], ["y"])]
        one = model_of(nodes, inputs={}, weights=weights)
        other = model_of(nodes, inputs={}, weights={"v": weights["w"], "w": weights["v"]})
        assert digest(one) != digest(other)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UNDEFINED, 99])
def test_weights_that_cannot_be_read_have_one_too(kind: int) -> None:
    def damage(*values: float) -> Change:
        def change(proto: onnx.ModelProto) -> None:
            tensor = proto.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_type = kind
            tensor.float_data.extend(values)

        return change

    assert changed(plain, damage(1, 2)) == changed(plain, damage(1, 2))
    assert changed(plain, damage(1, 2)) != changed(plain, damage(1, 3))


def test_texts_count() -> None:
    def change(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if t.data_type == TensorProto.STRING)
        tensor.string_data[0] = b"b"

    build = PECULIAR["every-type"]
    assert changed(build, change) != digest(build())


def test_one_weight_at_a_time_is_copied() -> None:
    size = 2**20
    weights = {f"w{i}": noise(size // 4, seed=i) for i in range(8)}
    node = helper.make_node("Sum", list(weights), ["y"])
    model = load(model_of([node], inputs={}, weights=weights))
    tracemalloc.start()
    try:
        model_digest(model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size < peak < 2 * size


ARRAYS: list[Array] = [
    noise(2, 3),
    noise(3, 2),
    noise(6),
    noise(2, 3).astype(np.float64),
    noise(2, 3).view(np.int32),
    noise(2, 3, seed=1),
    np.zeros((0, 3), np.float32),
    np.zeros((3, 0), np.float32),
    np.array(1.0),
    np.array([1.0]),
    np.array([0.0, 1.0]).astype(ml_dtypes.bfloat16),
    np.array([0.0, 1.0]).astype(np.float16),
    np.array([True, False]),
    np.array([0.0]),
    np.array([-0.0]),
    np.array(["ab", "c"]),
    np.array(["a", "bc"]),
    np.array(["ab", "c"], object),
    np.array(["a", "bc"], object),
]


class TestArrays:
    def test_are_told_apart(self) -> None:
        assert len({array_digest(array) for array in ARRAYS}) == len(ARRAYS)

    @pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}-{a.shape}")
    def test_have_the_same_where_they_are_equal(self, array: Array) -> None:
        expected = array_digest(array)
        assert array_digest(array.copy()) == expected
        assert array_digest(np.repeat(array[..., None], 2, -1)[..., 0]) == expected
        assert array_digest(np.asfortranarray(array).reshape(array.shape)) == expected

    def test_whatever_the_order_of_their_bytes(self) -> None:
        array = noise(2, 3)
        assert array_digest(array.astype(">f4")) == array_digest(array.astype("<f4"))

    def test_are_not_copied(self) -> None:
        array = np.zeros(2**20, np.uint8)
        tracemalloc.start()
        try:
            array_digest(array)
            assert tracemalloc.get_traced_memory()[1] < array.nbytes
        finally:
            tracemalloc.stop()
