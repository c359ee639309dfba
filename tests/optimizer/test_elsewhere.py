"""Machines that the network was not planned for: it may not be slower there either."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from onnxcp import Machine, OnnxcpError, Optimized, optimize
from onnxcp.graph.model import Model, load
from onnxcp.profiling.timing import Trial
from onnxcp.proving import Proven
from onnxcp.rewriting import Rewrite
from onnxcp.verification import Elsewhere, Verification
from tests.clockwork import trial
from tests.optimizer.conftest import FASTER, SLOWER, network, settings

HERE, THERE = Machine(), Machine(intra_op_num_threads=1)
CHAIN = {"macs": 0.5, "families": ("channel-svd",)}

pytestmark = pytest.mark.usefixtures("timings")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Machine]]:
    """Makes whole networks that hold a node of a name slower on a machine; tells who was timed."""

    def set_to(machine: Machine, node: str) -> list[Machine]:
        timed = []

        def time(_: Model, rewritten: Model, where: Machine, __: object) -> Trial:
            timed.append(where)
            names = [each.name for each in rewritten.proto.graph.node]
            slow = where == machine and any(name.startswith(node) for name in names)
            return trial(SLOWER if slow else FASTER, 1.0)

        monkeypatch.setattr("onnxcp.verification.time", time)
        return timed

    return set_to


def replaced(result: Optimized) -> list[str]:
    return [each.site.name for each in result.decisions if each.chain is not None]


def test_it_is_timed_on_each(clock: Callable[..., list[Machine]]) -> None:
    timed = clock(HERE, "nothing")
    result = optimize(network(), settings(**CHAIN, also_on=(THERE,)))
    assert result.improved
    assert timed == [HERE, THERE]
    assert result.verification is not None
    (elsewhere,) = result.verification.elsewhere
    assert elsewhere.machine == THERE
    assert elsewhere.trial.ratio == FASTER


def test_sites_that_make_it_slower_there_are_given_back(
    clock: Callable[..., list[Machine]],
) -> None:
    everywhere = replaced(optimize(network(), settings(**CHAIN)))
    doubted = everywhere[0]
    clock(THERE, f"{doubted}/")
    result = optimize(network(), settings(**CHAIN, also_on=(THERE,)))
    assert result.improved
    assert set(replaced(result)) < set(everywhere)
    assert doubted not in replaced(result)


@pytest.mark.parametrize("machine", [HERE, THERE])
def test_the_original_where_none_is_faster_on_all(
    clock: Callable[..., list[Machine]], machine: Machine
) -> None:
    clock(machine, "")
    result = optimize(network(), settings(**CHAIN, also_on=(THERE,)))
    assert not result.improved
    assert result.model is result.original
    assert "0.90x" in result.verdict
    assert ("on cpu with 1 thread" in result.verdict) == (machine == THERE)


def test_what_does_not_start_there_fails_before_the_work() -> None:
    done = []
    with pytest.raises(OnnxcpError, match="nowhere"):
        optimize(
            network(),
            settings(**CHAIN, also_on=(Machine(("nowhere",)),)),
            progress=lambda what, *_: done.append(what),
        )
    assert done == ["loading"]


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (Machine(), "cpu"),
        (Machine(("cuda", "cpu"), 2), "cuda+cpu with 2 threads"),
        (THERE, "cpu with 1 thread"),
    ],
)
def test_its_name(machine: Machine, name: str) -> None:
    assert str(machine) == name


@pytest.mark.parametrize(("there", "seconds"), [(FASTER, 1 / FASTER), (SLOWER, math.inf)])
def test_what_is_slower_there_is_preferred_to_nothing(there: float, seconds: float) -> None:
    """However fast it is here: what is faster on all goes before it."""
    elsewhere = (Elsewhere(THERE, trial(there, 1.0)),)
    model = load(network())
    rewrite = Rewrite(model, model, (), (), ())
    found = Verification((), None, trial(FASTER, 1.0), elsewhere)
    assert Proven(rewrite, None, found, None).seconds == seconds
