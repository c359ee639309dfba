from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from onnxcp.graph.model import Model
from onnxcp.graph.schedule import Schedule, schedule
from onnxcp.graph.site import find_sites
from tests.networks import noise
from tests.peculiar import branching
from tests.wirings import SUMS, summing, wired


def plan(proto: onnx.ModelProto, *stops: str, fed: tuple[str, ...] | None = None) -> Schedule:
    """Schedule a network with stops at nodes of some names, by default at all sites."""
    names = stops or [site.name for site in find_sites(Model(proto))[0]]
    nodes = proto.graph.node
    return schedule(Model(proto), {i for i, n in enumerate(nodes) if n.name in names}, fed)


def text(proto: onnx.ModelProto, schedule: Schedule) -> list[str]:
    """Show the steps by the names of their nodes, stops in brackets."""
    names = [
        " ".join(proto.graph.node[index].name for index in step.nodes) for step in schedule.steps
    ]
    return [
        f"[{name}]" if step.stop else name for name, step in zip(names, schedule.steps, strict=True)
    ]


@pytest.mark.parametrize("name", SUMS)
def test_finds_what_outputs_are_summed_with_and_makes_it_first(name: str) -> None:
    proto = summing(name)
    found = {
        proto.graph.node[step.nodes[0]].name: step.partners
        for step in plan(proto).steps
        if step.stop
    }
    assert list(found.items()) == list(SUMS[name][1].items())


@pytest.mark.parametrize("name", SUMS)
def test_every_step_finds_what_it_reads_and_nothing_stays_behind(name: str) -> None:
    proto = summing(name)
    found = plan(proto)
    alive = set(found.inputs)
    for step in found.steps:
        assert alive.issuperset(step.reads)
        assert alive.issuperset(step.partners)
        alive |= set(step.makes)
        assert step.dies <= alive
        alive -= step.dies
    assert alive == {"y"}


def test_runs_lie_between_stops_in_the_order_of_the_graph() -> None:
    proto = wired("a = Conv x", "b = Relu a", "c = Neg b", "d = Conv c", "e = Add d a", "y = Neg e")
    assert text(proto, plan(proto, "a", "d")) == ["[a]", "b c", "[d]", "e y"]
    assert text(proto, plan(proto, "d")) == ["a b c", "[d]", "e y"]


def test_tells_what_a_step_reads_makes_and_leaves_behind() -> None:
    proto = wired("a = Neg x", "b = Conv a", "c = Abs b", "d = Mul c a", "y = Conv d")
    first, stop, last, end = plan(proto).steps
    assert (first.reads, first.makes, first.dies) == (("x",), ("a",), {"x"})
    assert (stop.reads, stop.makes, stop.dies) == (("a",), ("b",), set())
    assert (last.reads, last.makes, last.dies) == (("b", "a"), ("d",), {"a", "b"})
    assert (end.reads, end.makes, end.dies) == (("d",), ("y",), {"d"})


def test_a_graph_that_is_not_sorted_is() -> None:
    proto = wired("y = Conv b", "b = Relu a", "a = Conv x")
    assert text(proto, plan(proto)) == ["[a]", "b", "[y]"]


def test_leaves_out_what_nobody_needs() -> None:
    proto = wired("a = Conv x", "dead = Relu a", "deader = Conv dead", "y = Neg a")
    assert text(proto, plan(proto, "a")) == ["[a]", "y"]


def test_a_stop_nobody_needs_is_made_and_dies() -> None:
    proto = wired("a = Conv x", "y = Neg x")
    stop, _ = plan(proto).steps
    assert (stop.makes, stop.dies) == (("a",), {"a"})


def test_what_depends_on_constants_only_is_no_step_of_its_own() -> None:
    shape = helper.make_node("Constant", [], ["k"], name="k", value_floats=[2.0])
    proto = wired("n = Neg w", "m = Mul n k", "a = Conv x", "y = Mul a m", weights={"w": noise(1)})
    proto.graph.node.insert(0, shape)
    found = plan(proto)
    assert text(proto, found) == ["[a]", "y"]
    assert found.steps[1].reads == ("a",)


def test_random_numbers_are_no_constants() -> None:
    proto = wired("a = Conv x", "y = Mul a r")
    draw = helper.make_node("RandomNormal", [], ["r"], name="r", shape=[1])
    proto.graph.node.insert(0, draw)
    found = plan(proto)
    assert text(proto, found) == ["r", "[a]", "y"]
    assert found.random == {0}


def test_an_initializer_that_is_fed_is_no_constant() -> None:
    proto = wired("n = Neg w", "a = Conv x", "y = Mul a n", weights={"w": noise(1)})
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    assert text(proto, plan(proto)) == ["[a]", "y"]
    assert text(proto, plan(proto, fed=("x", "w"))) == ["n", "[a]", "y"]
    assert plan(proto, fed=("x", "w")).inputs == ("x", "w")


def test_nested_graphs_read_from_around_them() -> None:
    proto = branching()
    found = plan(proto)
    assert text(proto, found) == ["[conv]", "relu if loop"]
    assert found.reads[2] == ("h",)


def test_deep_networks_are_no_deep_recursion() -> None:
    deep = [f"n{i + 1} = Neg n{i}" for i in range(2000)]
    proto = wired("n0 = Conv x", *deep, "y = Conv n2000")
    assert [len(step.nodes) for step in plan(proto).steps] == [1, 2000, 1]
