from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from onnxcp.errors import DataError
from onnxcp.graph.model import load, save
from onnxcp.tuning import from_torch, to_torch
from tests.networks import conv_model, feeds_for, model_of, noise, run
from tests.tuning.oracle import assert_close

KINDS = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


def tensors(model: onnx.ModelProto) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in to_torch(model).named_tensors()}


def constant(**value: Any) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["c"], name="constant", doc_string="kept", **value),
        helper.make_node("PRelu", ["x", "c"], ["y"]),
    ]
    return model_of(nodes, inputs={"x": (2, 2)})


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_values_give_the_very_model(kind: Any) -> None:
    proto = conv_model(dtype=np.float32)
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor).astype(kind)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    model = load(proto)
    assert from_torch(model, to_torch(model)) is model


@pytest.mark.parametrize("kind", KINDS)
def test_other_values_are_stored_in_the_type_that_was(kind: Any) -> None:
    proto = conv_model()
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor).astype(kind)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    given = tensors(proto)
    given["w"] += 1
    found = {t.name: t for t in from_torch(proto, given).proto.graph.initializer}
    before = {t.name: t for t in proto.graph.initializer}
    assert found["b"] == before["b"]
    assert found["w"].data_type == before["w"].data_type
    expected = given["w"].numpy().astype(kind)
    assert numpy_helper.to_array(found["w"]).tobytes() == expected.tobytes()


def test_nothing_else_changes() -> None:
    proto = conv_model()
    proto.doc_string, proto.graph.initializer[0].doc_string = "kept", "kept too"
    proto.metadata_props.add(key="k", value="v")
    given = tensors(proto)
    given["w"] *= 2
    changed = from_torch(proto, given).proto
    assert changed != proto
    changed.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data
    assert changed == proto


def test_the_given_model_stays_as_it_is() -> None:
    proto = conv_model()
    before = copy.deepcopy(proto)
    given = tensors(proto)
    given["w"] *= 2
    from_torch(proto, given)
    assert proto == before


def test_a_trained_module_computes_the_same_in_onnx_runtime() -> None:
    proto = conv_model()
    module = to_torch(proto)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5).add_(0.1)
    feeds = feeds_for(proto)
    expected = module(torch.from_numpy(feeds["x"])).detach().numpy()
    assert_close([expected], run(from_torch(proto, module), feeds))


@pytest.mark.parametrize("field", ["float_data", "int32_data"])
def test_values_that_are_not_raw(field: str) -> None:
    proto = conv_model(bias=False)
    tensor = proto.graph.initializer[0]
    value = numpy_helper.to_array(tensor)
    if field == "float_data":
        tensor.ClearField("raw_data")
        tensor.float_data.extend(value.ravel().tolist())
    else:
        halves = value.astype(np.float16)
        tensor.CopyFrom(
            onnx.TensorProto(
                name="w",
                dims=value.shape,
                data_type=onnx.TensorProto.FLOAT16,
                int32_data=halves.view(np.uint16).ravel().tolist(),
            )
        )
    given = tensors(proto)
    given["w"] *= 2
    (found,) = from_torch(proto, given).proto.graph.initializer
    assert numpy_helper.to_array(found) == pytest.approx(2 * value, rel=1e-3)
    assert len(getattr(found, field)) == 0


@pytest.mark.parametrize(
    "value",
    [
        {"value": numpy_helper.from_array(noise(2), "inner")},
        {"value_floats": [0.5, 0.25]},
        {"value_float": 0.5},
    ],
    ids=str,
)
def test_constant_nodes(value: dict[str, Any]) -> None:
    proto = constant(**value)
    given = tensors(proto)
    given["c"] = given["c"] + 1
    found = from_torch(proto, given)
    assert torch.equal(tensors(found.proto)["c"], given["c"])
    assert found.proto.graph.node[0].doc_string == "kept"


def test_external_data_stay_external(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    save(load(conv_model((3, 3), channels=(16, 16))), path, external=True)
    model = load(path)
    given = dict(to_torch(model).named_tensors())
    given["w"] = given["w"] * 2
    changed = from_torch(model, given)
    assert changed.external == model.external == {"w"}
    assert changed.path is None


def wrong(given: dict[str, torch.Tensor], what: str) -> dict[str, torch.Tensor]:
    match what:
        case "missing":
            return {name: tensor for name, tensor in given.items() if name != "w"}
        case "extra":
            return {**given, "z": torch.zeros(1)}
        case "shape":
            return {**given, "b": torch.zeros(2, 3)}
        case "nan":
            return {**given, "w": torch.full_like(given["w"], torch.nan)}
        case _:
            return {**given, "w": torch.full_like(given["w"], 1e5)}


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("missing", r"There is no tensor for 'w' of 'tiny'\."),
        ("extra", r"'tiny' has no weights called 'z'\."),
        ("shape", r"The tensor for 'b' has shape \[2, 3\], not \[6\]\."),
        ("nan", r"The tensor for 'w' holds values that are not finite\."),
        ("large", r"The tensor for 'w' holds values too large for FLOAT16\."),
    ],
)
def test_wrong_tensors_are_named(what: str, sentence: str) -> None:
    proto = conv_model(dtype=np.float16)
    with pytest.raises(DataError, match=f"^{sentence}$"):
        from_torch(proto, wrong(tensors(proto), what))


def test_many_names_are_cut_short() -> None:
    proto = conv_model()
    extra = {f"z{n}": torch.zeros(1) for n in range(5)}
    with pytest.raises(DataError, match="'z0', 'z1', 'z2' and 2 more"):
        from_torch(proto, {**tensors(proto), **extra})


def test_what_was_not_finite_may_stay_so() -> None:
    proto = constant(value_floats=[np.inf, 1.0])
    model = load(proto)
    assert from_torch(model, to_torch(model)) is model
    given = tensors(proto)
    given["c"][1] = 2
    assert tensors(from_torch(proto, given).proto)["c"].tolist() == [np.inf, 2]


def test_a_tensor_in_another_type_or_place_is_brought_to_the_models() -> None:
    proto = conv_model()
    given = {name: tensor.double() for name, tensor in tensors(proto).items()}
    model = load(proto)
    assert from_torch(model, given) is model


def test_without_the_extra_importing_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import onnxcp.cli.main\n"
        "from onnxcp.errors import OnnxcpError\n"
        "try:\n    import onnxcp.tuning\n"
        "except OnnxcpError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "This needs the package torch, which comes with the extra 'torch':"
        ' pip install "onnxcp[torch]".'
    )
