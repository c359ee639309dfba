"""Profiles as records and tables: what is written, read back, and claimed of two."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from onnxcp.errors import DataError
from onnxcp.profiling.breakdown import Breakdown, Part
from onnxcp.profiling.environment import Environment
from onnxcp.profiling.fresh import Fresh
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.noise import Noise, Verdict, claim
from onnxcp.profiling.product import Ceiling
from onnxcp.profiling.profile import Row, Setting, Timed
from onnxcp.profiling.timing import Latency, Trial
from onnxcp.profiling.warmup import WarmUp
from onnxcp.reporting import profile_tables as tables
from onnxcp.reporting.profiles import (
    SavedProfile,
    compare_profiles,
    comparison_record,
    differences_of_machine,
    is_saved,
    profile_record,
    read_profile,
)
from onnxcp.reporting.record import SCHEMA, to_json

QUIET, BUSY = Noise(0.01, 0.01, 0.0), Noise(0.4, 0.4, 0.9)
ENVIRONMENT = Environment(
    "A processor", 2, "1", ("cpu",), "fp32", "Linux", {"onnxruntime": "1.31.1"}
)
CEILING = Ceiling(100e9, "float32", 1024)


def timed(milliseconds: float = 2.0, *, clean: bool = True, device: bool = False) -> Timed:
    parts = (
        Part("conv1", 0.5e-3 * milliseconds, 1e7, 2),
        Part("", 0.1e-3 * milliseconds, None, 2),
        Part("fc", 0.4e-3 * milliseconds, 4e7),
    )
    operators = (Part("Conv", 0.9e-3 * milliseconds, nodes=3), Part("Reorder", 1e-4 * milliseconds))
    latency = Latency((1e-3 * milliseconds,) * 30, discarded=7, clean=clean)
    return Timed(
        latency,
        WarmUp(12, 0.3, clean, 1e-3 * milliseconds),
        latency if device else None,
        Fresh(0.2, 0.01, 50 * 2**20, 300 * 2**20 if device else None, 3),
        Breakdown(parts, operators, ("pool", "shape") if device else (), 0.2e-3 * milliseconds),
    )


def row(
    milliseconds: float = 2.0,
    *,
    baseline: float | None = None,
    noise: Noise = QUIET,
    machine: Machine | None = None,
    batch: int | None = 8,
    device: bool = False,
) -> Row:
    trial = None
    if baseline is not None:
        ratio = baseline / milliseconds
        a, b = timed(baseline).latency, timed(milliseconds).latency
        trial = Trial(a, b, ratio, 0.99 * ratio, 1.01 * ratio, 0.0, 30, 7, clean=True)
    return Row(
        Setting(machine or Machine(), batch),
        {"x": (batch or 1, 3, 224, 224)},
        timed(milliseconds, device=device),
        noise,
        None if baseline is None else timed(baseline, device=device),
        trial,
        CEILING,
    )


def record(*rows: Row, environment: Environment = ENVIRONMENT) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        to_json(
            profile_record(
                rows or (row(),),
                model="net.onnx",
                baseline=None,
                environment=environment,
                command="onnxcp profile net.onnx --json",
            )
        )
    )
    return content


def saved(*rows: Row, environment: Environment = ENVIRONMENT) -> SavedProfile:
    return SavedProfile.model_validate(record(*rows, environment=environment))


def printed(table: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    return text


class TestRecord:
    def test_what_is_in_it(self) -> None:
        content = record()
        assert (content["schema"], content["kind"]) == (SCHEMA, "profile")
        (only,) = content["rows"]
        assert only["providers"] == ["cpu"]
        assert only["shapes"] == {"x": [8, 3, 224, 224]}
        assert only["noise"]["level"] == "quiet"
        assert only["ceiling"]["flops"] == 100e9
        network = only["model"]
        for name in ("median", "mean", "p90", "p95", "p99", "minimum", "maximum"):
            assert network["latency"][name] == pytest.approx(2e-3)
        assert network["throughput"] == pytest.approx(8 / 2e-3)
        assert network["interval"] == pytest.approx([2e-3 / 1.01, 2e-3 * 1.01])
        assert network["fresh"]["to_first_result"] == pytest.approx(0.21)
        assert network["fresh"]["peak_bytes"] == 50 * 2**20
        site = network["nodes"]["sites"][0]
        assert (site["name"], site["nodes"]) == ("conv1", 2)
        assert site["share"] == pytest.approx(0.5)
        assert site["speed"] == pytest.approx(1e10)
        assert site["of_ceiling"] == pytest.approx(0.1)
        assert network["nodes"]["operators"][0]["name"] == "Conv"

    def test_a_baseline(self) -> None:
        (only,) = record(row(2.0, baseline=6.0))["rows"]
        assert only["baseline"]["latency"]["median"] == pytest.approx(6e-3)
        assert only["trial"]["ratio"] == pytest.approx(3.0)
        assert only["claim"]["verdict"] == "faster"

    def test_a_busy_machine_has_no_interval(self) -> None:
        assert record(row(noise=BUSY))["rows"][0]["model"]["interval"] is None


class TestReading:
    def test_what_was_written(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text(json.dumps(record()))
        assert is_saved(path)
        found = read_profile(path)
        assert found.rows[0].setting == Setting(Machine(), 8)
        assert found.rows[0].model.latency.p99 == pytest.approx(2e-3)
        assert found.environment.cpu == "A processor"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", r"'.*a.json' is no JSON: Expecting"),
            ("[1]", r"'.*a.json' is no profile; write one with: onnxcp profile MODEL --json"),
            ('{"kind": "plan"}', "is no profile"),
            ('{"kind": "profile", "schema": 99}', "is a profile of schema 99, and this .* reads 3"),
            ('{"kind": "profile"}', "is a profile of schema None"),
            (f'{{"kind": "profile", "schema": {SCHEMA}}}', "is damaged: model: Field required"),
        ],
    )
    def test_what_is_no_profile(self, text: str, message: str, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_profile(path)

    def test_no_file(self, tmp_path: Path) -> None:
        assert not is_saved(tmp_path / "none")
        with pytest.raises(DataError, match=r"Cannot read '.*none': No such file"):
            read_profile(tmp_path / "none")

    def test_models_are_no_profiles(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_bytes(b"\x08\x08")
        assert not is_saved(tmp_path / "a.onnx")


class TestCompare:
    @pytest.mark.parametrize(
        ("after", "verdict"),
        [
            (2.0, Verdict.SAME),
            (1.95, Verdict.SAME),
            (1.0, Verdict.FASTER),
            (4.0, Verdict.SLOWER),
        ],
    )
    def test_verdicts(self, after: float, verdict: Verdict) -> None:
        (change,) = compare_profiles(saved(row(2.0)), saved(row(after)))
        assert change.verdict is verdict
        assert change.ratio == pytest.approx(2.0 / after)
        assert change.interval is not None
        # Both ends are wider by the drift of both machines.
        assert change.interval == pytest.approx((2 / after / 1.01**2, 2 / after * 1.01**2))

    def test_noise_hides_a_difference(self) -> None:
        noisy = Noise(0.1, 0.1, 0.2)
        (change,) = compare_profiles(saved(row(2.0, noise=noisy)), saved(row(1.8, noise=noisy)))
        assert change.verdict is Verdict.SAME
        (change,) = compare_profiles(saved(row(2.0)), saved(row(1.8)))
        assert change.verdict is Verdict.FASTER

    @pytest.mark.parametrize(
        ("seconds", "verdict"),
        [
            ((1e-4, 1e-4), Verdict.SLOWER),
            ((1e-4, 1.02e-4), Verdict.SLOWER),
            ((1e-4, 1.2e-4), Verdict.SAME),
            ((1.2e-4, 1e-4), Verdict.SLOWER),
            ((0.0, 1.2e-4), Verdict.SLOWER),
        ],
    )
    def test_a_machine_that_was_slower_itself(
        self, seconds: tuple[float, float], verdict: Verdict
    ) -> None:
        """Quiet each time, but with less of a processor that is shared."""
        a, b = (replace(QUIET, seconds=each) for each in seconds)
        (change,) = compare_profiles(saved(row(2.0, noise=a)), saved(row(2.3, noise=b)))
        assert change.verdict is verdict
        assert change.ratio == pytest.approx(2.0 / 2.3)

    def test_a_busy_machine_is_refused(self) -> None:
        for pair in ((row(2.0, noise=BUSY), row(1.0)), (row(2.0), row(1.0, noise=BUSY))):
            (change,) = compare_profiles(*(saved(each) for each in pair))
            assert (change.verdict, change.interval) == (Verdict.REFUSED, None)

    @pytest.mark.parametrize(
        ("other", "said"),
        [
            (replace(ENVIRONMENT, cpu="Another"), "processor: A processor and Another"),
            (replace(ENVIRONMENT, cores=4), "cores: 2 and 4"),
            (replace(ENVIRONMENT, versions={}), "onnxruntime: 1.31.1 and none"),
        ],
    )
    def test_another_machine_is_refused(self, other: Environment, said: str) -> None:
        a, b = saved(row(2.0)), saved(row(1.0), environment=other)
        assert differences_of_machine(a, b) == [said]
        assert compare_profiles(a, b)[0].verdict is Verdict.REFUSED

    def test_rows_are_matched_by_their_setting(self) -> None:
        one, two = Machine(intra_op_num_threads=1), Machine(intra_op_num_threads=2)
        a = saved(row(2.0, machine=one), row(3.0, machine=two), row(9.0, batch=1))
        b = saved(row(3.0, machine=two), row(2.0, machine=one))
        assert [change.ratio for change in compare_profiles(a, b)] == pytest.approx([1.0, 1.0])
        assert tables.only_in_one(a, b) == 1

    def test_nothing_in_common(self) -> None:
        with pytest.raises(
            DataError, match="the first has cpu, batch 1, the second cpu, batch 8; cuda, batch 1"
        ):
            compare_profiles(
                saved(row(batch=1)), saved(row(), row(batch=1, machine=Machine(("cuda",))))
            )

    def test_as_a_record(self) -> None:
        changes = compare_profiles(saved(row(2.0)), saved(row(1.0)))
        content = json.loads(to_json(comparison_record("a.json", "b.json", changes)))
        assert content["kind"] == "comparison of profiles"
        assert content["rows"][0]["verdict"] == "faster"
        assert content["rows"][0]["before"] == pytest.approx(2e-3)


class TestTables:
    grid = tuple(
        row(milliseconds, machine=Machine((provider,), threads), batch=batch)
        for milliseconds, provider, threads, batch in [
            (2.0, "cpu", 1, 1), (1234.0, "cpu", 2, 32), (0.123, "cuda", 2, 32),
        ]
    )  # fmt: skip

    def test_one_setting_is_a_column(self) -> None:
        text = printed(tables.statistics(row()))
        for words in (
            *("median (p50)", "95 % interval", "mean", "least", "most", "90th percentile"),
            *("95th percentile", "99th percentile", "samples per second", "peak memory"),
            *("50.0 MiB", "time to first result", "210 ms", "30", "7, left out", "4.00 k"),
        ):
            assert words in text
        assert "device" not in text
        assert "copies" not in text

    def test_two_networks_are_two(self) -> None:
        text = printed(tables.statistics(row(2.0, baseline=6.0)))
        assert text.split()[:2] == ["before", "after"]
        assert "6.00 ms" in text
        assert "2.00 ms" in text

    def test_a_device(self) -> None:
        text = printed(tables.statistics(row(device=True)))
        assert "median with copies" in text
        assert "memory of the device" in text
        assert "300 MiB" in text
        text = printed(tables.costs([row(device=True), row(batch=1)]))
        assert "copies" in text
        assert "300 MiB" in text

    def test_interrupted_runs_that_are_included(self) -> None:
        interrupted = replace(row(), timed=timed(clean=False))
        text = printed(tables.statistics(interrupted))
        assert "7, included" in text
        assert "12, not stable yet" in text

    def test_no_interval_on_a_busy_machine(self) -> None:
        assert "interval" not in printed(tables.statistics(row(noise=BUSY)))

    def test_without_a_batch(self) -> None:
        assert "runs per second" in printed(tables.statistics(row(batch=None)))

    @pytest.mark.parametrize("make", [tables.latencies, tables.samplings, tables.costs])
    def test_which_network_a_row_is_of_is_never_lost(self, make: Any) -> None:
        rows = [
            row(131.0, baseline=300.0, batch=batch, machine=Machine((name,), threads), device=True)
            for batch in (1, 32)
            for threads in (1, 16)
            for name in ("cpu", "cuda{use_tf32=0}")
        ]
        text = printed(make(rows))
        assert max(map(len, text.splitlines())) <= 80
        assert text.count("before") == text.count("after") == 8

    def test_intervals_of_several_settings(self) -> None:
        text = printed(tables.samplings([row(batch=1), row(batch=2, noise=BUSY)]))
        assert "95 % interval" in text
        assert text.count(" to ") == 1 + text.count("to warm")

    @pytest.mark.parametrize("make", [tables.latencies, tables.samplings, tables.costs])
    def test_several_settings_are_a_row_each(self, make: Any) -> None:
        text = printed(make(self.grid))
        assert [word in text for word in ("threads", "batch", "cuda")] == [True] * 3
        assert len(text.strip().splitlines()) == 3 + 3
        alike = printed(make((row(batch=1), row(batch=2))))
        assert "threads" not in alike
        assert "batch" in alike

    def test_statistics_of_several_settings(self) -> None:
        text = printed(tables.latencies(self.grid))
        for words in ("p50", "p90", "p95", "p99", "mean", "least", "most", "1234", "0.123"):
            assert words in text

    def test_several_settings_against_a_baseline(self) -> None:
        rows = [row(2.0, baseline=6.0, batch=1), row(4.0, baseline=4.0, batch=8)]
        for make in (tables.latencies, tables.samplings, tables.costs):
            text = printed(make(rows))
            assert text.count("before") == text.count("after") == 2
        text = printed(tables.against(rows))
        assert "3.00×" in text
        assert "faster" in text
        assert "not told apart" in text

    def test_long_names_of_providers_are_folded(self) -> None:
        machine = Machine(("cuda{cudnn_conv_algo_search=HEURISTIC,use_tf32=0,prefer_nhwc=1}",))
        for make in (tables.latencies, tables.costs):
            assert "cuda{" in printed(make([row(), row(machine=machine)]))

    def test_sites_and_operators(self) -> None:
        text = printed(tables.sites(row()))
        for words in ("conv1", tables.LAYOUT, "fc", "all nodes", "GFLOP/s", "10.0", "10 %", "50 %"):
            assert words in text
        assert "before" not in text
        text = printed(tables.operators(row()))
        assert "Reorder" in text

    def test_before_and_after_side_by_side(self) -> None:
        after = row(2.0, baseline=6.0)
        assert after.timed.breakdown is not None
        parts = (*after.timed.breakdown.sites[:1], Part("added", 1e-3))
        less = replace(
            after, timed=replace(after.timed, breakdown=Breakdown(parts, (Part("New", 1e-3),)))
        )
        text = printed(tables.sites(less))
        assert "before" in text
        lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
        assert "3.00 ms" in lines["conv1"]
        assert "1.00 ms" in lines["conv1"]
        assert "–" in lines["fc"]
        assert "–" in lines["added"]
        assert list(lines).index("fc") < list(lines).index("added")
        assert "New" in printed(tables.operators(less))

    def test_saved_profiles(self) -> None:
        changes = compare_profiles(saved(row(2.0)), saved(row(1.0)))
        text = printed(tables.saved(changes))
        assert "2.00×" in text
        assert "faster" in text
        text = printed(tables.saved_costs(changes))
        assert "50.0 MiB" in text
        assert "210 ms" in text
        sites = tables.saved_sites(changes[0])
        assert sites is not None
        assert "conv1" in printed(sites)

    def test_saved_profiles_of_many_settings(self) -> None:
        changes = compare_profiles(saved(*self.grid), saved(*self.grid))
        assert "not told apart" in printed(tables.saved(changes))
        assert "210 ms" in printed(tables.saved_costs(changes))

    def test_saved_profiles_without_nodes(self) -> None:
        bare = replace(row(), timed=replace(timed(), breakdown=None, fresh=None))
        changes = compare_profiles(saved(bare), saved(bare))
        assert tables.saved_sites(changes[0]) is None
        assert "–" in printed(tables.saved_costs(changes))


class TestSentences:
    @pytest.mark.parametrize(
        ("ratio", "noise", "words"),
        [
            (3.0, QUIET, ["net is faster than the baseline: 3.00x"]),
            (0.5, QUIET, ["net is slower than the baseline: 0.50x"]),
            (1.0, QUIET, ["net is not told apart", "less than 2.5 % is no difference"]),
            (3.0, BUSY, ["Which is faster is not said", "too busy", "3.00x"]),
        ],
    )
    def test_claims(self, ratio: float, noise: Noise, words: list[str]) -> None:
        trial = row(2.0, baseline=2.0 * ratio).trial
        assert trial is not None
        said = tables.claimed(claim(trial, noise), "net", trial.pairs)
        for each in words:
            assert each in said

    def test_noise(self) -> None:
        assert tables.quiet(QUIET).endswith("interrupted.")
        assert tables.quiet(Noise(0.1, 0, 0)).endswith("are wider for it.")
        assert "No intervals are given" in tables.quiet(BUSY)

    def test_the_site_farthest_from_the_ceiling(self) -> None:
        found = timed().breakdown
        assert found is not None
        # conv1 would take 0.1 ms instead of 1 ms, and fc 0.4 ms instead of 0.8 ms.
        assert tables.farthest(found, CEILING) == (
            "A product of two 1024×1024 matrices of float32 runs at 100 GFLOP/s here; farthest "
            "from that is 'conv1', whose 1.00 ms would be 100 µs."
        )
        assert tables.farthest(found, None) == ""
        fast = Breakdown((Part("conv", 1e-3, 1e8),), ())
        assert tables.farthest(fast, CEILING).endswith("100 GFLOP/s here.")
        assert tables.farthest(Breakdown((), ()), CEILING).endswith("100 GFLOP/s here.")

    def test_nodes_on_the_cpu(self) -> None:
        found = timed(device=True).breakdown
        assert found is not None
        assert tables.fallen_back(found) == (
            "2 nodes run on the CPU for want of a kernel, 20 % of the time of nodes: pool, shape."
        )
        assert tables.fallen_back(Breakdown((), ())) == ""
