from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from tests.cli.conftest import Run
from tests.networks import conv_model, noise

SHAPE = ("--input-shapes", "4,16,12,12")


@pytest.fixture
def scaled(model: Path) -> Path:
    """The same network with outputs 1 % larger."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.name in ("v", "c"):
            values = 1.01 * numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    path = model.with_name("scaled.onnx")
    onnx.save(proto, path)
    return path


def test_equal_models(onnxcp: Run, model: Path) -> None:
    done = onnxcp("compare", model, model, *SHAPE)
    assert (done.code, done.out) == (0, "")
    assert "All outputs are within tolerance" in done.err
    assert "on random inputs" in done.err
    assert "100.00 %" in done.err


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 1),
        (["--rtol", "0.011"], 0),
        (["--rtol", "0.009"], 1),
        (["--rtol", "0", "--atol", "1000"], 0),
        (["--rtol", "0", "--atol", "0.000001"], 1),
    ],
)
def test_tolerances(onnxcp: Run, model: Path, scaled: Path, options: list[str], code: int) -> None:
    done = onnxcp("compare", model, scaled, *SHAPE, *options)
    assert done.code == code
    assert ("Beyond tolerance: y" in done.err) == bool(code)


def test_json(onnxcp: Run, model: Path, scaled: Path) -> None:
    done = onnxcp("compare", model, scaled, *SHAPE, "--json", "-q")
    record = json.loads(done.out)
    assert record["schema"] == 3
    assert record["within"] is False
    (output,) = record["outputs"]
    assert output["relative"] == pytest.approx(0.01, rel=1e-3)
    assert output["cosine"] == pytest.approx(1)
    assert output["top1_agreement"] == 1


def test_on_data(onnxcp: Run, model: Path, scaled: Path, labelled: Path) -> None:
    done = onnxcp("compare", model, scaled, "--calibration-data", labelled, "--rtol", "0.1")
    assert done.code == 0
    assert "random" not in done.err


def test_on_what_a_script_loads(
    onnxcp: Run, model: Path, scaled: Path, labelled: Path, tmp_path: Path
) -> None:
    script = tmp_path / "load.py"
    script.write_text(
        "import numpy\n"
        "def load():\n"
        "    print('loading')\n"
        f"    arrays = numpy.load({str(labelled)!r})\n"
        "    while True:\n"
        "        yield {'x': arrays['x'][:3]}\n"
    )
    arguments = ("--data-loader-script", f"{script}:load", "--calibration-samples", "5", "--json")
    done = onnxcp("compare", model, scaled, *arguments)
    assert done.code == 1
    record = json.loads(done.out)
    assert record["data_is_random"] is False
    assert record["outputs"][0]["relative"] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("text", ["", "resize=12,crop=9", "mean=0.5,std=0.2,channels=bgr"])
def test_on_pictures(onnxcp: Run, tmp_path: Path, text: str) -> None:
    model, folder = tmp_path / "conv.onnx", tmp_path / "pictures"
    onnx.save(conv_model((3, 3), channels=(3, 4), size=(9, 9), batch=1), model)
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 30), (number, 0, 0)).save(folder / f"{number}.jpg")
    preparation = ("--preprocess", text) if text else ()
    done = onnxcp("compare", model, model, "--calibration-data", folder, *preparation)
    assert done.code == 0
    assert "random" not in done.err


def test_infinite_errors_are_null_in_json(onnxcp: Run, model: Path) -> None:
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.name == "c":
            values = np.full(5, np.inf, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, "c"))
    other = model.with_name("inf.onnx")
    onnx.save(proto, other)
    done = onnxcp("compare", model, other, *SHAPE, "--json", "--atol", "1e9")
    assert done.code == 1
    (output,) = json.loads(done.out)["outputs"]
    assert output["relative"] is None
    assert output["finite_b"] is False


def test_outputs_of_other_shapes_are_not_comparable(onnxcp: Run, tmp_path: Path) -> None:
    paths = []
    for name, channels in (("a", (4, 6)), ("b", (4, 8))):
        paths.append(tmp_path / f"{name}.onnx")
        onnx.save(conv_model((3, 3), channels=channels), paths[-1])
    done = onnxcp("compare", *paths)
    assert done.code == 1
    assert "is of shape" in " ".join(done.err.split())


def test_models_of_other_inputs(onnxcp: Run, model: Path, tmp_path: Path) -> None:
    onnx.save(conv_model((3, 3)), tmp_path / "conv.onnx")
    done = onnxcp("compare", model, tmp_path / "conv.onnx", *SHAPE)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1


def test_outputs_in_another_order_are_matched_by_name(onnxcp: Run, tmp_path: Path) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => '
    body = "{ y = Relu(x) z = Neg(x) }"
    for name, outputs in (("a", "(float[4] y, float[4] z)"), ("b", "(float[4] z, float[4] y)")):
        onnx.save(onnx.parser.parse_model(head + outputs + body), tmp_path / f"{name}.onnx")
    assert onnxcp("compare", tmp_path / "a.onnx", tmp_path / "b.onnx").code == 0


def test_bad_data(onnxcp: Run, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=noise(2, 3))
    done = onnxcp("compare", model, model, "--calibration-data", tmp_path / "bad.npz")
    assert done.code == 2
    assert "has shape [2, 3]" in done.err


def test_open_extents_are_found_by_running(onnxcp: Run, sound: Path) -> None:
    assert onnxcp("compare", sound, sound).code == 0


class TestInAPrecision:
    def test_what_it_does_to_the_outputs(self, onnxcp: Run, model: Path, calibration: Path) -> None:
        data = ("--calibration-data", calibration, "--rtol", "0")
        plain = onnxcp("compare", model, model, *SHAPE, *data)
        int8 = onnxcp("compare", model, model, *SHAPE, *data, "--precision", "int8")
        loose = onnxcp("compare", model, model, *SHAPE, *data[:2], "--rtol", "0.1",
                       "--precision", "int8")  # fmt: skip
        assert (plain.code, int8.code, loose.code) == (0, 1, 0)

    def test_int8_needs_samples(self, onnxcp: Run, model: Path) -> None:
        done = onnxcp("compare", model, model, *SHAPE, "--precision", "int8")
        assert done.code == 2
        assert "int8 needs samples to calibrate on: give --calibration-data." in done.err
