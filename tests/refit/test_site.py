"""Refits of one site: what they gain on samples that were not fitted to."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest

from onnxcp.factorize import Factorized
from onnxcp.graph.model import Model
from onnxcp.graph.site import Site, find_sites
from onnxcp.refit import Refit
from tests.covering import thinned
from tests.networks import only_site
from tests.refits import (
    FAMILIES,
    SITES,
    choices_for,
    conv,
    error,
    fit,
    fitted,
    plainly,
    samples_for,
)


@functools.cache
def one_site(name: str, family: str) -> tuple[dict[Site, list[Factorized]], dict[Site, Refit]]:
    """Return what a site became of its weights alone, and of data."""
    choices = choices_for(Model(SITES[name]), family)
    return choices, fit(SITES[name], choices, samples_for(SITES[name]))


EXPRESSIBLE = [
    (name, kind)
    for name, proto in SITES.items()
    for kind, family in FAMILIES.items()
    if family.applies(only_site(proto)) is None
]


def fitted_as(name: str, family: str) -> set[str]:
    """Each site is fitted by some family, and each family to sites of every operator and type."""
    proto = SITES[name]
    (weight, *_), (node,) = proto.graph.initializer, proto.graph.node
    return {name, f"{family} of {node.op_type}", f"{family} in {weight.data_type}"}


@thinned("name,family", EXPRESSIBLE, shows=fitted_as)
class TestOneSite:
    def test_is_closer_than_by_its_weights_alone(self, name: str, family: str) -> None:
        model, (choices, done) = Model(SITES[name]), one_site(name, family)
        ((site, found),) = done.items()
        fresh = samples_for(SITES[name], seed=1)
        plain, better = (
            error(each, model, fresh) for each in (plainly(model, choices), fitted(model, done))
        )
        assert found.result is not None
        assert found.result.ranks == choices[site][0].ranks
        assert found.improved
        # Of a transposed convolution only the last factor is fitted.
        assert better < (0.95 if "transposed" in name else 0.9) * plain

    def test_errors_are_those_on_the_samples_held_out(self, name: str, family: str) -> None:
        model, (choices, done) = Model(SITES[name]), one_site(name, family)
        (found,) = done.values()
        held = samples_for(SITES[name])[7::8]
        # Half precision has a thousandth, and an output is rounded in every step.
        digits = {"rel": 0.02} if held.dtype == np.float16 else {"rel": 1e-3, "abs": 1e-5}
        plain, better = plainly(model, choices), fitted(model, done)
        assert found.before == pytest.approx(error(plain, model, held), **digits)
        assert found.after == pytest.approx(error(better, model, held), **digits)
        onnx.checker.check_model(better.proto, full_check=held.dtype != np.float16)


@pytest.mark.parametrize(
    "name", ["conv", "no bias", "grouped", "half", "Gemm, alpha and beta", "Gemm, no beta",
             "MatMul of 3 axes", "left"],
)  # fmt: skip
@pytest.mark.parametrize("family", ["channel-svd", "spatial-svd"])
def test_where_patches_are_too_large_outputs_are_looked_at(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcp.refit.site.can_observe", lambda _: False)
    proto, model = SITES[name], Model(SITES[name])
    choices = choices_for(model, family)
    if not choices:
        return
    values = samples_for(proto)
    (found,) = (done := fit(proto, choices, values)).values()
    digits = {"rel": 0.02} if values.dtype == np.float16 else {"rel": 1e-3, "abs": 1e-5}
    assert found.before == pytest.approx(
        error(plainly(model, choices), model, values[7::8]), **digits
    )
    assert found.after == pytest.approx(error(fitted(model, done), model, values[7::8]), **digits)
    assert found.after < 0.95 * found.before


@pytest.mark.parametrize(
    "name", ["conv", "no bias", "grouped", "Gemm, alpha and beta", "MatMul of 3 axes", "left"]
)
def test_a_cut_of_outputs_is_as_good_as_one_of_patches(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reduced-rank regression needs no more than the covariance of what the site puts out."""
    proto, model = SITES[name], Model(SITES[name])
    choices, values = choices_for(model, "channel-svd"), samples_for(proto)
    (patches,) = fit(proto, choices, values, target="linear").values()
    monkeypatch.setattr("onnxcp.refit.site.can_observe", lambda _: False)
    (outputs,) = fit(proto, choices, values, target="linear").values()
    assert outputs.after == pytest.approx(patches.after, rel=0.01)


class TestChoice:
    def two(self, proto: onnx.ModelProto) -> tuple[Site, Factorized, Factorized]:
        """A family at rank 1, and one that is as good as exact."""
        (site,), _ = find_sites(Model(proto))
        return site, FAMILIES["cp3"].apply(site, (1,)), FAMILIES["tucker2"].apply(site, (8, 11))

    @pytest.mark.parametrize("swap", [False, True])
    def test_is_of_what_is_closest_on_the_data(self, swap: bool) -> None:
        proto = conv()
        site, bad, good = self.two(proto)
        order = [good, bad] if swap else [bad, good]
        found = fit(proto, {site: order}, samples_for(proto))[site]
        assert found.result is not None
        assert found.result.family is good.family
        # What it is held against is what would have been taken without data.
        alone = fit(proto, {site: order[:1]}, samples_for(proto))[site]
        assert found.before == alone.before

    def test_is_no_worse_than_of_any_one(self) -> None:
        proto = conv()
        model, values = Model(proto), samples_for(proto)
        choices = choices_for(model, *FAMILIES)
        ((site, candidates),) = choices.items()
        found = fit(proto, choices, values)[site]
        single = [fit(proto, {site: [each]}, values)[site].after for each in candidates]
        # Those that look far worse after the first, quick fit are not fitted to the end.
        assert found.after <= 1.1 * min(single)


@pytest.mark.parametrize("name", ["conv", "transposed"])
def test_factors_that_rounding_spoils_are_not_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcp.refit.site.tolerable", lambda *_: False)
    proto = SITES[name]
    choices = choices_for(Model(proto), "channel-svd")
    ((site, found),) = fit(proto, choices, samples_for(proto)).items()
    assert found.result is choices[site][0]
    assert found.before == found.after > 0
