from __future__ import annotations

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from onnxcp.errors import DataError, OnnxcpError
from onnxcp.graph.model import Model, load
from onnxcp.graph.origins import KEY
from onnxcp.training import Training
from onnxcp.tuning import finetune, from_torch, to_torch
from onnxcp.tuning.recalibrate import recalibrate
from tests.covering import thinned
from tests.networks import difference, initializers, model_of, noise, run
from tests.tuning.students import QUICK, data, rewritten, student, teacher, tuned, with_idle_weights


def image_network(*, size: int = 12) -> onnx.ModelProto:
    """Return a network that puts out pictures."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"], name="last"),
    ]
    weights = {"w": noise(16, 16, 3, 3), "v": noise(3, 16, 1, 1, seed=1)}
    return model_of(nodes, inputs={"x": ("N", 16, size, size)}, weights=weights)


def with_norm() -> onnx.ModelProto:
    """Return a classifier with BatchNormalization after its convolution."""
    proto = teacher()
    nodes = list(proto.graph.node)
    nodes[0].output[0] = "h0"
    norm = helper.make_node(
        "BatchNormalization", ["h0", "scale", "offset", "mean", "variance"], ["h"], name="norm"
    )
    del proto.graph.node[:]
    proto.graph.node.extend([nodes[0], norm, *nodes[1:]])
    values = {
        "scale": np.ones(24),
        "offset": np.zeros(24),
        "mean": np.zeros(24),
        "variance": np.ones(24),
    }
    for name, value in values.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    return proto


def test_the_student_comes_closer_on_samples_that_it_never_saw() -> None:
    original, model = teacher(), student()
    result = finetune(model, original, data(), replace(QUICK, epochs=4))
    assert result.improved
    assert result.after.loss < result.before.loss
    fresh = {"x": np.ascontiguousarray(data(400)["x"][300:])}
    wanted = run(original, fresh)[0]
    before, after = (difference(run(each, fresh)[0], wanted) for each in (model, result.model))
    assert after < before


def test_only_tensors_change() -> None:
    model = student()
    result = tuned()
    found = onnx.ModelProto()
    found.CopyFrom(result.model.proto)
    assert initializers(found).keys() == initializers(model.proto).keys()
    for tensor, old in zip(found.graph.initializer, model.proto.graph.initializer, strict=True):
        tensor.raw_data = old.raw_data
    assert found == model.proto


def test_the_scores_are_those_of_the_networks_in_onnx_runtime() -> None:
    original, model, result = teacher(), student(), tuned()
    from onnxcp.calibration.data import load_data
    from onnxcp.profiling.inputs import session_inputs
    from onnxcp.profiling.machine import Machine
    from onnxcp.tuning.samples import Samples

    whole = load_data(data(), session_inputs(Machine().open(load(original))))
    held = {"x": data()["x"][Samples.of(whole, QUICK.held_out, QUICK.seed).held[0]]}
    wanted = run(original, held)[0]
    for score, each in ((result.before, model), (result.after, result.model)):
        assert difference(run(each, held)[0], wanted) == pytest.approx(score.error, rel=1e-4)
        same = run(each, held)[0].argmax(1) == wanted.argmax(1)
        assert np.mean(same) == score.agreement


def test_a_start_that_nothing_beats_is_handed_back() -> None:
    """The teacher as its own student."""
    model = load(teacher())
    result = finetune(model, teacher(), data(), replace(QUICK, rate=0.5))
    assert result.model is model
    assert not result.improved
    assert result.after == result.before
    assert result.before.error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "rate": 1e-2},
        {"match": 0.5},
        {"frozen_epochs": 1},
        {"augment": "flip,crop:2"},
        {"held_out": 0.5},
        {"weight_decay": 0.0},
        {"temperature": 4.0},
    ],
    ids=str,
)
def test_every_way_of_training_improves(changes: dict[str, Any]) -> None:
    result = finetune(student(), teacher(), data(), replace(QUICK, **changes))
    assert result.improved
    assert len(result.epochs) == QUICK.epochs


FAMILIES: dict[str, int | tuple[int, ...]] = dict.fromkeys(
    ["channel-svd", "spatial-svd", "tucker2", "cp3", "cp4"], 4
) | {"sparse-low-rank": (4, 1, 1, 1)}


@pytest.mark.parametrize(("family", "rank"), FAMILIES.items())
def test_every_family(family: str, rank: int | tuple[int, ...]) -> None:
    model = rewritten(teacher(), family=family, rank=rank)
    result = finetune(model, teacher(), data(), QUICK)
    assert result.improved
    assert result.grouped


@pytest.mark.parametrize("family", ["cp3", "sparse-low-rank"])
def test_what_a_layer_puts_out_is_matched_with_the_teacher(family: str) -> None:
    """In one row of steps or in several: it is what the layer's tensor is called."""
    model = rewritten(teacher(), family=family, rank=FAMILIES[family])
    one, other = (
        finetune(model, teacher(), data(), replace(QUICK, match=match)).model
        for match in (0.0, 5.0)
    )
    assert one.proto != other.proto


def test_outputs_that_are_no_classes() -> None:
    original = image_network()
    result = finetune(rewritten(original), original, data(), QUICK)
    assert result.improved
    assert result.after.agreement is None
    # The loss is the squared error, relative to the square of what it should be.
    assert result.after.loss == pytest.approx(result.after.error**2, rel=1e-4)


def test_probabilities_are_compared_as_scores_are() -> None:
    def softmaxed(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto.graph.node[-1].output[0] = "scores"
        proto.graph.node.append(helper.make_node("Softmax", ["scores"], ["y"], axis=1))
        return proto

    plain = tuned()
    soft = finetune(load(softmaxed(student().proto)), softmaxed(teacher()), data(), QUICK)
    assert soft.before.agreement == plain.before.agreement
    assert soft.before.loss == pytest.approx(plain.before.loss, rel=1e-2)
    assert soft.improved


def test_labels_take_part() -> None:
    without = tuned()
    labelled = finetune(
        student(), teacher(), data(labelled=True), replace(QUICK, label_weight=10.0)
    )
    assert without.before.accuracy is None
    assert labelled.before.accuracy is not None
    assert labelled.before.loss > without.before.loss
    assert labelled.after.loss < labelled.before.loss


def test_statistics_of_batch_normalization_are_taken_anew() -> None:
    """Spoiled statistics are put right before the first step, though no weight may move."""
    module = to_torch(with_norm())
    assert recalibrate(module, [{"x": torch.from_numpy(data(200)["x"])}])
    original = from_torch(with_norm(), module)
    tensors = dict(module.named_tensors())
    moved = {"mean": tensors["mean"] + 20, "variance": tensors["variance"] * 9}
    spoiled = from_torch(original, {**tensors, **moved})
    result = finetune(spoiled, original, data(200), replace(QUICK, rate=1e-12))
    assert result.after.error < result.before.error / 4


def test_middle_factors_are_frozen_at_first() -> None:
    first = finetune(student(), teacher(), data(), replace(QUICK, epochs=1, frozen_epochs=1))
    free = finetune(student(), teacher(), data(), replace(QUICK, epochs=1))
    start = balanced(student())
    found, moved = (initializers(each.model.proto) for each in (first, free))
    np.testing.assert_array_equal(found["w/cp3/1"], start["w/cp3/1"])
    assert not np.array_equal(moved["w/cp3/1"], start["w/cp3/1"])
    assert not np.array_equal(found["w/cp3/0"], start["w/cp3/0"])


def balanced(model: Model) -> dict[str, Any]:
    from onnxcp.graph.origins import origins
    from onnxcp.tuning.balance import balance

    module = to_torch(model)
    balance(module, origins(model.proto))
    return {name: tensor.detach().numpy() for name, tensor in module.named_tensors()}


def test_factors_can_stay_as_they_are() -> None:
    found = finetune(
        student(), teacher(), data(), replace(QUICK, factor_rate=0.0, weight_decay=0.0)
    )
    start, end = balanced(student()), initializers(found.model.proto)
    for name, value in end.items():
        assert np.array_equal(value, start[name]) == name.startswith("w/")


def test_without_a_note_all_weights_have_one_rate() -> None:
    model = student()
    bare = onnx.ModelProto()
    bare.CopyFrom(model.proto)
    entry = next(each for each in bare.metadata_props if each.key == KEY)
    bare.metadata_props.remove(entry)
    result = finetune(bare, teacher(), data(), QUICK)
    assert result.improved
    assert not result.grouped


def test_the_same_seed_gives_the_same_network() -> None:
    one, other = tuned(), finetune(student(), teacher(), data(), QUICK)
    assert one.model.proto == other.model.proto
    third = finetune(student(), teacher(), data(), replace(QUICK, seed=1))
    assert third.model.proto != one.model.proto


def test_weights_that_no_output_depends_on_stay() -> None:
    result = finetune(with_idle_weights(), teacher(), data(), QUICK)
    start, end = (initializers(each.proto) for each in (with_idle_weights(), result.model))
    assert result.improved
    assert [name for name in start if np.array_equal(start[name], end[name])] == ["idle", "spare"]


def test_patience() -> None:
    result = finetune(load(teacher()), teacher(), data(), replace(QUICK, epochs=9, patience=2))
    assert len(result.epochs) == 2
    assert result.stopped == "Nothing was better for 2 epochs."
    assert not result.diverged


def test_small_weights_of_a_layer_that_reads_large_numbers_are_not_lost() -> None:
    """They are of the size of the rate, which is what AdamW moves every weight by in a step."""
    plain = dict(to_torch(image_network()).named_tensors())
    original = from_torch(image_network(), {**plain, "w": plain["w"] / 255})
    changed = from_torch(original, {"w": plain["w"] / 255, "v": plain["v"] * 1.2})
    result = finetune(changed, original, {"x": 255 * data()["x"]}, QUICK)
    assert result.epochs[0].score.loss < result.before.loss


def test_values_that_are_not_finite_end_it_and_the_best_is_kept() -> None:
    model = student()
    training = replace(QUICK, optimizer="sgd", rate=1e30, factor_rate=1.0, clip=1e30)
    result = finetune(model, teacher(), data(), training)
    assert result.diverged
    assert "not finite" in result.stopped
    assert math.isfinite(result.after.loss)
    assert result.after.loss <= result.before.loss


def test_ctrl_c_keeps_the_best_so_far() -> None:
    def told(epoch: object) -> None:
        raise KeyboardInterrupt

    result = finetune(student(), teacher(), data(), replace(QUICK, epochs=5), told=told)
    assert result.interrupted
    assert len(result.epochs) == 1
    assert result.improved


def test_a_function_that_augments() -> None:
    seen = []

    def augment(batch: dict[str, torch.Tensor], _: torch.Generator) -> dict[str, torch.Tensor]:
        seen.append(batch["x"].shape)
        return {"x": batch["x"] * 2}

    finetune(student(), teacher(), data(), replace(QUICK, epochs=1), augment=augment)
    assert sorted(seen) == [(14, 16, 12, 12)] * 3 + [(15, 16, 12, 12)] * 2


def test_a_model_of_a_fixed_batch() -> None:
    original = teacher()
    original.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    result = finetune(rewritten(original), original, data(30), QUICK)
    assert result.improved


def test_half_precision_is_judged_as_it_is_stored() -> None:
    original = image_network()
    for tensor in original.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    for each in (*original.graph.input, *original.graph.output):
        each.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    model = rewritten(original)
    result = finetune(model, original, {"x": data()["x"].astype(np.float16)}, QUICK)
    assert result.improved
    again = finetune(result.model, original, {"x": data()["x"].astype(np.float16)}, QUICK)
    assert again.before.loss == result.after.loss


class TestRefusals:
    def test_a_teacher_of_other_inputs(self) -> None:
        other = teacher()
        other.graph.input[0].name = other.graph.node[0].input[0] = "z"
        with pytest.raises(DataError, match="has the inputs 'z', and 'tiny' has 'x'"):
            finetune(student(), other, data(), QUICK)

    def test_a_teacher_of_other_outputs(self) -> None:
        other = teacher()
        other.graph.output[0].name = other.graph.node[-1].output[0] = "z"
        with pytest.raises(DataError, match="has the outputs 'z', and 'tiny' has 'y'"):
            finetune(student(), other, data(), QUICK)

    def test_outputs_of_another_shape(self) -> None:
        other = teacher()
        tensors = {t.name: t for t in other.graph.initializer}
        for name, shape in (("v", (24, 7)), ("c", (7,))):
            tensors[name].CopyFrom(onnx.numpy_helper.from_array(noise(*shape), name))
        with pytest.raises(
            DataError, match=r"'y' is of shape \[8, 7\] in the teacher, and of \[8, 5\]"
        ):
            finetune(student(), other, data(), QUICK)

    def test_a_teacher_that_does_not_run_on_the_samples(self) -> None:
        with pytest.raises(DataError, match="The teacher cannot compute the samples: "):
            finetune(student(), image_teacher(), data(), QUICK)

    def test_samples_of_another_shape(self) -> None:
        with pytest.raises(DataError, match="has shape"):
            finetune(student(), teacher(), {"x": noise(20, 3, 12, 12)}, QUICK)

    def test_too_few_samples(self) -> None:
        with pytest.raises(DataError, match="1 samples are too few"):
            finetune(student(), teacher(), data(1), QUICK)

    def test_labels_that_are_no_classes(self) -> None:
        arrays = {**data(20), "label": np.arange(20)}
        with pytest.raises(DataError, match="reach from 0 to 19, and there are 5 classes"):
            finetune(student(), teacher(), arrays, QUICK)

    def test_outputs_that_are_not_finite(self) -> None:
        original = teacher()
        tensors = dict(to_torch(original).named_tensors())
        broken = from_torch(original, {**tensors, "v": tensors["v"] * 5e37})
        with pytest.raises(DataError, match="is not finite"):
            finetune(student(), broken, data(), QUICK)

    def test_augmentation_of_what_is_no_picture(self) -> None:
        nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")]
        model = model_of(nodes, inputs={"x": ("N", 4)}, weights={"w": noise(4, 3)})
        with pytest.raises(DataError, match="no input has four axes"):
            finetune(model, model, {"x": noise(40, 4)}, replace(QUICK, augment="flip"))

    def test_outputs_of_whole_numbers_only(self) -> None:
        original = teacher()
        original.graph.node[-1].output[0] = "scores"
        original.graph.node.append(helper.make_node("ArgMax", ["scores"], ["y"], axis=1))
        original.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
        original.graph.output[0].type.tensor_type.ClearField("shape")
        with pytest.raises(DataError, match="No output is of floating point"):
            finetune(rewritten(original), original, data(), QUICK)

    def test_a_network_without_weights(self) -> None:
        nodes = [helper.make_node("Relu", ["x"], ["y"])]
        model = model_of(nodes, inputs={"x": ("N", 4)}, weights={})
        with pytest.raises(DataError, match="No weight of 'tiny' has a say in its outputs"):
            finetune(model, model, {"x": noise(40, 4)}, QUICK)

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("optimizer", "lion", "There is no optimizer 'lion'; there are: adamw, sgd."),
            ("device", "tpu", "There is no device 'tpu'; there are: auto, cpu, cuda."),
            ("epochs", 0, "In training, epochs is 0, not 1 or more."),
            ("rate", 0.0, "In training, rate is 0, not above 0."),
            ("rate", math.nan, "In training, rate is nan, not 0 or more."),
            ("held_out", 1.0, "In training, held_out is 1, not below 1."),
            ("resume", True, "To resume a training, name its checkpoint."),
        ],
    )
    def test_settings(self, key: str, value: Any, said: str) -> None:
        with pytest.raises(OnnxcpError, match="^" + said):
            Training(**{key: value})

    def test_no_such_augmentation(self) -> None:
        with pytest.raises(DataError, match="There is no augmentation 'blur'; there are"):
            finetune(student(), teacher(), data(), replace(QUICK, augment="flip,blur"))

    def test_no_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        with pytest.raises(OnnxcpError, match="finds no CUDA device"):
            finetune(student(), teacher(), data(), replace(QUICK, device="cuda"))


def image_teacher() -> onnx.ModelProto:
    """Return a teacher with the names of the other, which wants fewer channels."""
    other = teacher()
    tensors = {tensor.name: tensor for tensor in other.graph.initializer}
    tensors["w"].CopyFrom(onnx.numpy_helper.from_array(noise(24, 3, 3, 3), "w"))
    return other


def kept_in(path: Path, **changes: Any) -> Training:
    return replace(QUICK, checkpoint=path, checkpoint_seconds=0.0, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a training that is over."""
    path = tmp_path_factory.mktemp("finished") / "c"
    finetune(student(), teacher(), data(), kept_in(path))
    return path


class TestCheckpoints:
    def test_a_training_that_is_over_stays_over(self, tmp_path: Path, finished: Path) -> None:
        settings = kept_in(tmp_path / "c")
        done = tuned()
        shutil.copy(finished, settings.checkpoint)
        again = finetune(student(), teacher(), data(), replace(settings, resume=True))
        assert again.model.proto == done.model.proto
        assert again.epochs == done.epochs

    @thinned("stop,optimizer", itertools.product([1, 4, 5, 6, 9], ["adamw", "sgd"]))
    def test_going_on_ends_as_if_never_interrupted(
        self, tmp_path: Path, stop: int, optimizer: str
    ) -> None:
        settings = kept_in(tmp_path / "c", augment="flip", optimizer=optimizer)
        whole = tuned(optimizer, augment="flip")
        count = 0

        def progress(what: str, done: int, total: int) -> None:
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt

        cut = finetune(student(), teacher(), data(), settings, progress=progress)
        assert cut.interrupted
        found = finetune(student(), teacher(), data(), replace(settings, resume=True))
        assert found.model.proto == whole.model.proto
        assert found.epochs == whole.epochs
        assert found.before == whole.before

    def test_no_checkpoint_is_no_hindrance(self, tmp_path: Path) -> None:
        result = finetune(student(), teacher(), data(), kept_in(tmp_path / "none", resume=True))
        assert result.improved

    @pytest.mark.parametrize(
        ("what", "change"),
        [("rate", {"rate": 1e-5}), ("seed", {"seed": 7}), ("epochs", {"epochs": 5})],
    )
    def test_of_other_settings(self, finished: Path, what: str, change: dict[str, Any]) -> None:
        settings = kept_in(finished)
        with pytest.raises(DataError, match=f"is of another run: of another {what};"):
            finetune(student(), teacher(), data(), replace(settings, resume=True, **change))

    def test_of_another_model_or_teacher_or_other_data(self, finished: Path) -> None:
        again = kept_in(finished, resume=True)
        with pytest.raises(DataError, match="another model"):
            finetune(rewritten(teacher(), rank=2), teacher(), data(), again)
        with pytest.raises(DataError, match="another teacher"):
            finetune(student(), student(), data(), again)
        with pytest.raises(DataError, match="another data"):
            finetune(student(), teacher(), data(40), again)

    @pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
    def test_that_cannot_be_read(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "c").write_bytes(content)
        with pytest.raises(
            DataError, match="is not a checkpoint of a fine-tuning, or is truncated"
        ):
            finetune(student(), teacher(), data(), kept_in(tmp_path / "c", resume=True))

    def test_of_something_else(self, tmp_path: Path) -> None:
        torch.save({"weights": torch.zeros(2)}, tmp_path / "c")
        with pytest.raises(DataError, match="is not a checkpoint"):
            finetune(student(), teacher(), data(), kept_in(tmp_path / "c", resume=True))
