"""Loading and saving: nothing is lost, and bad input is one sentence."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx.external_data_helper import uses_external_data

from onnxcp.errors import ModelError
from onnxcp.graph import model as model_module
from onnxcp.graph.model import Model, load, save
from tests.networks import run
from tests.peculiar import PECULIAR, plain, with_functions
from tests.stored import is_a_sentence, large, stored_outside

each_peculiar = pytest.mark.parametrize("build", PECULIAR.values(), ids=PECULIAR.keys())


class TestFaithful:
    @each_peculiar
    def test_a_saved_model_is_field_by_field_the_one_loaded(
        self, build: Callable[[], onnx.ModelProto], tmp_path: Path
    ) -> None:
        original = build()
        (tmp_path / "in.onnx").write_bytes(original.SerializeToString())
        save(load(tmp_path / "in.onnx"), tmp_path / "out.onnx")
        assert onnx.load(tmp_path / "out.onnx") == original
        assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()

    @each_peculiar
    def test_so_it_is_when_large_weights_move_out(
        self,
        build: Callable[[], onnx.ModelProto],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(model_module, "_EXTERNAL_THRESHOLD", 1)
        original = build()
        save(load(original), tmp_path / "out.onnx", external=True)
        bare = onnx.load(tmp_path / "out.onnx", load_external_data=False)
        assert all(map(uses_external_data, dense(bare)))
        again = load(tmp_path / "out.onnx")
        assert again.external == {tensor.name for tensor in dense(original)}
        for one, other in zip(
            again.proto.graph.initializer, original.graph.initializer, strict=True
        ):
            assert as_raw(one) == as_raw(other)
        for proto in (again.proto, original):
            del proto.graph.initializer[:]
        assert again.proto == original

    def test_saving_a_model_that_was_in_memory_leaves_it_alone(self, tmp_path: Path) -> None:
        proto = large()
        before = proto.SerializeToString()
        save(load(proto), tmp_path / "a.onnx", external=True)
        save(load(proto), tmp_path / "b.onnx")
        assert proto.SerializeToString() == before


def dense(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [t for t in proto.graph.initializer if t.data_type != onnx.TensorProto.STRING]


def as_raw(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Return a tensor with its data in the raw field, where external files put it back."""
    result = onnx.TensorProto()
    result.CopyFrom(tensor)
    if tensor.float_data:
        result.raw_data = np.array(tensor.float_data, np.float32).tobytes()
        result.ClearField("float_data")
    return result


class TestSources:
    def test_a_path_as_text_or_path(self, tmp_path: Path) -> None:
        path = tmp_path / "net.onnx"
        path.write_bytes(large().SerializeToString())
        assert load(str(path)) == load(path) == Model(large(), path)
        assert load(path).name == "net.onnx"

    def test_bytes(self) -> None:
        assert load(large().SerializeToString()) == Model(large())

    def test_a_message_is_not_copied(self) -> None:
        proto = large()
        assert load(proto).proto is proto
        assert load(proto).name == "tiny"

    def test_a_graphsurgeon_graph(self) -> None:
        model = load(gs.import_onnx(large()))
        np.testing.assert_array_equal(run(model)[0], run(large())[0])

    def test_a_model_is_returned_as_it_is(self) -> None:
        model = load(large())
        assert load(model) is model

    def test_the_opset_is_the_default_domain_s(self) -> None:
        assert load(plain(opset=11, domains={"com.microsoft": 1})).opset == 11
        assert load(with_functions()).opset == 17
        bare = plain()
        del bare.opset_import[:]
        assert load(bare).opset == 1

    def test_a_model_without_a_name_is_the_model(self) -> None:
        proto = large()
        proto.graph.name = ""
        assert load(proto).name == "the model"

    def test_the_size_is_that_of_the_weights(self) -> None:
        assert load(large()).nbytes == 4 * (16 * 8 * 3 * 3 + 16)


class TestRefused:
    def refused(self, source: object) -> str:
        with pytest.raises(ModelError) as caught:
            load(source)  # type: ignore[arg-type]
        message = str(caught.value)
        assert is_a_sentence(message), message
        return message

    def test_a_missing_file(self, tmp_path: Path) -> None:
        path = tmp_path / "no.onnx"
        assert self.refused(path) == f"There is no file '{path}'."

    def test_a_name_that_is_no_text(self) -> None:
        assert self.refused(Path("net\udcff.onnx")) == (
            "ONNX Runtime cannot open 'net\\udcff.onnx', a name that is not UTF-8; rename it."
        )

    def test_a_directory(self, tmp_path: Path) -> None:
        assert self.refused(tmp_path) == f"'{tmp_path}' is a directory; name an .onnx file."

    @pytest.mark.parametrize(
        "content",
        [b"", b"\n\n", b"hello, world\n", b'{"a": 1}', b"<html></html>", b"\x89PNG\r\n\x1a\n"],
        ids=["empty", "newlines", "text", "json", "html", "png"],
    )
    def test_a_file_that_is_something_else(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "net.onnx"
        path.write_bytes(content)
        assert f"'{path}' is not an ONNX model" in self.refused(path)
        assert "What was given is not an ONNX model" in self.refused(content)

    @pytest.mark.parametrize("kept", [1, 10, 1000, -1])
    def test_a_truncated_file(self, kept: int, tmp_path: Path) -> None:
        path = tmp_path / "net.onnx"
        path.write_bytes(large().SerializeToString()[:kept])
        assert self.refused(path) == f"'{path}' is not an ONNX model, or is truncated."

    def test_a_model_of_onnx_runtime_s_own_format(self, tmp_path: Path) -> None:
        assert "ORT format" in self.refused(tmp_path / "net.ort")

    def test_a_file_that_may_not_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def deny(self: Path) -> bytes:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

        monkeypatch.setattr(Path, "read_bytes", deny)
        path = tmp_path / "net.onnx"
        assert self.refused(path) == f"Cannot read '{path}': Permission denied."

    def test_a_name_that_no_file_can_have(self) -> None:
        assert "null byte" in self.refused("net\0.onnx")
        assert "too long" in self.refused("n" * 5000)

    def test_something_that_is_no_model_at_all(self) -> None:
        assert "not int" in self.refused(3)

    def test_a_message_that_leaves_its_data_elsewhere(self, tmp_path: Path) -> None:
        path = stored_outside(tmp_path)
        expected = (
            "The given model keeps tensor 'w' in an external file; "
            "give the path of the model instead."
        )
        assert self.refused(path.read_bytes()) == expected
        assert self.refused(onnx.load(path, load_external_data=False)) == expected
