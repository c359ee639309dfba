"""Profiles on the terminal: one setting as a column of statistics, several as a row each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from onnxcp import units
from onnxcp.profiling.breakdown import Breakdown, Part
from onnxcp.profiling.noise import Claim, Level, Noise, Verdict, widened
from onnxcp.profiling.product import Ceiling
from onnxcp.profiling.profile import Row, Setting, Timed
from onnxcp.profiling.timing import Latency
from onnxcp.reporting.profiles import Change, SavedProfile, throughput
from onnxcp.reporting.table import plain

LAYOUT = "(changes of layout, others)"

# What is said of a site that takes less than this share of the time is of no use to anybody.
_WORTH = 0.02


def statistics(row: Row) -> Table:
    """Return all that was measured in one setting: a column, or two where there is a baseline."""
    columns = _networks(row)
    table = plain(["", *(["before>", "after>"] if len(columns) > 1 else [">"])], ())
    table.show_header = len(columns) > 1
    for label, cell in _statistics(row):
        cells = [cell(timed) for timed in columns]
        if any(cells):
            table.add_row(label, *(text or units.NONE for text in cells))
    return table


def _statistics(row: Row) -> Iterator[tuple[str, Callable[[Timed], str]]]:
    def of(value: Callable[[Latency], float]) -> Callable[[Timed], str]:
        return lambda timed: units.seconds(value(timed.latency))

    yield "median (p50)", of(lambda each: each.median)
    yield "  95 % interval", lambda timed: _interval(timed, row.noise)
    yield "mean", of(lambda each: each.mean)
    yield "least", of(lambda each: each.minimum)
    yield "most", of(lambda each: each.maximum)
    for percent in (90, 95, 99):
        yield (
            f"{percent}th percentile",
            of(functools.partial(Latency.quantile, share=percent / 100)),
        )
    yield "median with copies", lambda timed: _optional(timed.copying)
    what = "runs per second" if row.setting.batch is None else "samples per second"
    yield what, lambda timed: units.count(throughput(timed, row.setting.batch))
    yield "peak memory", lambda timed: _memory(timed)
    yield "memory of the device", lambda timed: _device(timed)
    yield "time to first result", lambda timed: _first(timed)
    yield "  opening the session", lambda timed: _fresh(timed, "session_seconds")
    yield "  the first run", lambda timed: _fresh(timed, "first_seconds")
    yield "runs", lambda timed: f"{len(timed.latency.samples)}"
    yield "  interrupted", lambda timed: _interrupted(timed.latency)
    yield "  to warm up", lambda timed: f"{timed.warmup.runs}{_unstable(timed)}"


def latencies(rows: Sequence[Row]) -> Table:
    """Return a row for each setting, twice where there is a baseline, in milliseconds."""
    settings = _Settings([row.setting for row in rows])
    against = any(row.baseline is not None for row in rows)
    named = ["="] if against else []
    numbers = ("p50", "mean", "least", "most", "p90", "p95", "p99")
    table = plain([*settings.columns, *named, *(f"{name}\nms>" for name in numbers)], ())
    for row in rows:
        for which, timed in zip(("before", "after"), _networks(row, both=against), strict=False):
            cells = [*settings.cells(row.setting), *([which] if against else [])]
            latency = timed.latency
            values = (latency.median, latency.mean, latency.minimum, latency.maximum)
            quantiles = (latency.quantile(share) for share in (0.9, 0.95, 0.99))
            table.add_row(*cells, *(units.digits(1e3 * each) for each in (*values, *quantiles)))
    return table


def costs(rows: Sequence[Row]) -> Table:
    """Return throughput, memory and time to the first result, a row for each setting."""
    settings = _Settings([row.setting for row in rows])
    against = any(row.baseline is not None for row in rows)
    optional: dict[str, Callable[[Timed], str]] = {
        "with\ncopies>": lambda timed: _optional(timed.copying),
        "device\nmemory>": _device,
    }
    shown = {
        name: cell
        for name, cell in optional.items()
        if any(cell(timed) for row in rows for timed in _networks(row))
    }
    what = "samples" if all(row.setting.batch is not None for row in rows) else "runs"
    fixed = [f"{what}\nper s>", *shown, "peak\nmemory>", "first\nresult>"]
    table = plain([*settings.columns, *(["="] if against else []), *fixed], ())
    for row in rows:
        for which, timed in zip(("before", "after"), _networks(row, both=against), strict=False):
            table.add_row(
                *settings.cells(row.setting),
                *([which] if against else []),
                units.count(throughput(timed, row.setting.batch)),
                *(cell(timed) or units.NONE for cell in shown.values()),
                _memory(timed) or units.NONE,
                _first(timed) or units.NONE,
            )
    return table


def samplings(rows: Sequence[Row]) -> Table:
    """Return how sure the medians are, and of how many runs, a row for each setting."""
    settings = _Settings([row.setting for row in rows])
    against = any(row.baseline is not None for row in rows)
    fixed = ["median,\n95 % interval>", "runs>", "inter-\nrupted>", "to warm up"]
    table = plain([*settings.columns, *(["="] if against else []), *fixed], ())
    for row in rows:
        for which, timed in zip(("before", "after"), _networks(row, both=against), strict=False):
            table.add_row(
                *settings.cells(row.setting),
                *([which] if against else []),
                _interval(timed, row.noise) or units.NONE,
                str(len(timed.latency.samples)),
                f"{timed.latency.discarded}{'' if timed.latency.clean else ', included'}",
                f"{timed.warmup.runs}{_unstable(timed)}",
            )
    return table


def against(rows: Sequence[Row]) -> Table:
    """Return how many times faster the network is than its baseline, a row for each setting."""
    settings = _Settings([row.setting for row in rows])
    columns = ["before>", "after>", "it is", "faster>", "95 % interval>"]
    table = plain([*settings.columns, *columns], ())
    for row in rows:
        if row.trial is None or row.claim is None:
            continue
        told = row.claim
        table.add_row(
            *settings.cells(row.setting),
            units.seconds(row.trial.a.median),
            units.seconds(row.trial.b.median),
            str(told.verdict),
            units.ratio(told.ratio),
            units.interval(told.low, told.high),
        )
    return table


def claimed(told: Claim, name: str, pairs: int) -> str:
    """Say what may be said of a network against its baseline."""
    found = f"{told.ratio:.2f}x ({told.low:.2f} to {told.high:.2f}, {pairs} pairs)"
    if told.verdict is Verdict.REFUSED:
        return (
            f"Which is faster is not said, since the machine is too busy; measured: {found}. Try "
            "again when nothing else runs."
        )
    if told.verdict is Verdict.SAME:
        return (
            f"{name} is not told apart from the baseline: {found}; on this machine now less than "
            f"{units.share(told.margin, 1)} is no difference."
        )
    return f"{name} is {told.verdict} than the baseline: {found}."


def quiet(noise: Noise) -> str:
    """Say how noisy the machine was, and what that means."""
    sentence = f"The machine is {noise}."
    if noise.level is Level.BUSY:
        return f"{sentence} No intervals are given: times are of little worth now."
    if noise.level is Level.NOISY:
        return f"{sentence} Intervals and what counts as a difference are wider for it."
    return sentence


def sites(row: Row) -> Table:
    """Return the time of every site, before and after, and how near the ceiling it comes."""
    before, after = _breakdowns(row)
    columns = ["node", *(["before>", "share>"] if before else []), "time>", "share>"]
    columns += ["GFLOP/s>"] + (["of\nceiling>"] if row.ceiling else [])
    table = plain(columns, ())
    for name, old, new in _side_by_side(before.sites if before else (), after.sites):
        cells = [name or LAYOUT]
        if before is not None:
            cells += _time(old, before)
        cells += _time(new, after)
        speed = None if new is None else new.speed
        cells.append("" if speed is None else units.digits(speed / 1e9))
        if row.ceiling is not None:
            cells.append("" if speed is None else units.share(speed / row.ceiling.flops))
        table.add_row(*cells)
    totals = [units.seconds(each.seconds) for each in (before, after) if each is not None]
    cells = ["all nodes"]
    for total in totals:
        cells += [total, "100 %"]
    flops = sum(part.flops or 0.0 for part in after.sites)
    speed = flops / after.seconds if after.seconds and flops else None
    cells.append("" if speed is None else units.digits(speed / 1e9))
    if row.ceiling is not None:
        cells.append("" if speed is None else units.share(speed / row.ceiling.flops))
    table.add_row(*cells)
    return table


def operators(row: Row) -> Table:
    """Return the time of every operator of the optimised graph, before and after."""
    before, after = _breakdowns(row)
    columns = ["operator", *(["before>", "share>"] if before else []), "time>", "share>", "nodes>"]
    table = plain(columns, ())
    for name, old, new in _side_by_side(before.operators if before else (), after.operators):
        cells = [name, *(_time(old, before) if before is not None else []), *_time(new, after)]
        table.add_row(*cells, "" if new is None else str(new.nodes))
    return table


def farthest(breakdown: Breakdown, ceiling: Ceiling | None) -> str:
    """Name the site that would gain most from running at the ceiling; "" if none is known."""
    if ceiling is None:
        return ""
    lost = {
        part: part.seconds - part.flops / ceiling.flops for part in breakdown.sites if part.flops
    }
    said = (
        f"A product of two {ceiling.size}×{ceiling.size} matrices of {ceiling.dtype} runs at "
        f"{units.digits(ceiling.flops / 1e9)} GFLOP/s here"
    )
    worst = max(lost, key=lambda part: lost[part], default=None)
    if worst is None or worst.speed is None or lost[worst] < _WORTH * breakdown.seconds:
        return f"{said}."
    return (
        f"{said}; farthest from that is '{worst.name}', whose {units.seconds(worst.seconds)} would "
        f"be {units.seconds(worst.seconds - lost[worst])}."
    )


def fallen_back(breakdown: Breakdown) -> str:
    """Name the nodes that run on the CPU although another provider was preferred; "" if none."""
    names = breakdown.fallen_back
    if not names:
        return ""
    share = breakdown.fallen_seconds / breakdown.seconds if breakdown.seconds else None
    what = "node runs" if len(names) == 1 else "nodes run"
    return (
        f"{len(names)} {what} on the CPU for want of a kernel, {units.share(share)} of the time of "
        f"nodes: {', '.join(names)}."
    )


def saved(changes: Sequence[Change]) -> Table:
    """Return the times of two saved profiles side by side, a row for each setting."""
    settings = _Settings([change.setting for change in changes])
    table = plain([*settings.columns, "a>", "b>", "b is", "faster>", "95 % interval>"], ())
    for change in changes:
        table.add_row(
            *settings.cells(change.setting),
            *(units.seconds(each.model.latency.median) for each in (change.a, change.b)),
            str(change.verdict),
            units.ratio(change.ratio),
            units.NONE if change.interval is None else units.interval(*change.interval),
        )
    return table


def saved_costs(changes: Sequence[Change]) -> Table:
    """Return tails, memory and the time to the first result of two saved profiles."""
    settings = _Settings([change.setting for change in changes])
    pairs = ("p99", "peak memory", "first result")
    columns = [f"{name}\n{which}>" for name in pairs for which in ("a", "b")]
    table = plain([*settings.columns, *columns], ())
    for change in changes:
        both = (change.a.model, change.b.model)
        peaks = [None if each.fresh is None else each.fresh.peak_bytes for each in both]
        firsts = [None if each.fresh is None else each.fresh.to_first_result for each in both]
        table.add_row(
            *settings.cells(change.setting),
            *(units.seconds(each.latency.p99) for each in both),
            *(units.NONE if each is None else units.nbytes(each) for each in peaks),
            *(units.seconds(each) for each in firsts),
        )
    return table


def saved_sites(change: Change) -> Table | None:
    """Return the times of sites in two saved profiles; None where one of them has none."""
    first, second = change.a.model.nodes, change.b.model.nodes
    if first is None or second is None:
        return None
    before, after = (
        Breakdown(tuple(Part(each.name, each.seconds) for each in nodes.sites), ())
        for nodes in (first, second)
    )
    table = plain(["node", "a>", "share>", "b>", "share>"], ())
    for name, old, new in _side_by_side(before.sites, after.sites):
        table.add_row(name or LAYOUT, *_time(old, before), *_time(new, after))
    return table


def only_in_one(a: SavedProfile, b: SavedProfile) -> int:
    """Return how many rows of two profiles have no counterpart in the other."""
    return len({row.setting for row in a.rows} ^ {row.setting for row in b.rows})


class _Settings:
    """The columns in which settings differ; all of them where they do not."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        every: dict[str, Callable[[Setting], str]] = {
            "on": lambda each: "+".join(each.machine.providers),
            "threads>": lambda each: str(each.machine.intra_op_num_threads or "auto"),
            "batch>": lambda each: units.NONE if each.batch is None else str(each.batch),
        }
        differing = {
            name: cell for name, cell in every.items() if len({cell(each) for each in settings}) > 1
        }
        self._cells = differing or {"on": every["on"]}

    @property
    def columns(self) -> list[str]:
        return list(self._cells)

    def cells(self, setting: Setting) -> list[str]:
        return [cell(setting) for cell in self._cells.values()]


def _networks(row: Row, *, both: bool = True) -> list[Timed]:
    return [row.timed] if row.baseline is None or not both else [row.baseline, row.timed]


def _breakdowns(row: Row) -> tuple[Breakdown | None, Breakdown]:
    assert row.timed.breakdown is not None
    return (None if row.baseline is None else row.baseline.breakdown), row.timed.breakdown


def _side_by_side(
    before: Sequence[Part], after: Sequence[Part]
) -> Iterator[tuple[str, Part | None, Part | None]]:
    old, new = ({part.name: part for part in parts} for parts in (before, after))
    for name in dict.fromkeys([*old, *new]):
        yield name, old.get(name), new.get(name)


def _time(part: Part | None, whole: Breakdown) -> list[str]:
    if part is None:
        return [units.NONE, ""]
    share = part.seconds / whole.seconds if whole.seconds else None
    return [units.seconds(part.seconds), units.share(share)]


def _interval(timed: Timed, noise: Noise) -> str:
    found = widened(timed.latency.interval(), noise)
    return "" if found is None else " to ".join(map(units.seconds, found))


def _optional(latency: Latency | None) -> str:
    return "" if latency is None else units.seconds(latency.median)


def _memory(timed: Timed) -> str:
    return _bytes(None if timed.fresh is None else timed.fresh.peak_bytes)


def _device(timed: Timed) -> str:
    return _bytes(None if timed.fresh is None else timed.fresh.device_bytes)


def _bytes(known: int | None) -> str:
    return "" if known is None else units.nbytes(known)


def _first(timed: Timed) -> str:
    return "" if timed.fresh is None else units.seconds(timed.fresh.to_first_result)


def _fresh(timed: Timed, name: str) -> str:
    return "" if timed.fresh is None else units.seconds(getattr(timed.fresh, name))


def _interrupted(latency: Latency) -> str:
    what = "" if not latency.discarded else ", left out" if latency.clean else ", included"
    return f"{latency.discarded}{what}"


def _unstable(timed: Timed) -> str:
    return "" if timed.warmup.stable else ", not stable yet"
