"""Data in external files: they are found, kept and written as they came."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import uses_external_data

from onnxcp.errors import ModelError
from onnxcp.graph import model as model_module
from onnxcp.graph.model import external_locations, load, save
from tests.networks import feeds_for, initializers, run
from tests.peculiar import plain, with_functions
from tests.stored import is_a_sentence, large, stored_outside

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
