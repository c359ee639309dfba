from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from models import alexnet, conv3d, keywords, mobilenet, resnet, unet, vgg
from models.builder import GraphBuilder
from onnxcp.errors import ModelError
from onnxcp.graph.model import load
from onnxcp.passes import Context, find_pass
from onnxcp.tuning import to_torch
from onnxcp.tuning.module import OnnxModule, escaped, unescaped
from tests.networks import conv_model, model_of, noise, run
from tests.tuning.oracle import assert_close, evaluated

CHARNET = Path(__file__).parents[2] / "models" / "charnet" / "charnet.onnx"

# Inductor writes C++, and wants a compiler for it.
COMPILER = shutil.which("g++") is not None
INDUCTOR = pytest.param("inductor", marks=pytest.mark.nightly)  # half a minute
BACKENDS = ["eager", *([INDUCTOR] if COMPILER else [])]


def small() -> onnx.ModelProto:
    """Return conv, batch norm, relu, conv, pool, gemm; batch and size are open."""
    graph = GraphBuilder("small")
    x = graph.input("x", ["N", 3, "H", "W"])
    x = graph.conv(x, 3, 6, 3, name="first", pads=1)
    x = graph.relu(graph.batch_norm(x, 6, name="norm"))
    x = graph.relu(graph.conv(x, 6, 4, 3, name="second", pads=1, strides=2))
    x = graph.flatten(graph.global_average_pool(x, name="pool"))
    return graph.model([graph.gemm(x, 4, 2, name="fc")])


def compared(model: onnx.ModelProto, *shapes: tuple[int, ...]) -> None:
    (name,) = (value.name for value in model.graph.input)
    for number, shape in enumerate(shapes):
        feeds = {name: noise(*shape, seed=number)}
        assert_close(evaluated(model, feeds), run(model, feeds))


NETWORKS: dict[ModuleType, dict[str, Any]] = {
    alexnet: {"size": 67, "width": 12},
    conv3d: {"size": 64, "width": 2},
    keywords: {"size": 4000, "width": 2},
    mobilenet: {"size": 32, "width": 0.25},
    resnet: {"size": 32, "width": 8},
    unet: {"size": 32, "width": 4},
    vgg: {"size": 32, "width": 4},
}


class TestNetworks:
    def test_charnet(self) -> None:
        compared(onnx.load(CHARNET), (1, 1, 24, 24), (5, 1, 24, 24))

    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("module", NETWORKS, ids=lambda m: m.__name__.removeprefix("models."))
    def test_networks_of_random_weights(self, module: ModuleType, batch: int) -> None:
        model = module.build(batch="N", **NETWORKS[module])
        shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        compared(model, (batch, *shape[1:]))

    def test_extents_may_be_open(self) -> None:
        compared(small(), (1, 3, 8, 8), (4, 3, 8, 8), (2, 3, 11, 7))


class TestNames:
    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
    def test_escapes_are_undone_and_legal(self, name: str) -> None:
        legal = escaped(name)
        assert unescaped(legal) == name
        torch.nn.Module().register_buffer(legal, torch.zeros(1))

    @given(st.lists(st.text("ab.%2E5forwd", min_size=1), unique=True))
    def test_no_two_names_become_one(self, names: list[str]) -> None:
        assert len(set(map(escaped, names))) == len(names)

    def test_usual_names_stay(self) -> None:
        assert escaped("layer1/conv:0_w") == "layer1/conv:0_w"

    @pytest.mark.parametrize(
        "name", ["forward", "a.b", "%2E", "train", "input_names", "_calls", "named_tensors", "é"]
    )
    def test_odd_names(self, name: str) -> None:
        model = conv_model()
        model.graph.initializer[0].name = model.graph.node[0].input[1] = name
        module = to_torch(model)
        assert dict(module.named_tensors()).keys() == {name, "b"}
        compared(model, (2, 4, 9, 10))


class TestTensors:
    def test_weights_are_parameters_and_statistics_are_buffers(self) -> None:
        module = to_torch(small())
        parameters = {unescaped(name) for name, _ in module.named_parameters()}
        layers = [f"{layer}.{part}" for layer in ("first", "second", "fc") for part in ROLES]
        assert parameters == {*layers, "norm.scale", "norm.bias"}
        assert {unescaped(name) for name, _ in module.named_buffers()} == {"norm.mean", "norm.var"}

    def test_a_shared_weight_is_one_parameter(self) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["h"]),
            helper.make_node("Conv", ["h", "w"], ["y"]),
        ]
        model = model_of(nodes, inputs={"x": (1, 3, 9, 9)}, weights={"w": noise(3, 3, 3, 3)})
        module = to_torch(model)
        assert len(list(module.parameters())) == 1
        compared(model, (1, 3, 9, 9))

    @pytest.mark.parametrize("way", ["Constant", "Identity", "Transpose", "Cast", "Reshape"])
    def test_weights_behind_other_nodes_are_trained(self, way: str) -> None:
        model = conv_model(bias=False)
        value = numpy_helper.to_array(model.graph.initializer[0])
        del model.graph.initializer[:]
        if way == "Constant":
            node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(value))
        else:
            attributes: dict[str, Any] = {}
            inputs = ["v"]
            if way == "Transpose":
                value, attributes["perm"] = value.transpose(3, 2, 1, 0), [3, 2, 1, 0]
            elif way == "Cast":
                value, attributes["to"] = value.astype(np.float16), TensorProto.FLOAT
            elif way == "Reshape":
                inputs.append("shape")
                shape = numpy_helper.from_array(np.array(value.shape), "shape")
                model.graph.initializer.append(shape)
                value = value.reshape(-1)
            model.graph.initializer.append(numpy_helper.from_array(value, "v"))
            node = helper.make_node(way, inputs, ["w"], **attributes)
        model.graph.node.insert(0, node)
        module = to_torch(model)
        assert [name for name, _ in module.named_parameters()] == [
            "w" if way == "Constant" else "v"
        ]
        module(torch.zeros(1, 4, 9, 10)).sum().backward()
        compared(model, (2, 4, 9, 10))

    def test_initializers_that_are_inputs_too_are_weights(self) -> None:
        model = conv_model(ir_version=3)
        for tensor in model.graph.initializer:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        assert to_torch(model).input_names == ("x",)

    def test_a_bias_that_is_added_is_trained(self) -> None:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Add", ["c", "h"], ["s"]),
            helper.make_node("Mul", ["s", "k"], ["y"]),
        ]
        weights = {"w": noise(3, 4), "c": noise(4), "k": noise(4)}
        module = to_torch(model_of(nodes, inputs={"x": (2, 3)}, weights=weights))
        assert {name for name, _ in module.named_parameters()} == {"w", "c"}
        assert {name for name, _ in module.named_buffers()} == {"k"}

    @pytest.mark.parametrize(
        ("stored", "computed"),
        [(np.float16, torch.float32), (np.float32, torch.float32), (np.float64, torch.float64)],
    )
    def test_half_precision_is_computed_in_single(self, stored: Any, computed: Any) -> None:
        module = to_torch(conv_model(dtype=stored))
        x = torch.from_numpy(noise(2, 4, 9, 10, dtype=stored))
        assert module(x).dtype == computed

    def test_computes_in_the_type_that_the_module_is_brought_to(self) -> None:
        value = numpy_helper.from_array(np.array([0.5], np.float32))
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["h"]),
            helper.make_node("Shape", ["h"], ["s"]),
            helper.make_node("ConstantOfShape", ["s"], ["c"], value=value),
            helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["c", "f"], ["d"]),
            helper.make_node("Conv", ["d", "w"], ["y"]),
        ]
        weights = {"w": noise(3, 3, 1)}
        model = model_of(nodes, inputs={"x": (1, 3, 3)}, weights=weights)
        assert to_torch(model).double()(torch.zeros(1, 3, 3)).dtype == torch.float64


ROLES = ("weight", "bias")


class TestModule:
    def test_inputs_in_order_or_by_name(self) -> None:
        nodes = [helper.make_node("Sub", ["a", "b"], ["y"])]
        module = to_torch(model_of(nodes, inputs={"a": (2,), "b": (2,)}))
        a, b = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])
        for found in (module(a, b), module(a, b=b), module(b=b, a=a)):
            assert torch.equal(found, a - b)

    @pytest.mark.parametrize(("count", "names"), [(0, []), (1, ["x"]), (0, ["z"]), (2, [])])
    def test_other_inputs_are_refused(self, count: int, names: list[str]) -> None:
        x = torch.zeros(2, 4, 9, 10)
        with pytest.raises(TypeError, match="The network takes x; given were"):
            to_torch(conv_model())(*[x] * count, **dict.fromkeys(names, x))

    def test_several_outputs_are_a_tuple(self) -> None:
        nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
        model = model_of(nodes, inputs={"x": (3,)}, outputs=("y", "z"))
        y, z = to_torch(model)(torch.tensor([-1.0, 0.0, 2.0]))
        assert y.tolist() == [0, 0, 2]
        assert torch.equal(z, -y)

    @pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
    def test_copies_compute_the_same(self, way: str) -> None:
        module = to_torch(small()).eval()
        if way == "deepcopy":
            other: OnnxModule = copy.deepcopy(module)
        elif way == "pickle":
            other = pickle.loads(pickle.dumps(module))
        else:
            other = to_torch(small()).eval()
            with torch.no_grad():
                for tensor in other.state_dict().values():
                    tensor.zero_()
            other.load_state_dict(module.state_dict())
        x = torch.from_numpy(noise(2, 3, 8, 8))
        assert torch.equal(module(x), other(x))
        assert other.get_parameter("first%2Eweight") is not module.get_parameter("first%2Eweight")

    def test_replicas_have_tensors_of_their_own(self) -> None:
        """As DataParallel makes them: attributes in place of parameters."""
        module = to_torch(small()).eval()
        x = torch.from_numpy(noise(2, 3, 8, 8))
        replica = module._replicate_for_data_parallel()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            setattr(replica, name, tensor.detach() * 2)
        assert list(replica.parameters()) == []
        expected = copy.deepcopy(module)
        with torch.no_grad():
            for tensor in expected.state_dict().values():
                tensor.mul_(2)
        assert torch.equal(replica(x), expected(x))

    def test_autocast(self) -> None:
        module = to_torch(small()).train()
        x = torch.from_numpy(noise(4, 3, 8, 8))
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        assert all(
            p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters()
        )
        # bfloat16 has 8 bits, and what is summed up here is of one size.
        assert torch.allclose(y.float(), module(x), atol=0.1)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_compiled_it_computes_the_same(self, backend: str) -> None:
        module = to_torch(small()).eval()
        compiled = torch.compile(module, backend=backend, fullgraph=True)
        for number in range(2):
            x = torch.from_numpy(noise(2 + number, 3, 8, 8))
            torch.testing.assert_close(compiled(x), module(x))

    def test_it_learns(self) -> None:
        module = to_torch(small()).train()
        x, wanted = torch.from_numpy(noise(8, 3, 8, 8)), torch.from_numpy(noise(8, 2, seed=1))
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = (module(x) - wanted).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.75 * losses[0]


FAMILIES = [
    "channel-svd",
    "output-first-svd",
    "spatial-svd",
    "tucker2",
    "tensor-train",
    "cp3",
    "cp4",
    "sparse-low-rank",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_chains(family: str) -> None:
    graph = GraphBuilder("chain")
    x = graph.input("x", [1, 3, 5, 4])
    x = graph.conv(x, 3, 4, 3, name="conv", pads=1, strides=[2, 1])
    model = graph.model([graph.node("Tanh", [x], name="out")])
    rank = (2, 2) if family == "tucker2" else 2
    chained = find_pass(family)(rank=rank).run(load(model), Context()).model
    assert len(chained.proto.graph.node) > 2
    module = to_torch(chained).double()
    names = [name for name, _ in module.named_parameters()]
    inputs = [torch.from_numpy(noise(1, 3, 5, 4)).double().requires_grad_()]
    inputs += [p.detach().clone().requires_grad_() for p in module.parameters()]

    def outputs(x: torch.Tensor, *parameters: torch.Tensor) -> Any:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, inputs)


def refused(model: onnx.ModelProto, sentence: str) -> None:
    with pytest.raises(ModelError, match=f"cannot be computed in PyTorch: {sentence}"):
        to_torch(model)


class TestRefusals:
    @pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
    def test_control_flow(self, op: str) -> None:
        inner = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["z"])],
            "inner",
            [],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        )
        node = helper.make_node(op, ["x"], ["y"], name="branch", body=inner)
        model = conv_model()
        model.graph.node.append(node)
        refused(model, f"node 'branch': {op} is control flow")

    def test_custom_domains(self) -> None:
        node = helper.make_node("Quant", ["x"], ["y"], domain="my.own")
        model = model_of([node], inputs={"x": (1,)}, domains={"my.own": 1})
        refused(model, "node 'y': operator my.own::Quant is not of ONNX itself")

    def test_functions(self) -> None:
        node = helper.make_node("Twice", ["x"], ["y"], domain="local")
        model = model_of([node], inputs={"x": (1,)}, domains={"local": 1})
        body = [helper.make_node("Add", ["a", "a"], ["b"])]
        opsets = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, opsets))
        refused(model, "node 'y': local::Twice is a function of the model's own")

    def test_sparse_weights(self) -> None:
        model = conv_model()
        values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
        indices = numpy_helper.from_array(np.zeros(1, np.int64), "places")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
        refused(model, "weight 'sparse' is sparse")

    def test_types_that_are_not_computed_with(self) -> None:
        model = conv_model()
        model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], ["a"]))
        refused(model, "tensor 'words' is of type STRING")

    def test_constants_that_are_no_dense_tensors(self) -> None:
        node = helper.make_node("Constant", [], ["c"], value_string="a")
        model = conv_model()
        model.graph.node.append(node)
        refused(model, "node 'c': it is a constant that is no dense tensor")

    def test_data_that_do_not_fit(self) -> None:
        model = conv_model()
        model.graph.initializer[0].raw_data = b""
        refused(model, "Tensor 'w' holds no data that fit its shape")

    def test_many_reasons_are_cut_short(self) -> None:
        nodes = [helper.make_node(f"Op{n}", ["x"], [f"y{n}"]) for n in range(7)]
        model = model_of(nodes, inputs={"x": (1,)}, outputs=["y0"])
        with pytest.raises(ModelError, match=r"Op4 has no counterpart here; and 2 more\.$"):
            to_torch(model)

    def test_the_same_reason_is_given_once(self) -> None:
        nodes = [helper.make_node("Det", ["x"], [f"y{n}"]) for n in range(3)]
        model = model_of(nodes, inputs={"x": (1, 1)}, outputs=["y0"])
        with pytest.raises(ModelError, match=r"node 'y0': operator Det has no counterpart here\.$"):
            to_torch(model)
