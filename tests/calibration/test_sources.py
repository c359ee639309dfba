"""Readers, iterables, functions, and how many samples are taken of what."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime.quantization as quantization
import pytest

from onnxcp.calibration.data import Data, load_calibration, load_data, load_labelled
from onnxcp.calibration.preprocess import Preprocess
from onnxcp.calibration.sources import CalibrationSource
from onnxcp.errors import DataError, OnnxcpError
from onnxcp.profiling.inputs import InputSpec

FLOAT = np.dtype(np.float32)
X = InputSpec("x", FLOAT, ("n", 3))
OPEN = InputSpec("x", FLOAT, ("n", "length"))
Item = dict[str, Any]


def rows(*numbers: int, length: int = 3) -> npt.NDArray[np.float32]:
    """Return one sample for each number, full of it."""
    return np.repeat(np.array(numbers, np.float32)[:, np.newaxis], length, axis=1)


def firsts(data: Data) -> list[int]:
    """Return the numbers of all samples of `rows`."""
    return [int(row[0]) for batch in data.batches(2) for row in batch["x"]]


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, items: list[Item]) -> None:
        self.items = iter(items)

    def get_next(self) -> Item | None:
        return next(self.items, None)


class Loader:
    """As of torch: neither a list nor an iterator, and its tensors are no arrays."""

    class Tensor:
        def __init__(self, values: npt.NDArray[Any]) -> None:
            self.values = values

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
            return np.array(self.values, dtype=dtype)

    def __init__(self, items: list[Item]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Item]:
        for item in self.items:
            yield {name: Loader.Tensor(value) for name, value in item.items()}


def generator(items: list[Item]) -> Iterator[Item]:
    yield from items


def refused(source: Any, *specs: InputSpec, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_data(source, specs or [X], **options)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("make", [list, tuple, generator, Reader, Loader])
class TestStreams:
    def test_batches_are_joined(self, make: Any) -> None:
        data = load_data(make([{"x": rows(0, 1)}, {"x": rows(2)}, {"x": rows(3, 4)}]), [X])
        assert firsts(data) == [0, 1, 2, 3, 4]
        assert [len(batch["x"]) for batch in data.batches(4)] == [4, 1]

    def test_those_of_other_shapes_are_not(self, make: Any) -> None:
        items = [{"x": rows(0, 1, 2)}, {"x": rows(3, 4, length=7)}, {"x": rows(5)}]
        data = load_data(make(items), [OPEN])
        assert [batch["x"].shape for batch in data.batches(2)] == [(3, 3), (2, 7), (1, 3)]
        assert len(data) == data.used == 6
        assert data.batch_count(2) == 3

    def test_a_single_array_of_any_name_serves_one_input(self, make: Any) -> None:
        assert firsts(load_data(make([{"pixels": rows(0)}, {"image": rows(1)}]), [X])) == [0, 1]

    def test_labels_come_along(self, make: Any) -> None:
        items = [{"x": rows(0, 1), "label": np.array([5, 6])}, {"x": rows(2), "y": np.array([7])}]
        data = load_data(make(items), [X])
        assert data.labels is not None
        assert data.labels.tolist() == [5, 6, 7]

    def test_the_first_are_taken(self, make: Any) -> None:
        items = [{"x": rows(0, 1), "y": np.array([0, 1])}, {"x": rows(2, 3), "y": np.array([2, 3])}]
        data = load_data(make(items), [X], samples=3)
        assert firsts(data) == [0, 1, 2]
        assert data.labels is not None
        assert data.labels.tolist() == [0, 1, 2]

    def test_of_nothing(self, make: Any) -> None:
        assert "are no samples" in refused(make([]))

    def test_a_batch_that_does_not_fit_is_named(self, make: Any) -> None:
        message = refused(make([{"x": rows(0)}, {"x": rows(1, length=4)}]))
        assert message.startswith("Array 'x' of batch 2 of the given ")
        assert "has shape [1, 4]; input 'x' (n, 3) wants float32" in message


class TestStreamsInParticular:
    def test_those_without_end_are_cut(self) -> None:
        endless = ({"x": rows(number)} for number in itertools.count())
        assert firsts(load_data(endless, [X], samples=5)) == [0, 1, 2, 3, 4]
        assert next(endless)["x"][0, 0] == 5  # nothing was read in vain

    def test_buffers_may_be_used_again(self) -> None:
        def reuse() -> Iterator[Item]:
            buffer = np.zeros((1, 3), np.float32)
            for number in range(3):
                buffer[:] = number
                yield {"x": buffer}

        assert firsts(load_data(reuse(), [X])) == [0, 1, 2]

    def test_scalars_go_with_their_batches(self) -> None:
        specs = [InputSpec("t", FLOAT, ()), X]
        same = load_data([{"t": 0.5, "x": rows(0)}, {"t": 0.5, "x": rows(1)}], specs)
        assert len(same.parts) == 1
        other = load_data([{"t": 0.5, "x": rows(0)}, {"t": 0.7, "x": rows(1)}], specs)
        assert [float(batch["t"]) for batch in other.batches(8)] == pytest.approx([0.5, 0.7])

    @pytest.mark.parametrize(("count", "expected"), [(1, [0, 1, 2]), (2, [0, 1])])
    def test_a_fixed_batch_is_kept_to(self, count: int, expected: list[int]) -> None:
        fixed = InputSpec("x", FLOAT, (count, 3))
        data = load_data([{"x": rows(0)}, {"x": rows(1, 2)}], [fixed])
        assert firsts(data) == expected
        assert all(len(batch["x"]) == count for batch in data.batches(100))

    def test_a_fixed_batch_of_one_shape(self) -> None:
        fixed = InputSpec("x", FLOAT, (2, "length"))
        items = [
            {"x": rows(0, 1, 2), "y": np.arange(3)},
            {"x": rows(3, length=7), "y": np.array([3])},
            {"x": rows(4, 5, length=7), "y": np.array([4, 5])},
        ]
        data = load_data(items, [fixed])
        assert firsts(data) == [0, 1, 4, 5]
        assert data.labels is not None
        assert data.labels.tolist() == [0, 1, 4, 5]
        assert "nowhere do 2 of one shape come together" in refused(
            [{"x": rows(0)}, {"x": rows(1, length=7)}], fixed
        )

    @pytest.mark.parametrize("item", [rows(0), (rows(0), 1), 3])
    def test_items_are_dictionaries(self, item: Any) -> None:
        message = refused([{"x": rows(0)}, item])
        assert message.startswith("Batch 2 of the given list is of type ")
        assert "a dictionary of arrays by input name" in message

    def test_what_is_no_array(self) -> None:
        assert "failed: ValueError" in refused([{"x": [[1, 2, 3], [4]]}])
        assert "is of type object" in refused([{"x": object()}])

    def test_labels_in_some_batches_only(self) -> None:
        items = [{"x": rows(0), "y": np.array([1])}, {"x": rows(0)}]
        assert "Some batches of the given list have labels" in refused(items)


class TestErrors:
    def test_of_a_reader_are_sentences(self) -> None:
        class Broken(Reader):
            def get_next(self) -> Item | None:
                raise RuntimeError("no disk\nno luck.")

        assert refused(Broken([])) == "The given Broken failed: RuntimeError: no disk."

    def test_of_an_iterable_are_sentences(self) -> None:
        def broken() -> Iterator[Item]:
            yield {"x": rows(0)}
            raise SystemExit(3)

        assert refused(broken()) == "The given generator failed: SystemExit: 3."
        assert refused(broken) == "What 'broken' returned failed: SystemExit: 3."

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("As it is.")])
    def test_that_pass_through(self, error: BaseException) -> None:
        def broken() -> Iterator[Item]:
            yield {"x": rows(0)}
            raise error

        with pytest.raises(type(error)) as caught:
            load_data(broken(), [X])
        assert caught.value is error

    def test_what_is_printed_goes_to_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        def loud() -> Iterator[Item]:
            print("reading")
            yield {"x": rows(0)}

        load_data(loud(), [X])
        assert capsys.readouterr() == ("", "reading\n")

    @pytest.mark.parametrize("source", [3, None, 2.5])
    def test_what_is_no_source(self, source: Any) -> None:
        assert "No samples can be had of the given" in refused(source)


class TestFunctions:
    @pytest.mark.parametrize(
        "returned", [{"x": rows(0, 1)}, rows(0, 1), [{"x": rows(0)}, {"x": rows(1)}]]
    )
    def test_return_any_of_the_others(self, returned: Any) -> None:
        assert firsts(load_data(lambda: returned, [X])) == [0, 1]

    def test_may_return_paths(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=rows(0, 1))
        assert firsts(load_data(lambda: str(tmp_path), [X])) == [0, 1]

    def test_that_fail(self) -> None:
        def load() -> None:
            raise KeyError("pictures")

        assert refused(load) == "'load' failed: KeyError: 'pictures'."

    def test_that_return_nothing(self) -> None:
        def load() -> None:
            return None

        assert "No samples can be had of what 'load' returned, of type NoneType" in refused(load)

    def test_that_cannot_be_loaded(self) -> None:
        def load() -> None:
            raise OnnxcpError("There is no script 'f.py'.")

        with pytest.raises(OnnxcpError, match="no script"):
            load_data(load, [X])


class TestArrays:
    def test_one_serves_one_input(self) -> None:
        assert firsts(load_data(rows(0, 1), [X])) == [0, 1]
        assert firsts(load_data(rows(3)[0], [X])) == [3]

    def test_one_does_not_serve_several(self) -> None:
        message = refused(rows(0), X, InputSpec("z", FLOAT, ("n",)))
        assert "give arrays for the inputs 'x' (n, 3), 'z' (n)" in message


class TestSamples:
    @pytest.fixture(params=["arrays", "npz", "folder"])
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        """One hundred samples in order, labelled by their numbers."""
        if request.param == "arrays":
            return {"x": rows(*range(100)), "y": np.arange(100)}
        for start in range(0, 100, 10):
            numbers = range(start, start + 10)
            np.savez(tmp_path / f"{start:02}.npz", x=rows(*numbers), y=np.array(numbers))
        if request.param == "npz":
            np.savez(tmp_path / "all.npz", x=rows(*range(100)), y=np.arange(100))
            return tmp_path / "all.npz"
        return tmp_path

    @pytest.mark.parametrize("count", [1, 7, 50, 99])
    def test_are_drawn_without_repetition_in_order(self, source: Any, count: int) -> None:
        data = load_data(source, [X], samples=count)
        drawn = firsts(data)
        assert len(set(drawn)) == len(drawn) == count
        assert drawn == sorted(drawn)
        assert drawn != list(range(count))
        assert data.labels is not None
        assert data.labels.tolist() == drawn

    def test_depend_on_the_seed_alone(self, source: Any) -> None:
        one, same, other = (firsts(load_data(source, [X], samples=9, seed=s)) for s in (1, 1, 2))
        assert one == same != other

    @pytest.mark.parametrize("count", [100, 101, None])
    def test_are_all_where_there_are_no_more(self, source: Any, count: int | None) -> None:
        assert firsts(load_data(source, [X], samples=count)) == list(range(100))

    def test_files_that_were_not_drawn_are_not_read(self, tmp_path: Path) -> None:
        for number in range(10):
            np.save(tmp_path / f"{number}.npy", rows(number)[0])
        (drawn,) = firsts(load_data(tmp_path, [X], samples=1))
        for number in set(range(10)) - {drawn}:
            (tmp_path / f"{number}.npy").write_bytes(b"broken")
        assert firsts(load_data(tmp_path, [X], samples=1)) == [drawn]

    def test_of_varied_shape_are_not_cut(self) -> None:
        items = [{"x": rows(0, 1)}, {"x": rows(2, 3, length=7)}, {"x": rows(4, 5)}]
        assert firsts(load_data(items, [OPEN], samples=3)) == [0, 1, 2, 3]

    @pytest.mark.parametrize("count", [0, -1])
    def test_none_are_too_few(self, count: int) -> None:
        assert "no batch of 1 can be made" in refused({"x": rows(0)}, samples=count)

    def test_fewer_than_a_fixed_batch_are_too_few(self) -> None:
        fixed = InputSpec("x", FLOAT, (4, 3))
        message = refused({"x": rows(*range(8))}, fixed, samples=3)
        assert message == "Of 3 samples no batch of 4 can be made; ask for more."


class TestCalibration:
    def test_takes_1024_samples_by_default(self) -> None:
        many = {"x": rows(*range(1100))}
        assert len(load_calibration(many, [X])) == 1024
        assert len(load_calibration(CalibrationSource(many, samples=None), [X])) == 1100
        assert len(load_calibration(CalibrationSource(many, samples=3), [X])) == 3
        assert len(load_data(many, [X])) == 1100

    def test_hands_on_what_it_is_given(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", rows(0))
        source = CalibrationSource(tmp_path / "a.npy", Preprocess(crop=3))
        with pytest.raises(DataError, match=r"Only pictures are preprocessed, .* holds npy files"):
            load_calibration(source, [X])
        with pytest.raises(DataError, match="Only pictures are preprocessed"):
            load_calibration(CalibrationSource({"x": rows(0)}, Preprocess(crop=3)), [X])

    @pytest.mark.parametrize(
        ("source", "text"),
        [
            (CalibrationSource("a.npz"), "'a.npz', at most 1024 samples, seed 0"),
            (
                CalibrationSource(Path("p"), Preprocess(crop=8), samples=None, seed=3),
                "'p', preprocessed by crop=8, all samples, seed 3",
            ),
            (CalibrationSource({}), "the given data, at most 1024 samples, seed 0"),
            (CalibrationSource(Reader([])), "the given Reader, at most 1024 samples, seed 0"),
        ],
    )
    def test_is_told_in_a_line(self, source: CalibrationSource, text: str) -> None:
        assert str(source) == text


class TestLabelled:
    def test_takes_all(self) -> None:
        many = {"x": rows(*range(1100)), "y": np.arange(1100)}
        assert len(load_labelled(many, [X])) == 1100

    def test_needs_labels(self) -> None:
        with pytest.raises(DataError, match="no array 'label'"):
            load_labelled({"x": rows(0)}, [X])

    def test_pictures_have_none(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"not even read")
        with pytest.raises(DataError, match="holds pictures, which have no labels"):
            load_labelled(tmp_path, [X])
