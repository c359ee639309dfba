"""What is taken for samples and labels, how it is dealt out, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from onnxcp.calibration.data import Data, load_data
from onnxcp.errors import DataError
from onnxcp.profiling.inputs import InputSpec

FLOAT = np.dtype(np.float32)


def spec(name: str = "x", *shape: int | str | None, dtype: Any = FLOAT) -> InputSpec:
    return InputSpec(name, dtype, shape)


def values(*shape: int, dtype: Any = np.float32) -> npt.NDArray[Any]:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


X = spec("x", "n", 3)


def refused(source: Any, *specs: InputSpec) -> str:
    with pytest.raises(DataError) as caught:
        load_data(source, specs)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def sizes(data: Data, size: int, name: str = "x") -> list[int]:
    return [len(batch[name]) for batch in data.batches(size)]


class TestSources:
    def test_a_file_or_arrays(self, tmp_path: Path) -> None:
        path = tmp_path / "data.npz"
        np.savez(path, x=values(5, 3), label=np.arange(5))
        for source in (path, str(path), {"x": values(5, 3), "label": np.arange(5)}):
            data = load_data(source, [X])
            assert len(data) == data.used == 5
            np.testing.assert_array_equal(data.parts[0].arrays["x"], values(5, 3))
            assert data.labels is not None
            assert data.labels.dtype == np.int64

    def test_one_array_of_any_name_serves_one_input(self) -> None:
        assert list(load_data({"pictures": values(2, 3)}, [X]).parts[0].arrays) == ["x"]
        data = load_data({"pictures": values(2, 3), "y": np.arange(2)}, [X])
        assert list(data.parts[0].arrays) == ["x"]
        assert data.labels is not None

    def test_of_several_inputs_each_needs_its_own(self) -> None:
        message = refused({"x": values(2, 3), "b": values(2, 3)}, X, spec("z", "n", 3))
        assert message == (
            "In the given data is no array for input 'z' (n, 3); the arrays are: 'x', 'b'."
        )

    def test_what_no_input_is_named_as_is_left_out(self) -> None:
        assert list(load_data({"x": values(2, 3), "ids": values(9)}, [X]).parts[0].arrays) == ["x"]

    def test_members_that_are_no_arrays_are_none(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "data.npz", "w") as file:
            file.writestr("x", "text")
        assert "the arrays are: none" in refused(tmp_path / "data.npz", X)


class TestUnreadable:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        path = tmp_path / "no.npz"
        assert refused(path, X) == f"There is no file '{path}'."

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
    def test_something_else(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "x.npz").write_bytes(content)
        assert "cannot be read as an npz file" in refused(tmp_path / "x.npz", X)

    def test_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.array([{}, []], dtype=object))
        assert "cannot be read" in refused(tmp_path / "x.npz", X)

    @pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
    def test_a_corrupt_file(self, at: float, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        np.savez_compressed(path, x=np.random.default_rng(0).random((100, 3)))
        content = bytearray(path.read_bytes())
        start = int(at * len(content))
        content[start : start + 40] = b"\xff" * 40
        path.write_bytes(content)
        assert "cannot be read" in refused(path, X)

    def test_a_file_whose_compressed_part_is_garbage(self, tmp_path: Path) -> None:
        """zlib has an error of its own for that."""
        path = tmp_path / "x.npz"
        np.savez_compressed(path, x=values(100, 3))
        content = bytearray(path.read_bytes())
        start = content.index(b"x.npy") + len(b"x.npy")
        content[start : start + 60] = b"\xff" * 60
        path.write_bytes(content)
        assert "cannot be read" in refused(path, X)


class TestLabels:
    @pytest.mark.parametrize("name", ["label", "labels", "y"])
    def test_are_taken_by_name(self, name: str) -> None:
        data = load_data({"x": values(3, 3), name: np.array([2, 0, 1], np.uint8)}, [X])
        assert data.labels is not None
        assert data.labels.tolist() == [2, 0, 1]

    def test_need_not_be(self) -> None:
        assert load_data({"x": values(3, 3)}, [X]).labels is None

    @pytest.mark.parametrize("name", ["label", "labels", "y"])
    def test_an_input_of_that_name_is_an_input(self, name: str) -> None:
        data = load_data({name: values(3, 3)}, [spec(name, "n", 3)])
        assert len(data) == 3
        assert data.labels is None
        both = load_data({"x": values(2, 3), name: values(2, 3)}, [X, spec(name, "n", 3)])
        np.testing.assert_array_equal(next(both.batches(2))[name], values(2, 3))

    def test_are_found_beside_such_an_input(self) -> None:
        data = load_data({"y": values(3, 3), "label": np.arange(3)}, [spec("y", "n", 3)])
        assert data.labels is not None

    @pytest.mark.parametrize("wrong", [values(3), values(3, 2, dtype=int)])
    def test_are_class_numbers(self, wrong: npt.NDArray[Any]) -> None:
        message = refused({"x": values(3, 3), "label": wrong}, X)
        assert "Array 'label' of the given data should hold one class number per sample" in message

    def test_are_as_many_as_samples(self) -> None:
        message = refused({"x": values(3, 3), "label": np.arange(4)}, X)
        assert "differ in their number of samples: 'x' 3, 'labels' 4" in message


class TestFit:
    @pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float16, bool])
    def test_what_converts_without_loss_of_range_is_converted(self, dtype: type) -> None:
        (batch,) = load_data({"x": values(2, 3, dtype=dtype)}, [X]).batches(2)
        assert batch["x"].dtype == FLOAT
        assert batch["x"].flags.c_contiguous

    @pytest.mark.parametrize(
        ("dtype", "wanted"), [(np.float32, np.int64), (complex, np.float32), ("U", np.float32)]
    )
    def test_what_does_not_is_refused(self, dtype: Any, wanted: Any) -> None:
        message = refused({"x": values(2, 3, dtype=dtype)}, spec("x", 2, 3, dtype=np.dtype(wanted)))
        assert "is of type" in message
        assert "'x' (2, 3) wants" in message

    @pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 1), ()])
    def test_shapes_that_do_not_fit_are_refused(self, shape: tuple[int, ...]) -> None:
        assert f"has shape {list(shape)}" in refused({"x": values(*shape)}, X)

    @pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2, 1)])
    def test_an_input_of_unknown_rank_takes_any(self, shape: tuple[int, ...]) -> None:
        data = load_data({"x": values(*shape)}, [spec("x")])
        assert [batch["x"].shape for batch in data.batches(3)] == [(3, *shape[1:]), (1, *shape[1:])]

    @pytest.mark.parametrize("dtype", ["U", "S", object])
    def test_strings_are_fed_as_objects(self, dtype: Any) -> None:
        words = np.array(["a", "bc", "d"]).astype(dtype)
        data = load_data({"s": words}, [spec("s", "n", dtype="string")])
        first, second = data.batches(2)
        assert first["s"].dtype == second["s"].dtype == np.dtype(object)
        assert [*first["s"], *second["s"]] == ["a", "bc", "d"]

    def test_strings_are_neither_numbers_nor_other_encodings(self) -> None:
        strings = spec("s", "n", dtype="string")
        assert "input 's' (n) wants string" in refused({"s": values(3)}, strings)
        assert "is not in UTF-8" in refused({"s": np.array([b"\xff"])}, strings)

    @pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_numbers_that_are_not_finite_are_refused(self, number: float, dtype: type) -> None:
        wrong = values(2, 3, dtype=dtype)
        wrong[1, 2] = number
        assert refused({"x": wrong}, X) == (
            "Array 'x' of the given data holds values that are not finite (NaN or infinity); "
            "input 'x' (n, 3) wants float32."
        )

    @pytest.mark.parametrize(
        ("number", "dtype", "wanted"),
        [
            (1e300, np.float64, np.float32),
            (1e6, np.float32, np.float16),
            (70_000, np.int64, np.float16),
            (2**31, np.int64, np.int32),
            (-1, np.int8, np.int8),
            (200, np.uint8, np.int8),
        ],
    )
    def test_numbers_out_of_range_are_refused(self, number: float, dtype: Any, wanted: Any) -> None:
        narrow = spec("x", "n", dtype=np.dtype(wanted))
        if dtype is wanted:
            assert len(load_data({"x": np.array([number], dtype)}, [narrow])) == 1
        else:
            assert "out of range" in refused({"x": np.array([number], dtype)}, narrow)
        assert len(load_data({"x": np.array([100], dtype)}, [narrow])) == 1

    def test_bfloat16_is_a_float(self) -> None:
        brain = np.dtype(ml_dtypes.bfloat16)
        data = load_data({"x": values(2, 3)}, [spec("x", "n", 3, dtype=brain)])
        assert next(data.batches(2))["x"].dtype == brain
        data = load_data({"x": values(2, 3).astype(brain)}, [X])
        np.testing.assert_array_equal(next(data.batches(2))["x"], values(2, 3))

    def test_no_samples(self) -> None:
        assert refused({"x": values(0, 3)}, X) == "In the given data are no samples."

    def test_numbers_of_samples_that_differ(self) -> None:
        message = refused({"x": values(2, 3), "z": values(3, 3)}, X, spec("z", "n", 3))
        assert "'x' 2, 'z' 3" in message


class TestScalars:
    SPECS = (spec("threshold"), X)

    def test_are_fed_as_they_are_to_every_batch_and_not_counted(self) -> None:
        data = load_data({"threshold": np.float64(0.5), "x": values(5, 3)}, self.SPECS)
        assert len(data) == 5
        assert sizes(data, 2) == [2, 2, 1]
        for batch in data.batches(2):
            assert batch["threshold"].shape == ()
            assert batch["threshold"].dtype == FLOAT
            assert batch["threshold"] == 0.5

    def test_alone_are_one_sample(self) -> None:
        data = load_data({"threshold": np.array(2.0)}, self.SPECS[:1])
        assert [batch["threshold"].shape for batch in data.batches(8)] == [()]


class TestBatches:
    def test_the_last_is_of_what_is_left(self) -> None:
        data = load_data({"x": values(5, 3)}, [X])
        assert data.fixed_batch is None
        assert sizes(data, 2) == [2, 2, 1]
        got = np.concatenate([batch["x"] for batch in data.batches(2)])
        np.testing.assert_array_equal(got, values(5, 3))

    def test_a_fixed_one_is_kept_to(self) -> None:
        data = load_data({"x": values(5, 3)}, [spec("x", 2, 3)])
        assert data.fixed_batch == 2
        assert sizes(data, 100) == [2, 2]
        assert (len(data), data.used) == (5, 4)

    def test_fewer_samples_than_a_fixed_one(self) -> None:
        message = refused({"x": values(3, 3)}, spec("x", 4, 3))
        assert "are 3 samples, fewer than one batch of 4" in message

    @pytest.mark.parametrize(
        ("firsts", "size"),
        [((7, 7), 7), ((1, "n"), 1), (("n", "m"), None), ((7, 2), None), ((7, "n"), None)],
    )
    def test_fixed_at_several_inputs(self, firsts: tuple[int | str, ...], size: int | None) -> None:
        inputs = (spec("s"), *(spec(f"x{n}", n, 3) for n in firsts))
        assert Data((), inputs).fixed_batch == size


class TestInputsWithoutACommonAxis:
    """A recurrent network: its state has as many rows as layers, whatever the batch."""

    SPECS = (spec("signal", "batch", None), spec("state", 2, "batch", 5))

    @staticmethod
    def feeds(batch: int, length: int) -> dict[str, npt.NDArray[Any]]:
        return {"signal": values(batch, length), "state": values(2, batch, 5)}

    @pytest.mark.parametrize("batch", [1, 2, 3])
    def test_what_is_given_at_once_is_one_sample(self, batch: int) -> None:
        given = [self.feeds(batch, 7), self.feeds(batch, 7), self.feeds(batch, 9)]
        data = load_data(given, self.SPECS)
        assert (len(data), data.used, data.batch_count(64)) == (3, 3, 3)
        for dealt, wanted in zip(data.batches(64), given, strict=True):
            for name, array in wanted.items():
                np.testing.assert_array_equal(dealt[name], array)

    def test_of_one(self) -> None:
        data = load_data(self.feeds(3, 7), self.SPECS, samples=1)
        assert [batch["signal"].shape for batch in data.batches(2)] == [(3, 7)]

    def test_as_many_as_are_asked_for(self) -> None:
        data = load_data((self.feeds(2, 7) for _ in range(9)), self.SPECS, samples=4)
        assert len(data) == 4

    def test_a_fixed_extent_is_held_to(self) -> None:
        wrong = {"signal": values(4, 7), "state": values(4, 2, 5)}
        message = refused(wrong, *self.SPECS)
        assert "'state' of" in message
        assert "has shape [4, 2, 5]" in message

    def test_fixed_at_1_beside_an_open_one_counts_samples_if_all_agree(self) -> None:
        specs = (spec("x", "n", 3), spec("size", 1, 2))
        assert sizes(load_data({"x": values(4, 3), "size": values(4, 2)}, specs), 8) == [1] * 4
        assert sizes(load_data({"x": values(4, 3), "size": values(1, 2)}, specs), 8) == [4]

    def test_where_the_model_says_that_they_are_the_same(self) -> None:
        specs = (spec("x", "n", 3), spec("y", "n", 2))
        assert "differ in their number" in refused({"x": values(3, 3), "y": values(2, 2)}, *specs)
