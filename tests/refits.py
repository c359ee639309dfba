"""Sites to refit, samples to refit them to, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxcp.calibration.data import Data, load_data
from onnxcp.factorize import Factorized, FactorizePass
from onnxcp.graph.chain import step_weight
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.passes import registered_passes
from onnxcp.profiling.inputs import session_inputs
from onnxcp.profiling.machine import Machine
from onnxcp.refit import AsDeployed, Refit, RefitSettings, refit
from tests.networks import Array, conv_model, model_of, noise, onnx_type, run
from tests.wirings import CHANNELS, wired

FAMILIES: dict[str, FactorizePass] = {
    name: kind()
    for name, kind in registered_passes().items()
    if issubclass(kind, FactorizePass) and kind.__module__.startswith("onnxcp_passes.")
}
MACHINE = Machine(intra_op_num_threads=1)
SAMPLES = 64
Choices = Mapping[Site, Sequence[Factorized]]


def smooth(n: int, channels: int, *size: int, axis: int = 1, seed: int = 0) -> Array:
    """Samples like those in networks: few patterns, smooth over places, mixed to many channels."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n, 3, *size))
    for place in range(2, values.ndim):
        values = values + np.roll(values, 1, place) + np.roll(values, 2, place)
    # The mixing belongs to the data, not to the sample of them.
    mixing = np.random.default_rng(7).standard_normal((channels, 3))
    values = np.moveaxis(np.tensordot(mixing, values, (1, 1)), 0, 1) / 3 ** len(size)
    values += 0.3 + 0.05 * rng.standard_normal(values.shape)
    return np.moveaxis(values, 1, axis).astype(np.float32)


def matrix(
    op: str,
    bias: Array | None = None,
    *,
    left: bool = False,
    axes: int = 2,
    dtype: Any = np.float32,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one matrix product, of 10 inputs and 14 outputs."""
    shape = (14, 10) if left or attributes.get("transB") else (10, 14)
    weights = {"w": noise(*shape, dtype=dtype)} | ({} if bias is None else {"b": bias})
    inputs = ["w", "x"] if left else ["x", "w"]
    node = helper.make_node(op, [*inputs, *list(weights)[1:]], ["y"], name="m", **attributes)
    given: list[int | str | None] = ["n", 10, 5] if left else [*["n", 6, 4][: axes - 1], 10]
    return model_of([node], inputs={"x": given}, weights=weights, dtype=onnx_type(weights["w"]))


def conv(kernel: Sequence[int] = (3, 3), **options: Any) -> onnx.ModelProto:
    options = {"channels": (8, 12), "size": (6, 7, 5)[: len(kernel)], "batch": "n", **options}
    return conv_model(kernel, **options)


SITES: dict[str, onnx.ModelProto] = {
    "conv": conv(pads=[1, 1, 1, 1]),
    "no bias": conv(bias=False),
    "strided": conv(strides=[2, 1], dilations=[1, 2], pads=[1, 0, 2, 1]),
    "SAME": conv((4, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    "grouped": conv(group=2, pads=[1, 1, 1, 1]),
    "1x1": conv((1, 1)),
    "1-d": conv((3,), size=(20,)),
    "3-d": conv((3, 1, 2)),
    "transposed": conv(op="ConvTranspose", strides=[2, 2], output_padding=[1, 0]),
    "transposed, grouped, no bias": conv(op="ConvTranspose", group=2, bias=False),
    "transposed 1-d": conv((3,), op="ConvTranspose", size=(20,), pads=[1, 0]),
    "half": conv(dtype=np.float16),
    "Gemm": matrix("Gemm", noise(14, seed=2)),
    "Gemm, transB": matrix("Gemm", noise(14, seed=2), transB=1),
    "Gemm, alpha and beta": matrix("Gemm", noise(14, seed=2), transB=1, alpha=-0.3, beta=2.5),
    "Gemm without bias": matrix("Gemm", alpha=2.0),
    "Gemm, no beta": matrix("Gemm", noise(14, seed=2), beta=0.0),
    "Gemm, bias of one row": matrix("Gemm", noise(1, 14, seed=2), beta=0.5),
    "Gemm, bias of one number": matrix("Gemm", noise(1, seed=2)),
    "MatMul": matrix("MatMul"),
    "MatMul in double": matrix("MatMul", dtype=np.float64),
    "MatMul of 3 axes": matrix("MatMul", axes=3),
    "MatMul of 4 axes": matrix("MatMul", axes=4),
    "left": matrix("MatMul", left=True),
}


def samples_for(proto: onnx.ModelProto, n: int = SAMPLES, seed: int = 0) -> Array:
    """Smooth samples of the shape that a model wants."""
    (value,) = proto.graph.input
    kind = value.type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim][1:]
    matrix_op = proto.graph.node[0].op_type in ("Gemm", "MatMul")
    axis = len(shape) if matrix_op and shape[-1] == 10 else 1
    channels = shape.pop(axis - 1)
    values = smooth(n, channels, *shape, axis=axis, seed=seed)
    return values.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))


def data_for(proto: onnx.ModelProto, values: Array) -> Data:
    session = MACHINE.open(Model(proto))
    return load_data({"x": values}, session_inputs(session))


def low_ranks(family: FactorizePass, site: Site) -> tuple[int, ...]:
    return tuple(max(1, round(0.35 * full)) for full in family.full_ranks(site))


def choices_for(model: Model, *families: str) -> dict[Site, list[Factorized]]:
    """Factorise sites at low ranks; the closest comes first, as a plan has it."""
    choices = {}
    for site in find_sites(model)[0]:
        fitting = [FAMILIES[name] for name in families if FAMILIES[name].applies(site) is None]
        made = [family.apply(site, low_ranks(family, site)) for family in fitting]
        if made:
            choices[site] = sorted(made, key=lambda each: each.error)
    return choices


def fit(
    proto: onnx.ModelProto,
    choices: Choices,
    values: Array,
    *,
    model: Model | None = None,
    dense: Sequence[Site] = (),
    deployed: AsDeployed | None = None,
    **options: Any,
) -> dict[Site, Refit]:
    data = data_for(proto, values)
    settings = RefitSettings(**options)
    return refit(
        model or Model(proto), choices, data, MACHINE, settings, dense=dense, deployed=deployed
    )


def plainly(model: Model, choices: Choices) -> Model:
    return splice(model, {s: (c[0].family.name, c[0].chain) for s, c in choices.items()})


def fitted(model: Model, done: Mapping[Site, Refit]) -> Model:
    return splice(model, {site: each.chain for site, each in done.items() if each.chain})


def error(model: Model, original: Model, values: Array) -> float:
    """Relative error of all that networks put out on some samples."""
    one, other = (np.asarray(run(each, {"x": values})[0], np.float64) for each in (model, original))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def weights_of(done: Mapping[Site, Refit]) -> list[bytes]:
    found = []
    for each in done.values():
        assert each.chain is not None
        chain = each.chain[1]
        found += [step_weight(step).tobytes() for step in chain.steps]
        found.append(b"" if chain.bias is None else chain.bias.tobytes())
    return found


def two_convs(relu: bool = True) -> onnx.ModelProto:
    """Two convolutions in a row."""
    between = "r = Relu a" if relu else "r = Identity a"
    proto = wired("a = Conv x", between, "b = Conv r", "y = Identity b")
    return opened(proto)


def opened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let a network of `wired` take batches of any size."""
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    return proto


def named(model: Model, *names: str) -> list[Site]:
    sites = {site.name: site for site in find_sites(model)[0]}
    return [sites[name] for name in names]


def at_rank(rank: int, *sites: Site) -> dict[Site, list[Factorized]]:
    return {site: [FAMILIES["channel-svd"].apply(site, (rank,))] for site in sites}


VALUES = smooth(SAMPLES, CHANNELS, 6, 5)
FRESH = smooth(SAMPLES, CHANNELS, 6, 5, seed=1)
