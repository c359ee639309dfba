from __future__ import annotations

import errno
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnxcp.calibration.store import Store
from onnxcp.errors import OutputError
from tests.networks import noise


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_keeps_in_memory_what_fits_and_the_newest_on_disk(tmp_path: Path) -> None:
    with Store(100, tmp_path) as store:
        arrays = [noise(10, seed=seed) for seed in range(4)]  # 40 bytes each
        handles = [store.put(array) for array in arrays]
        assert len(files(tmp_path)) == 2
        assert handles[0].get() is arrays[0]
        for handle, array in zip(handles, arrays, strict=True):
            assert handle.shape == (10,)
            np.testing.assert_array_equal(handle.get(), array)


def test_room_that_is_freed_is_used_again(tmp_path: Path) -> None:
    with Store(50, tmp_path) as store:
        first, second = store.put(noise(10)), store.put(noise(10))
        assert len(files(tmp_path)) == 1
        second.free()
        assert not files(tmp_path)
        first.free()
        first.free()  # Does nothing more.
        store.put(noise(10))
        assert not files(tmp_path)
        store.put(noise(10))
        assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    "array",
    [
        noise(3, 4, 5),
        np.float64(2.5) * np.ones(()),
        noise(4, 6)[:, ::2].T,
        np.array([[True], [False]]),
        noise(2, 3).astype(np.float16),
        noise(2, 3).astype(ml_dtypes.bfloat16),
        noise(5).astype(ml_dtypes.float8_e4m3fn),
        np.zeros((0, 3), np.int64),
    ],
    ids=lambda array: f"{array.dtype.name}-{array.shape}",
)
def test_arrays_come_back_from_disk_as_they_were(array: np.ndarray, tmp_path: Path) -> None:
    with Store(0, tmp_path) as store:
        back = store.put(array).get()
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("value", [None, [noise(3), noise(2, 2)], np.array(["a"], dtype=object)])
def test_what_is_no_array_of_numbers_stays_in_memory(value: object, tmp_path: Path) -> None:
    with Store(0, tmp_path) as store:
        assert store.put(value).get() is value
        assert not files(tmp_path)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_leaves_nothing_on_disk(error: type[BaseException] | None, tmp_path: Path) -> None:
    def work() -> None:
        with Store(0, tmp_path) as store:
            store.put(noise(10))
            assert files(tmp_path)
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(error):
            work()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    with (
        Store(0, tmp_path / "missing") as store,
        pytest.raises(OutputError, match=r"missing'.*--memory-limit\.$"),
    ):
        store.put(noise(3))


def test_a_full_disk_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with (
        Store(0, tmp_path) as store,
        pytest.raises(OutputError, match=r"No space left on device; .*--memory-limit\.$"),
    ):
        store.put(noise(3))
    assert not list(tmp_path.iterdir())
