from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from onnxcp import Context, FactorizePass, load
from onnxcp.graph.origins import Origin, origins
from onnxcp.passes import find_pass
from onnxcp.tuning import to_torch
from onnxcp.tuning.balance import balance
from onnxcp.tuning.module import OnnxModule, escaped
from tests.networks import conv_model, feeds_for, model_of, noise


def matrix_model(op: str, **attributes: Any) -> onnx.ModelProto:
    shape = (5, 8) if attributes.get("transB") else (8, 5)
    node = helper.make_node(op, ["x", "w"], ["y"], name="fc", **attributes)
    return model_of([node], inputs={"x": (3, 8)}, weights={"w": noise(*shape)})


def left_product() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["w", "x"], ["y"], name="fc")
    return model_of([node], inputs={"x": (8, 3)}, weights={"w": noise(5, 8)})


def factorised(model: onnx.ModelProto, family: str = "cp3") -> onnx.ModelProto:
    kind = find_pass(family)
    assert issubclass(kind, FactorizePass)
    return kind(rank=3).run(load(model), Context()).model.proto


def unbalanced(proto: onnx.ModelProto, factors: Sequence[str]) -> OnnxModule:
    """Return a network with some factors thrown off balance, in double precision."""
    module = to_torch(proto).double()
    with torch.no_grad():
        for number, name in enumerate(factors):
            module.get_parameter(escaped(name)).mul_(10.0 ** (2 * number - 2))
    return module


def chain(model: onnx.ModelProto, family: str) -> tuple[OnnxModule, Origin]:
    """Return a factorised network with its factors thrown off balance."""
    proto = factorised(model, family)
    (origin,) = origins(proto)
    return unbalanced(proto, origin.factors), origin


CASES = [
    *((conv_model(), each) for each in ("channel-svd", "spatial-svd", "tucker2", "cp3", "cp4")),
    (conv_model(channels=(4, 6), group=2), "cp3"),
    (conv_model(op="ConvTranspose"), "cp3"),
    (conv_model(op="ConvTranspose", channels=(4, 6), group=2), "tucker2"),
    (conv_model((3,)), "cp3"),
    (matrix_model("Gemm"), "channel-svd"),
    (matrix_model("Gemm", transB=1), "channel-svd"),
    (matrix_model("MatMul"), "channel-svd"),
    (left_product(), "channel-svd"),
]


@pytest.mark.parametrize(
    ("model", "family"),
    CASES,
    ids=[f"{number}-{family}" for number, (_, family) in enumerate(CASES)],
)
def test_the_outputs_stay_and_factors_become_of_one_size(
    model: onnx.ModelProto, family: str
) -> None:
    module, origin = chain(model, family)
    x = torch.from_numpy(feeds_for(model)["x"]).double()
    before = module(x).detach()
    balance(module, [origin])
    after = module(x).detach()
    # Scaled and scaled back a few dozen times.
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10 * float(before.abs().max()))
    weights = [module.get_parameter(escaped(name)) for name in origin.factors]
    norms = [float(each.detach().norm()) for each in weights]
    for one, other in pairwise(norms):
        assert one == pytest.approx(other, rel=1e-6)


def test_channels_are_balanced_one_by_one() -> None:
    module, origin = chain(conv_model(), "cp3")
    balance(module, [origin])
    first, middle, last = (module.get_parameter(escaped(name)) for name in origin.factors)
    made = first.flatten(1).norm(dim=1)
    torch.testing.assert_close(made, middle.flatten(1).norm(dim=1))
    torch.testing.assert_close(made, last.transpose(0, 1).flatten(1).norm(dim=1))


def test_a_channel_of_zeros_stays_one() -> None:
    module, origin = chain(conv_model(), "cp3")
    with torch.no_grad():
        module.get_parameter(escaped(origin.factors[0]))[1] = 0
    balance(module, [origin])
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    assert not module.get_parameter(escaped(origin.factors[0]))[1].any()


def two_of_one_kernel() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    return model_of(nodes, inputs={"x": (1, 4, 6, 6)}, weights={"w": noise(4, 4, 3, 3)})


def test_one_kernel_at_two_nodes_has_one_scale() -> None:
    """Their chains share all factors."""
    model = two_of_one_kernel()
    proto = factorised(model)
    one, other = origins(proto)
    assert one.factors == other.factors
    module = unbalanced(proto, one.factors)
    x = torch.from_numpy(feeds_for(model)["x"]).double()
    before = module(x).detach()
    balance(module, [one, other])
    torch.testing.assert_close(module(x).detach(), before, rtol=1e-10, atol=1e-10)
    norms = [float(module.get_parameter(escaped(name)).detach().norm()) for name in one.factors]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-6)


def read_elsewhere(proto: onnx.ModelProto) -> None:
    """Let a third node read the first factor."""
    (name,) = {node.input[1] for node in proto.graph.node if node.name.endswith("/0")}
    proto.graph.node.append(helper.make_node("Conv", ["x", name], ["third"], name="third"))
    proto.graph.node.append(helper.make_node("Relu", ["third"], ["z"]))
    proto.graph.output.append(helper.make_empty_tensor_value_info("z"))


def put_out(proto: onnx.ModelProto) -> None:
    """Put out what is within a chain."""
    proto.graph.output.append(helper.make_empty_tensor_value_info(proto.graph.node[0].output[0]))


def grouped_otherwise(proto: onnx.ModelProto) -> None:
    """Let one chain be of two groups, of half of the input each: only kernels are the same."""
    for node in proto.graph.node[3:]:
        next(each for each in node.attribute if each.name == "group").i *= 2


@pytest.mark.parametrize("change", [read_elsewhere, put_out, grouped_otherwise])
def test_what_something_else_reads_is_left_alone(
    change: Callable[[onnx.ModelProto], None],
) -> None:
    proto = factorised(two_of_one_kernel())
    known = origins(proto)
    change(proto)
    module = unbalanced(proto, known[0].factors)
    before = {name: tensor.clone() for name, tensor in module.named_tensors()}
    balance(module, known)
    for name, tensor in module.named_tensors():
        np.testing.assert_array_equal(tensor.detach(), before[name].detach())


def test_a_chain_with_a_nonlinearity_in_between_is_left_alone() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "u"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["y"], name="two"),
    ]
    weights = {"u": noise(3, 4, 1, 1), "v": 9 * noise(4, 3, 1, 1)}
    module = to_torch(model_of(nodes, inputs={"x": (1, 4, 6, 6)}, weights=weights))
    balance(module, [Origin("c", "channel-svd", (3,), ("u", "v"))])
    np.testing.assert_array_equal(module.get_parameter("u").detach(), weights["u"])
