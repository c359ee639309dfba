"""The cache: what was put comes back, in another run too, and nothing that it meets stops one."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcp.planning import cache as cache_module
from onnxcp.planning.cache import Cache

KEY = {"op": "Conv", "kernel": [64, 3, 3], "threads": 2}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def only_file(folder: Path) -> Path:
    (path,) = files(folder)
    return path


class TestKeeps:
    def test_across_objects(self, tmp_path: Path) -> None:
        Cache(tmp_path).put("latency", KEY, [1.5, 2.5])
        assert Cache(tmp_path).get("latency", KEY) == [1.5, 2.5]

    def test_nothing_that_was_not_put(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path)
        assert cache.get("latency", KEY) is None
        cache.put("latency", KEY, 1)
        assert cache.get("distortion", KEY) is None
        assert cache.get("latency", KEY | {"threads": 1}) is None
        assert cache.get("latency", KEY | {"more": None}) is None

    def test_the_last_of_several(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path)
        for value in (1, 2):
            cache.put("latency", KEY, value)
        assert cache.get("latency", KEY) == Cache(tmp_path).get("latency", KEY) == 2
        assert len(files(tmp_path)) == 1

    def test_a_key_in_whatever_order_as_tuples_or_lists(self, tmp_path: Path) -> None:
        Cache(tmp_path).put("latency", {"a": {"x": 1, "y": (2, 3)}, "b": "é"}, 7)
        assert Cache(tmp_path).get("latency", {"b": "é", "a": {"y": [2, 3], "x": 1}}) == 7

    def test_numbers_apart_that_python_takes_for_equal(self) -> None:
        cache = Cache(None)
        for number, key in enumerate([1, 1.0, True, "1", [1]]):
            cache.put("latency", {"a": key}, number)
        assert [cache.get("latency", {"a": key}) for key in (1, 1.0, True, "1", [1])] == [*range(5)]

    def test_one_file_for_each_value_where_it_says(self, tmp_path: Path) -> None:
        folder = tmp_path / "not" / "there"
        cache = Cache(folder)
        assert not folder.exists()
        cache.put("latency", KEY, 1.5)
        path = only_file(folder)
        assert path.parent == folder / "latency"
        assert len(path.stem) == 64
        content = json.loads(path.read_text())
        assert (content["key"], content["value"]) == (KEY, 1.5)

    def test_within_the_object_where_there_is_no_folder(self) -> None:
        cache = Cache(None)
        cache.put("latency", KEY, 1)
        assert cache.get("latency", KEY) == 1
        assert Cache(None).get("latency", KEY) is None
        assert cache.problem is None

    def test_in_the_user_s_folder_by_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
        Cache.default().put("latency", KEY, 1)
        assert only_file(tmp_path / "onnxcp")

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_floats_exactly(self, tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
        folder = tmp_path_factory.getbasetemp() / "floats"
        Cache(folder).put("latency", {}, [value])
        assert Cache(folder).get("latency", {}) == [value]
        assert math.copysign(1, Cache(folder).get("latency", {})[0]) == math.copysign(1, value)

    @pytest.mark.parametrize("folder", [True, False])
    def test_values_as_json_has_them_apart_from_the_object_given(
        self, folder: bool, tmp_path: Path
    ) -> None:
        cache = Cache(tmp_path if folder else None)
        value = {"b": (1, 2), "a": None}
        cache.put("latency", KEY, value)
        value["b"] = (3,)
        found = cache.get("latency", KEY)
        assert found == {"b": [1, 2], "a": None}
        assert list(found) == ["b", "a"]
        found.clear()
        assert cache.get("latency", KEY) == {"b": [1, 2], "a": None}


class TestRemember:
    def test_makes_what_there_is_not(self, tmp_path: Path) -> None:
        made: list[int] = []

        def make() -> tuple[int, int]:
            made.append(1)
            return (1, 2)

        for cache in (Cache(tmp_path), Cache(tmp_path)):
            for _ in range(2):
                assert cache.remember("latency", KEY, make) == [1, 2]  # type: ignore[comparison-overlap]
        assert len(made) == 1

    def test_keeps_nothing_where_making_fails(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            cache.remember("latency", KEY, interrupted)
        assert files(tmp_path) == []
        assert cache.remember("latency", KEY, lambda: 1) == 1


def interrupted(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


class TestRefuses:
    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float64("nan")])
    @pytest.mark.parametrize("folder", [True, False])
    def test_numbers_that_json_does_not_know(
        self, number: float, folder: bool, tmp_path: Path
    ) -> None:
        cache = Cache(tmp_path if folder else None)
        with pytest.raises(ValueError, match="JSON"):
            cache.put("latency", KEY, [number])
        with pytest.raises(ValueError, match="JSON"):
            cache.put("latency", {"a": number}, 1)
        with pytest.raises(ValueError, match="JSON"):
            cache.get("latency", {"a": number})
        assert cache.get("latency", KEY) is None
        assert files(tmp_path) == []

    def test_other_objects(self) -> None:
        with pytest.raises(TypeError):
            Cache(None).put("latency", {"a": np.arange(3)}, 1)
        with pytest.raises(TypeError):
            Cache(None).put("latency", KEY, {1, 2})

    @pytest.mark.parametrize("kind", ["", "..", "a/b", "Latency", "a b", "a\n", "/tmp"])
    def test_kinds_that_are_no_words(self, kind: str) -> None:
        with pytest.raises(ValueError, match="A kind must be a word in small letters, not "):
            Cache(None).get(kind, KEY)


DAMAGED = {
    "empty": "",
    "half": '{"format": 1, "key": {"op": "Co',
    "text": "hello",
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "no value": '{"format": 1, "key": {}}',
    "no key": '{"format": 1, "value": 3}',
    "no format": '{"key": {}, "value": 3}',
    "another key": '{"format": 1, "key": {"a": 1}, "value": 3}',
    "another version": '{"format": 0, "key": {}, "value": 3}',
    "another way to say it": '{"format": 1.0, "key": {}, "value": 3}',
    "nan": '{"format": 1, "key": {}, "value": NaN}',
    "infinite": '{"format": 1, "key": {}, "value": [-Infinity]}',
    "too large": '{"format": 1, "key": {}, "value": 1e999}',
    "too many digits": '{"format": 1, "key": {}, "value": %s}' % ("9" * 10000),
    "too deep": "[" * 100000,
    "two": '{"format": 1, "key": {}, "value": 3}\n{}',
    "zeros": "\0" * 100,
}


class TestAFile:
    @pytest.fixture(autouse=True)
    def path(self, tmp_path: Path) -> Path:
        Cache(tmp_path).put("latency", {}, 3)
        return only_file(tmp_path)

    def test_that_is_whole_is_read(self, path: Path, tmp_path: Path) -> None:
        path.write_text('{"value": 4, "key": {}, "format": 1}')
        assert Cache(tmp_path).get("latency", {}) == 4

    @pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
    def test_that_is_damaged_is_none_and_is_replaced(
        self, content: str, path: Path, tmp_path: Path
    ) -> None:
        path.write_text(content)
        cache = Cache(tmp_path)
        assert cache.get("latency", {}) is None
        cache.put("latency", {}, 5)
        assert cache.problem is None
        assert Cache(tmp_path).get("latency", {}) == 5

    def test_cut_anywhere_is_none(self, path: Path, tmp_path: Path) -> None:
        content = path.read_bytes()
        for length in range(len(content) - 1):  # the last byte is a line's end
            path.write_bytes(content[:length])
            assert Cache(tmp_path).get("latency", {}) is None

    def test_of_other_bytes_is_none(self, path: Path, tmp_path: Path) -> None:
        path.write_bytes(b"\xff\xfe\x80")
        assert Cache(tmp_path).get("latency", {}) is None

    def test_of_an_older_format_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cache_module, "_FORMAT", 2)
        cache = Cache(tmp_path)
        assert cache.get("latency", {}) is None
        cache.put("latency", {}, 5)
        assert len(files(tmp_path)) == 2

    def test_that_may_not_be_read_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def deny(*_: object, **__: object) -> str:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "read_text", deny)
        assert Cache(tmp_path).get("latency", {}) is None

    def test_that_is_a_folder_is_none_and_stays(self, path: Path, tmp_path: Path) -> None:
        path.unlink()
        path.mkdir()
        cache = Cache(tmp_path)
        assert cache.get("latency", {}) is None
        cache.put("latency", {}, 5)
        assert cache.get("latency", {}) == 5
        assert cache.problem is not None
        assert files(tmp_path) == []


class TestWhereNothingCanBeWritten:
    def test_a_file_stands_where_the_folder_should_be(self, tmp_path: Path) -> None:
        folder = tmp_path / "cache"
        folder.write_text("mine")
        cache = Cache(folder)
        assert cache.get("latency", KEY) is None
        assert cache.problem is None
        cache.put("latency", KEY, 1)
        assert cache.get("latency", KEY) == 1
        expected = f"The cache in '{folder}' cannot be written to: Not a directory."
        assert cache.problem == expected
        assert folder.read_text() == "mine"

    @pytest.mark.parametrize("call", ["mkdir", "write_text", "replace"])
    @pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
    def test_the_disk_is_full_or_may_not_be_written(
        self, call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        cache = Cache(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(Path, call, fail)
            assert cache.remember("latency", KEY, lambda: 1) == 1
        reason = os.strerror(code)
        assert cache.problem == f"The cache in '{tmp_path}' cannot be written to: {reason}."
        assert cache.get("latency", KEY) == 1
        assert files(tmp_path) == []
        cache.put("latency", {}, 2)
        assert Cache(tmp_path).get("latency", {}) == 2
        assert cache.problem is not None, "something is still not on disk"

    def test_ctrl_c_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                Cache(tmp_path).put("latency", KEY, 1)
        assert files(tmp_path) == []
        assert Cache(tmp_path).get("latency", KEY) is None


WRITER = """
import sys
from pathlib import Path
from onnxcp.planning.cache import Cache

me = sys.argv[2]
for i in range(300):
    cache = Cache(Path(sys.argv[1]))
    cache.put("latency", {"shared": i % 3}, [me] * 2000)
    found = Cache(Path(sys.argv[1])).get("latency", {"shared": i % 3})
    assert found in (["a"] * 2000, ["b"] * 2000), found
    assert cache.problem is None, cache.problem
"""


def test_two_processes_may_write_the_same_at_once(tmp_path: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in "ab"
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    assert len(files(tmp_path)) == 3, "no temporary file is left"
