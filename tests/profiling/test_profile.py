from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxcp.errors import DataError, ModelError
from onnxcp.graph.model import Model, load
from onnxcp.profiling import profile as profiling
from onnxcp.profiling import session as session_module
from onnxcp.profiling.breakdown import Breakdown
from onnxcp.profiling.fresh import Fresh
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.noise import Level, Verdict
from onnxcp.profiling.product import Ceiling
from onnxcp.profiling.profile import Effort, Setting, batch_of, profile
from onnxcp.profiling.timing import Latency, Trial
from tests.networks import conv_model

ONE, TWO = Machine(intra_op_num_threads=1), Machine(intra_op_num_threads=2)
FEW = Effort(warmup=1, iterations=3)


def trial(ratio: float) -> Trial:
    a, b = Latency((ratio * 1e-3,) * 10), Latency((1e-3,) * 10)
    return Trial(a, b, ratio, ratio, ratio, 0.0, 10, 0, clean=True)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """A machine without noise, whose warm-up, processes and ceiling take no time."""
    probed: list[Machine] = []

    def probe(machine: Machine) -> Callable[[], Trial]:
        probed.append(machine)
        return lambda: trial(1.0)

    monkeypatch.setattr(profiling, "probe", probe)
    monkeypatch.setattr(profiling, "start_fresh", lambda *_: Fresh(0.2, 0.1, 2**20))
    monkeypatch.setattr(profiling, "measure_ceiling", lambda *_: Ceiling(1e11, "float32", 1024))
    monkeypatch.setattr("onnxcp.profiling.warmup._WINDOW_SECONDS", 0.0)
    return probed


@pytest.fixture
def model() -> Model:
    return load(conv_model((3, 3), batch="N"))


def test_a_row_for_each_machine_and_batch(model: Model, quiet: list[Machine]) -> None:
    rows = profile(model, [ONE, TWO], batches=(1, 4), effort=FEW)
    assert [row.setting for row in rows] == [
        Setting(machine, batch) for machine in (ONE, TWO) for batch in (1, 4)
    ]
    for row in rows:
        assert {shape[0] for shape in row.shapes.values()} == {row.setting.batch}
        assert len(row.timed.latency.samples) == 3
        assert row.timed.warmup.runs >= 1
        assert row.timed.fresh == Fresh(0.2, 0.1, 2**20)
        assert row.noise.level is Level.QUIET
        assert row.timed.breakdown is row.timed.copying is row.ceiling is None
        assert row.baseline is row.trial is row.claim is None
    assert quiet == [ONE, TWO]


@pytest.mark.parametrize("against", [False, True])
def test_a_machine_that_is_slow_for_one_row_is_noisy_there(
    model: Model, monkeypatch: pytest.MonkeyPatch, against: bool
) -> None:
    drifts = iter([0.0, 0.4] if not against else [0.0, 0.0, 0.4, 0.0])
    monkeypatch.setattr(Latency, "drift", property(lambda _: next(drifts)))
    monkeypatch.setattr(profiling, "paired", lambda *_, **__: trial(1.0))
    rows = profile(model, [ONE], batches=(1, 4), effort=FEW, baseline=model if against else None)
    assert [row.noise.within for row in rows] == [0.0, 0.4]
    assert [row.noise.level for row in rows] == [Level.QUIET, Level.BUSY]


def test_every_session_sees_one_shape_only(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[tuple[int, ...]]] = []
    really = profiling.Runner

    class Runner(really):  # type: ignore[misc, valid-type]
        def __init__(self, session: object, feeds: dict[str, np.ndarray], **named: str) -> None:
            super().__init__(session, feeds, **named)
            seen.append({value.shape for value in feeds.values()})

    monkeypatch.setattr(profiling, "Runner", Runner)
    profile(model, [ONE], batches=(1, 2), effort=FEW)
    assert [len(shapes) for shapes in seen] == [1, 1]
    assert seen[0] != seen[1]


def test_several_sessions_are_pooled(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where weights lie in memory has a say; but a session that opens slowly is the only one."""
    found = [Latency((1e-3,) * 8, 2), Latency((2e-3,) * 9, 3, clean=False), Latency((3e-3,) * 8)]
    ready = iter(found)
    monkeypatch.setattr(profiling, "measure", lambda *_, **__: next(ready))
    monkeypatch.setattr(profiling, "_QUICK_SECONDS", math.inf)
    (row,) = profile(model, [ONE], effort=Effort(warmup=1))
    samples = found[0].samples + found[1].samples + found[2].samples
    assert row.timed.latency == Latency(samples, 5, clean=False)
    assert row.timed.warmup.runs >= 9, "each has been warmed up"
    monkeypatch.setattr(profiling, "_QUICK_SECONDS", 0.0)
    ready = iter(found[:1])
    (row,) = profile(model, [ONE], effort=Effort(warmup=1))
    assert row.timed.latency == found[0]


def test_against_a_baseline(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "paired", lambda *_, **__: trial(2.0))
    (row,) = profile(model, [ONE], baseline=model, effort=FEW)
    assert row.baseline is not None
    assert row.baseline.latency.median == pytest.approx(2e-3)
    assert row.timed.latency.median == pytest.approx(1e-3)
    assert row.claim is not None
    assert row.claim.verdict is Verdict.FASTER


def test_the_baseline_is_a_and_the_network_b(model: Model) -> None:
    (row,) = profile(model, [ONE], baseline=model, effort=FEW)
    assert row.trial is not None
    assert row.baseline is not None
    assert row.baseline.latency is row.trial.a
    assert row.timed.latency is row.trial.b
    assert row.trial.pairs + row.trial.discarded >= 8


def test_per_node(model: Model) -> None:
    (row,) = profile(model, [ONE], baseline=model, effort=Effort(iterations=3, per_node=True))
    assert row.ceiling == Ceiling(1e11, "float32", 1024)
    for timed in (row.timed, row.baseline):
        assert timed is not None
        assert timed.breakdown is not None
        assert timed.breakdown.seconds > 0


def test_on_a_device(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bound to memory of a device is timed with copies, too, and nodes are looked at."""
    monkeypatch.setitem(session_module._DEVICES, "CPUExecutionProvider", "cpu")
    monkeypatch.setattr(profiling, "_host_only", lambda _: False)
    monkeypatch.setattr(
        profiling, "break_down", lambda *_, **__: Breakdown((), (), ("pool",), 1e-3)
    )
    (row,) = profile(model, [ONE], effort=FEW)
    assert row.timed.copying is not None
    assert len(row.timed.copying.samples) == 3
    assert row.timed.breakdown is not None
    assert row.timed.breakdown.fallen_back == ("pool",)
    (row,) = profile(model, [ONE], baseline=model, effort=FEW)
    assert row.baseline is not None
    assert row.baseline.copying is not None


def test_half_precision_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(session_module._DEVICES, "CPUExecutionProvider", "cpu")
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float16[N,3] x) => (float16[N,3] y) {'
    model = load(onnx.parser.parse_model(text + "y = Add(x, x) }"))
    (row,) = profile(model, [ONE], batches=(5,), effort=FEW)
    assert row.shapes == {"x": (5, 3)}
    assert row.timed.copying is not None


@pytest.mark.parametrize("error", [ModelError("It was killed."), OSError("no processes left")])
def test_a_process_of_its_own_is_not_needed(
    model: Model, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_fresh(*_: object) -> Fresh:
        raise error

    monkeypatch.setattr(profiling, "start_fresh", start_fresh)
    (row,) = profile(model, [ONE], effort=FEW)
    assert row.timed.fresh is None


def test_a_fixed_batch(quiet: list[Machine]) -> None:
    model = load(conv_model((3, 3), batch=2))
    assert profile(model, [ONE], batches=(2,), effort=FEW)[0].setting.batch == 2
    with pytest.raises(DataError, match=r"no batch to set to 8: .*only 2 can be profiled"):
        profile(model, [ONE], batches=(2, 8), effort=FEW)
    assert len(quiet) == 1, "nothing is timed before all shapes are known"


def test_a_baseline_of_other_inputs(model: Model) -> None:
    with pytest.raises(DataError, match="wants shape"):
        profile(model, [ONE], baseline=load(conv_model((3, 3), size=(7, 7))), effort=FEW)


def test_what_is_said_on_the_way(model: Model) -> None:
    said: list[tuple[str, int, int]] = []
    profile(model, [ONE], batches=(1, 2), effort=FEW, progress=lambda *what: said.append(what))
    assert said == [
        ("finding shapes", 0, 1),
        ("looking at the machine", 0, 2),
        ("timing", 0, 2),
        ("timing", 1, 2),
    ]


@pytest.mark.parametrize(
    ("shapes", "batch"),
    [
        ({"x": (4, 3)}, 4),
        ({"x": (4, 3), "n": ()}, 4),
        ({"x": (4, 3), "y": (5, 3)}, None),
        ({"n": ()}, None),
    ],
)
def test_batch_of(shapes: dict[str, tuple[int, ...]], batch: int | None) -> None:
    assert batch_of(shapes) == batch


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (Setting(Machine(), 8), "cpu, batch 8"),
        (Setting(Machine(("tensorrt", "cuda"), 1), None), "tensorrt+cuda, 1 thread"),
        (Setting(Machine(("cuda{use_tf32=0}",), 2), 1), "cuda{use_tf32=0}, 2 threads, batch 1"),
    ],
)
def test_settings_in_words(setting: Setting, text: str) -> None:
    assert str(setting) == text


@pytest.mark.parametrize(("run", "seconds"), [(1e-3, 3.0), (0.05, 5.0), (1.0, 20.0)])
def test_how_long_to_measure(run: float, seconds: float) -> None:
    assert profiling._seconds(run) == pytest.approx(seconds)
