"""Where networks run, and opening models there whatever their size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnxcp.errors import ModelError, OnnxcpError
from onnxcp.graph.model import Model, save
from onnxcp.profiling.inputs import Shape, assume_extents, random_feeds, session_inputs
from onnxcp.profiling.session import Feeds, infer, open_session

PRECISIONS = ("fp32", "fp16", "int8")

_IN_MEMORY = 2**25  # bytes; a larger model is passed by file, so that no second copy is held

_EXTENTS = (1, 64, 512)  # tried for extents of inputs that nothing tells


@dataclass(frozen=True)
class Machine:
    """Execution providers and threads.

    Attributes
    ----------
    providers
        By short name, in order of preference.
    intra_op_num_threads
        Threads within a node; 0 lets ONNX Runtime choose.
    precision
        In which networks are deployed, one of `PRECISIONS`: what stands for a part of one is timed
        in it (`onnxcp.precision.alone`). Sessions run networks as they are.
    """

    providers: tuple[str, ...] = ("cpu",)
    intra_op_num_threads: int = 0
    precision: str = PRECISIONS[0]

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise OnnxcpError(f"There is no precision '{self.precision}'; there are: {known}.")

    def __str__(self) -> str:
        threads = self.intra_op_num_threads
        counted = f" with {threads} {'thread' if threads == 1 else 'threads'}" if threads else ""
        return f"{'+'.join(self.providers)}{counted}"

    def open(self, model: Model, *, label: str = "", **options: Any) -> ort.InferenceSession:
        """Open a session; `options` are those of `onnxcp.profiling.session.open_session`.

        Raises
        ------
        ModelError
            If ONNX Runtime cannot load the model.
        ProviderError
            If a provider is unknown, missing, or does not start.
        """
        (session,) = self.sessions(model, label=label, **options)
        return session

    def sessions(
        self, model: Model, count: int = 1, *, label: str = "", **options: Any
    ) -> Iterator[ort.InferenceSession]:
        """Open several sessions of a model, one when it is asked for; the rest as for `open`."""
        with as_source(model) as source:
            for _ in range(count):
                yield open_session(
                    source,
                    providers=self.providers,
                    intra_op_num_threads=self.intra_op_num_threads,
                    label=label or f"'{model.path or model.name}'",
                    **options,
                )


@contextmanager
def as_source(model: Model) -> Iterator[Path | bytes]:
    """Give ONNX Runtime a model in memory: its file, its bytes, or a file while the block lasts."""
    if model.path is not None:
        yield model.path
    elif model.nbytes < _IN_MEMORY:
        yield model.proto.SerializeToString()
    else:
        with tempfile.TemporaryDirectory(prefix="onnxcp-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            save(model, path)
            yield path


def runnable_feeds(
    session: ort.InferenceSession, shapes: Mapping[str, Shape], label: str
) -> dict[str, npt.NDArray[Any]]:
    """Return random feeds that a model really runs on.

    Extents that neither the model nor `shapes` fixes are tried in likely sizes, small ones first.

    Raises
    ------
    DataError
        If a given shape does not fit the model.
    ModelError
        If the model runs on none of them.
    """
    specs = session_inputs(session)
    failure: ModelError | None = None
    tried: list[dict[str, Shape]] = []
    for extent in _EXTENTS:
        assumed = assume_extents(specs, shapes, extent)
        if assumed in tried:
            continue
        tried.append(assumed)
        feeds = random_feeds(session, shapes=assumed)
        try:
            infer(session, feeds, label=f"'{label}'")
        except ModelError as error:
            failure = error
        else:
            return feeds
    assert failure is not None
    if all(spec.shape == tried[-1][spec.name] for spec in specs):
        raise failure
    used = " ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in tried[-1].items())
    raise ModelError(f"{str(failure).rstrip('.')}. Give its input shapes; {used} was tried.")


def watch(
    model: Model, tensors: Sequence[str], batches: Iterable[Feeds], machine: Machine
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Run batches through a network and yield the values of tensors of its main graph for each.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot run the network on them.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name)
        for name in dict.fromkeys(tensors)
        if name not in present
    )
    label = f"'{model.name}'"
    session = machine.open(model.with_proto(proto), label=label)
    names = [output.name for output in session.get_outputs()]
    for batch in batches:
        found = dict(zip(names, infer(session, batch, label=label), strict=True))
        yield {name: found[name] for name in tensors}


def observe_shapes(
    model: Model, tensors: set[str], feeds: Feeds, machine: Machine
) -> dict[str, Shape]:
    """Run a model once and return the shapes that tensors of its main graph have.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot run the model on these feeds.
    """
    (found,) = watch(model, sorted(tensors), [feeds], machine)
    return {name: value.shape for name, value in found.items()}
