"""Which ranks a factorising pass chooses, which sites it rewrites, and what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.cp import Cp3, Cp4
from onnxcp_passes.output_first_svd import OutputFirstSvd
from onnxcp_passes.sparse_low_rank import SparseLowRank
from onnxcp_passes.spatial_svd import SpatialSvd
from onnxcp_passes.tensor_train import TensorTrain
from onnxcp_passes.tucker import Tucker2

from onnxcp.errors import PassError
from onnxcp.factorize import FactorizePass, nominal_input_shape, selected
from onnxcp.graph.chain import chain_macs, site_macs
from onnxcp.graph.model import load
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.passes import Context, PassResult, registered_passes
from tests.networks import conv_model, initializers, model_of, noise, only_site, operators

FAMILIES: dict[str, type[FactorizePass]] = {
    name: kind for name, kind in registered_passes().items() if issubclass(kind, FactorizePass)
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())

INPUT = (1, 16, 20, 20)


WITH_SPECTRA = [ChannelSvd, OutputFirstSvd, SpatialSvd, Tucker2, TensorTrain]


def site_of(**options: object) -> Site:
    """Return a 3x3 site of 16 -> 24 channels, whose kernel is far from full rank."""
    proto = conv_model((3, 3), channels=(16, 24), **options)  # type: ignore[arg-type]
    group = int(options.get("group", 1))  # type: ignore[call-overload]
    kernel = np.zeros((24, 16 // group, 3, 3))
    for rank, size in enumerate([8.0, 4.0, 2.0, 1.0]):
        parts = [noise(n, seed=10 * rank + n) for n in kernel.shape]
        kernel += size * np.einsum(
            "t,s,i,j->tsij", *(part / np.linalg.norm(part) for part in parts)
        )
    proto.graph.initializer[0].raw_data = kernel.astype(np.float32).tobytes()
    return only_site(proto)


def positive(size: int, seed: int) -> np.ndarray:
    matrix = noise(size, size, seed=seed).astype(np.float64) * 0.8 ** np.arange(size)
    return np.asarray(matrix @ matrix.T + 0.01 * np.eye(size))


def three_convs() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="stem"),
        helper.make_node("Conv", ["a", "w1"], ["b"], name="block/conv1"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="block/conv2"),
    ]
    weights = {f"w{n}": noise(8, 8, *k, seed=n) for n, k in enumerate([(3, 3), (3, 3), (1, 1)])}
    return model_of(nodes, inputs={"x": (1, 8, 12, 12)}, weights=weights)


def run_pass(
    each: FactorizePass, proto: onnx.ModelProto, context: Context | None = None
) -> PassResult:
    return each.run(load(proto), context or Context())


class TestRanks:
    @each_family
    def test_as_given_but_no_more_than_full(self, family: type[FactorizePass]) -> None:
        site = site_of()
        full = family().full_ranks(site)
        assert family(rank=2).choose_ranks(site) == (2,) * len(full)
        assert family(rank=10**6).choose_ranks(site) == full
        assert family(rank=(3,) * len(full)).choose_ranks(site) == (3,) * len(full)

    def test_one_for_each_that_the_family_has(self) -> None:
        site = site_of()
        assert Tucker2(rank=(5, 7)).choose_ranks(site) == (5, 7)
        for each, sentence in [
            (Tucker2(rank=(1, 2, 3)), "Option 'rank' of pass 'tucker2' takes 2 ranks, not 3."),
            (Cp3(rank=(1, 2)), "Option 'rank' of pass 'cp3' takes 1 ranks, not 2."),
        ]:
            with pytest.raises(PassError) as caught:
                each.choose_ranks(site)
            assert str(caught.value) == sentence

    @pytest.mark.parametrize("options", [{}, {"rank": 1, "energy": 0.5}, {"energy": 1, "macs": 1}])
    def test_need_one_way_to_be_chosen(self, options: dict[str, Any]) -> None:
        sentence = "Pass 'cp3' needs exactly one of rank=, energy=, cosine=, evbmf= and macs=."
        with pytest.raises(PassError) as caught:
            run_pass(Cp3(**options), conv_model())
        assert str(caught.value) == sentence

    @pytest.mark.parametrize("family", [*WITH_SPECTRA, Cp3, Cp4])
    @pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
    @pytest.mark.parametrize("group", [1, 2])
    def test_keep_the_energy_asked_for(
        self, family: type[FactorizePass], energy: float, group: int
    ) -> None:
        site = site_of(group=group)
        ranks = family(energy=energy).choose_ranks(site)
        assert not isinstance(ranks, Refusal)
        assert family().apply(site, ranks).error ** 2 <= (1 - energy) * (1 + 1e-6)

    @each_family
    def test_a_cosine_is_the_root_of_an_energy(self, family: type[FactorizePass]) -> None:
        site = site_of()
        ranks = family(cosine=0.9).choose_ranks(site)
        assert ranks == family(energy=0.81).choose_ranks(site)
        assert not isinstance(ranks, Refusal)
        made, original = family().apply(site, ranks).kernel, site.kernel()
        norms = float(np.linalg.norm(made) * np.linalg.norm(original))
        assert float(np.vdot(made, original)) / norms > 0.9 - 1e-6

    @pytest.mark.parametrize("family", WITH_SPECTRA)
    @pytest.mark.parametrize("group", [1, 2])
    def test_above_noise_are_those_of_the_signal(
        self, family: type[FactorizePass], group: int
    ) -> None:
        proto = conv_model((3, 3), channels=(20 * group, 24 * group), group=group)
        wide = only_site(proto)
        signal = family().apply(wide, tuple(2 for _ in family().full_ranks(wide)))
        kernel = signal.kernel + 0.02 * np.std(signal.kernel) * noise(*signal.kernel.shape, seed=5)
        proto.graph.initializer[0].raw_data = kernel.astype(np.float32).tobytes()
        site = only_site(proto)
        ranks = family(evbmf=True).choose_ranks(site)
        assert ranks == signal.ranks
        assert family(evbmf=True, round_to=4).choose_ranks(site) == (4,) * len(ranks)

    def test_above_noise_need_a_spectrum(self) -> None:
        with pytest.raises(PassError, match="Pass 'cp3' has no spectrum to tell from noise"):
            Cp3(evbmf=True).choose_ranks(site_of())

    @pytest.mark.parametrize("family", [ChannelSvd, SpatialSvd])
    def test_and_no_more_than_that(self, family: type[FactorizePass]) -> None:
        """Where the best approximation is known, one rank less keeps less."""
        site = site_of()
        (rank,) = family().ranks_for_energy(site, 0.9)
        assert rank > 1
        assert family().apply(site, (rank - 1,)).error ** 2 > 0.1

    def test_for_an_energy_are_rounded_up(self) -> None:
        site = site_of()
        assert ChannelSvd(energy=0.99).choose_ranks(site) == (3,)
        assert ChannelSvd(energy=0.99, round_to=2).choose_ranks(site) == (4,)
        assert ChannelSvd(energy=0.99, round_to=8).choose_ranks(site) == (8,)
        assert ChannelSvd(energy=0.99, round_to=100).choose_ranks(site) == (24,), "full will do"

    @each_family
    @pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
    @pytest.mark.parametrize("round_to", [1, 4])
    def test_for_multiply_adds_are_the_largest_that_fit(
        self, family: type[FactorizePass], share: float, round_to: int
    ) -> None:
        site, each = site_of(strides=(2, 2), pads=(1, 1, 1, 1)), family()
        budget = share * site_macs(site, INPUT)
        ranks = each.ranks_for_macs(site, share, round_to, INPUT)
        full = each.full_ranks(site)
        if isinstance(ranks, Refusal):
            assert ranks.reason == Reason.NO_REDUCTION
            least = each.rounded(site, each.ranks_on_path(site, 0.0), round_to, up=False)
            assert chain_macs(site, each.sketch(site, least), INPUT) > budget
            return
        assert chain_macs(site, each.sketch(site, ranks), INPUT) <= budget
        assert each.rounded(site, ranks, round_to, up=False) == ranks
        if len(ranks) == 1 and ranks != full:
            more = tuple(min(r + round_to, limit) for r, limit in zip(ranks, full, strict=True))
            assert chain_macs(site, each.sketch(site, more), INPUT) > budget

    def test_for_multiply_adds_that_no_chain_keeps_to_are_refused(self) -> None:
        site = site_of()
        refusal = Cp3(macs=0.001).choose_ranks(site, INPUT)
        detail = "cp3 keeps more than 0.1% of its MACs even at rank 1"
        assert refusal == Refusal("conv", Reason.NO_REDUCTION, detail)

    def test_count_on_the_grid_where_that_is_known(self) -> None:
        """On a small input a padded convolution has fewer outputs for its inputs."""
        site = site_of(strides=(2, 2), pads=(1, 1, 1, 1))
        unknown, small = (
            Cp3(macs=0.5).choose_ranks(site, shape) for shape in (None, (1, 16, 3, 3))
        )
        assert small != unknown

    @each_family
    @pytest.mark.parametrize("group", [1, 2])
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(shares=st.lists(st.floats(0, 1), min_size=2, max_size=2))
    def test_on_the_path_grow_from_one_to_full(
        self, family: type[FactorizePass], group: int, shares: list[float]
    ) -> None:
        site, each = site_of(group=group), family()
        low, high = (each.ranks_on_path(site, share) for share in sorted(shares))
        assert all(1 <= a <= b for a, b in zip(low, high, strict=True))
        full = each.full_ranks(site)
        assert all(b <= limit for b, limit in zip(high, full, strict=True))
        if family is SparseLowRank:  # where a support stays what it is, and the rank alone grows
            full = (full[0], *low[1:])
            assert each.ranks_on_path(site, 0.0) == (1, *low[1:])
        else:
            assert each.ranks_on_path(site, 0.0) == (1,) * len(full)
        assert each.ranks_on_path(site, 1.0) == full

    def test_rounded_are_multiples_or_full(self) -> None:
        site = site_of()
        assert Tucker2().rounded(site, (5, 23), 4, up=False) == (4, 20)
        assert Tucker2().rounded(site, (5, 23), 4, up=True) == (8, 24)
        assert Tucker2().rounded(site, (16, 1), 32, up=False) == (16, 24)


class TestNominalInput:
    def test_has_an_output_of_usual_size(self) -> None:
        for options in (
            {"strides": (2, 3)},
            {"dilations": (3, 1)},
            {"op": "ConvTranspose", "strides": (2, 2)},
        ):
            site = only_site(conv_model((3, 5), **options))
            assert site.geometry is not None
            shape = nominal_input_shape(site)
            assert shape[:2] == (1, 4)
            size = site.geometry.output_size(shape[2:])
            assert all(32 <= axis <= 80 for axis in size)

    def test_of_a_matrix_is_a_vector(self) -> None:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        site = only_site(model_of([node], inputs={"x": (1, 8)}, weights={"w": noise(8, 6)}))
        assert nominal_input_shape(site) == (1, 8)


class TestSelection:
    @pytest.mark.parametrize(
        ("nodes", "exclude", "rewritten"),
        [
            ("*", "", ["stem", "block/conv1", "block/conv2"]),
            ("stem", "", ["stem"]),
            ("block/*", "", ["block/conv1", "block/conv2"]),
            ("*", "*conv?", ["stem"]),
            ("*conv[12]", "*2", ["block/conv1"]),
            ("stem block/conv2", "", ["stem", "block/conv2"]),
            ("*", "stem block/conv2", ["block/conv1"]),
            ("Stem", "", []),
            ("", "", []),
        ],
    )
    def test_is_by_patterns_of_names(self, nodes: str, exclude: str, rewritten: list[str]) -> None:
        result = run_pass(ChannelSvd(rank=2, nodes=nodes, exclude=exclude), three_convs())
        expected = []
        for node in three_convs().graph.node:
            chain = [f"{node.name}/channel-svd/0", f"{node.name}/channel-svd/1"]
            expected += chain if node.name in rewritten else [node.name]
        assert [node.name for node in result.model.proto.graph.node] == expected
        assert result.changed == bool(rewritten)
        nothing = [f"no site has a name that matches '{nodes}'"]
        assert len(result.notes) == len(rewritten) if rewritten else list(result.notes) == nothing

    def test_needs_a_match_and_no_exclusion(self) -> None:
        assert selected("a", "a b")
        assert not selected("c", "a b")
        assert not selected("a", "*", "a")
        assert selected("A", "*", "a"), "names differ by case"
        assert selected("my conv[0]", "my conv[0]"), "whatever a name is made of, it names itself"


class TestWhitened:
    @each_family
    @pytest.mark.parametrize("group", [1, 2])
    def test_at_full_rank_is_what_was_to_be_decomposed(
        self, family: type[FactorizePass], group: int
    ) -> None:
        site, each = site_of(group=group), family()
        targets = np.split(noise(*site.kernel_shape, seed=3).astype(np.float64), group)
        grams = [positive(targets[0][0].size, seed) for seed in range(group)]
        factors = each.whitened(site, each.full_ranks(site), targets, grams)
        if factors is None:
            factors = each.refine(site, each.factorize(site, each.full_ranks(site)), targets, grams)
        made = each.kernel(site, factors)
        np.testing.assert_allclose(made, np.concatenate(targets), atol=1e-4)

    @pytest.mark.parametrize("family", [SpatialSvd, Tucker2, TensorTrain, Cp3, Cp4])
    def test_is_a_nearer_start(self, family: type[FactorizePass]) -> None:
        site = site_of()
        target = noise(*site.kernel_shape, seed=3).astype(np.float64)
        size = target[0].size
        # Nearly a Kronecker product, as covariances of patches are.
        gram = np.kron(positive(16, 0), positive(9, 1)) + 1e-3 * positive(size, 2)
        ranks = tuple(min(6, full) for full in family().full_ranks(site))

        def lost(factors: Any) -> float:
            rest = (family().kernel(site, factors) - target).reshape(len(target), -1)
            return float(np.sum(rest @ gram * rest))

        white = family().whitened(site, ranks, [target], [gram])
        assert lost(white) < lost(family().factorize(site.holding(target), ranks))


class TestCp:
    def test_slack_buys_calmer_factors(self) -> None:
        site = site_of()
        plain, calm = (Cp3(slack=slack).apply(site, (8,)) for slack in (0.0, 0.05))
        assert plain.error < calm.error <= 1.05 * plain.error + 1e-6
        powers = [
            sum(float(np.sum(np.square(each))) for each in made.factors) for made in (plain, calm)
        ]
        assert powers[1] < powers[0]

    def test_the_solver_can_be_chosen(self) -> None:
        site = site_of()
        errors = [Cp3(solver=solver).apply(site, (3,)).error for solver in ("als", "nls", "auto")]
        assert errors[0] != errors[1]
        assert max(errors) < 1.1 * min(errors)

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (
                {"solver": "sgd"},
                "Option 'solver' of pass 'cp4' is 'sgd', not one of als, nls, auto.",
            ),
            ({"slack": 1.0}, "Option 'slack' of pass 'cp4' is 1.0, not in [0, 1)."),
        ],
    )
    def test_options_are_checked(self, options: dict[str, Any], sentence: str) -> None:
        with pytest.raises(PassError) as caught:
            Cp4(rank=2, **options)
        assert str(caught.value) == sentence


class TestRun:
    def test_says_what_became_of_every_site(self) -> None:
        result = run_pass(Cp4(rank=3), three_convs())
        assert [note.split(",")[0] for note in result.notes] == [
            "stem: cp4 rank 3",
            "block/conv1: cp4 rank 3",
            "block/conv2: cp4 on a 1x1 kernel is a channel-svd with a step too many",
        ]
        assert all("weight error 0." in note for note in result.notes[:2])
        assert operators(result.model.proto) == ["Conv"] * 9

    def test_leaves_a_site_alone_that_would_only_grow(self) -> None:
        result = run_pass(ChannelSvd(energy=1), three_convs())
        assert not result.changed
        assert result.notes[0] == (
            "stem: a channel-svd chain of the rank asked for has no fewer weights"
        )

    def test_but_not_if_the_rank_was_given(self) -> None:
        assert run_pass(ChannelSvd(rank=8), three_convs()).changed

    def test_gives_back_the_model_where_nothing_changed(self) -> None:
        model = load(three_convs())
        result = ChannelSvd(rank=1, nodes="none").run(model, Context())
        notes = ("no site has a name that matches 'none'",)
        assert result == PassResult(model, changed=False, notes=notes)

    def test_reports_progress_site_by_site(self) -> None:
        heard: list[str] = []
        run_pass(ChannelSvd(rank=1, exclude="stem"), three_convs(), Context(progress=heard.append))
        assert heard == ["channel-svd: block/conv1", "channel-svd: block/conv2"]

    def test_uses_the_shapes_that_are_known(self) -> None:
        proto = conv_model((3, 3), channels=(16, 24), strides=(2, 2), pads=(1, 1, 1, 1))
        each = Cp3(macs=0.5)
        known = Context(shapes={"x": (1, 16, 3, 3)})
        assert run_pass(each, proto).notes != run_pass(each, proto, known).notes

    @each_family
    def test_gives_the_same_model_every_time(self, family: type[FactorizePass]) -> None:
        first, second = (run_pass(family(rank=2), three_convs()).model.proto for _ in range(2))
        assert first.SerializeToString() == second.SerializeToString()

    @each_family
    def test_takes_a_weight_of_zeros(self, family: type[FactorizePass]) -> None:
        proto = conv_model(pads=(1, 1, 1, 1))
        proto.graph.initializer[0].raw_data = bytes(6 * 4 * 9 * 4)
        (note,) = run_pass(family(rank=2), proto).notes
        assert note.endswith("weight error 0")


class TestRefine:
    """A family's own way from the norm of the kernel to that of the data."""

    @staticmethod
    def covariance(size: int, seed: int) -> Any:
        root = noise(size, size, seed=seed, dtype=np.float64)
        return root @ np.diag(np.geomspace(1, 1e-2, size)) @ root.T / size

    @classmethod
    def loss(cls, site: Site, kernel: Any, grams: list[Any]) -> list[float]:
        """Error of each group's kernel in the norm of its inputs."""
        losses = []
        rests = np.split((kernel - site.kernel()).astype(np.float64), site.group)
        for part, whole, gram in zip(rests, site.group_kernels(), grams, strict=True):
            rest, full = (each.reshape(len(each), -1) for each in (part, whole))
            losses.append(np.vdot(rest, rest @ gram) / np.vdot(full, full @ gram))
        return losses

    @each_family
    @pytest.mark.parametrize("group", [1, 2])
    def test_brings_every_group_closer(self, family: type[FactorizePass], group: int) -> None:
        site, each = site_of(group=group), family()
        ranks = tuple(min(2, full) for full in each.full_ranks(site))
        size = int(np.prod(site.kernel_shape[1:]))
        grams = [self.covariance(size, seed) for seed in range(group)]
        start = each.apply(site, ranks)
        refined = each.refine(site, start.factors, site.group_kernels(), grams)
        assert [f.shape for f in refined] == list(each.factor_shapes(site, ranks))
        before, after = (
            self.loss(site, each.kernel(site, factors), grams)
            for factors in (start.factors, refined)
        )
        assert all(b < a for a, b in zip(before, after, strict=True))
        # Each group by itself, in the norm of its own inputs.
        if group == 2:
            swapped = each.refine(site, start.factors, site.group_kernels(), grams[::-1])
            assert max(self.loss(site, each.kernel(site, swapped), grams)) > max(after)

    @each_family
    def test_to_the_very_kernel_changes_nothing_at_full_rank(
        self, family: type[FactorizePass]
    ) -> None:
        site, each = site_of(), family()
        exact = each.apply(site, each.full_ranks(site))
        gram = self.covariance(int(np.prod(site.kernel_shape[1:])), 0)
        refined = each.refine(site, exact.factors, site.group_kernels(), [gram])
        result = each.measured(site, exact.ranks, refined)
        assert result.error < 1e-5

    @pytest.mark.parametrize("family", [SpatialSvd, Tucker2, Cp3, Cp4])
    def test_without_sweeps_solves_the_last_factor(self, family: type[FactorizePass]) -> None:
        site, each = site_of(), family()
        start = each.apply(site, tuple(min(3, full) for full in each.full_ranks(site)))
        gram = self.covariance(int(np.prod(site.kernel_shape[1:])), 0)
        quick, slow = (
            each.refine(site, start.factors, site.group_kernels(), [gram], sweeps)
            for sweeps in (0, None)
        )
        *others, last = zip(start.factors, quick, strict=True)
        for one, other in others:
            np.testing.assert_allclose(
                one / np.linalg.norm(one), other / np.linalg.norm(other), atol=1e-6
            )
        assert not np.allclose(*(each / np.linalg.norm(each) for each in last), atol=1e-3)
        losses = [
            self.loss(site, each.kernel(site, factors), [gram])[0]
            for factors in (start.factors, quick, slow)
        ]
        assert losses[2] < losses[1] < losses[0]

    @each_family
    def test_has_the_bias_that_it_is_given(self, family: type[FactorizePass]) -> None:
        site, each = site_of(), family()
        ranks = tuple(min(3, full) for full in each.full_ranks(site))
        made = each.apply(site, ranks)
        assert made.bias is made.chain.bias is None
        bias = noise(24)
        assert each.measured(site, ranks, made.factors, bias).chain.bias is bias

    def test_is_asked_for_by_the_context(self) -> None:
        """Once for all sites of a pass; what it gives back is put in."""
        asked: list[Any] = []

        def refit(model: Any, results: Any) -> Any:
            asked.append(model)
            return {
                site: each.family.measured(site, each.ranks, [2 * f for f in each.factors])
                for site, each in results.items()
            }

        model = load(three_convs())
        result = Cp3(rank=2).run(model, Context(refit=refit))
        assert asked == [model]
        plain = Cp3(rank=2).run(model, Context())
        one, other = (initializers(each.model.proto) for each in (result, plain))
        assert one.keys() == other.keys()
        for name, value in one.items():
            factor = 1 if name == "w2" else 2
            np.testing.assert_array_equal(value, factor * other[name])
        assert [note.split(",")[0] for note in result.notes] == [
            note.split(",")[0] for note in plain.notes
        ]
        assert Cp3(rank=2, nodes="block/conv2").run(model, Context(refit=refit)).changed is False
        assert len(asked) == 1, "not where there is nothing to refit"
