"""Loading and saving: nothing is lost, nothing is half-written, bad input is one sentence."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx.external_data_helper import convert_model_to_external_data, uses_external_data

from onnxcp.errors import ModelError, OutputError
from onnxcp.graph import model as model_module
from onnxcp.graph.model import Model, external_locations, load, save
from tests.networks import conv_model, feeds_for, initializers, run
from tests.peculiar import PECULIAR, plain, with_functions

each_peculiar = pytest.mark.parametrize("build", PECULIAR.values(), ids=PECULIAR.keys())


def large() -> onnx.ModelProto:
    """Return a model with a weight above, and a bias below, the size that is stored outside."""
    return conv_model((3, 3), channels=(8, 16))


def stored_outside(folder: Path, *, sizes: int = 0, location: str = "weights.bin") -> Path:
    """Write `large` as onnx does, with its data in another file."""
    path = folder / "model.onnx"
    proto = large()
    convert_model_to_external_data(proto, location=location, size_threshold=sizes)
    onnx.save(proto, path)
    return path


CONSTANT = np.arange(6 * 7 * 8, dtype=np.float32).reshape(1, 6, 7, 8)


def constants_outside(folder: Path, *, named: bool = True) -> Path:
    """Write a model whose only external data are a constant's and those of nested graphs."""
    tensor = onnx.numpy_helper.from_array(CONSTANT, "k" if named else None)
    inner = onnx.numpy_helper.from_array(CONSTANT, "inner")
    for each in (tensor, inner):
        each.ClearField("raw_data")
        each.data_location = onnx.TensorProto.EXTERNAL
        each.external_data.add(key="location", value="constants.bin")
    (folder / "constants.bin").write_bytes(CONSTANT.tobytes())
    make = onnx.helper.make_node
    result = onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, CONSTANT.shape)
    add = make("Add", ["y", "inner"], ["r"])
    branch = onnx.helper.make_graph([add], "branch", [], [result], [inner])
    proto = plain(
        make("If", ["yes"], ["i"], then_branch=branch, else_branch=branch),
        make("Constant", [], ["c"], value=tensor),
        make("Add", ["i", "c"], ["z"]),
        weights={"yes": np.array(True)},
        outputs=["z"],
    )
    del proto.graph.initializer[1:2]
    proto.graph.node[0].input.pop()
    (folder / "constants.onnx").write_bytes(proto.SerializeToString())
    return folder / "constants.onnx"


def is_a_sentence(text: str) -> bool:
    """Tell whether a message is one line that begins and ends as a sentence does."""
    return re.fullmatch(r"[A-Z'][^\n]*[^.\n]\.", text) is not None


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


class TestExternalData:
    def test_stays_external_in_one_file_that_onnx_runtime_loads(self, tmp_path: Path) -> None:
        original = large()
        model = load(stored_outside(tmp_path))
        assert model.external == {"w", "b"}
        assert model.proto == original
        out = tmp_path / "out"
        out.mkdir()
        save(model, out / "net.onnx")
        assert sorted(path.name for path in out.iterdir()) == ["net.onnx", "net.onnx.data"]
        assert (out / "net.onnx").stat().st_size < 1000
        assert load(out / "net.onnx").proto == original
        feeds = feeds_for(original)
        result = run(str(out / "net.onnx"), feeds)
        np.testing.assert_array_equal(result[0], run(original, feeds)[0])

    def test_offsets_are_aligned_for_mapping(self, tmp_path: Path) -> None:
        save(load(stored_outside(tmp_path)), tmp_path / "net.onnx")
        bare = onnx.load(tmp_path / "net.onnx", load_external_data=False)
        for tensor in bare.graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] == "net.onnx.data"
            assert int(entries["offset"]) % 4096 == 0
            assert int(entries["length"]) == initializers(large())[tensor.name].nbytes

    def test_goes_in_when_asked(self, tmp_path: Path) -> None:
        save(load(stored_outside(tmp_path)), tmp_path / "net.onnx", external=False)
        assert not (tmp_path / "net.onnx.data").exists()
        assert onnx.load(tmp_path / "net.onnx") == large()

    def test_comes_out_when_asked_but_for_what_is_small(self, tmp_path: Path) -> None:
        save(load(large()), tmp_path / "net.onnx", external=True)
        bare = onnx.load(tmp_path / "net.onnx", load_external_data=False)
        outside = {tensor.name: uses_external_data(tensor) for tensor in bare.graph.initializer}
        assert outside == {"w": True, "b": False}
        assert load(tmp_path / "net.onnx").proto == large()

    def test_comes_out_where_a_file_could_not_hold_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model_module, "_PROTOBUF_LIMIT", 2**24 + 4000)
        save(load(large()), tmp_path / "net.onnx", external=False)
        assert (tmp_path / "net.onnx.data").exists()
        assert load(tmp_path / "net.onnx").proto == large()

    def test_is_found_in_folders_and_through_links_as_model_hubs_lay_them_out(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "blobs").mkdir()
        (tmp_path / "snapshot" / "onnx").mkdir(parents=True)
        path = stored_outside(tmp_path / "blobs", location="data")
        (tmp_path / "snapshot" / "net.onnx").symlink_to("../blobs/model.onnx")
        (tmp_path / "snapshot" / "data").symlink_to("../blobs/data")
        assert load(tmp_path / "snapshot" / "net.onnx").proto == large()
        deep = onnx.load(path, load_external_data=False)
        for tensor in deep.graph.initializer:
            entry = next(e for e in tensor.external_data if e.key == "location")
            entry.value = "onnx/data"
        (tmp_path / "snapshot" / "deep.onnx").write_bytes(deep.SerializeToString())
        (tmp_path / "snapshot" / "onnx" / "data").symlink_to("../data")
        assert load(tmp_path / "snapshot" / "deep.onnx").proto == large()

    def test_is_read_wherever_a_tensor_may_be(self, tmp_path: Path) -> None:
        """In attributes, nested graphs and functions; as one of several, or as half a sparse."""
        weight = large().graph.initializer[0]
        weight.name = "inner"
        (tmp_path / "data").write_bytes(weight.raw_data)
        whole = onnx.TensorProto()
        whole.CopyFrom(weight)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="data")

        def model(tensor: onnx.TensorProto) -> onnx.ModelProto:
            proto = with_functions()
            body = onnx.helper.make_graph([], "g", [], [], [tensor])
            sparse = onnx.SparseTensorProto(values=tensor, dims=[9999])
            body.sparse_initializer.append(sparse)
            proto.graph.sparse_initializer.append(sparse)
            node = onnx.helper.make_node("Odd", [], ["o"])
            for key, value in {
                "t": tensor, "ts": [tensor], "s": sparse, "ss": [sparse], "g": body, "gs": [body],
            }.items():  # fmt: skip
                node.attribute.append(onnx.helper.make_attribute(key, value))
            proto.graph.node.append(node)
            proto.functions[0].node.append(node)
            return proto

        (tmp_path / "net.onnx").write_bytes(model(weight).SerializeToString())
        assert load(tmp_path / "net.onnx").proto == model(whole)

    @pytest.mark.parametrize("named", [True, False])
    def test_stays_external_wherever_it_came_so(self, named: bool, tmp_path: Path) -> None:
        path = constants_outside(tmp_path, named=named)
        model = load(path)
        out = tmp_path / "out"
        out.mkdir()
        save(model, out / "net.onnx")
        assert sorted(path.name for path in out.iterdir()) == ["net.onnx", "net.onnx.data"]
        assert external_locations(out / "net.onnx") == {"net.onnx.data"}
        assert (out / "net.onnx.data").stat().st_size == 2 * 4096 + CONSTANT.nbytes
        assert load(out / "net.onnx").proto == model.proto
        feeds = feeds_for(model.proto)
        expected = run(model, feeds)[0]
        np.testing.assert_array_equal(run(str(out / "net.onnx"), feeds)[0], expected)

    def test_is_of_initializers_alone_if_the_model_came_whole(self, tmp_path: Path) -> None:
        proto = load(constants_outside(tmp_path)).proto
        save(load(proto), tmp_path / "net.onnx", external=True)
        assert not (tmp_path / "net.onnx.data").exists()
        assert onnx.load(tmp_path / "net.onnx") == proto

    def test_holds_all_that_is_large_where_a_file_could_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proto = load(constants_outside(tmp_path)).proto
        assert load(proto).nbytes > 3 * CONSTANT.nbytes
        monkeypatch.setattr(model_module, "_PROTOBUF_LIMIT", 2**24 + 3 * CONSTANT.nbytes)
        save(load(proto), tmp_path / "net.onnx", external=False)
        assert (tmp_path / "net.onnx.data").stat().st_size >= 3 * CONSTANT.nbytes
        assert load(tmp_path / "net.onnx").proto == proto

    def test_makes_no_file_that_would_be_empty(self, tmp_path: Path) -> None:
        proto = plain()
        del proto.graph.initializer[0]
        save(load(proto), tmp_path / "net.onnx", external=True)
        assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
        assert onnx.load(tmp_path / "net.onnx") == proto

    def test_is_where_its_locations_say(self, tmp_path: Path) -> None:
        assert external_locations(constants_outside(tmp_path)) == {"constants.bin"}
        assert external_locations(stored_outside(tmp_path)) == {"weights.bin"}
        save(load(large()), tmp_path / "net.onnx")
        assert external_locations(tmp_path / "net.onnx") == set()

    @pytest.mark.parametrize(
        ("entry", "value", "reason"),
        [
            ("location", "no.bin", "No such file or directory"),
            ("location", "folder", "Is a directory"),
            ("location", "../weights.bin", "it is not in the folder of the model"),
            ("location", "/etc/passwd", "it is not in the folder of the model"),
            ("location", "", "it is not in the folder of the model"),
            ("length", str(2**62), "it ends before the tensor does"),
            ("offset", str(2**40), "it ends before the tensor does"),
            ("length", "many", "invalid literal"),
        ],
    )
    def test_that_cannot_be_read_is_named(
        self, entry: str, value: str, reason: str, tmp_path: Path
    ) -> None:
        path = stored_outside(tmp_path)
        (tmp_path / "folder").mkdir()
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            del tensor.external_data[:]
            tensor.external_data.add(key="location", value="weights.bin")
            if entry == "location":
                tensor.external_data[0].value = value
            else:
                tensor.external_data.add(key=entry, value=value)
        path.write_bytes(proto.SerializeToString())
        location = value if entry == "location" else "weights.bin"
        with pytest.raises(ModelError) as caught:
            load(path)
        message = str(caught.value)
        assert message.startswith(
            f"'{path}' keeps tensor 'w' in the external file '{location}', which cannot be read: "
        )
        assert reason in message
        assert is_a_sentence(message)

    def test_that_do_not_fit_their_shape_are_kept_as_they_are(self, tmp_path: Path) -> None:
        proto = large()
        proto.graph.initializer[0].ClearField("raw_data")
        proto.graph.initializer[0].float_data.extend([1.0] * 1000)
        save(load(proto), tmp_path / "net.onnx", external=True)
        assert onnx.load(tmp_path / "net.onnx") == proto


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestAtomic:
    @pytest.mark.parametrize("external", [False, True])
    @pytest.mark.parametrize(
        ("where", "error"),
        [
            ("os.fsync", FULL),
            ("os.fsync", KeyboardInterrupt()),
            ("pathlib.Path.replace", FULL),
            ("pathlib.Path.replace", KeyboardInterrupt()),
            ("pathlib.Path.chmod", PermissionError(errno.EPERM, "Operation not permitted")),
        ],
    )
    def test_what_fails_leaves_the_old_files_and_no_others(
        self,
        where: str,
        error: BaseException,
        external: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        names = ["net.onnx", "net.onnx.data"] if external else ["net.onnx"]
        for name in names:
            (tmp_path / name).write_text("old")
        expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
        with monkeypatch.context() as patch:
            patch.setattr(where, fail_with(error))
            with pytest.raises(expected) as caught:
                save(load(large()), tmp_path / "net.onnx", external=external)
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert all((tmp_path / name).read_text() == "old" for name in names)
        if isinstance(error, OSError):
            assert is_a_sentence(str(caught.value))
            assert str(error.strerror) in str(caught.value)

    def test_what_cannot_be_serialised_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for error in (ValueError("no"), KeyboardInterrupt()):
            monkeypatch.setattr(model_module, "_externalise", fail_with(error))
            with pytest.raises(type(error)):
                save(load(large()), tmp_path / "net.onnx", external=True)
            assert list(tmp_path.iterdir()) == []

    def test_a_model_file_that_does_not_fit_costs_no_data(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The disk is full once the data are written: the old pair must still go together."""
        save(load(large()), tmp_path / "net.onnx", external=True)
        data = (tmp_path / "net.onnx.data").read_bytes()
        other = large()
        other.graph.initializer[0].raw_data = b"\0" * len(other.graph.initializer[0].raw_data)

        class Full(io.BufferedWriter):
            def flush(self) -> None:
                raise FULL

        def full_then_not(descriptor: int, mode: str) -> IO[bytes]:
            monkeypatch.undo()
            return Full(io.FileIO(descriptor, mode))

        monkeypatch.setattr(os, "fdopen", full_then_not)
        with pytest.raises(OutputError, match="No space left"):
            save(load(other), tmp_path / "net.onnx", external=True)
        assert (tmp_path / "net.onnx.data").read_bytes() == data
        assert load(tmp_path / "net.onnx").proto == large()

    @pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
    @pytest.mark.parametrize("there", [True, False])
    def test_data_whose_model_cannot_follow_are_taken_back(
        self, there: bool, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if there:
            save(load(large()), tmp_path / "net.onnx", external=True)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        other = large()
        other.graph.initializer[0].raw_data = b"\0" * len(other.graph.initializer[0].raw_data)
        rename = Path.replace

        def fail(path: Path, target: Path) -> Path:
            if target.name == "net.onnx":
                raise error
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises((OutputError, KeyboardInterrupt)):
            save(load(other), tmp_path / "net.onnx", external=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_a_new_file_has_the_usual_permissions(self, tmp_path: Path) -> None:
        save(load(large()), tmp_path / "net.onnx")
        (tmp_path / "usual").touch()
        assert (tmp_path / "net.onnx").stat().st_mode == (tmp_path / "usual").stat().st_mode

    def test_a_model_can_be_saved_over_the_file_it_came_from(self, tmp_path: Path) -> None:
        path = stored_outside(tmp_path, location="model.onnx.data")
        save(load(path), path)
        assert load(path).proto == large()

    @pytest.mark.parametrize("external", [False, True])
    def test_a_missing_folder_is_named(self, external: bool, tmp_path: Path) -> None:
        path = tmp_path / "no" / "net.onnx"
        with pytest.raises(OutputError) as caught:
            save(load(large()), path, external=external)
        assert str(caught.value) == (
            f"Cannot write '{path}': the folder '{path.parent}' does not exist."
        )
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["net.onnx", "net.onnx.data"])
    def test_a_directory_in_the_way_is_named(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).mkdir()
        with pytest.raises(OutputError, match=f"{name}': it is a directory") as caught:
            save(load(large()), tmp_path / "net.onnx", external=True)
        assert is_a_sentence(str(caught.value))
        assert [path.name for path in tmp_path.iterdir()] == [name]
