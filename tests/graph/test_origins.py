from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcp import Context, FactorizePass, Model, find_sites, load
from onnxcp.graph.chain import with_kernel
from onnxcp.graph.origins import KEY, Origin, origins
from onnxcp.graph.splice import splice
from onnxcp.passes import find_pass
from tests.networks import conv_model, model_of, noise, only_site


def factorised(
    model: Model | onnx.ModelProto, family: str, nodes: str = "*", rank: int = 3
) -> Model:
    kind = find_pass(family)
    assert issubclass(kind, FactorizePass)
    return kind(rank=rank, nodes=nodes).run(load(model), Context()).model


@pytest.mark.parametrize(
    ("family", "ranks", "count", "middle"),
    [
        ("channel-svd", (3,), 2, []),
        ("spatial-svd", (3,), 2, []),
        ("tucker2", (3, 3), 3, [1]),
        ("cp3", (3,), 3, [1]),
        ("cp4", (3,), 4, [1, 2]),
    ],
)
def test_factors_are_noted(
    family: str, ranks: tuple[int, ...], count: int, middle: list[int]
) -> None:
    model = factorised(conv_model(), family)
    names = tuple(f"w/{family}/{n}" for n in range(count))
    assert origins(model.proto) == (
        Origin("conv", family, ranks, names, tuple(names[n] for n in middle)),
    )
    read = [name for node in model.proto.graph.node for name in node.input]
    assert [name for name in read if name in names] == list(names)


def test_factors_of_every_row_of_a_sum_are_noted() -> None:
    model = factorised(conv_model(pads=(1, 1, 1, 1)), "sparse-low-rank", rank=2)
    rows = [("w/sparse-low-rank/0", "w/sparse-low-rank/1"), ("w/sparse-low-rank/3",)]
    assert origins(model.proto) == tuple(
        Origin("conv", "sparse-low-rank", (2, 2, 2, 2), row) for row in rows
    ), "but not the numbers of channels: they are no weights"


def test_the_note_is_plain_json() -> None:
    (entry,) = factorised(conv_model(), "cp3").proto.metadata_props
    assert entry.key == KEY
    assert json.loads(entry.value) == {
        "version": 1,
        "chains": [
            {
                "site": "conv",
                "family": "cp3",
                "ranks": [3],
                "factors": ["w/cp3/0", "w/cp3/1", "w/cp3/2"],
                "middle": ["w/cp3/1"],
            }
        ],
    }


def test_other_metadata_stay() -> None:
    proto = conv_model()
    proto.metadata_props.add(key="mine", value="kept")
    found = {each.key: each.value for each in factorised(proto, "cp3").proto.metadata_props}
    assert found.keys() == {"mine", KEY}
    assert found["mine"] == "kept"


def test_other_weights_of_the_same_shape_leave_no_note() -> None:
    model = load(conv_model())
    site = only_site(model)
    changed = splice(model, {site: ("refit", with_kernel(site, site.kernel() + 1))})
    assert not changed.proto.metadata_props


def test_a_factor_that_gets_another_weight_is_followed() -> None:
    model = factorised(conv_model(), "cp3")
    last = find_sites(model)[0][-1]
    changed = splice(model, {last: ("refit", with_kernel(last, last.kernel() + 1))})
    (origin,) = origins(changed.proto)
    assert origin.factors == ("w/cp3/0", "w/cp3/1", "w/cp3/2/refit")
    assert origin.middle == ("w/cp3/1",)


def test_a_factor_that_is_factorised_again_is_of_a_chain_of_its_own() -> None:
    once = factorised(conv_model((1, 3), channels=(8, 8)), "tucker2", rank=6)
    twice = factorised(once, "cp3", nodes="*/1", rank=2)
    first, second = origins(twice.proto)
    assert (first.site, first.factors, first.middle) == (
        "conv",
        ("w/tucker2/0", "w/tucker2/2"),
        (),
    )
    assert (second.site, second.family) == ("conv/tucker2/1", "cp3")
    assert len(second.factors) == 3
    names = {tensor.name for tensor in twice.proto.graph.initializer}
    assert {*first.factors, *second.factors} <= names


def test_chains_of_one_shared_weight_share_factors() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    model = factorised(
        model_of(nodes, inputs={"x": (1, 4, 6, 6)}, weights={"w": noise(4, 4, 3, 3)}), "cp3"
    )
    one, other = origins(model.proto)
    assert (one.site, other.site) == ("first", "second")
    assert one.factors == other.factors


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "3",
        '{"version": 2, "chains": []}',
        '{"version": 1}',
        '{"version": 1, "chains": [{"site": 1}]}',
    ],
)
def test_what_cannot_be_read_says_nothing(text: str) -> None:
    proto = conv_model()
    proto.metadata_props.add(key=KEY, value=text)
    assert origins(proto) == ()


def test_weights_that_are_gone_are_left_out() -> None:
    proto = factorised(conv_model(), "cp3").proto
    next(t for t in proto.graph.initializer if t.name == "w/cp3/1").name = "another"
    (origin,) = origins(proto)
    assert (origin.factors, origin.middle) == (("w/cp3/0", "w/cp3/2"), ())
    del proto.graph.initializer[:]
    assert origins(proto) == ()


def test_the_note_changes_no_number() -> None:
    model = factorised(conv_model(), "cp3")
    bare = onnx.ModelProto()
    bare.CopyFrom(model.proto)
    del bare.metadata_props[:]
    assert origins(bare) == ()
    assert bare.graph == model.proto.graph
    assert np.all(
        [a == b for a, b in zip(bare.opset_import, model.proto.opset_import, strict=True)]
    )
