"""The shipped CharNet: the paper's sizes, honest data, and a score that compression can lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from models import charnet
from models.charnet.build import build, build_from

FOLDER = Path(charnet.__file__).parent
CLASSES = 36

# Jaderberg et al. 2014, section 3: 9×9 48→128 is the layer that Lebedev et al. 2015 compress.
WEIGHTS = {
    "conv1": (96, 1, 9, 9),
    "conv2": (128, 48, 9, 9),
    "conv3": (512, 64, 8, 8),
    "conv4": (144, 128, 1, 1),
}
OUTPUTS = {"conv1": (16, 16), "conv2": (8, 8), "conv3": (1, 1), "conv4": (1, 1)}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.fixture(scope="module")
def shipped() -> onnx.ModelProto:
    return onnx.load(FOLDER / "charnet.onnx")


@pytest.fixture(scope="module")
def test_set() -> tuple[np.ndarray, np.ndarray]:
    with np.load(FOLDER / "test.npz") as archive:
        assert sorted(archive.files) == ["image", "label"]
        return archive["image"], archive["label"]


def test_the_model_is_valid_and_of_a_widely_read_version(shipped):
    onnx.checker.check_model(shipped, full_check=True)
    assert shipped.ir_version == 8
    assert [(opset.domain, opset.version) for opset in shipped.opset_import] == [("", 17)]


def test_one_picture_goes_in_and_36_probabilities_come_out(shipped):
    run = session(shipped)
    assert [(x.name, x.shape, x.type) for x in run.get_inputs()] == [
        ("image", ["N", 1, 24, 24], "tensor(float)")
    ]
    assert [(x.name, x.shape) for x in run.get_outputs()] == [("probabilities", ["N", CLASSES])]


def test_convolutions_have_the_sizes_of_the_paper(shipped):
    weights = {tensor.name: tuple(tensor.dims) for tensor in shipped.graph.initializer}
    convs = {node.name: node for node in shipped.graph.node if node.op_type == "Conv"}
    assert {name: weights[node.input[1]] for name, node in convs.items()} == WEIGHTS
    assert {name: weights[node.input[2]] for name, node in convs.items()} == {
        name: shape[:1] for name, shape in WEIGHTS.items()
    }
    assert np.prod(WEIGHTS["conv2"]) == 497_664
    assert np.prod(WEIGHTS["conv3"]) == 2_097_152


def test_second_convolution_does_most_of_the_work(shipped):
    graph = onnx.shape_inference.infer_shapes(shipped).graph
    sizes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)[2:]
        for value in graph.value_info
    }
    outputs = {n.name: sizes[n.output[0]] for n in graph.node if n.op_type == "Conv"}
    assert outputs == OUTPUTS
    macs = {name: int(np.prod(WEIGHTS[name]) * np.prod(OUTPUTS[name])) for name in WEIGHTS}
    assert macs["conv2"] == 31_850_496
    assert sum(macs.values()) == 35_956_736


def test_score_leaves_room_on_both_sides(shipped, test_set):
    image, label = test_set
    (probabilities,) = session(shipped).run(None, {"image": image.astype(np.float32)})
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert 0.90 < (probabilities.argmax(axis=1) == label).mean() < 0.97


def test_labelled_pictures_are_balanced_in_every_prefix(test_set):
    image, label = test_set
    assert image.dtype == np.uint8
    assert image.shape == (len(label), 1, 24, 24)
    assert label.dtype == np.int64
    assert len(label) >= 100 * CLASSES
    np.testing.assert_array_equal(label, np.arange(len(label)) % CLASSES)


def test_calibration_pictures_are_others_than_the_tested(test_set):
    with np.load(FOLDER / "calibration.npz") as archive:
        assert archive.files == ["image"]
        image = archive["image"]
    assert image.dtype == np.uint8
    assert image.shape == (1000, 1, 24, 24)
    seen = {picture.tobytes() for picture in test_set[0]}
    assert not any(picture.tobytes() in seen for picture in image)


def test_files_are_small():
    assert (FOLDER / "charnet.onnx").stat().st_size < 11e6
    assert sum(path.stat().st_size for path in FOLDER.glob("*.npz")) < 5e6


def test_given_weights_make_the_same_network(shipped):
    weights = {t.name: numpy_helper.to_array(t) for t in shipped.graph.initializer}
    assert build_from(weights).graph == shipped.graph


def test_random_weights_follow_the_seed():
    assert build(batch=4, seed=1) == build(batch=4, seed=1)
    assert build(batch=4, seed=1) != build(batch=4, seed=2)


def test_random_network_keeps_its_scale(test_set):
    image = test_set[0][:36].astype(np.float32) / 255
    (probabilities,) = session(build()).run(None, {"image": image})
    assert np.isfinite(probabilities).all()
    assert probabilities.max() < 0.99
