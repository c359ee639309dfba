from __future__ import annotations

import onnx
from onnx import helper

from onnxcp.graph.chain import Chain, ConvStep, MatrixStep
from onnxcp.graph.geometry import Geometry
from onnxcp.graph.model import Model, load
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.reporting.wiring import Box, Wires, wirings
from tests.networks import model_of, noise


def network(*nodes: onnx.NodeProto, **weights: tuple[int, ...]) -> Model:
    values = {name: noise(*shape) for name, shape in weights.items()}
    return load(model_of(list(nodes), inputs={"x": (1, 4, 8, 8)}, weights=values))


def site_of(model: Model, name: str) -> Site:
    return next(each for each in find_sites(model)[0] if each.name == name)


def two_steps(site: Site, rank: int) -> Chain:
    """A chain of the right shape: the kernel to fewer channels, then to all."""
    assert site.geometry is not None
    first = ConvStep(noise(rank, *site.kernel_shape[1:]), site.geometry)
    ones = Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    return Chain((first, ConvStep(noise(site.outputs, rank, 1, 1), ones)), ranks=(rank,))


def named(wires: Wires) -> set[tuple[str, str]]:
    """Who feeds whom."""
    return {(wires.boxes[a].text, wires.boxes[b].text) for a, b in wires.edges}


class TestLayer:
    NODES = (
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w"], ["h"], name="conv", strides=[2, 2]),
        helper.make_node("Sigmoid", ["h"], ["s"], name="sigmoid"),
        helper.make_node("Mul", ["h", "s"], ["y"], name="mul"),
    )

    def test_before_and_after(self) -> None:
        model = network(*self.NODES, w=(6, 4, 3, 3))
        site = site_of(model, "conv")
        (found,) = wirings(model, splice(model, {site: ("svd", two_steps(site, 2))}))
        assert found.site == "conv"
        assert found.before.boxes == (
            Box("Relu", "", "near"),
            Box("Conv 3×3", "4 → 6, stride 2", "layer"),
            Box("Sigmoid", "", "near"),
            Box("Mul", "", "near"),
        )
        assert found.after.boxes == (
            Box("Relu", "", "near"),
            Box("Conv 3×3", "4 → 2, stride 2", "layer"),
            Box("Conv 1×1", "2 → 6", "layer"),
            Box("Sigmoid", "", "near"),
            Box("Mul", "", "near"),
        )
        assert found.before.edges == ((0, 1), (1, 2), (1, 3), (2, 3))
        assert found.after.edges == ((0, 1), (1, 2), (2, 3), (2, 4), (3, 4))

    def test_a_layer_that_kept_its_shape_is_not_drawn(self) -> None:
        model = network(*self.NODES, w=(6, 4, 3, 3))
        assert wirings(model, model) == []

    def test_chains_that_were_there_before_are_not_drawn(self) -> None:
        model = network(*self.NODES, w=(6, 4, 3, 3))
        site = site_of(model, "conv")
        rewritten = splice(model, {site: ("svd", two_steps(site, 2))})
        assert wirings(rewritten, rewritten) == []

    def test_rows_that_are_summed(self) -> None:
        model = network(*self.NODES, w=(6, 4, 3, 3))
        site = site_of(model, "conv")
        chain = two_steps(site, 2)
        both = Chain(chain.steps, ranks=(2,), beside=(two_steps(site, 3).steps,))
        (found,) = wirings(model, splice(model, {site: ("sum", both)}))
        kinds = [(box.text, box.kind) for box in found.after.boxes]
        assert kinds.count(("Conv 3×3", "layer")) == 2
        assert ("Add", "layer") in kinds
        assert {("Relu", "Conv 3×3"), ("Conv 1×1", "Add"), ("Add", "Mul")} <= named(found.after)


def test_inputs_and_outputs_of_the_network() -> None:
    model = network(helper.make_node("Conv", ["x", "w"], ["y"], name="conv"), w=(6, 4, 3, 3))
    site = site_of(model, "conv")
    (found,) = wirings(model, splice(model, {site: ("svd", two_steps(site, 2))}))
    ends = [Box("x", "input", "near"), Box("y", "output", "near")]
    for wires in (found.before, found.after):
        assert [wires.boxes[0], wires.boxes[-1]] == ends
        assert wires.edges == tuple((i, i + 1) for i in range(len(wires.boxes) - 1))


def test_a_folded_normalization_is_part_of_the_layer() -> None:
    model = network(
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv"),
        helper.make_node("BatchNormalization", ["h", "a", "b", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
        w=(6, 4, 3, 3), a=(6,), b=(6,), m=(6,), v=(6,),
    )  # fmt: skip
    site = site_of(model, "conv")
    (found,) = wirings(model, splice(model, {site: ("svd", two_steps(site, 2))}))
    kinds = [(box.text, box.kind) for box in found.before.boxes]
    assert kinds[1:] == [("Conv 3×3", "layer"), ("BatchNormalization", "layer"), ("Relu", "near")]


def test_a_matrix() -> None:
    nodes = [helper.make_node("MatMul", ["z", "v"], ["y"], name="matrix")]
    model = load(model_of(nodes, inputs={"z": (1, 8)}, weights={"v": noise(8, 5)}))
    steps = MatrixStep(noise(2, 8)), MatrixStep(noise(5, 2))
    chains = {site_of(model, "matrix"): ("svd", Chain(steps, ranks=(2,)))}
    (found,) = wirings(model, splice(model, chains))
    assert [box.detail for box in found.before.boxes] == ["input", "8 → 5", "output"]
    assert [box.detail for box in found.after.boxes] == ["input", "8 → 2", "2 → 5", "output"]


def test_what_neighbours_are_called() -> None:
    model = network(
        helper.make_node("Conv", ["x", "d"], ["h"], name="depthwise", group=4),
        helper.make_node("Conv", ["h", "w"], ["c"], name="conv"),
        helper.make_node("ConvTranspose", ["c", "t"], ["y"], group=2, strides=[2, 1]),
        helper.make_node("InstanceNormalization", ["c", "a", "a"], ["q"]),
        d=(4, 1, 3, 3), w=(6, 4, 3, 3), t=(6, 5, 2, 2), a=(6,),
    )  # fmt: skip
    site = site_of(model, "conv")
    (found,) = wirings(model, splice(model, {site: ("svd", two_steps(site, 2))}))
    assert [box for box in found.before.boxes if box.kind == "near"] == [
        Box("Conv 3×3", "4 → 4, depthwise", "near"),
        Box("ConvTranspose 2×2", "6 → 10, 2 groups, stride 2×1", "near"),
        Box("InstanceNormaliza…", "", "near"),
    ]
