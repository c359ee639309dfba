"""Layers that share factors: one initializer each, wherever the network goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnxcp_passes.coupled_tensor_train import CoupledTensorTrain
from onnxcp_passes.fold_batchnorm import FoldBatchNorm

from onnxcp.errors import PassError
from onnxcp.graph.model import Model, load, save
from onnxcp.graph.site import find_sites
from onnxcp.graph.splice import replace_kernels
from onnxcp.linalg.coupled_ranks import coupled_parameters
from onnxcp.passes import Context, PassManager
from onnxcp.pipeline import parse_pipeline
from tests.networks import FLOAT32, difference, noise, run
from tests.repeated import readers, repeated, shared

Array = npt.NDArray[Any]


def coupled(model: Model, text: str = "common=3,independent=1") -> Model:
    """Couple layers, fully unless it says how."""
    if text and "partial" not in text:
        text = f"{text},partial=false"
    (each,) = parse_pipeline(f"coupled-tensor-train{{{text}}}")
    return PassManager([each]).run(model)[0]


FULLY = [(3, 6, 1, 1), (3, 3, 3, 3), (6, 3, 1, 1)]


@pytest.mark.parametrize("kernel", [(5,), (3, 3), (2, 3, 3)])
def test_shared_factors_are_one_initializer_and_the_graph_says_what_they_mean(
    kernel: tuple[int, ...],
) -> None:
    model = repeated(kernel=kernel)
    (each,) = parse_pipeline("coupled-tensor-train{common=(2,3),independent=1,partial=false}")
    made = each.run(model, Context()).model
    ones = (1,) * len(kernel)
    assert shared(made) == [(2, 6, *ones), (3, 2, *kernel), (6, 3, *ones)]
    assert set(readers(made).values()) == {1, 3}
    kernels = reconstructed(made)
    sites = {site: kernels[site.name] for site in find_sites(model)[0]}
    whole = replace_kernels(model, sites)
    assert difference(run(made)[0], run(whole)[0]) < FLOAT32


def reconstructed(model: Model) -> dict[str, Array]:
    """Multiply out what the rows of each chain stand for."""
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    made: dict[str, Array] = {}
    convs = [node for node in model.proto.graph.node if node.op_type == "Conv"]
    for start in range(0, len(convs), 3):
        first, core, last = (weights[node.input[1]] for node in convs[start : start + 3])
        p, q = (each.reshape(each.shape[:2]) for each in (first, last))
        kernel = np.einsum("tq,qp...,ps->ts...", q, core, p)
        name = convs[start].name.split("/")[0]
        made[name] = made.get(name, 0) + kernel
    return made


def test_shared_factors_are_stored_in_the_type_of_the_weights() -> None:
    model = coupled(repeated(dtype=np.float16))
    assert shared(model) == FULLY
    kinds = {tensor.data_type for tensor in model.proto.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_full_ranks_give_the_network_back() -> None:
    model = repeated()
    made = coupled(model, "common=6,independent=6")
    assert difference(run(made)[0], run(model)[0]) < FLOAT32


def test_the_file_has_as_many_fewer_weights_as_is_reckoned(tmp_path: Path) -> None:
    model = repeated((64,) * 6)
    made = coupled(model, "common=16,independent=8")
    kept = coupled_parameters([(64, 64, 3, 3)] * 5, (16, 16), (8, 8), partial=False)
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    save(model, before)
    save(made, after)
    removed = 4 * (5 * 64 * 64 * 9 - kept)
    nodes = 25 * 500  # bytes for five new nodes of every layer, with the names of what they move
    assert 0 <= after.stat().st_size - (before.stat().st_size - removed) < nodes
    assert shared(load(after)) == [(16, 64, 1, 1), (16, 16, 3, 3), (64, 16, 1, 1)]


def test_layers_that_differ_in_their_inputs_share_what_does_not() -> None:
    model = repeated((4, 6, 6, 6))
    made = coupled(model, "common=(5,3),independent=1,partial=true")
    assert shared(made) == [(3, 5, 3, 3), (6, 3, 1, 1)]
    assert np.isfinite(run(made)[0]).all()


def test_layers_are_grouped_by_their_kernels() -> None:
    model = repeated((4, 6, 6, 6, 8, 8, 8))
    (each,) = parse_pipeline("coupled-tensor-train{common=2,independent=1,partial=false}")
    result = each.run(model, Context())
    assert shared(result.model) == [
        *[(2, 6, 1, 1), (2, 2, 3, 3), (6, 2, 1, 1)],
        *[(2, 8, 1, 1), (2, 2, 3, 3), (8, 2, 1, 1)],
    ]
    assert sum("no other layer has a kernel" in note for note in result.notes) == 2
    (each,) = parse_pipeline("coupled-tensor-train{common=2,independent=1}")
    partially = each.run(model, Context())
    assert shared(partially.model) == [(2, 2, 3, 3), (6, 2, 1, 1), (2, 2, 3, 3), (8, 2, 1, 1)]
    assert not any("no other layer" in note for note in partially.notes)


def test_groups_can_be_given() -> None:
    made = coupled(repeated((6,) * 5), 'common=2,independent=1,groups="c0 c1; c[23]"')
    assert len(shared(made)) == 6
    assert set(readers(made).values()) == {1, 2}


class TestStaysShared:
    def test_through_a_file(self, tmp_path: Path) -> None:
        save(coupled(repeated()), tmp_path / "m.onnx", external=True)
        again = load(tmp_path / "m.onnx")
        assert shared(again) == FULLY
        assert difference(run(again)[0], run(coupled(repeated()))[0]) == 0

    def test_through_folding_after_coupling(self) -> None:
        """An Add is no convolution that a scale could go into."""
        model = coupled(repeated(norm=True))
        folded, (record,) = PassManager([FoldBatchNorm()]).run(model)
        assert not record.changed
        assert shared(folded) == FULLY

    def test_where_folding_comes_first(self) -> None:
        model = repeated(norm=True)
        passes = parse_pipeline("fold-batchnorm,coupled-tensor-train{common=6,independent=6}")
        made, _ = PassManager(passes).run(model)
        assert len(shared(made)) == 2
        assert difference(run(made)[0], run(model)[0]) < FLOAT32

    def test_through_another_pass_on_a_neighbour(self) -> None:
        model = coupled(repeated((6, 6, 6, 6, 9)))
        (each,) = parse_pipeline('channel-svd{rank=2,nodes="c3"}')
        assert shared(PassManager([each]).run(model)[0]) == FULLY


def moments(model: Model, sites: Sequence[Any]) -> dict[Any, Array]:
    halves = {site: noise(54, 200, seed=n, dtype=np.float64) for n, site in enumerate(sites)}
    return {site: half @ half.T for site, half in halves.items()}


@pytest.mark.parametrize("metric", ["auto", "data", "weights"])
def test_errors_are_of_the_data_where_there_are_any(metric: str) -> None:
    model, asked = repeated(), []

    def grams(model: Model, sites: Sequence[Any]) -> dict[Any, Array]:
        asked.extend(sites)
        return moments(model, sites)

    ranks = "common=2,independent=1,partial=false"
    (each,) = parse_pipeline(f"coupled-tensor-train{{{ranks},metric={metric}}}")
    made = each.run(model, Context(grams=grams)).model
    plain = coupled(model, ranks)
    assert bool(asked) == (metric != "weights")
    assert (difference(run(made)[0], run(plain)[0]) > 0) == (metric != "weights")
    assert len(shared(made)) == 3


def test_a_layer_that_cannot_be_looked_at_is_told() -> None:
    def but_one(model: Model, sites: Sequence[Any]) -> dict[Any, Array]:
        found = moments(model, sites)
        del found[sites[1]]
        return found

    model, ranks = repeated(), "common=2,independent=1,partial=false"
    (strict,) = parse_pipeline(f"coupled-tensor-train{{{ranks},metric=data}}")
    with pytest.raises(PassError, match=r"metric=data cannot look at what layer 'c\d' reads"):
        strict.run(model, Context(grams=but_one))
    (lenient,) = parse_pipeline(f"coupled-tensor-train{{{ranks}}}")
    made = lenient.run(model, Context(grams=but_one))
    assert any("by errors of weights, since 'c" in note for note in made.notes)
    assert difference(run(made.model)[0], run(coupled(model, ranks))[0]) == 0


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("share", [0.6, 0.3])
def test_a_share_of_the_weights_is_kept(share: float, partial: bool) -> None:
    model = repeated((12,) * 5)
    made = coupled(model, f"parameters={share},partial={str(partial).lower()}")
    kept, before = (
        sum(int(np.prod(t.dims)) for t in each.proto.graph.initializer if len(t.dims) > 1)
        for each in (made, model)
    )
    assert 0.85 * share < kept / before <= share


def test_a_pass_knows_the_share_at_which_weights_are_removed() -> None:
    model = repeated((16,) * 4)
    total = 3 * 16 * 16 * 9
    assert CoupledTensorTrain().keeping(model, total // 4).parameters == pytest.approx(0.75)
    with pytest.raises(PassError, match=r"cannot spare 6,912 weights: .* have 6,912"):
        CoupledTensorTrain().keeping(model, total)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters=0.5,common=2", "takes either parameters= or ranks, not both"),
        ("common=2", "needs parameters=, or common= and independent="),
        ("", "needs parameters=, or common= and independent="),
        ("parameters=1.5", r"'parameters' .* is 1.5, not in \(0, 1\)"),
        ("common=0,independent=1", "'common' .* is 0, not one or two ranks"),
        ("common=(1,2,3),independent=1", "not one or two ranks"),
        ("common=2,independent=1,metric=ferro", "'metric' .* is 'ferro', not one of auto"),
        ("common=2,independent=1,metric=data", "metric=data needs samples"),
        ('common=2,independent=1,groups="c1"', "has only 'c1' in it; two layers at least"),
        ('common=2,independent=1,groups="q*"', "has no convolution in it"),
        ('common=2,independent=1,groups="c1 c2;c2 c1"', "'c1' is in two groups"),
        ('common=2,independent=1,groups="c0 c1"', "of one group have unequal kernels; give par"),
        (
            'common=2,independent=1,groups="c2 c3",partial=true',
            r"'c2' \(Conv 6×6×3×3\) and 'c3' \(Conv 8×6×3×3\) of one group have unequal kernels\.",
        ),
        ('common=2,independent=1,nodes="c1"', "finds no two layers to couple among the 1"),
        ('common=2,independent=1,nodes="nothing"', "finds no two layers to couple among the 0"),
        ("parameters=0.001", "weights are too few; ranks of one have"),
    ],
)
def test_bad_options_are_one_sentence(text: str, message: str) -> None:
    with pytest.raises(PassError, match=message) as caught:
        coupled(repeated((4, 6, 6, 6, 8)), text)
    assert str(caught.value).count("\n") == 0
