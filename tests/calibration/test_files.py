"""Arrays in files and folders: which belong together, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from onnxcp.calibration.data import load_data
from onnxcp.errors import DataError
from onnxcp.profiling.inputs import InputSpec

FLOAT = np.dtype(np.float32)
X = InputSpec("x", FLOAT, ("n", 3))
Z = InputSpec("z", FLOAT, ("n", 2))


def values(*shape: int, start: int = 0) -> npt.NDArray[np.float32]:
    return np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)


def save(path: Path, array: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def fed(source: Path, *specs: InputSpec) -> dict[str, npt.NDArray[Any]]:
    (batch,) = load_data(source, specs).batches(100)
    return batch


def refused(source: Path, *specs: InputSpec) -> str:
    with pytest.raises(DataError) as caught:
        load_data(source, specs)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


class TestNpy:
    @pytest.mark.parametrize("shape", [(2, 3), (1, 3)])
    def test_of_the_inputs_rank_is_a_batch(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        save(tmp_path / "a.npy", values(*shape))
        np.testing.assert_array_equal(fed(tmp_path / "a.npy", X)["x"], values(*shape))

    def test_of_one_less_is_a_sample(self, tmp_path: Path) -> None:
        save(tmp_path / "a.npy", values(3))
        np.testing.assert_array_equal(fed(tmp_path / "a.npy", X)["x"], values(1, 3))

    @pytest.mark.parametrize("shape", [(), (1, 2, 3), (2,)])
    def test_of_any_other_shape_is_refused(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        save(tmp_path / "a.npy", values(*shape))
        assert "has shape" in refused(tmp_path / "a.npy", X)

    def test_does_not_serve_several_inputs(self, tmp_path: Path) -> None:
        save(tmp_path / "a.npy", values(2, 3))
        message = refused(tmp_path / "a.npy", X, Z)
        assert "is a single array, and the model's inputs are 'x' (n, 3), 'z' (n, 2)" in message
        assert "numpy.savez" in message

    def test_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00")
        assert "cannot be read as an npy file" in refused(tmp_path / "a.npy", X)


class TestFolders:
    def test_of_npz_files_are_batches_in_order(self, tmp_path: Path) -> None:
        for number, count in enumerate([2, 1, 3]):
            labels = np.full(count, number)
            np.savez(tmp_path / f"{number}.npz", x=np.full((count, 3), number), label=labels)
        data = load_data(tmp_path, [X])
        assert data.parts[0].arrays["x"][:, 0].tolist() == [0, 0, 1, 2, 2, 2]
        assert data.labels is not None
        assert data.labels.tolist() == [0, 0, 1, 2, 2, 2]

    def test_labels_in_some_files_only(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=values(2, 3), label=np.arange(2))
        np.savez(tmp_path / "b.npz", x=values(2, 3))
        assert "have labels, and others have none" in refused(tmp_path, X)

    def test_of_npz_files_for_several_inputs(self, tmp_path: Path) -> None:
        for number in range(2):
            np.savez(tmp_path / f"{number}.npz", x=values(2, 3), z=values(2, 2))
        assert {name: len(array) for name, array in fed(tmp_path, X, Z).items()} == {"x": 4, "z": 4}

    def test_a_bad_file_is_named(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=values(2, 3))
        np.savez(tmp_path / "b.npz", x=values(2, 4))
        assert f"'x' of '{tmp_path / 'b.npz'}' has shape [2, 4]" in refused(tmp_path, X)

    def test_of_npy_files_are_samples_and_batches(self, tmp_path: Path) -> None:
        save(tmp_path / "a.npy", values(3))
        save(tmp_path / "b.npy", values(2, 3, start=3))
        save(tmp_path / "sub" / "c.npy", values(3, start=9))
        np.testing.assert_array_equal(fed(tmp_path, X)["x"], values(4, 3))

    def test_of_a_subfolder_for_each_input(self, tmp_path: Path) -> None:
        for number in range(3):
            save(tmp_path / "x" / f"{number}.npy", values(3, start=3 * number))
            save(tmp_path / "z" / f"id{number}.npy", values(1, 2, start=2 * number))
        batch = fed(tmp_path, X, Z)
        np.testing.assert_array_equal(batch["x"], values(3, 3))
        np.testing.assert_array_equal(batch["z"], values(3, 2))

    def test_names_of_inputs_may_hold_slashes(self, tmp_path: Path) -> None:
        save(tmp_path / "model" / "x" / "0.npy", values(3))
        save(tmp_path / "z" / "0.npy", values(2))
        assert set(fed(tmp_path, InputSpec("model/x", FLOAT, ("n", 3)), Z)) == {"model/x", "z"}

    def test_a_subfolder_that_is_missing(self, tmp_path: Path) -> None:
        save(tmp_path / "x" / "0.npy", values(3))
        save(tmp_path / "1.npy", values(3))
        message = refused(tmp_path, X, Z)
        assert "no subfolder of npy files for input 'z' (n, 2)" in message
        assert message.endswith("there are: 'x' 1.")

    def test_subfolders_of_different_length(self, tmp_path: Path) -> None:
        for name in ("x/0", "x/1", "z/0"):
            save(tmp_path / f"{name}.npy", values(3 if name[0] == "x" else 2))
        assert "differ in their number of files: 'x' 2, 'z' 1" in refused(tmp_path, X, Z)

    def test_samples_of_varied_length_are_batches_of_their_own(self, tmp_path: Path) -> None:
        for number, length in enumerate([3, 5, 3]):
            save(tmp_path / f"{number}.npy", values(length))
        data = load_data(tmp_path, [InputSpec("x", FLOAT, ("n", "length"))])
        assert [batch["x"].shape for batch in data.batches(2)] == [(1, 3), (1, 5), (1, 3)]

    def test_of_the_model_zoo(self, tmp_path: Path) -> None:
        for number in range(2):
            folder = tmp_path / f"test_data_set_{number}"
            folder.mkdir()
            for position, array in enumerate([values(1, 3, start=3 * number), values(1, 2)]):
                tensor = numpy_helper.from_array(array)
                onnx.save_tensor(tensor, folder / f"input_{position}.pb")
                onnx.save_tensor(tensor, folder / f"output_{position}.pb")
        (tmp_path / "model.onnx").write_bytes(b"")
        np.testing.assert_array_equal(fed(tmp_path, X, Z)["x"], values(2, 3))
        np.testing.assert_array_equal(fed(tmp_path / "test_data_set_1", X)["x"], [[3, 4, 5]])

    def test_a_broken_tensor(self, tmp_path: Path) -> None:
        (tmp_path / "input_0.pb").write_bytes(b"\xff\xff")
        assert "cannot be read as a tensor" in refused(tmp_path, X)

    def test_of_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("none")
        np.save(tmp_path / ".hidden.npy", values(3))
        message = refused(tmp_path, X)
        assert f"In the folder '{tmp_path}' are no data; it may hold npz files" in message

    def test_of_several_kinds(self, tmp_path: Path) -> None:
        save(tmp_path / "a.npy", values(3))
        Image.new("L", (2, 2)).save(tmp_path / "b.png")
        assert refused(tmp_path, X) == (
            f"'{tmp_path}' holds npy files and pictures; give a folder of one kind."
        )
