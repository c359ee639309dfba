from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnxcp.errors import ModelError
from onnxcp.tuning import to_torch
from tests.networks import conv_model, feeds_for, model_of, noise, pairwise, run
from tests.tuning.oracle import agree, assert_close, evaluated, node_model

SIZES = (11, 9, 8)


def check(model: onnx.ModelProto) -> None:
    feeds = feeds_for(model)
    assert_close(evaluated(model, feeds), run(model, feeds))


CONVOLUTIONS = pairwise(
    {
        "axes": [1, 2, 3],
        "group": [1, 2, 4],
        "strides": [1, 2],
        "dilations": [1, 2],
        "pads": ["none", "even", "odd", "SAME_UPPER", "SAME_LOWER", "VALID"],
        "bias": [True, False],
    }
)


def attributes_of(case: dict[str, Any]) -> dict[str, Any]:
    axes, pads = case["axes"], case["pads"]
    found: dict[str, Any] = {key: [case[key]] * axes for key in ("strides", "dilations")}
    if pads.isupper():
        return {**found, "auto_pad": pads}
    amounts = {"none": [0, 0], "even": [1, 1], "odd": [2, 1]}[pads]
    return {**found, "pads": [amounts[0]] * axes + [amounts[1]] * axes}


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv(case: dict[str, Any]) -> None:
    if case["pads"].startswith("SAME"):
        case = {**case, "dilations": 1}  # more are not supported by ONNX Runtime
    kernel = (3, 2, 4)[: case["axes"]]
    check(
        conv_model(
            kernel,
            channels=(4, 8),
            group=case["group"],
            bias=case["bias"],
            size=SIZES[: case["axes"]],
            **attributes_of(case),
        )
    )


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv_transpose(case: dict[str, Any]) -> None:
    kernel = (3, 4, 4)[: case["axes"]]
    if case["pads"].startswith("SAME"):
        case = {**case, "dilations": 1}
    check(
        conv_model(
            kernel,
            op="ConvTranspose",
            channels=(4, 8),
            group=case["group"],
            bias=case["bias"],
            size=(5, 4, 6)[: case["axes"]],
            **attributes_of(case),
        )
    )


@pytest.mark.parametrize(
    "attributes",
    [
        {"output_padding": [1, 1], "strides": [2, 2]},
        {"output_padding": [1, 0], "strides": [2, 3], "pads": [1, 0, 2, 1]},
        {"output_shape": [10, 10], "strides": [2, 2]},
        {"output_shape": [8, 9], "strides": [2, 2]},
        {"output_shape": [9, 8], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"output_shape": [9, 8], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    ],
    ids=str,
)
def test_conv_transpose_to_a_size(attributes: dict[str, Any]) -> None:
    check(conv_model((3, 3), op="ConvTranspose", size=(4, 4), **attributes))


POOLS = pairwise(
    {
        "axes": [1, 2, 3],
        "strides": [1, 2, 3],
        "pads": ["none", "even", "odd", "SAME_UPPER", "SAME_LOWER", "VALID"],
        "ceil_mode": [0, 1],
        "op": ["MaxPool", "AveragePool", "count_include_pad"],
    }
)


@pytest.mark.parametrize("case", POOLS, ids=str)
def test_pools(case: dict[str, Any]) -> None:
    case = {"dilations": 1, **case}
    more = attributes_of(case)
    more.pop("dilations")
    if not case["pads"].isupper():
        more["ceil_mode"] = case["ceil_mode"]
    op = case["op"]
    if op == "count_include_pad":
        op, more["count_include_pad"] = "AveragePool", 1
    x = noise(2, 3, *SIZES[: case["axes"]])
    agree(op, x, kernel_shape=[3] * case["axes"], **more)


@pytest.mark.parametrize("opset", [8, 12])
def test_dilated_max_pool(opset: int) -> None:
    more = {"dilations": [2, 3]} if opset > 8 else {}
    x = noise(1, 2, 12, 13)
    agree("MaxPool", x, kernel_shape=[2, 3], strides=[2, 1], opset=opset, **more)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_global_pools(op: str, axes: int) -> None:
    agree(op, noise(2, 3, *SIZES[:axes]))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(alpha: float, beta: float, a: int, b: int) -> None:
    x, w = noise(*((5, 4) if a else (4, 5))), noise(*((6, 5) if b else (5, 6)), seed=1)
    for c in (None, noise(6, seed=2), noise(4, 1, seed=2), noise(4, 6, seed=2)):
        agree("Gemm", x, w, c, transA=a, transB=b, alpha=alpha, beta=beta, opset=13)


@pytest.mark.parametrize("shapes", [((4, 5), (5, 6)), ((2, 3, 4, 5), (5, 6)), ((5,), (3, 5, 2))])
def test_matmul(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    agree("MatMul", noise(*shapes[0]), noise(*shapes[1], seed=1))


def test_einsum() -> None:
    agree("Einsum", noise(2, 3, 4), noise(4, 5, seed=1), equation="nij,jk->nki")


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batch_norm(opset: int) -> None:
    statistics = [noise(4, seed=n) for n in range(1, 4)] + [noise(4, seed=4) ** 2]
    agree("BatchNormalization", noise(3, 4, 5, 6), *statistics, opset=opset, epsilon=1e-3)


@pytest.mark.parametrize("momentum", [None, 0.0, 0.7])
def test_batch_norm_in_training_moves_its_statistics_as_onnx_says(momentum: float | None) -> None:
    x = noise(3, 4, 5, 6)
    statistics = [noise(4, seed=n) for n in range(1, 4)] + [noise(4, seed=4) ** 2]
    more = {} if momentum is None else {"momentum": momentum}
    inference = node_model("BatchNormalization", x, *statistics, **more)
    training = node_model("BatchNormalization", x, *statistics, outputs=3, training_mode=1, **more)
    expected = onnx.reference.ReferenceEvaluator(training).run(None, {"x": x})
    module = to_torch(inference)
    y = module(torch.from_numpy(x)).detach().numpy()
    moved = dict(module.named_tensors())
    assert_close([y, moved["c2"].numpy(), moved["c3"].numpy()], expected)
    assert evaluated(inference, {"x": x}, training=True)[0] == pytest.approx(y)


def test_statistics_that_are_weights_too_stay_where_they_are() -> None:
    """Tools that store equal tensors once make one of a scale and a variance of ones."""
    nodes = [onnx.helper.make_node("BatchNormalization", ["x", "one", "b", "m", "one"], ["y"])]
    weights = {"one": np.ones(3, np.float32), "b": noise(3), "m": noise(3, seed=1)}
    module = to_torch(model_of(nodes, inputs={"x": (2, 3, 4)}, weights=weights)).train()
    before = {name: tensor.clone() for name, tensor in module.named_tensors()}
    module(torch.from_numpy(noise(2, 3, 4))).sum().backward()
    assert module.one.grad is not None
    for name, tensor in module.named_tensors():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("size", [(5,), (5, 6), (3, 4, 5)])
def test_instance_norm(size: tuple[int, ...]) -> None:
    agree("InstanceNormalization", noise(2, 3, *size), noise(3), noise(3, seed=1), epsilon=1e-3)


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(axis: int, bias: bool) -> None:
    shape = noise(2, 3, 4).shape[axis:]
    constants = [noise(*shape, seed=1), noise(*shape, seed=2)][: 1 + bias]
    agree("LayerNormalization", noise(2, 3, 4), *constants, axis=axis)


@pytest.mark.parametrize(("opset", "length"), [(18, 2), (21, 4)])
def test_group_norm(opset: int, length: int) -> None:
    constants = noise(length, seed=1), noise(length, seed=2)
    x = noise(2, 4, 5)
    agree("GroupNormalization", x, *constants, num_groups=2, opset=opset, reference=opset < 21)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn(size: int) -> None:
    agree("LRN", noise(2, 7, 4, 5), size=size, alpha=0.3, beta=0.6, bias=1.5)


def test_other_norms() -> None:
    agree("LpNormalization", noise(2, 3, 4), axis=1, p=2)
    agree("LpNormalization", noise(2, 3, 4), axis=-1, p=1)
    agree("MeanVarianceNormalization", noise(2, 3, 4, 5), opset=13)


REFUSED = [
    ("MaxPool", {"kernel_shape": [2], "outputs": 2}, "where the largest"),
    ("AveragePool", {"kernel_shape": [2], "dilations": [2], "opset": 19}, "dilated"),
    ("MaxPool", {"kernel_shape": [2] * 4}, "4 spatial axes"),
]


@pytest.mark.parametrize(("op", "how", "reason"), REFUSED, ids=str)
def test_refusals_name_the_node(op: str, how: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=f"node 'node': operator {op} .*{reason}"):
        to_torch(node_model(op, noise(1, 2, 8), **how))
