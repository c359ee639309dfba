"""The contract of a rewriting pass, the manager that runs passes, and the registry.

A pass is a frozen dataclass whose fields are its options. The same dataclass is parsed from
pipeline text (``cp4{rank=64,nodes="conv2*"}``, see `onnxcp.pipeline`), shown in reports, and found
through the entry-point group ``onnxcp.passes``, which third parties use exactly as the built-in
passes do.
"""

from __future__ import annotations

import inspect
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

from onnxcp.errors import OnnxcpError, PassError
from onnxcp.graph.check import Checker
from onnxcp.graph.model import Model
from onnxcp.profiling.machine import Machine

ENTRY_POINT_GROUP = "onnxcp.passes"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Context:
    """What a pass may know besides the model.

    Attributes
    ----------
    shapes
        Shapes of tensors by name, as far as they are known. A rewrite must not need them: they
        serve to count multiply-adds.
    progress
        Called with a short text when a pass begins a part of its work that may take a while.
    refit
        Where there are data: given the model and, by site, what a pass has made of its weights
        alone (`onnxcp.factorize.Factorized`), returns what is closest on the data, by site.
    grams
        Where there are data: given the model and sites, returns for each the covariance of its
        input patches in this model, ``(P, P)``; sites of which it cannot be had are left out.
    samples
        Where there are data: batches of so many samples at most.
    machine
        Where the network will run.
    """

    shapes: Shapes = field(default_factory=dict)
    progress: Callable[[str], None] = lambda _: None
    refit: Callable[[Model, Mapping[Any, Any]], Mapping[Any, Any]] | None = None
    grams: Callable[[Model, Sequence[Any]], Mapping[Any, Any]] | None = None
    samples: Callable[[int], Sequence[Mapping[str, Any]]] | None = None
    machine: Machine = field(default_factory=Machine)

    def batches(self, name: str, count: int) -> Sequence[Mapping[str, Any]]:
        """Return batches of so many samples at most.

        Raises
        ------
        PassError
            If there are none; `name` is that of the pass which needs them.
        """
        if self.samples is None:
            raise PassError(f"Pass '{name}' needs samples to calibrate on; there are none.")
        return self.samples(count)


@dataclass(frozen=True)
class PassResult:
    """What a pass made of a model.

    Attributes
    ----------
    model
        The rewritten model, or the given one if nothing changed.
    changed
        Whether anything did.
    notes
        One sentence for each thing done or refused.
    """

    model: Model
    changed: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a model. Subclasses are frozen dataclasses; their fields are the options.

    An option is an int, a float, a bool, a str, a tuple of ints, or None, and has a default.
    Options that make no sense raise `PassError` from ``__post_init__``.
    """

    name: ClassVar[str]
    """Name in pipeline text and in the registry, in kebab-case."""

    summary: ClassVar[str]
    """One line for the list of passes."""

    finishes: ClassVar[bool] = False
    """Whether `onnxcp.optimize` ends with it, unasked, wherever it is measured to cost no time."""

    @abstractmethod
    def run(self, model: Model, context: Context) -> PassResult:
        """Return the rewritten model; the given one is left as it is."""

    def __str__(self) -> str:
        """Return the pass as pipeline text: its name and the options not at their defaults."""
        inner = ",".join(f"{key}={format_option(v)}" for key, v in self.options().items())
        return f"{self.name}{{{inner}}}" if inner else self.name

    def options(self) -> dict[str, object]:
        """Return the options that differ from their defaults, in the order of the fields."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}


@dataclass(frozen=True)
class ShrinkPass(Pass):
    """A pass that makes a file smaller and not a network faster: it is judged by size.

    Attributes
    ----------
    parameters
        Share of the weights of what it rewrites to keep at most, in (0, 1).
    nodes, exclude
        Names of the sites to rewrite and to leave alone: patterns as of a shell, several separated
        by spaces.
    """

    parameters: float | None = None
    nodes: str = "*"
    exclude: str = ""

    def __post_init__(self) -> None:
        if self.parameters is not None and not 0 < self.parameters < 1:
            raise PassError(
                f"Option 'parameters' of pass '{self.name}' is {self.parameters}, not in (0, 1)."
            )

    @abstractmethod
    def keeping(self, model: Model, removed: int) -> ShrinkPass:
        """Return the pass with a share of parameters at which a model loses so many weights.

        Raises
        ------
        PassError
            If there are not so many weights to spare.
        """


@dataclass(frozen=True)
class LowerPass(Pass):
    """A pass that writes a network in the precision that it is deployed in, after all others."""

    precision: ClassVar[str]
    """One of `onnxcp.profiling.machine.PRECISIONS`."""

    def tuned(self, model: Model, context: Context) -> LowerPass:  # noqa: ARG002
        """Return the pass with the options that suit a network, as samples show."""
        return self

    def retuned(self, model: Model, context: Context) -> LowerPass:  # noqa: ARG002
        """Return the same for a network that was rewritten since: other layers may be at fault."""
        return self

    def spared(
        self,
        model: Model,  # noqa: ARG002
        context: Context,  # noqa: ARG002
        enough: Callable[[Model], bool],  # noqa: ARG002
    ) -> LowerPass:
        """Return the pass with more layers in full precision, where it loses more than it may.

        Parameters
        ----------
        model, context
            The network, and samples.
        enough
            Tells whether a network is as close to the original as was asked for.
        """
        return self

    def stand_in(self, model: Model) -> Model:
        """Return what takes as long as what the pass would make of a model, without samples."""
        return self.run(model, Context()).model

    def part(self, model: Model, name: str, context: Context) -> Model:  # noqa: ARG002
        """Return one layer, or its chain, as it computes within the network of this precision.

        Parameters
        ----------
        model
            A graph of the layer by itself. What it puts out is rounded by what reads it.
        name
            Of the layer in the network.
        context
            With samples of what the layer reads.
        """
        return self.run(model, context).model


def format_option(value: object) -> str:
    """Return the text of an option's value, as `onnxcp.pipeline` parses it."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case tuple():
            return "(" + ",".join(str(item) for item in value) + ")"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return repr(value)


@dataclass(frozen=True)
class PassRecord:
    """What happened when a pass ran: its text, how long it took, what it said."""

    text: str
    seconds: float
    changed: bool
    notes: tuple[str, ...]


class PassManager:
    """Runs passes one after the other and checks the model after each.

    A model that is not valid to begin with (many that ONNX Runtime runs are not, strictly) is not
    checked: no pass is blamed for what it got.
    """

    def __init__(self, passes: Sequence[Pass]) -> None:
        self.passes = tuple(passes)

    def run(
        self, model: Model, context: Context | None = None
    ) -> tuple[Model, tuple[PassRecord, ...]]:
        """Return the rewritten model and a record of each pass.

        Raises
        ------
        PassError
            If a pass fails or leaves a graph that is not valid; the message names the pass.
        """
        context = context or Context()
        checker = Checker(model)
        records = []
        for each in self.passes:
            begin = time.perf_counter()
            try:
                result = each.run(model, context)
                if result.changed:
                    checker.check(result.model)
            except OnnxcpError as error:
                raise PassError(f"Pass {each}: {error}") from error
            except MemoryError:
                raise
            except Exception as error:
                raise PassError(f"Pass {each} failed: {_brief(error)}.") from error
            model = result.model
            elapsed = time.perf_counter() - begin
            records.append(PassRecord(str(each), elapsed, result.changed, result.notes))
        return model, tuple(records)


def registered_passes() -> dict[str, type[Pass]]:
    """Return every pass that is installed, by name, in alphabetical order.

    Raises
    ------
    PassError
        If an installed pass cannot be imported, or two packages bring passes of one name; the
        message names the packages.
    """
    points = _points()
    return {name: _load(name, points[name]) for name in sorted(points)}


def find_pass(name: str) -> type[Pass]:
    """Return the pass of a name.

    Raises
    ------
    PassError
        If there is none, the message lists those that there are; or as `registered_passes`.
    """
    points = _points()
    if name not in points:
        raise PassError(f"There is no pass '{name}'; there are: {', '.join(sorted(points))}.")
    return _load(name, points[name])


def _points() -> dict[str, list[EntryPoint]]:
    """Return what installed packages say of their passes, by name; several of one name clash."""
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        known = points.setdefault(point.name, [])
        if point.value not in (other.value for other in known):
            known.append(point)
    return points


def _load(name: str, points: Sequence[EntryPoint]) -> type[Pass]:
    if len(points) > 1:
        origins = " and ".join(f"'{_origin(point)}'" for point in points)
        raise PassError(f"Pass '{name}' comes from {origins}; uninstall all but one of them.")
    (point,) = points
    whose = f"of package '{_origin(point)}'"
    try:
        loaded = point.load()
    except Exception as error:
        raise PassError(f"Pass '{name}' {whose} cannot be imported: {_brief(error)}.") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)) or inspect.isabstract(loaded):
        raise PassError(f"'{point.value}' {whose} is not a concrete subclass of onnxcp.Pass.")
    if getattr(loaded, "name", None) != name:
        raise PassError(f"Pass '{name}' {whose} has another name on its class.")
    return loaded


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _brief(error: Exception) -> str:
    """Return the kind of an error and the first line of its message, without a full stop."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": .")
