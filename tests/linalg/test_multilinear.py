"""Products of factors in the norm of a Gram matrix, held against numpy and plain least squares."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcp.linalg.multilinear import Product, balanced, contract, refine
from onnxcp.linalg.svd import channel_svd
from tests.covering import thinned

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]

# How the families of the passes write a kernel, and other orders and numbers of axes.
PRODUCTS = {
    "channel": "rsij,tr->tsij",
    "channel 1-d": "rsi,tr->tsi",
    "channel 3-d": "rsijk,tr->tsijk",
    "matrix": "rs,tr->ts",
    "spatial": "rsi,trj->tsij",
    "spatial, outputs first": "trj,rsi->tsij",
    "spatial with outputs in the middle": "rsi,rtj->tsij",
    "spatial 3-d": "rsi,trjk->tsijk",
    "spatial 3-d, split late": "rsij,trk->tsijk",
    "tucker": "ps,qpij,tq->tsij",
    "tucker 1-d": "ps,qpi,tq->tsi",
    "cp3": "rs,rij,tr->tsij",
    "cp3 1-d": "rs,ri,tr->tsi",
    "cp4": "rs,ri,rj,tr->tsij",
    "cp4 3-d": "rs,ri,rj,rk,tr->tsijk",
    "cp4 that takes a short axis along": "rs,rik,rj,tr->tsijk",
    "train": "ps,qpi,rqj,tr->tsij",
    "train 3-d": "ps,qpi,rqj,wrk,tw->tsijk",
}
EXTENTS = {"t": 6, "s": 5, "i": 3, "j": 2, "k": 2, "r": 4, "p": 3, "q": 4, "w": 4}

NAMES = {text: name for name, text in PRODUCTS.items()}
LETTERS = [(text, c) for text in PRODUCTS.values() for c in EXTENTS if c in text]

each_product = pytest.mark.parametrize("text", PRODUCTS.values(), ids=PRODUCTS.keys())
each_product_and_type = thinned(
    "text,dtype",
    itertools.product(PRODUCTS.values(), (np.float32, np.float64)),
    ids=lambda text, dtype: f"{NAMES[text]}-{dtype.__name__}",
)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Neither numpy nor scipy has anything to complain of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def factors_of(text: str, extents: dict[str, int], rng: np.random.Generator) -> list[Array]:
    return [
        rng.standard_normal([extents[c] for c in letters])
        for letters in text.partition("->")[0].split(",")
    ]


def kernel_of(text: str, extents: dict[str, int], rng: np.random.Generator) -> Array:
    return rng.standard_normal([extents[c] for c in text.partition("->")[2]])


def gram_of(size: int, rng: np.random.Generator, condition: float = 100.0) -> Array:
    """A positive definite matrix whose eigenvalues fall from 1 to 1 / condition."""
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    gram = (basis * np.geomspace(1, 1 / condition, size)) @ basis.T
    return (gram + gram.T) / 2


def features_of(target: Array) -> int:
    return int(np.prod(target.shape[1:]))


def squared_error(kernel: Array, target: Array, gram: Array) -> float:
    rest = (kernel - target).reshape(len(target), -1).astype(np.float64)
    whole = target.reshape(len(target), -1).astype(np.float64)
    return float(np.trace(rest @ gram @ rest.T) / np.trace(whole @ gram @ whole.T))


class TestProduct:
    @each_product
    def test_is_text_and_back(self, text: str) -> None:
        assert str(Product.parse(text)) == text

    @each_product_and_type
    def test_is_that_of_numpy(self, text: str, dtype: type) -> None:
        rng = np.random.default_rng(0)
        factors = [each.astype(dtype) for each in factors_of(text, EXTENTS, rng)]
        kernel = Product.parse(text).multiply(factors)
        assert kernel.dtype == dtype
        expected = np.einsum(text, *(each.astype(np.float64) for each in factors))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(kernel, expected, atol=20 * np.finfo(dtype).eps * scale)

    @pytest.mark.parametrize(("text", "letter"), LETTERS)
    def test_of_extents_of_one(self, text: str, letter: str) -> None:
        factors = factors_of(text, EXTENTS | {letter: 1}, np.random.default_rng(0))
        np.testing.assert_allclose(
            Product.parse(text).multiply(factors), np.einsum(text, *factors), atol=1e-12
        )

    def test_contractions_of_two_and_of_one(self) -> None:
        a, b, c = (np.random.default_rng(n).standard_normal((3, 3)) for n in range(3))
        expected = np.einsum("ab,bc,cd->da", a, b, c)
        np.testing.assert_allclose(contract(["ab", "bc", "cd"], "da", a, b, c), expected)
        np.testing.assert_allclose(contract(["ab"], "ba", a), a.T)
        np.testing.assert_allclose(contract(["ab", "ab"], "", a, b), np.vdot(a, b))

    @pytest.mark.parametrize(
        ("operands", "result"),
        [(["rqj", "ps", "qpi", "tr"], "tsij"), (["tsij", "tr", "qpi", "rqj"], "ps")],
    )
    def test_no_contraction_makes_more_than_it_must(self, operands: list[str], result: str) -> None:
        """In the order of the operands the largest would be of gigabytes, and take minutes."""
        sizes = dict(zip("tsijpqr", (64, 64, 9, 9, 64, 96, 64), strict=True))
        rng = np.random.default_rng(0)
        values = [
            rng.standard_normal([sizes[c] for c in letters], np.float32) for letters in operands
        ]
        made = contract(operands, result, *values)
        assert made.shape == tuple(sizes[c] for c in result)
        assert np.isfinite(made).all()


class TestErrors:
    @each_product_and_type
    def test_are_those_of_the_factors_that_come_out(self, text: str, dtype: type) -> None:
        rng = np.random.default_rng(1)
        product, target = Product.parse(text), kernel_of(text, EXTENTS, rng)
        gram, start = gram_of(features_of(target), rng), factors_of(text, EXTENTS, rng)
        factors, errors = refine(product, start, target, gram.astype(dtype), sweeps=3, tolerance=0)
        assert {each.dtype for each in factors} == {np.dtype(dtype)}
        assert [each.shape for each in factors] == [each.shape for each in start]
        exact = [each.astype(np.float64) for each in factors]
        accuracy = 1e-5 if dtype == np.float32 else 1e-10
        first, last = (squared_error(product.multiply(f), target, gram) for f in (start, exact))
        assert errors[0] == pytest.approx(first, rel=accuracy)
        assert errors[-1] == pytest.approx(last, rel=accuracy)
        assert all(np.diff(errors) < 0)
        assert 1 + 1 + 1 <= len(errors) <= 1 + 1 + 3, "before, last factor solved, each sweep"

    @each_product
    def test_do_not_depend_on_where_the_gram_matrix_has_its_unit(self, text: str) -> None:
        rng = np.random.default_rng(2)
        target = kernel_of(text, EXTENTS, rng)
        gram, start = gram_of(features_of(target), rng), factors_of(text, EXTENTS, rng)
        plain, small, large = (
            refine(Product.parse(text), start, target, gram * unit)[1] for unit in (1, 1e-12, 1e12)
        )
        np.testing.assert_allclose(small, plain, rtol=1e-6)
        np.testing.assert_allclose(large, plain, rtol=1e-6)

    @each_product
    def test_what_is_given_is_not_written_to(self, text: str) -> None:
        rng = np.random.default_rng(3)
        target = kernel_of(text, EXTENTS, rng)
        given_ = [target, gram_of(features_of(target), rng), *factors_of(text, EXTENTS, rng)]
        before = [each.copy() for each in given_]
        for each in given_:
            each.flags.writeable = False
        refine(Product.parse(text), given_[2:], given_[0], given_[1])
        for one, other in zip(given_, before, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_sweep_that_gains_little_is_the_last(self) -> None:
        rng = np.random.default_rng(4)
        text = PRODUCTS["cp3"]
        target = kernel_of(text, EXTENTS, rng)
        gram, start = gram_of(features_of(target), rng), factors_of(text, EXTENTS, rng)
        errors = refine(Product.parse(text), start, target, gram, sweeps=200, tolerance=0.1)[1]
        gains = 1 - np.array(errors[2:]) / errors[1:-1]
        assert all(gains[:-1] >= 0.1)
        assert gains[-1] < 0.1


class TestLastFactor:
    @each_product
    def test_is_a_regression_on_features(self, text: str) -> None:
        """Of the other factors' products, one feature for each entry of the last factor's row."""
        rng = np.random.default_rng(5)
        product, target = Product.parse(text), kernel_of(text, EXTENTS, rng)
        gram, start = gram_of(features_of(target), rng), factors_of(text, EXTENTS, rng)
        factors, errors = refine(product, start, target, gram, sweeps=0)
        last, letters = start[product.last], product.operands[product.last]
        rows = last.size // EXTENTS["t"]
        root = np.linalg.cholesky(gram)
        columns = []
        for entry in range(rows):
            one = np.zeros(rows)
            one[entry] = 1
            unit = np.broadcast_to(one, (EXTENTS["t"], rows)).reshape(
                EXTENTS["t"], *(EXTENTS[c] for c in letters if c != "t")
            )
            moved = [*start]
            moved[product.last] = np.moveaxis(unit, 0, letters.index("t"))
            columns.append(root.T @ product.multiply(moved)[0].reshape(-1))
        wanted = root.T @ target.reshape(len(target), -1).T
        solved = np.linalg.lstsq(np.stack(columns, 1), wanted)[0]
        rest = np.stack(columns, 1) @ solved - wanted
        assert errors[-1] == pytest.approx(np.vdot(rest, rest) / np.vdot(wanted, wanted), rel=1e-6)
        fitted = root.T @ product.multiply(factors).reshape(len(target), -1).T
        np.testing.assert_allclose(fitted, np.stack(columns, 1) @ solved, atol=1e-6)

    @each_product
    def test_is_all_that_no_sweeps_change(self, text: str) -> None:
        rng = np.random.default_rng(6)
        product, target = Product.parse(text), kernel_of(text, EXTENTS, rng)
        gram, start = gram_of(features_of(target), rng), factors_of(text, EXTENTS, rng)
        factors, errors = refine(product, start, target, gram, sweeps=0)
        assert errors[1] < errors[0]
        for position, (one, other) in enumerate(zip(factors, start, strict=True)):
            if position != product.last:  # but for its norm
                np.testing.assert_allclose(
                    one / np.linalg.norm(one), other / np.linalg.norm(other), atol=1e-12
                )


class TestConvergence:
    @each_product
    def test_to_what_has_the_structure_from_nearby(self, text: str) -> None:
        rng = np.random.default_rng(7)
        product = Product.parse(text)
        made_of = factors_of(text, EXTENTS, rng)
        target = product.multiply(made_of)
        gram = gram_of(features_of(target), rng)
        start = [each + 0.05 * rng.standard_normal(each.shape) for each in made_of]
        _, errors = refine(product, start, target, gram, sweeps=40, tolerance=0)
        assert errors[0] > 1e-3
        # Three factors on one rank take turns that get shorter and shorter.
        assert errors[-1] < (1e-3 * errors[0] if text.count("r") > 2 else 1e-10)

    @each_product_and_type
    def test_what_is_exact_already_stays(self, text: str, dtype: type) -> None:
        rng = np.random.default_rng(8)
        product = Product.parse(text)
        made_of = factors_of(text, EXTENTS, rng)
        target = product.multiply(made_of)
        gram = gram_of(features_of(target), rng)
        factors, errors = refine(product, made_of, target, gram.astype(dtype))
        assert errors[-1] < 100 * np.finfo(dtype).eps ** 2
        np.testing.assert_allclose(
            product.multiply(factors), target, atol=1e2 * np.finfo(dtype).eps
        )

    @pytest.mark.parametrize("rank", [1, 3, 5])
    def test_of_a_channel_product_without_a_metric_to_the_svd(self, rank: int) -> None:
        rng = np.random.default_rng(9)
        target = rng.standard_normal((6, 5, 3, 2))
        first, last = channel_svd(target, rank)
        best = np.linalg.norm(np.einsum("rsij,tr->tsij", first, last) - target) ** 2
        start = [rng.standard_normal(first.shape), rng.standard_normal(last.shape)]
        _, errors = refine(
            Product.parse("rsij,tr->tsij"), start, target, np.eye(30), sweeps=200, tolerance=0
        )
        assert errors[-1] * np.linalg.norm(target) ** 2 == pytest.approx(best, rel=1e-6)

    @pytest.mark.parametrize("rank", [2, 4])
    def test_of_a_channel_product_to_reduced_rank_regression(self, rank: int) -> None:
        rng = np.random.default_rng(10)
        target, gram = rng.standard_normal((6, 5, 3, 2)), gram_of(30, rng, 1e4)
        root = np.linalg.cholesky(gram)
        values = np.linalg.svd(target.reshape(6, -1) @ root)[1]
        start = list(channel_svd(target, rank))
        _, errors = refine(
            Product.parse("rsij,tr->tsij"), start, target, gram, sweeps=200, tolerance=0
        )
        best = np.sum(values[rank:] ** 2) / np.sum(values**2)
        assert errors[-1] == pytest.approx(best, rel=1e-4)

    @each_product
    def test_a_few_sweeps_are_most_of_the_way(self, text: str) -> None:
        rng = np.random.default_rng(11)
        product = Product.parse(text)
        target = product.multiply(factors_of(text, EXTENTS, rng))
        target += 0.3 * np.std(target) * rng.standard_normal(target.shape)
        gram, start = gram_of(features_of(target), rng), factors_of(text, EXTENTS, rng)
        errors = refine(product, start, target, gram, tolerance=0)[1]
        more = refine(product, start, target, gram, sweeps=25, tolerance=0)[1]
        assert errors[0] - errors[-1] >= 0.9 * (more[0] - more[-1])


def full_ranks(text: str, extents: dict[str, int]) -> dict[str, int]:
    """Ranks beyond which a product of two or three factors has nothing to say any more."""
    product = Product.parse(text)
    ranks = set("".join(product.operands)) & set("rpqw")
    if len(product.operands) > 3 or (len(ranks) == 1 and len(product.operands) > 2):
        return {}
    here, there = product.operands[0], product.operands[-1]
    size = int(np.prod([extents[c] for c in product.kernel[2:]]))
    first, last = (int(np.prod([extents[c] for c in letters if c not in "rpq"]))
                   for letters in (here, there))  # fmt: skip
    if "q" in there:
        return {"p": min(first, last * size), "q": min(last, first * size)}
    return {"r": min(first, last)}


Problem = tuple[str, list[Array], Array, Array]


def problem_of(
    text: str, extents: str, seed: int, condition: float = 1, unit: float = 1, flaw: str = "none"
) -> Problem:
    """Make a product, a start, a target and a Gram matrix; `extents` as in ``t6 s5 i3 r4``."""
    sizes = {each[0]: int(each[1:]) for each in extents.split()}
    rng = np.random.default_rng(seed)
    target = kernel_of(text, sizes, rng)
    gram = unit * gram_of(features_of(target), rng, condition)
    factors = factors_of(text, sizes, rng)
    if flaw == "twins":
        factors = [each.round() for each in factors]
    elif flaw == "a zero":
        factors[int(rng.integers(len(factors)))][0] = 0
    elif flaw == "lopsided":
        factors = [each * 10.0 ** rng.integers(-3, 4) for each in factors]
    elif flaw == "zero outputs":
        target[:-1] = 0
    return text, factors, target, gram


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Draw a problem, nearly singular or not."""
    text = draw(st.sampled_from(list(PRODUCTS.values())))
    extents = {c: draw(st.integers(1, 6 if c in "tsrpqw" else 3)) for c in "tsijkrpqw"}
    extents |= {c: min(full, extents[c]) for c, full in full_ranks(text, extents).items()}
    return problem_of(
        text,
        " ".join(f"{c}{extent}" for c, extent in extents.items() if c in text),
        draw(st.integers(0, 2**32)),
        draw(st.sampled_from([1.0, 1e2, 1e5, 1e9])),
        draw(st.sampled_from([1e-6, 1.0, 1e6])),
        draw(st.sampled_from(["none", "twins", "a zero", "lopsided", "zero outputs"])),
    )


# Where inner factors have ranks that the others map to nothing, or features hardly differ.
NEARLY_DEPENDENT = [
    (np.float64, ("train 3-d", "t2 s5 i1 j1 k1 r6 p1 q4 w2", 2**32, 1e9, 1e-6)),
    (np.float32, ("train 3-d", "t3 s1 i2 j1 k2 r1 p5 q4 w5", 243486, 1.0, 1e-6)),
    (np.float32, ("train 3-d", "t5 s3 i3 j1 k1 r4 p3 q4 w3", 733, 1e2, 1e-6, "a zero")),
    (np.float64, ("train", "t6 s1 i1 j2 r1 p1 q6", 6, 1e9, 1e-6, "twins")),
    (np.float32, ("train", "t5 s3 i1 j3 r3 p2 q5", 2991522, 1e9, 1e-6, "zero outputs")),
    (np.float32, ("train", "t1 s6 i3 j1 r1 p1 q6", 3)),
    (np.float64, ("tucker 1-d", "t2 s5 i1 p2 q2", 1099, 1e5, 1e-6, "zero outputs")),
    (np.float32, ("tucker 1-d", "t4 s5 i1 p3 q4", 223, 1e2, 1e6)),
]


@pytest.mark.parametrize(("dtype", "made_of"), NEARLY_DEPENDENT)
def test_no_sweep_makes_it_worse_where_features_nearly_depend(
    dtype: type, made_of: tuple[Any, ...]
) -> None:
    name, *rest = made_of
    check_that_no_sweep_makes_it_worse(problem_of(PRODUCTS[name], *rest), dtype)


@given(problem=problems(), dtype=st.sampled_from([np.float32, np.float64]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_sweep_makes_it_worse(problem: Problem, dtype: type) -> None:
    check_that_no_sweep_makes_it_worse(problem, dtype)


def check_that_no_sweep_makes_it_worse(problem: Problem, dtype: type) -> None:
    text, start, target, gram = problem
    product = Product.parse(text)
    factors, errors = refine(product, start, target, gram.astype(dtype), tolerance=0)
    assert all(np.isfinite(each).all() for each in factors)
    assert all(np.diff(errors) < 0)
    exact = [[each.astype(np.float64) for each in f] for f in (start, factors)]
    before, after = (squared_error(product.multiply(each), target, gram) for each in exact)
    slack = rounding(product.multiply(exact[1]), target, gram, dtype)
    assert after <= before * (1 + slack) + slack
    assert after <= 1 + slack, "zeros are among what may come out"
    assert errors[-1] == pytest.approx(after, rel=1e-3, abs=slack)


def rounding(kernel: Array, target: Array, gram: Array, dtype: type) -> float:
    """What rounding may add to a squared error: it is a form of G, whose terms may cancel."""
    terms = np.linalg.norm(gram, 2) * (np.vdot(kernel, kernel) + np.vdot(target, target))
    whole = target.reshape(len(target), -1)
    return 10 * float(np.finfo(dtype).eps * terms / np.trace(whole @ gram @ whole.T))


class TestDegenerate:
    @each_product_and_type
    def test_a_target_of_zeros(self, text: str, dtype: type) -> None:
        rng = np.random.default_rng(12)
        target = np.zeros_like(kernel_of(text, EXTENTS, rng))
        gram = gram_of(features_of(target), rng).astype(dtype)
        factors, errors = refine(Product.parse(text), factors_of(text, EXTENTS, rng), target, gram)
        assert errors[-1] == 0
        assert not Product.parse(text).multiply(factors).any()

    @each_product_and_type
    def test_factors_of_zeros(self, text: str, dtype: type) -> None:
        """From which no factor alone leads away."""
        rng = np.random.default_rng(13)
        target = kernel_of(text, EXTENTS, rng)
        gram = gram_of(features_of(target), rng).astype(dtype)
        start = [np.zeros_like(each) for each in factors_of(text, EXTENTS, rng)]
        factors, errors = refine(Product.parse(text), start, target, gram)
        assert errors == [pytest.approx(1.0)]
        assert not any(each.any() for each in factors)

    @each_product_and_type
    def test_one_factor_of_zeros(self, text: str, dtype: type) -> None:
        rng = np.random.default_rng(14)
        target = kernel_of(text, EXTENTS, rng)
        gram = gram_of(features_of(target), rng).astype(dtype)
        for position, each in enumerate(factors_of(text, EXTENTS, rng)):
            start = factors_of(text, EXTENTS, rng)
            start[position] = np.zeros_like(each)
            factors, errors = refine(Product.parse(text), start, target, gram)
            assert all(np.isfinite(each).all() for each in factors)
            if position == Product.parse(text).last:
                assert errors[-1] < 1

    @each_product_and_type
    def test_inputs_of_zeros(self, text: str, dtype: type) -> None:
        """Then nothing can be told from anything."""
        rng = np.random.default_rng(15)
        target, start = kernel_of(text, EXTENTS, rng), factors_of(text, EXTENTS, rng)
        gram = np.zeros((features_of(target),) * 2, dtype)
        factors, errors = refine(Product.parse(text), start, target, gram)
        assert errors == [0.0]
        made = Product.parse(text).multiply([each.astype(np.float64) for each in factors])
        np.testing.assert_allclose(made, np.einsum(text, *start), atol=1e-4)

    @each_product_and_type
    def test_a_rank_of_one(self, text: str, dtype: type) -> None:
        extents = EXTENTS | {"r": 1, "p": 1, "q": 1}
        rng = np.random.default_rng(16)
        target = kernel_of(text, extents, rng)
        gram = gram_of(features_of(target), rng).astype(dtype)
        _, errors = refine(Product.parse(text), factors_of(text, extents, rng), target, gram)
        assert errors[-1] < min(errors[0], 1)

    @each_product_and_type
    def test_more_ranks_than_output_channels(self, text: str, dtype: type) -> None:
        extents = EXTENTS | {"t": 2, "r": 7, "p": 5, "q": 7}
        rng = np.random.default_rng(17)
        target = kernel_of(text, extents, rng)
        gram = gram_of(features_of(target), rng, 1e6)
        factors, errors = refine(
            Product.parse(text), factors_of(text, extents, rng), target, gram.astype(dtype)
        )
        made = Product.parse(text).multiply([each.astype(np.float64) for each in factors])
        assert errors[-1] == pytest.approx(squared_error(made, target, gram), rel=0.01, abs=1e-6)
        assert errors[-1] < 0.5

    @thinned("text,letter", LETTERS)
    def test_extents_of_one(self, text: str, letter: str) -> None:
        extents = EXTENTS | {letter: 1}
        rng = np.random.default_rng(18)
        target = kernel_of(text, extents, rng)
        gram = gram_of(features_of(target), rng)
        factors, errors = refine(Product.parse(text), factors_of(text, extents, rng), target, gram)
        made = Product.parse(text).multiply(factors)
        assert errors[-1] == pytest.approx(squared_error(made, target, gram), rel=1e-6, abs=1e-12)
        assert errors[-1] < min(errors[0], 1)


class TestBalancing:
    @each_product
    def test_keeps_the_product_and_evens_the_norms(self, text: str) -> None:
        product = Product.parse(text)
        factors = factors_of(text, EXTENTS, np.random.default_rng(19))
        factors[0] *= 1e6
        even = balanced(factors)
        np.testing.assert_allclose(product.multiply(even), product.multiply(factors), rtol=1e-9)
        norms = [np.linalg.norm(each) for each in even]
        np.testing.assert_allclose(norms, norms[0])
