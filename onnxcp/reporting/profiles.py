"""Profiles as records for `--json`, read back from files, and two of them held against each other.

Whoever compares two files compares times that were not taken in turns, so a difference is only
called one beyond `onnxcp.profiling.noise.AGREEMENT` and the noise of both, and on one machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from onnxcp.errors import DataError, ProviderError
from onnxcp.profiling.breakdown import Breakdown, Part
from onnxcp.profiling.environment import Environment
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.noise import AGREEMENT, Level, Verdict, judge, widened
from onnxcp.profiling.profile import Row, Setting, Timed
from onnxcp.profiling.providers import full_name
from onnxcp.reporting.record import SCHEMA, Record, latency_record, trial_record

KIND = "profile"
_FIRST_SCHEMA = 3  # with profiles of this form

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Of a run, as a file has to give them to be read."""


def profile_record(
    rows: Sequence[Row], *, model: str, baseline: str | None, environment: Environment, command: str
) -> Record:
    """Describe a profile, row by row."""
    return {
        "kind": KIND,
        "model": model,
        "baseline": baseline,
        "rows": [_row(row) for row in rows],
        "environment": asdict(environment),
        "command": command,
    }


def _row(row: Row) -> Record:
    return {
        "providers": row.setting.machine.providers,
        "threads": row.setting.machine.intra_op_num_threads,
        "batch": row.setting.batch,
        "shapes": dict(row.shapes),
        "model": _timed(row.timed, row),
        "baseline": None if row.baseline is None else _timed(row.baseline, row),
        "trial": None if row.trial is None else trial_record(row.trial),
        "claim": None if row.claim is None else asdict(row.claim),
        "noise": {**asdict(row.noise), "level": row.noise.level},
        "ceiling": None if row.ceiling is None else asdict(row.ceiling),
    }


def _timed(timed: Timed, row: Row) -> Record:
    interval = widened(timed.latency.interval(), row.noise)
    return {
        "latency": latency_record(timed.latency),
        "interval": interval,
        "throughput": throughput(timed, row.setting.batch),
        "with_copies": None if timed.copying is None else latency_record(timed.copying),
        "warmup": asdict(timed.warmup),
        "fresh": (
            None
            if timed.fresh is None
            else {**asdict(timed.fresh), "to_first_result": timed.fresh.to_first_result}
        ),
        "nodes": None if timed.breakdown is None else _breakdown(timed.breakdown, row),
    }


def _breakdown(breakdown: Breakdown, row: Row) -> Record:
    ceiling = None if row.ceiling is None else row.ceiling.flops

    def described(part: Part) -> Record:
        share = part.seconds / breakdown.seconds if breakdown.seconds else None
        reached = None if ceiling is None or part.speed is None else part.speed / ceiling
        return {**asdict(part), "share": share, "speed": part.speed, "of_ceiling": reached}

    return {
        "sites": [described(part) for part in breakdown.sites],
        "operators": [described(part) for part in breakdown.operators],
        "fallen_back": breakdown.fallen_back,
        "fallen_seconds": breakdown.fallen_seconds,
    }


def throughput(timed: Timed, batch: int | None) -> float:
    """Return samples per second, or runs where there is no batch: over the mean, run after run."""
    return (batch or 1) / timed.latency.mean


class SavedLatency(BaseModel):
    """Statistics of times, in seconds."""

    median: Seconds
    mean: Seconds
    p90: Seconds
    p95: Seconds
    p99: Seconds
    minimum: Seconds
    maximum: Seconds


class SavedFresh(BaseModel):
    """What a network took of a process of its own."""

    to_first_result: float
    peak_bytes: int | None
    device_bytes: int | None


class SavedPart(BaseModel):
    """Time of a site or operator, in seconds."""

    name: str
    seconds: float


class SavedNodes(BaseModel):
    """Where time went."""

    sites: list[SavedPart]
    operators: list[SavedPart]


class SavedTimed(BaseModel):
    """What was measured of one network; `interval` is of the median, and null on a busy machine."""

    latency: SavedLatency
    interval: tuple[Seconds, Seconds] | None
    throughput: float
    fresh: SavedFresh | None
    nodes: SavedNodes | None


class SavedNoise(BaseModel):
    """How noisy the machine was, and how fast: seconds of identical work, or 0 if unknown."""

    level: Level
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class SavedRow(BaseModel):
    """One machine and batch."""

    providers: tuple[str, ...]
    threads: int
    batch: int | None
    shapes: dict[str, tuple[int, ...]]
    model: SavedTimed
    noise: SavedNoise

    @property
    def setting(self) -> Setting:
        """What tells rows of a profile apart."""
        return Setting(Machine(self.providers, self.threads), self.batch)


class SavedEnvironment(BaseModel):
    """The machine and its software."""

    cpu: str
    cores: int
    system: str
    precision: str = "fp32"
    device: str = ""
    versions: dict[str, str]


class SavedProfile(BaseModel):
    """A profile as it is in a file; what only its reader would look at is left out."""

    model: str
    rows: list[SavedRow]
    environment: SavedEnvironment


def is_saved(path: Path) -> bool:
    """Whether a file looks like JSON; a model in ONNX never begins with a bracket."""
    try:
        with path.open("rb") as stream:
            return stream.read(64).lstrip()[:1] == b"{"
    except OSError:
        return False


def read_profile(path: Path) -> SavedProfile:
    """Read what `onnxcp profile --json` printed.

    Raises
    ------
    DataError
        If the file cannot be read, is no profile, or one of another schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is no JSON: {str(error).rstrip('.')}.") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise DataError(f"'{path}' is no profile; write one with: onnxcp profile MODEL --json")
    schema = content.get("schema")
    if not isinstance(schema, int) or not _FIRST_SCHEMA <= schema <= SCHEMA:
        raise DataError(
            f"'{path}' is a profile of schema {schema}, and this version of onnxcp reads "
            f"{_FIRST_SCHEMA} to {SCHEMA}."
        )
    try:
        return SavedProfile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"The profile '{path}' is damaged: {where}: {first['msg']}.") from error


@dataclass(frozen=True)
class Change:
    """A row of one profile against that of another.

    Attributes
    ----------
    a, b
        The rows.
    ratio
        How many times faster b is: of the medians.
    interval
        Of that, from the ends of both intervals; None where a machine was busy. Where the machine
        itself was not as fast in both, it holds what that explains.
    verdict
        Of b against a.
    """

    a: SavedRow
    b: SavedRow
    ratio: float
    interval: tuple[float, float] | None
    verdict: Verdict

    @property
    def setting(self) -> Setting:
        """What both were measured in."""
        return self.a.setting


def compare_profiles(a: SavedProfile, b: SavedProfile) -> tuple[Change, ...]:
    """Compare the rows that two profiles have in common, in the order of the first.

    Raises
    ------
    DataError
        If there is none.
    """
    others = {_key(row): row for row in b.rows}
    pairs = [(row, others[_key(row)]) for row in a.rows if _key(row) in others]
    if not pairs:
        raise DataError(
            f"The profiles have no setting in common: the first has {_settings(a)}, the second "
            f"{_settings(b)}."
        )
    for first, second in pairs:
        if first.shapes != second.shapes:
            raise DataError(
                f"The profiles are of inputs of different shapes: {_shapes(first)}, and "
                f"{_shapes(second)}."
            )
    same = not differences_of_machine(a, b)
    return tuple(_change(first, second, same=same) for first, second in pairs)


def comparison_record(a: str, b: str, changes: Sequence[Change]) -> Record:
    """Describe how two saved profiles compare."""
    return {
        "kind": "comparison of profiles",
        "a": a,
        "b": b,
        "rows": [
            {
                "providers": change.a.providers,
                "threads": change.a.threads,
                "batch": change.a.batch,
                "before": change.a.model.latency.median,
                "after": change.b.model.latency.median,
                "ratio": change.ratio,
                "interval": change.interval,
                "verdict": change.verdict,
            }
            for change in changes
        ],
    }


def differences_of_machine(a: SavedProfile, b: SavedProfile) -> list[str]:
    """Say in what the machines of two profiles differ so that times are no matter of the models."""
    pairs = (
        ("processor", a.environment.cpu, b.environment.cpu),
        ("device", a.environment.device or "none", b.environment.device or "none"),
        ("cores", a.environment.cores, b.environment.cores),
        ("system", a.environment.system, b.environment.system),
        *(
            (name, *(each.environment.versions.get(name, "none") for each in (a, b)))
            for name in ("onnxruntime",)
        ),
    )
    return [f"{what}: {one} and {other}" for what, one, other in pairs if one != other]


def pace(a: SavedNoise, b: SavedNoise) -> float | None:
    """Return how many times longer the machine took for identical work in b; None if about equal.

    None as well where it is not known.
    """
    if not (a.seconds > 0 and b.seconds > 0):
        return None
    factor = b.seconds / a.seconds
    return factor if max(factor, 1 / factor) > 1 + AGREEMENT else None


def _change(a: SavedRow, b: SavedRow, *, same: bool) -> Change:
    ratio = a.model.latency.median / b.model.latency.median
    first, second = a.model.interval, b.model.interval
    if first is None or second is None or Level.BUSY in (a.noise.level, b.noise.level):
        return Change(a, b, ratio, None, Verdict.REFUSED)
    low, high = first[0] / second[1], first[1] / second[0]
    factor = pace(a.noise, b.noise) or 1.0
    interval = min(low, low * factor), max(high, high * factor)
    verdict = judge(ratio, *interval, AGREEMENT) if same else Verdict.REFUSED
    return Change(a, b, ratio, interval, verdict)


def _key(row: SavedRow) -> tuple[tuple[str, ...], int, int | None]:
    """Return what rows have in common that are compared; `cpu` is a short name of a provider."""
    return tuple(map(_named, row.providers)), row.threads, row.batch


def _named(provider: str) -> str:
    name, *options = provider.split("{", 1)
    try:
        return "{".join((full_name(name), *options))
    except ProviderError:  # one that is not known here
        return provider


def _shapes(row: SavedRow) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in row.shapes.items())


def _settings(profile: SavedProfile) -> str:
    return "; ".join(str(row.setting) for row in profile.rows)
