from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from onnxcp.graph.model import load, save
from tests.cli.conftest import Run, network, samples, snapshot
from tests.networks import initializers, model_of


@pytest.fixture
def folder(onnxcp: Run, model: Path, tmp_path: Path) -> Path:
    """What export-torch makes of the network."""
    assert onnxcp("export-torch", model, "-o", tmp_path / "out").code == 0
    return tmp_path / "out"


def test_export(folder: Path, model: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "net.onnx",
        "weights.safetensors",
        "finetune.py",
    }
    assert (folder / "net.onnx").read_bytes() == model.read_bytes()
    stored = load_file(folder / "weights.safetensors")
    expected = initializers(onnx.load(model))
    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(stored[name].numpy(), value)


def test_the_way_there_and_back_changes_no_byte(onnxcp: Run, folder: Path, tmp_path: Path) -> None:
    model, weights, out = folder / "net.onnx", folder / "weights.safetensors", tmp_path / "b.onnx"
    done = onnxcp("import-torch", model, weights, "-o", out)
    assert done.code == 0
    assert "it was copied" in done.err
    assert out.read_bytes() == model.read_bytes()


def test_import_changes_the_named_tensors_only(onnxcp: Run, folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    weights["w"] *= 2
    save_file(weights, tmp_path / "other.safetensors")
    out = tmp_path / "b.onnx"
    model = folder / "net.onnx"
    assert onnxcp("import-torch", model, tmp_path / "other.safetensors", "-o", out).code == 0
    expected = onnx.load(model)
    for tensor in expected.graph.initializer:
        if tensor.name == "w":
            tensor.raw_data = (2 * numpy_helper.to_array(tensor)).tobytes()
    assert onnx.load(out) == expected


def test_the_script_trains(onnxcp: Run, folder: Path, model: Path, tmp_path: Path) -> None:
    weights = folder / "weights.safetensors"
    spoiled = {name: 0.9 * tensor for name, tensor in load_file(weights).items()}
    save_file(spoiled, weights)
    np.savez(tmp_path / "train.npz", x=samples(16))
    arguments = ("--teacher", model, "--data", tmp_path / "train.npz", "--epochs", "1")
    command = [sys.executable, folder / "finetune.py", *map(str, arguments), "--batch", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("epoch 1: loss ")
    trained = load_file(weights)
    assert not torch.equal(trained["w"], spoiled["w"])
    out = tmp_path / "trained.onnx"
    assert onnxcp("import-torch", folder / "net.onnx", weights, "-o", out).code == 0
    np.testing.assert_array_equal(initializers(onnx.load(out))["w"], trained["w"].numpy())


class TestExternalData:
    @pytest.fixture
    def large(self, tmp_path: Path) -> Path:
        path = tmp_path / "far" / "net.onnx"
        path.parent.mkdir()
        save(load(network()), path, external=True)
        return path

    def test_come_along(self, onnxcp: Run, large: Path, tmp_path: Path) -> None:
        before = snapshot(large.parent)
        assert onnxcp("export-torch", large, "-o", tmp_path / "out").code == 0
        after = snapshot(tmp_path / "out")
        assert {name: after[name] for name in before} == before
        weights, model = tmp_path / "out" / "weights.safetensors", tmp_path / "out" / "net.onnx"
        (tmp_path / "back").mkdir()
        assert (
            onnxcp("import-torch", model, weights, "-o", tmp_path / "back" / "net.onnx").code == 0
        )
        assert snapshot(tmp_path / "back") == before

    def test_serve_a_copy_in_the_same_folder(
        self, onnxcp: Run, large: Path, tmp_path: Path
    ) -> None:
        assert onnxcp("export-torch", large, "-o", tmp_path / "out").code == 0
        weights, copy = tmp_path / "out" / "weights.safetensors", large.with_name("copy.onnx")
        assert onnxcp("import-torch", large, weights, "-o", copy).code == 0
        assert copy.read_bytes() == large.read_bytes()
        assert load(copy).proto == load(large).proto

    def test_stay_external(self, onnxcp: Run, large: Path, tmp_path: Path) -> None:
        assert onnxcp("export-torch", large, "-o", tmp_path / "out").code == 0
        weights = tmp_path / "out" / "weights.safetensors"
        save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
        out = tmp_path / "out" / "trained.onnx"
        assert onnxcp("import-torch", large, weights, "-o", out).code == 0
        assert out.with_name("trained.onnx.data").exists()


class TestRefusals:
    def test_what_is_there_stays(self, onnxcp: Run, folder: Path, model: Path) -> None:
        (folder / "finetune.py").write_text("mine")
        before = snapshot(folder)
        done = onnxcp("export-torch", model, "-o", folder)
        assert done.code == 2
        assert "exists; name another file, or replace it with --force" in done.err
        assert snapshot(folder) == before
        assert onnxcp("export-torch", model, "-o", folder, "--force").code == 0
        assert (folder / "finetune.py").read_text() != "mine"

    def test_inputs_are_never_written_to(self, onnxcp: Run, folder: Path, model: Path) -> None:
        before = snapshot(model.parent)
        weights = folder / "weights.safetensors"
        for arguments in (
            ("export-torch", model, "-o", model.parent, "--force"),
            ("import-torch", model, weights, "-o", model, "--force"),
            ("import-torch", model, weights, "-o", weights, "--force"),
        ):
            done = onnxcp(*arguments)
            assert done.code == 2
            assert "Cannot write" in done.err
        assert snapshot(model.parent) == before

    def test_a_network_that_is_refused(self, onnxcp: Run, tmp_path: Path) -> None:
        nodes = [onnx.helper.make_node("Det", ["x"], ["y"], name="det")]
        onnx.save(model_of(nodes, inputs={"x": (2, 2)}), tmp_path / "net.onnx")
        done = onnxcp("export-torch", tmp_path / "net.onnx", "-o", tmp_path / "out")
        assert done.code == 2
        assert "node 'det': operator Det has no counterpart here" in done.err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [(None, "There is no file"), (b"nothing", "is not a safetensors file, or is truncated")],
    )
    def test_weights_that_cannot_be_read(
        self, onnxcp: Run, model: Path, tmp_path: Path, content: bytes | None, sentence: str
    ) -> None:
        weights = tmp_path / "weights.safetensors"
        if content is not None:
            weights.write_bytes(content)
        done = onnxcp("import-torch", model, weights, "-o", tmp_path / "out.onnx")
        assert done.code == 2
        assert sentence in done.err
        assert not (tmp_path / "out.onnx").exists()

    def test_weights_that_do_not_fit(self, onnxcp: Run, folder: Path, tmp_path: Path) -> None:
        weights = load_file(folder / "weights.safetensors")
        weights["w"][0] = torch.nan
        save_file(weights, tmp_path / "nan.safetensors")
        out = tmp_path / "out.onnx"
        done = onnxcp("import-torch", folder / "net.onnx", tmp_path / "nan.safetensors", "-o", out)
        assert done.code == 2
        assert "The tensor for 'w' holds values that are not finite." in done.err
        assert not out.exists()

    def test_a_folder_that_cannot_be(self, onnxcp: Run, model: Path, tmp_path: Path) -> None:
        for place in (model, tmp_path / "no" / "such"):
            done = onnxcp("export-torch", model, "-o", place)
            assert done.code == 2
            assert "Cannot write" in done.err

    def test_a_full_disk_leaves_no_folder(
        self, onnxcp: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("shutil.copyfileobj", full)
        done = onnxcp("export-torch", model, "-o", tmp_path / "out")
        assert done.code == 2
        assert "No space left" in done.err
        assert not (tmp_path / "out").exists()
