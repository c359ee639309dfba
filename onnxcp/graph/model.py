"""Loading and saving ONNX models without losing a field.

The `onnx.ModelProto` that came in is the truth. Edits go through onnx-graphsurgeon (see
`onnxcp.graph.edit`), but whatever an edit leaves alone is taken from the original message.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import BinaryIO, TypeAlias

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxcp.errors import ModelError
from onnxcp.files import atomic_writer, atomic_writers
from onnxcp.graph.walk import all_nodes, attribute_graphs, copy_fields

ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto | gs.Graph"

_PROTOBUF_LIMIT = 2**31 - 1
_ALIGNMENT = 4096  # of external tensors, so that they can be memory-mapped on every platform
_DATA_FIELDS = frozenset(
    field.name for field in onnx.TensorProto.DESCRIPTOR.fields if field.name.endswith("_data")
) - {"external_data"}
_EXTERNAL_THRESHOLD = 1024  # bytes; below it a tensor is cheaper inside the model file


@dataclass(frozen=True)
class Model:
    """An ONNX model and where it came from. Treat the message as read-only.

    Attributes
    ----------
    proto
        The model, with all weights in memory.
    path
        The file that it was read from, if it was and if it is unchanged since.
    external
        Names of the tensors that were stored in external data files.
    """

    proto: onnx.ModelProto
    path: Path | None = None
    external: frozenset[str] = field(default=frozenset())

    @property
    def name(self) -> str:
        """What to call the model in messages: its file name, graph name, or 'the model'."""
        if self.path is not None:
            return self.path.name
        return self.proto.graph.name or "the model"

    @property
    def opset(self) -> int:
        """Version of the default operator set; 1 if the model imports none."""
        versions = [o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")]
        return max(versions, default=1)

    def with_proto(self, proto: onnx.ModelProto) -> Model:
        """Return a model with another message and this one's storage (external or not)."""
        return replace(self, proto=proto, path=None)

    @property
    def file_nbytes(self) -> int:
        """Size in bytes of the files that `save` makes of the model, padding aside."""
        # A message above the limit of protobuf cannot be measured; its weights are all but it.
        return self.nbytes if _too_large(self) else int(self.proto.ByteSize())

    @functools.cached_property
    def nbytes(self) -> int:
        """Size of the tensors, wherever they are, in bytes: nearly all there is to a model."""
        return sum(tensor_nbytes(tensor) for tensor in _all_tensors(self.proto))


def tensor_nbytes(tensor: onnx.TensorProto) -> int:
    """Return the size of a tensor's data in bytes."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    return int(tensor.ByteSize())


def load(source: ModelSource | Model) -> Model:
    """Load a model from a path, bytes, a ModelProto or a graphsurgeon Graph.

    Nothing is checked beyond that it is ONNX: a model that ONNX Runtime refuses can be loaded,
    looked at and saved.

    Parameters
    ----------
    source
        Path of a file, its content, or a model already in memory (which is not copied). A `Model`
        is returned as it is.

    Raises
    ------
    ModelError
        If the file is missing, unreadable, truncated or not ONNX, or its external data are; or if
        a model in memory leaves data in an external file, as only a path tells where that is.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, onnx.ModelProto):
        return _in_memory(source)
    if isinstance(source, bytes):
        return _in_memory(_parse(source, "What was given"))
    if isinstance(source, str | os.PathLike):
        return _load_file(Path(source))
    if isinstance(source, gs.Graph):
        return _in_memory(gs.export_onnx(source))
    raise ModelError(
        "A model must be a path, bytes, an onnx.ModelProto or a graphsurgeon Graph, "
        f"not {type(source).__name__}."
    )


def save(model: Model, path: str | os.PathLike[str], *, external: bool | None = None) -> None:
    """Save a model whole or not at all.

    Parameters
    ----------
    model
        What to save.
    path
        Where. External data go beside it, into one file `<path>.data`.
    external
        Whether to store large initializers in an external file. By default they are if any came
        so, and above 2 GB, the limit of a protobuf message, they always are. Of other tensors
        (constants, those of nested graphs) those that came so are, and above 2 GB all large ones.

    Raises
    ------
    OutputError
        If the place cannot be written to.
    """
    path = Path(path)
    if external is None:
        external = bool(model.external)
    everywhere = _too_large(model)
    tensors = _placed_tensors(model.proto) if external or everywhere else ()
    if not any(_moves(model, tensor, first, everywhere) for tensor, first in tensors):
        content = model.proto.SerializeToString()
        with atomic_writer(path) as stream:
            stream.write(content)
        return

    data_path = path.with_name(path.name + ".data")
    with atomic_writers(path, data_path) as (stream, data):
        stream.write(_externalise(model, data, data_path.name).SerializeToString())


def external_locations(path: Path) -> set[str]:
    """Return the files that a model file names as those of its external data.

    Raises
    ------
    ModelError
        If the file cannot be read or is not ONNX.
    """
    return {
        entry.value
        for tensor in _all_tensors(_parse_file(path))
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _in_memory(proto: onnx.ModelProto) -> Model:
    for tensor in _all_tensors(proto):
        if uses_external_data(tensor):
            raise ModelError(
                f"The given model keeps tensor '{tensor.name}' in an external file; "
                "give the path of the model instead."
            )
    return Model(proto)


def _load_file(path: Path) -> Model:
    proto = _parse_file(path)
    return Model(proto, path, _load_external_data(proto, path))


def _parse_file(path: Path) -> onnx.ModelProto:
    if path.suffix == ".ort":
        raise ModelError(f"'{path}' is in ORT format, which cannot be edited; give the .onnx file.")
    try:
        str(path).encode()
    except UnicodeEncodeError:  # bytes of a name that Python keeps as lone surrogates
        raise ModelError(
            f"ONNX Runtime cannot open {str(path)!a}, a name that is not UTF-8; rename it."
        ) from None
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"There is no file '{path}'.") from None
    except IsADirectoryError:
        raise ModelError(f"'{path}' is a directory; name an .onnx file.") from None
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise ModelError(f"Cannot read '{path}': {_reason(error)}.") from error
    return _parse(content, f"'{path}'")


def _parse(content: bytes, label: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError:
        raise ModelError(f"{label} is not an ONNX model, or is truncated.") from None
    # Protobuf takes an empty message, and some text, for a model without a single field.
    if not proto.HasField("graph"):
        raise ModelError(f"{label} is not an ONNX model: there is no graph in it.")
    return proto


def _load_external_data(proto: onnx.ModelProto, path: Path) -> frozenset[str]:
    """Bring external tensors into memory; return their names."""
    loaded = set()
    for tensor in _all_tensors(proto):
        if not uses_external_data(tensor):
            continue
        try:
            tensor.raw_data = _read_external(tensor, path.parent)
        except (OSError, ValueError) as error:
            location = {entry.key: entry.value for entry in tensor.external_data}.get("location")
            raise ModelError(
                f"'{path}' keeps tensor '{tensor.name}' in the external file '{location}', "
                f"which cannot be read: {_reason(error)}."
            ) from error
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
        loaded.add(tensor.name)
    return frozenset(loaded)


def _read_external(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """Read a tensor's data from the file that it names.

    Symbolic links are followed, as ONNX Runtime does and onnx does not: the caches of model hubs
    are made of them. The name itself must not lead out of the model's folder.
    """
    info = ExternalDataInfo(tensor)
    location, start = PurePath(info.location), info.offset or 0
    if not info.location or location.is_absolute() or ".." in location.parts:
        raise ValueError("it is not in the folder of the model")
    with (folder / location).open("rb") as stream:
        rest = os.fstat(stream.fileno()).st_size - start
        length = rest if info.length is None else info.length
        if not 0 <= length <= rest:
            raise ValueError("it ends before the tensor does")
        stream.seek(start)
        return stream.read(length)


def _reason(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error).rstrip(".")


def _all_tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the tensors of the graph, of the graphs nested in it and of functions."""
    return [tensor for tensor, _ in _placed_tensors(proto)]


def _placed_tensors(proto: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    """Yield all tensors, and whether they are initializers of the main graph; those first."""
    yield from ((tensor, True) for tensor in proto.graph.initializer)
    bodies = [proto.graph.node, *(function.node for function in proto.functions)]
    nodes = [node for body in bodies for node in all_nodes(body)]
    tensors: list[onnx.TensorProto] = []
    sparse = list(proto.graph.sparse_initializer)
    for graph in (graph for node in nodes for graph in attribute_graphs(node)):
        tensors += graph.initializer
        sparse += graph.sparse_initializer
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        tensors += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
        one = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        sparse += [*one, *attribute.sparse_tensors]
    tensors += [part for each in sparse for part in (each.values, each.indices)]
    yield from ((tensor, False) for tensor in tensors)


def _too_large(model: Model) -> bool:
    """Tell whether a model may not fit a protobuf message; some is left for all but the data."""
    return model.nbytes >= _PROTOBUF_LIMIT - 2**24


def _moves(model: Model, tensor: onnx.TensorProto, initializer: bool, everywhere: bool) -> bool:
    """Tell whether a tensor goes into the external file."""
    raw = raw_bytes(tensor)
    if raw is None:
        return False
    large = len(raw) >= _EXTERNAL_THRESHOLD
    # Constants mostly have no name: of those, one that came from outside speaks for all large ones.
    came_so = tensor.name in model.external and (large or tensor.name != "")
    return came_so or (large and (initializer or everywhere))


def _externalise(model: Model, data: BinaryIO, location: str) -> onnx.ModelProto:
    """Write what `_moves` to `data`; return a model that refers to it at `location`."""
    result = onnx.ModelProto()
    everywhere = _too_large(model)
    copy_fields(model.proto, result, but={"graph"})
    copy_fields(model.proto.graph, result.graph, but={"initializer"})
    for tensor in _all_tensors(result):
        if _moves(model, tensor, initializer=False, everywhere=everywhere):
            _move(tensor, tensor, data, location)
    for tensor in model.proto.graph.initializer:
        stored = result.graph.initializer.add()
        if _moves(model, tensor, initializer=True, everywhere=everywhere):
            copy_fields(tensor, stored, but=_DATA_FIELDS)  # not the data, which are large
            _move(tensor, stored, data, location)
        else:
            stored.CopyFrom(tensor)
    return result


def _move(
    tensor: onnx.TensorProto, stored: onnx.TensorProto, data: BinaryIO, location: str
) -> None:
    """Write a tensor's data to `data`, and to `stored` where they are."""
    raw = raw_bytes(tensor)
    assert raw is not None
    data.write(b"\0" * (-data.tell() % _ALIGNMENT))
    for name in _DATA_FIELDS:
        stored.ClearField(name)
    stored.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location, "offset": data.tell(), "length": len(raw)}
    for key, entry in entries.items():
        stored.external_data.add(key=key, value=str(entry))
    data.write(raw)


def raw_bytes(tensor: onnx.TensorProto) -> bytes | None:
    """Return a tensor's elements as raw data and external files hold them, or None if they cannot.

    They do not hold strings, elements that do not fit the tensor's shape or are of no known type.
    """
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except (KeyError, TypeError, ValueError):
        return None
    return onnx.numpy_helper.from_array(array).raw_data
