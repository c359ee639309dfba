"""The plan: what every site becomes, as a YAML file that people read, change and apply again."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
import yaml.constructor
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator
from yaml.reader import ReaderError

from onnxcp.errors import PlanError
from onnxcp.factorize import FactorizePass, Ranks
from onnxcp.files import write_text
from onnxcp.graph.site import Site

_VERSION = 1


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


Finite: TypeAlias = Annotated[float, AfterValidator(_rounded), Field(allow_inf_nan=False)]
Positive: TypeAlias = Annotated[Finite, Field(ge=0)]
Rank: TypeAlias = Annotated[int, Field(ge=1)]


class Numbers(BaseModel, frozen=True, extra="forbid"):
    """What a network costs and loses; None where it is not known.

    Numbers are finite and kept with four significant digits, as they stand in the file.

    Attributes
    ----------
    before_ms, after_ms
        Latency of the original and of what the plan makes of it, in milliseconds.
    error
        Relative error of the outputs.
    """

    before_ms: Positive | None = None
    after_ms: Positive | None = None
    error: Positive | None = None


class Row(BaseModel, frozen=True, extra="forbid"):
    """What one site becomes: factors of a family at its ranks; or why it stays as it is.

    Attributes
    ----------
    site
        Name of the site.
    family, ranks
        What it becomes.
    keep
        Why it stays; where this is given, the two above are not.
    fixed
        Whether a site that stays may not even be given other weights where others' errors reach it.
    before_ms, after_ms
        Latency of the site and of what it becomes, in milliseconds.
    error
        Relative error that it is expected to add to the outputs of the network.
    distortion
        What it adds to the network's error, in the plan's own measure.
    cosine
        Cosine similarity to the original by which the ranks were chosen.
    """

    site: str
    family: str | None = None
    ranks: Annotated[tuple[Rank, ...], Field(min_length=1)] | None = None
    keep: str | None = None
    fixed: bool = False
    before_ms: Positive | None = None
    after_ms: Positive | None = None
    error: Positive | None = None
    distortion: Finite | None = None
    cosine: Annotated[Finite, Field(ge=-1, le=1)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Row:
        chosen = self.family is not None, self.ranks is not None
        if self.keep is not None and any(chosen):
            raise ValueError("keep cannot stand beside family and ranks")
        if self.keep is None and not all(chosen):
            raise ValueError("give family and ranks, or keep with a reason")
        if self.fixed and self.keep is None:
            raise ValueError("only a site that is kept can be fixed")
        return self


class PlannedModel(BaseModel, frozen=True, extra="forbid"):
    """The model that a plan was made for: its name and its `onnxcp.graph.digest.model_digest`."""

    name: str = ""
    digest: str = ""


class Plan(BaseModel, frozen=True, extra="forbid"):
    """What every site of a model becomes.

    Attributes
    ----------
    onnxcp_plan
        Version of the format.
    model
        The model it was made for.
    made_on
        What was measured where and with what, for people.
    goal
        What was asked for, for people.
    finish
        Passes that end the rewrite, as pipeline text.
    refitted
        Whether chains were refitted to samples; False where that was given up, as it will be when
        the plan is carried out. None where it was not tried, or nothing was built.
    predicted, measured
        What the network was expected to cost and lose, and what it did.
    sites
        One row for every site that something was decided about.
    """

    onnxcp_plan: Literal[1] = 1
    model: PlannedModel = PlannedModel()
    made_on: dict[str, str] = {}
    goal: str = ""
    finish: str = ""
    refitted: bool | None = None
    predicted: Numbers = Numbers()
    measured: Numbers = Numbers()
    sites: tuple[Row, ...]

    @model_validator(mode="after")
    def _every_site_once(self) -> Plan:
        first: dict[str, int] = {}
        for number, row in enumerate(self.sites, 1):
            if first.setdefault(row.site, number) != number:
                raise ValueError(f"rows {first[row.site]} and {number} are both for '{row.site}'")
        return self


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises
    ------
    PlanError
        If the file cannot be read or is not a plan; the message names the line or the row.
    """
    data = _parse(path)
    if not isinstance(data, dict) or "onnxcp_plan" not in data:
        raise PlanError(f"'{path}' is not a plan: there is no 'onnxcp_plan' in it.")
    version = data["onnxcp_plan"]
    if version != str(_VERSION):
        raise PlanError(
            f"Plan '{path}' is of version {reprlib.repr(version)}; "
            f"this onnxcp reads version {_VERSION}."
        )
    try:
        return Plan.model_validate(data | {"onnxcp_plan": _VERSION})
    except ValidationError as error:
        raise PlanError(f"Plan '{path}': {_problem(error, data)}.") from error


def save_plan(plan: Plan, path: Path) -> None:
    """Write a plan, whole or not at all.

    Raises
    ------
    OutputError
        If the place cannot be written to.
    """
    write_text(path, plan_text(plan))


def plan_text(plan: Plan) -> str:
    """Return a plan as YAML, a row on a line; what is not known is left out."""
    parts = {"onnxcp_plan": _VERSION, **plan.model_dump(exclude_defaults=True)}
    for key in ("model", "predicted", "measured"):
        if key in parts:
            parts[key] = _Line(parts[key])
    parts["sites"] = [_Line(row) for row in parts["sites"]]
    return yaml.dump(parts, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)


def plan_choices(
    plan: Plan, sites: Sequence[Site], families: Mapping[str, FactorizePass], source: str
) -> dict[Site, tuple[FactorizePass, Ranks]]:
    """Find what a plan says of the sites of a model.

    Parameters
    ----------
    plan
        The plan.
    sites
        The sites of the model that it is to be applied to.
    families
        The families that there are, by name.
    source
        What to call the plan in messages: its path.

    Returns
    -------
    dict
        Family and ranks of every site that changes, in the order of the plan. Sites that are to
        stay, and those that the plan says nothing of, are not in it.

    Raises
    ------
    PlanError
        If a row is for a site that the model does not have, or names a family that there is not or
        that cannot express the site, or ranks that the site does not have; the message names it.
    """
    named = {site.name: site for site in sites}
    choices = {}
    for number, row in enumerate(plan.sites, 1):
        try:
            choice = _choice(row, named, families)
        except ValueError as error:
            raise PlanError(f"Plan '{source}': {_place(number, row.site)}: {error}.") from None
        if choice is not None:
            choices[named[row.site]] = choice
    return choices


def _choice(
    row: Row, sites: Mapping[str, Site], families: Mapping[str, FactorizePass]
) -> tuple[FactorizePass, Ranks] | None:
    """Return family and ranks of a row, or None if its site stays.

    Raises
    ------
    ValueError
        If the row does not fit the model; the message is the end of a sentence.
    """
    if row.site not in sites:
        raise ValueError(f"the model has no such site{_nearest(row.site, sites)}")
    if row.family is None or row.ranks is None:
        return None
    if row.family not in families:
        raise ValueError(f"there is no family '{row.family}'; there are: {', '.join(families)}")
    site, family = sites[row.site], families[row.family]
    refusal = family.applies(site)
    if refusal is not None:
        raise ValueError(refusal.detail)
    full = family.full_ranks(site)
    if len(row.ranks) != len(full):
        raise ValueError(f"{row.family} takes {_count(len(full))}, not {len(row.ranks)}")
    if any(rank > limit for rank, limit in zip(row.ranks, full, strict=True)):
        raise ValueError(
            f"ranks of {row.family} are at most {list(full)} here, not {list(row.ranks)}"
        )
    return family, row.ranks


def _count(ranks: int) -> str:
    return f"{ranks} rank{'' if ranks == 1 else 's'}"


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return the name most like another, as the rest of a sentence; nothing if none is."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; the nearest is '{near[0]}'" if near else ""


def _place(number: int, site: object) -> str:
    """Return where in a plan something is: ``row 3, 'conv2'``."""
    return f"row {number}, '{site}'" if isinstance(site, str) else f"row {number}"


_EXPECTED = {
    "a row": "a mapping such as {site: conv1, family: cp3, ranks: [16]}",
    "sites": "a list of rows",
    "distortion": "a finite number",
    "cosine": "a number from -1 to 1",
    "refitted": "true or false",
    **dict.fromkeys(("before_ms", "after_ms", "error"), "a finite number from 0 on"),
    **dict.fromkeys(("model", "made_on", "predicted", "measured"), "a mapping"),
}
_FIELDS = {
    "model": PlannedModel.model_fields,
    "predicted": Numbers.model_fields,
    "measured": Numbers.model_fields,
    "sites": Row.model_fields,
}


def _problem(error: ValidationError, data: Mapping[str, Any]) -> str:
    """Return the first thing that is wrong with a plan's data, as the end of a sentence."""
    # What is missing may be there with its name misspelt, which is then the thing to say.
    first = min(error.errors(), key=lambda each: each["type"] == "missing")
    match first["loc"]:
        case ("sites", int(index), *inner):
            row = data["sites"][index]
            where = _place(index + 1, row.get("site") if isinstance(row, dict) else None) + ": "
        case (block, _, *_) as location:
            where, inner = f"{block}: ", list(location[1:])
        case location:
            where, inner = "", list(location)
    field = str(inner[0]) if inner else "a row"
    match first["type"]:
        case "value_error":
            return where + str(first["ctx"]["error"])
        case "missing":
            return f"{where}{field} is missing"
        case "extra_forbidden":
            known = _FIELDS[str(first["loc"][0])] if where else Plan.model_fields
            return f"{where}there is no field '{field}'; there are: {', '.join(known)}"
    expected = _EXPECTED.get(field, "text")
    if field == "ranks":
        expected = "whole numbers from 1 on" if inner[1:] else "a list of whole numbers from 1 on"
    given = "nothing" if first["input"] is None else reprlib.repr(first["input"])
    return f"{where}{field} must be {expected}, not {given}"


def _parse(path: Path) -> Any:
    """Read YAML as texts, lists and mappings: what is a number, the fields of a plan know."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise PlanError(f"There is no file '{path}'.") from None
    except IsADirectoryError:
        raise PlanError(f"'{path}' is a directory; name the file of a plan.") from None
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise PlanError(f"Cannot read '{path}': {reason}.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        raise PlanError(f"'{path}' is not a plan: line {line} is not UTF-8.") from None
    try:
        return yaml.load(text, _Loader)
    except ReaderError as error:
        line = 1 + text[: error.position].count("\n")
        reason = f"it holds the character U+{error.character:04X}"
    except yaml.MarkedYAMLError as error:
        line = 1 + (error.problem_mark.line if error.problem_mark else 0)
        reason = ", ".join(part for part in (error.context, error.problem) if part)
    except RecursionError:
        raise PlanError(f"'{path}' is not a plan: it is nested too deeply.") from None
    raise PlanError(f"'{path}' is not YAML at line {line}: {reason}.")


class _Loader(yaml.BaseLoader):
    """Makes texts, lists and mappings; refuses a key given twice, of which PyYAML takes the last.

    With the types that YAML guesses, a site called 12 were a number, and an error of 1e-5 a text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping that a node stands for."""
        mapping = super().construct_mapping(node, deep)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"'{key.value}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return mapping


class _Line(dict[str, Any]):
    """A mapping that is written on one line."""


class _Dumper(yaml.SafeDumper):
    """Writes a `_Line` on one line, and in full what stood somewhere before."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Tell that nothing is to be written as a reference."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Escape what would otherwise run over several lines."""
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(
    _Line,
    lambda dumper, line: dumper.represent_mapping(
        "tag:yaml.org,2002:map", line.items(), flow_style=True
    ),
)
