from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnxcp.errors import ModelError
from onnxcp.tuning import to_torch
from tests.networks import Array, noise
from tests.tuning.oracle import agree, evaluated, node_model


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


def single(*values: float) -> Array:
    return np.array(values, np.float32)


X = noise(2, 6, 4, 5)
ROW = single(-3.7, -2.5, -1, -0.5, 0, 0.3, 0.5, 1, 1.5, 2.5)
INSIDE = np.linspace(-0.9, 0.9, 7, dtype=np.float32)

UNARY = [
    *("Abs", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "HardSwish", "Identity"),
    *("LeakyRelu", "Elu", "Celu", "Selu", "HardSigmoid", "ThresholdedRelu", "Neg", "Relu"),
    *("Round", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Tan", "Tanh", "IsNaN"),
]


@pytest.mark.parametrize("op", UNARY)
def test_entry_by_entry(op: str) -> None:
    agree(op, ROW)


@pytest.mark.parametrize("op", ["Acos", "Asin", "Log", "Sqrt", "Reciprocal"])
def test_entry_by_entry_of_some_numbers(op: str) -> None:
    agree(op, INSIDE if op.startswith("A") else np.abs(ROW) + 0.1)


@pytest.mark.parametrize("op", ["Elu", "Celu", "LeakyRelu", "Selu", "ThresholdedRelu"])
def test_alpha(op: str) -> None:
    agree(op, ROW, alpha=0.3)


def test_newer_activations() -> None:
    agree("Mish", ROW, opset=18)
    agree("Gelu", ROW, opset=20)
    agree("Gelu", ROW, opset=20, approximate="tanh")
    agree("HardSigmoid", ROW, alpha=0.3, beta=0.4)
    agree("Selu", ROW, alpha=1.2, gamma=0.7)


def test_not() -> None:
    agree("Not", np.array([True, False]))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("shape", [(), (5,), (4, 1), (6, 1, 1), (3, 1, 1, 1, 5)])
def test_broadcasting(op: str, shape: tuple[int, ...]) -> None:
    agree(op, np.abs(X) + 0.1, noise(*shape, seed=1))


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons(op: str) -> None:
    agree(op, ROW, ROW[::-1].copy())


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(op: str) -> None:
    agree(op, np.array([True, True, False, False]), np.array([True, False, True, False]))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_whole_numbers_are_divided_towards_zero(dtype: type) -> None:
    x, by = np.array([7, -7, 7, -7, 6], dtype), np.array([2, 2, -2, -2, 3], dtype)
    agree("Div", x, by)
    agree("Mod", x, by)
    agree("Mod", x, by, fmod=1)
    agree("Pow", x, np.array([2, 3, 1, 0, 2], dtype))


def test_mod_of_floats() -> None:
    agree("Mod", ROW, single(1.3), fmod=1)


@pytest.mark.parametrize("slope", [noise(), noise(6, 1, 1), noise(6, 4, 5)], ids=np.shape)
def test_prelu(slope: Array) -> None:
    agree("PRelu", X, slope)


def test_clip() -> None:
    agree("Clip", ROW, opset=6, min=-1.0, max=1.0)
    agree("Clip", ROW, opset=10, max=1.0)
    agree("Clip", ROW, np.float32(-1), np.float32(1))
    agree("Clip", ROW, None, np.float32(1))
    agree("Clip", ROW, np.float32(0.2))
    agree("Clip", ROW)
    agree("Clip", whole(1, 5, 9), np.int64(3), np.int64(7))


def test_where() -> None:
    agree("Where", X > 0, noise(5, seed=1), noise(6, 1, 1, seed=2))


@pytest.mark.parametrize("kind", ["INT32", "INT64", "BOOL", "UINT8", "FLOAT"])
def test_cast(kind: str) -> None:
    agree("Cast", np.abs(ROW), to=onnx.TensorProto.DataType.Value(kind))
    agree("Cast", whole(0, 1, 2), to=onnx.TensorProto.DataType.Value(kind))


@pytest.mark.parametrize(("opset", "constants"), [(7, ()), (10, ()), (13, (np.float32(0.4),))])
def test_dropout_drops_in_training_only(opset: int, constants: tuple[Array, ...]) -> None:
    x = np.ones((100, 100), np.float32)
    more = {} if constants else {"ratio": 0.4}
    agree("Dropout", x, *constants, opset=opset, **more)
    model = node_model("Dropout", x, *constants, opset=opset, **more)
    (dropped,) = evaluated(model, {"x": x}, training=True)
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.6)}
    assert np.mean(dropped == 0) == pytest.approx(0.4, abs=0.03)  # 6 standard deviations


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [7, 12, 13])
@pytest.mark.parametrize("axis", [None, 1, 2, -1])
def test_softmax(op: str, opset: int, axis: int | None) -> None:
    agree(op, X, opset=opset, **({} if axis is None else {"axis": axis}))


REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("axes", [None, (1,), (-1, 1), (2, 3)])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(op: str, axes: tuple[int, ...] | None, keepdims: int) -> None:
    x = np.abs(X) + 0.1
    older = {} if axes is None else {"axes": axes}
    agree(f"Reduce{op}", x, opset=11, keepdims=keepdims, **older)
    newer = [] if axes is None else [whole(*axes)]
    agree(f"Reduce{op}", x, *newer, opset=13 if op == "Sum" else 18, keepdims=keepdims)


def test_reductions_of_whole_numbers_and_of_none() -> None:
    agree("ReduceSum", np.arange(6).reshape(2, 3), whole(1))
    agree("ReduceMax", np.arange(6).reshape(2, 3), opset=13, axes=[0])
    agree("ReduceSum", X, whole(), noop_with_empty_axes=1)
    agree("ReduceSum", X, whole())


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_where_extremes_are(op: str, axis: int, keepdims: int) -> None:
    agree(op, X, axis=axis, keepdims=keepdims)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k(largest: int) -> None:
    agree("TopK", X, whole(3), outputs=2, axis=1, largest=largest)
    agree("TopK", X, outputs=2, k=2, opset=9)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_sum(exclusive: int, reverse: int) -> None:
    agree("CumSum", X, np.int64(-2), exclusive=exclusive, reverse=reverse)


def test_reshape() -> None:
    agree("Reshape", X, whole(0, -1, 10))
    agree("Reshape", X, whole(-1))
    agree("Reshape", np.zeros((0, 3), np.float32), whole(3, 0), allowzero=1)


def test_flatten_and_transpose() -> None:
    for axis in (0, 1, 2, -1):
        agree("Flatten", X, axis=axis, opset=11)
    agree("Transpose", X)
    agree("Transpose", X, perm=[0, 2, 3, 1])


@pytest.mark.parametrize("axes", [(0,), (0, 2), (-1, 0)])
def test_squeeze_and_unsqueeze(axes: tuple[int, ...]) -> None:
    thin = noise(1, 3, 1, 1)
    agree("Squeeze", thin, opset=11, axes=axes)
    agree("Squeeze", thin, whole(*axes), opset=13)
    agree("Unsqueeze", X, opset=11, axes=axes)
    agree("Unsqueeze", X, whole(*axes), opset=13)
    agree("Squeeze", thin)


def test_shape_and_size() -> None:
    agree("Shape", X)
    agree("Shape", X, start=1, end=-1)
    agree("Size", X)


def test_split() -> None:
    agree("Split", X, outputs=3, axis=1, opset=11)
    agree("Split", X, outputs=2, axis=1, split=[2, 4], opset=11)
    agree("Split", X, whole(1, 2, 3), outputs=3, axis=1)
    agree("Split", X, outputs=3, axis=-1, num_outputs=3, opset=18)


SLICES: list[tuple[dict[int, tuple[int, int]], int]] = [
    ({1: (1, 4)}, 1),
    ({1: (-3, -1), 3: (0, 2**31)}, 1),
    ({2: (0, 100)}, 2),
    ({3: (-1, -(2**31))}, -1),
    ({1: (5, 0)}, -2),
    ({1: (4, 2)}, 1),
]


@pytest.mark.parametrize(("cuts", "step"), SLICES, ids=str)
def test_slice(cuts: dict[int, tuple[int, int]], step: int) -> None:
    starts, ends = zip(*cuts.values(), strict=True)
    if step == 1:
        agree("Slice", X, opset=9, starts=starts, ends=ends, axes=list(cuts))
    agree("Slice", X, whole(*starts), whole(*ends), whole(*cuts), whole(*[step] * len(cuts)))
    if list(cuts) == [0]:
        agree("Slice", X, whole(*starts), whole(*ends))


@pytest.mark.parametrize("indices", [np.int64(-1), whole(0, 2), whole(0, -1, 1, -4).reshape(2, 2)])
@pytest.mark.parametrize("axis", [1, 2])
def test_gather(indices: Array, axis: int) -> None:
    agree("Gather", X, indices, axis=axis)


def test_gather_single_entries() -> None:
    agree("GatherElements", noise(3, 4), whole(0, -1, 2, 1, 0, 0).reshape(3, 2), axis=1)
    agree("GatherND", noise(3, 4, 5), whole(0, -1, 2, 1).reshape(2, 2))


def test_expand_and_tile() -> None:
    agree("Expand", noise(3, 1), whole(2, 1, 4))
    agree("Tile", noise(3, 2), whole(2, 3))


def test_shapes_are_filled() -> None:
    agree("ConstantOfShape", whole(2, 3))
    value = onnx.numpy_helper.from_array(whole(7))
    agree("ConstantOfShape", whole(2, 3), value=value)


def test_range() -> None:
    agree("Range", np.array(0), np.array(10), np.array(3))
    agree("Range", np.array(1, np.float32), np.float32(3), np.float32(0.5))


def test_non_zero() -> None:
    agree("NonZero", np.array([[1, 0, 2], [0, 0, 3]], np.float32))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    agree("DepthToSpace", noise(2, 12, 3, 4), blocksize=2, mode=mode)
    agree("SpaceToDepth", noise(2, 3, 4, 6), blocksize=2)


def test_concat() -> None:
    agree("Concat", X, noise(2, 1, 4, 5), axis=1)
    agree("Concat", X, noise(2, 6, 4, 1), axis=-1)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pad(mode: str) -> None:
    opset = 19 if mode == "wrap" else 17
    agree("Pad", X, whole(0, 2, 1, 3, 0, 0, 2, 1), mode=mode, opset=opset)
    if mode != "wrap":
        agree("Pad", X, opset=10, pads=[0, 2, 1, 3, 0, 0, 2, 1], mode=mode)


def test_pad_by_a_value_along_axes_and_by_less_than_nothing() -> None:
    agree("Pad", X, whole(1, 2), np.float32(3.5), whole(-1), opset=18)
    agree("Pad", X, opset=10, pads=[0, 0, 1, 0, 0, 0, 0, 2], value=2.0)
    agree("Pad", X, whole(0, 0, -1, 0, 0, 0, 0, -2))


MODES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
SCALES = [(2.0, 2.0), (1.5, 2.6), (0.7, 0.5), (0.3, 1.0)]


@pytest.mark.parametrize("mode", [*MODES, "half_pixel_symmetric"])
@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("kind", [*NEAREST, "linear", "cubic"])
def test_resize(mode: str, scales: tuple[float, float], kind: str) -> None:
    opset = 19 if mode == "half_pixel_symmetric" else 13
    kinds = {"mode": "nearest", "nearest_mode": kind} if kind in NEAREST else {"mode": kind}
    options = {"coordinate_transformation_mode": mode, "opset": opset, **kinds}
    agree("Resize", noise(1, 2, 7, 8), single(), single(1, 1, *scales), **options)


@pytest.mark.parametrize("kind", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("mode", MODES)
def test_resize_to_a_size(kind: str, mode: str) -> None:
    options = {"mode": kind, "coordinate_transformation_mode": mode}
    x = noise(1, 2, 7, 8)
    agree("Resize", x, None, None, whole(1, 2, 5, 13), **options)
    agree("Resize", x, None, None, whole(5, 13), opset=18, axes=[2, 3], **options)
    agree("Resize", x, None, None, whole(1, 2, 1, 1), **options)


@pytest.mark.parametrize("outside", [0, 1])
def test_cubic_options(outside: int) -> None:
    more = {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": outside}
    agree("Resize", noise(1, 1, 5, 6), single(), single(1, 1, 2, 1.5), **more)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.5, 2.5)], ids=str)
def test_upsample_and_the_first_resize(mode: str, scales: tuple[float, float]) -> None:
    x = noise(1, 2, 4, 5)
    agree("Upsample", x, opset=7, scales=[1, 1, *scales], mode=mode)
    agree("Upsample", x, single(1, 1, *scales), opset=9, mode=mode)
    agree("Resize", x, single(1, 1, *scales), opset=10, mode=mode)


def test_the_first_resize_shrinks() -> None:
    for mode in ("nearest", "linear"):
        agree("Resize", noise(1, 2, 7, 8), single(1, 1, 0.6, 0.5), opset=10, mode=mode)


def gates(op: str, directions: int, *, bias: bool, state: bool) -> list[Array | None]:
    count, size, inputs, batch = (4 if op == "LSTM" else 3), 5, 4, 3
    found: list[Array | None] = [
        noise(directions, count * size, inputs, seed=1),
        noise(directions, count * size, size, seed=2),
        noise(directions, 2 * count * size, seed=3) if bias else None,
        None,
        noise(directions, batch, size, seed=4) if state else None,
    ]
    if op == "LSTM":
        found.append(noise(directions, batch, size, seed=5) if state else None)
    return found


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("opset", [7, 14])
def test_recurrence(op: str, direction: str, full: bool, opset: int) -> None:
    weights = gates(op, 1 + (direction == "bidirectional"), bias=full, state=full)
    outputs = 3 if op == "LSTM" else 2
    more: dict[str, Any] = {"linear_before_reset": int(full)} if op == "GRU" else {}
    x = noise(6, 3, 4)
    agree(op, x, *weights, outputs=outputs, hidden_size=5, direction=direction, opset=opset, **more)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_quantization(kind: type, per_channel: bool) -> None:
    scale = np.abs(noise(6, seed=1)) * 0.01 + 0.01 if per_channel else np.float32(0.02)
    zero = np.full(np.shape(scale), 3, kind)
    steps = np.arange(-60, 60).reshape(2, 6, 10).astype(kind)
    agree("DequantizeLinear", steps, scale, zero, axis=1)
    model = node_model("QuantizeLinear", X, scale, zero, axis=1)
    rounded = evaluated(model, {"x": X})[0]
    assert np.array_equal(rounded.astype(kind), rounded)
    expected = np.clip(np.rint(X / np.reshape(scale, (-1, 1, 1))) + 3, *limits(kind))
    assert np.array_equal(rounded, expected)


def limits(kind: type) -> tuple[int, int]:
    return np.iinfo(kind).min, np.iinfo(kind).max


def test_gradients_pass_through_rounding() -> None:
    model = node_model("QuantizeLinear", ROW, np.float32(0.02), np.uint8(3))
    x = torch.from_numpy(ROW).requires_grad_()
    to_torch(model)(x).sum().backward()
    assert x.grad is not None
    inside = (ROW / 0.02 + 3 >= 0) & (ROW / 0.02 + 3 <= 255)
    assert x.grad.numpy() == pytest.approx(np.where(inside, 50.0, 0.0))


@pytest.mark.parametrize("op", ["ImageScaler", "Crop", "Affine"])
def test_what_onnx_dropped_and_onnx_runtime_still_runs(op: str) -> None:
    attributes: dict[str, dict[str, Any]] = {
        "ImageScaler": {"bias": [1.0, 2.0, 3.0], "scale": 0.5},
        "Crop": {"border": [1, 0, 2, 1]},
        "Affine": {"alpha": 2.0, "beta": 0.5},
    }
    agree(op, noise(1, 3, 6, 7), opset=7, **attributes[op])


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Resize", {"coordinate_transformation_mode": "tf_crop_and_resize"}, "crops"),
    ("Resize", {"antialias": 1, "opset": 18}, "smooths"),
    ("Resize", {"keep_aspect_ratio_policy": "not_larger", "opset": 18}, "keeps proportions"),
    ("Cast", {"to": onnx.TensorProto.STRING}, "casts to STRING"),
    ("Add", {"opset": 6, "broadcast": 1}, "before version 7"),
    ("Gemm", {"opset": 6}, "before version 7"),
    ("ArgMax", {"select_last_index": 1}, "last of equals"),
    ("GatherND", {"batch_dims": 1}, "batch axes"),
    ("LSTM", {"hidden_size": 2, "activations": ["Relu", "Tanh", "Tanh"]}, "activations"),
    ("GRU", {"hidden_size": 2, "clip": 1.0}, "cuts off"),
    ("BatchNormalization", {"training_mode": 1, "outputs": 3}, "statistics of a batch"),
    ("LayerNormalization", {"outputs": 2}, "its statistics"),
    ("DequantizeLinear", {"block_size": 2, "opset": 21}, "for every block"),
]


@pytest.mark.parametrize(("op", "how", "reason"), REFUSED, ids=str)
def test_refusals_name_the_node(op: str, how: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=f"node 'node': operator {op} is refused where .*{reason}"):
        to_torch(node_model(op, noise(1, 2, 8), **how))


def test_operators_without_a_counterpart() -> None:
    with pytest.raises(ModelError, match="node 'node': operator Det has no counterpart here"):
        to_torch(node_model("Det", noise(2, 2)))
