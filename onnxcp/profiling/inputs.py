"""The inputs of a model: what they want, values made up for them, and checks of given ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnxcp.errors import DataError
from onnxcp.profiling.session import Feeds

Shape = tuple[int, ...]

PICTURE = 224

# Types of which several elements share a byte; numpy has no arrays of that layout.
_PACKED = re.compile(r"u?int[24]|float4\w*")


@dataclass(frozen=True)
class InputSpec:
    """What a model wants at one input.

    Attributes
    ----------
    name
        The input.
    dtype
        The type of its elements.
    shape
        An extent, a symbol or None (unknown) for every axis. ONNX Runtime does not tell a scalar
        from a tensor of unknown rank: both are `()`.
    """

    name: str
    dtype: np.dtype[Any] | Literal["string"]
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"'{self.name}' {_text(self.shape)}"


def session_inputs(session: ort.InferenceSession) -> tuple[InputSpec, ...]:
    """Return what a session must be fed; initializers that may be overridden are not among them.

    Raises
    ------
    DataError
        If an input is a sequence, a map or optional, or of a type of less than a byte.
    """
    return tuple(_spec(value) for value in session.get_inputs())


def _spec(value: Any) -> InputSpec:
    match = re.fullmatch(r"tensor\((\w+)\)", value.type)
    if match is None or _PACKED.fullmatch(match[1]):
        raise DataError(
            f"Input '{value.name}' is a {value.type}; only models can be run whose inputs are "
            "tensors of elements of whole bytes."
        )
    shape = tuple(value.shape)
    if match[1] == "string":
        return InputSpec(value.name, "string", shape)
    kind = onnx.TensorProto.DataType.Value(match[1].upper())
    return InputSpec(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)), shape)


def parse_input_shapes(text: str) -> dict[str, Shape]:
    """Parse shapes as users type them: `x:1,3,224,224 mask:1,77`.

    Parameters
    ----------
    text
        Shapes separated by spaces or semicolons. The name goes up to the last colon. A single
        shape may come without a name, for a model with one input; its key is then `""`.

    Raises
    ------
    DataError
        If the text is not of this form.
    """
    shapes: dict[str, Shape] = {}
    for item in re.split(r"[\s;]+", text.strip(" \t\n;")):
        name, _, extents = item.rpartition(":")
        if not re.fullmatch(r"\d+(,\d+)*", extents):
            raise DataError(
                f"Cannot read the input shape '{item}'; write NAME:N,C,H,W with whole numbers, "
                "such as x:1,3,224,224."
            )
        if name in shapes:
            raise DataError(f"The input shapes '{text}' give input '{name}' twice.")
        shapes[name] = tuple(int(extent) for extent in extents.split(","))
    if "" in shapes and len(shapes) > 1:
        raise DataError(f"The input shapes '{text}' leave out a name; write NAME:N,C,H,W for each.")
    return shapes


def name_shapes(specs: Sequence[InputSpec], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return shapes by input, where the single one of a model of one input has no name.

    Raises
    ------
    DataError
        If there is no such input, or a name is missing.
    """
    if list(shapes) == [""]:
        if len(specs) != 1:
            raise DataError(
                f"The input shape {_text(shapes[''])} needs a name, since the model has "
                f"{len(specs)} inputs: {_names(spec.name for spec in specs)}."
            )
        return {specs[0].name: shapes[""]}
    for name in shapes:
        if all(name != spec.name for spec in specs):
            raise _no_such_input(name, specs)
    return dict(shapes)


def resolve_shapes(
    specs: Sequence[InputSpec],
    shapes: Mapping[str, Shape] | None = None,
) -> dict[str, Shape]:
    """Give every input a shape without open extents.

    An extent comes from `shapes`, or else it is 1. Extents with the same symbol are the same
    everywhere.

    Parameters
    ----------
    specs
        What the model wants.
    shapes
        Shapes of some inputs, as `parse_input_shapes` returns them.

    Raises
    ------
    DataError
        If a given shape does not fit the model.
    """
    given = name_shapes(specs, shapes or {})
    symbols: dict[str, int] = {}
    for spec in specs:
        if spec.name in given:
            _require_shape(spec, given[spec.name])
            _bind_symbols(spec, given[spec.name], symbols)

    def extent(wanted: int | str | None) -> int:
        if isinstance(wanted, int):
            return wanted
        return symbols.get(wanted, 1) if wanted is not None else 1

    return {
        spec.name: given.get(spec.name, tuple(extent(axis) for axis in spec.shape))
        for spec in specs
    }


def assume_extents(
    specs: Sequence[InputSpec], shapes: Mapping[str, Shape] | None = None, extent: int = 1
) -> dict[str, Shape]:
    """Give every input a shape that a network of its kind is likely to be used with.

    Where `shapes` says nothing, the first open extent of an input is taken for the batch, 1; those
    of the last two axes of a picture (an input of four axes) for `PICTURE`; any other is `extent`.
    A symbol that `shapes` gives an extent to has it everywhere.

    Raises
    ------
    DataError
        If a given shape does not fit the model.
    """
    given = name_shapes(specs, shapes or {})
    resolved = resolve_shapes(specs, given)
    symbols: dict[str, int] = {}
    for spec in specs:
        if spec.name in given:
            _bind_symbols(spec, given[spec.name], symbols)

    def assumed(spec: InputSpec) -> Shape:
        shape = list(resolved[spec.name])
        opened = [
            axis
            for axis, wanted in enumerate(spec.shape)
            if not isinstance(wanted, int) and wanted not in symbols
        ]
        for axis in opened[1:] if 0 in opened or len(spec.shape) != 4 else opened:
            shape[axis] = PICTURE if len(shape) == 4 and axis >= 2 else extent
        return tuple(shape)

    return {spec.name: given.get(spec.name) or assumed(spec) for spec in specs}


def with_batch(
    specs: Sequence[InputSpec], shapes: Mapping[str, Shape], batch: int
) -> dict[str, Shape]:
    """Return shapes of inputs in which as many samples are run at once as asked for.

    The first axis of the first input that leaves it open is the batch, and so is every first axis
    of the same symbol; where axes have no symbols, every open first axis.

    Parameters
    ----------
    specs
        What the model wants.
    shapes
        A shape for every input.
    batch
        How many samples.

    Raises
    ------
    DataError
        If the model fixes its batch to another number, or has no input with a batch.
    """
    opened = [spec for spec in specs if spec.shape and not isinstance(spec.shape[0], int)]
    symbol = opened[0].shape[0] if opened else None
    changed = {
        spec.name: (batch, *shapes[spec.name][1:]) for spec in opened if spec.shape[0] == symbol
    }
    if not changed and all(shape[:1] != (batch,) for shape in shapes.values()):
        fixed = next((shape[0] for shape in shapes.values() if shape), None)
        raise DataError(
            f"The model has no batch to set to {batch}: its inputs are {', '.join(map(str, specs))}"
            + (f", so that only {fixed} can be profiled." if fixed is not None else ".")
        )
    return {**shapes, **changed}


def random_feeds(
    session: ort.InferenceSession,
    *,
    shapes: Mapping[str, Shape] | None = None,
    seed: int = 0,
) -> dict[str, npt.NDArray[Any]]:
    """Make up values for every input, good enough for timing.

    Floats are standard normal, whole numbers 0 or 1 (valid as indices of nearly anything), truth
    values either, strings empty. The same seed gives the same values.

    Parameters
    ----------
    session
        The session to feed.
    shapes
        As for `resolve_shapes`.
    seed
        Of the random numbers.

    Raises
    ------
    DataError
        If a shape does not fit, or an input is no tensor.
    """
    specs = session_inputs(session)
    resolved = resolve_shapes(specs, shapes)
    rng = np.random.default_rng(seed)
    return {spec.name: _random(rng, spec.dtype, resolved[spec.name]) for spec in specs}


def check_feeds(session: ort.InferenceSession, feeds: Feeds) -> None:
    """Check that feeds have the names, types and shapes that a session wants.

    Raises
    ------
    DataError
        If they do not; the message says what is wanted and what was given.
    """
    specs = session_inputs(session)
    optional = {value.name for value in session.get_overridable_initializers()}
    for spec in specs:
        if spec.name not in feeds:
            raise DataError(f"Input {spec} is missing; given are {_names(feeds)}.")
        value = feeds[spec.name]
        if not isinstance(value, np.ndarray):
            raise DataError(
                f"Input '{spec.name}' must be an array, and is of type {type(value).__name__}."
            )
        fits = value.dtype.kind in "OUS" if spec.dtype == "string" else value.dtype == spec.dtype
        if not fits:
            raise DataError(f"Input '{spec.name}' wants {spec.dtype}, and was given {value.dtype}.")
        _require_shape(spec, value.shape)
    for name in feeds:
        if name not in optional and all(name != spec.name for spec in specs):
            raise _no_such_input(name, specs)


def _random(
    rng: np.random.Generator, dtype: np.dtype[Any] | Literal["string"], shape: Shape
) -> npt.NDArray[Any]:
    try:
        if dtype == "string":
            return np.full(shape, "", dtype=object)
        if dtype.kind in "biu":
            return rng.integers(0, 2, shape).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)
    except (ValueError, OverflowError, MemoryError) as error:  # the size is all that can be wrong
        extents = "x".join(map(str, shape))
        raise DataError(f"An input of {extents} values does not fit into memory.") from error


def _require_shape(spec: InputSpec, shape: Shape) -> None:
    # An empty shape is also what ONNX Runtime reports for an unknown rank.
    if spec.shape and (
        len(shape) != len(spec.shape)
        or any(
            isinstance(wanted, int) and wanted != extent
            for wanted, extent in zip(spec.shape, shape, strict=True)
        )
    ):
        raise DataError(
            f"Input '{spec.name}' wants shape {_text(spec.shape)}, and was given {_text(shape)}."
        )


def _bind_symbols(spec: InputSpec, shape: Shape, symbols: dict[str, int]) -> None:
    # Lengths differ only where the rank is unknown.
    for wanted, extent in zip(spec.shape, shape, strict=False):
        if isinstance(wanted, str) and symbols.setdefault(wanted, extent) != extent:
            raise DataError(
                f"Input {spec} was given {_text(shape)}, but '{wanted}' was already given as "
                f"{symbols[wanted]}."
            )


def _no_such_input(name: str, specs: Sequence[InputSpec]) -> DataError:
    return DataError(
        f"The model has no input '{name}'; its inputs are {', '.join(map(str, specs)) or 'none'}."
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def _text(shape: Sequence[int | str | None]) -> str:
    return "(" + ", ".join("?" if extent is None else str(extent) for extent in shape) + ")"
