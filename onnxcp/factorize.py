"""Families of decompositions, and the one pass that all of them are.

A family says which sites it applies to, which ranks there are, how a kernel becomes factors, and
how factors become a chain. `FactorizePass` does the rest: it chooses ranks, decomposes and splices.
Adding a decomposition is adding one file with a subclass.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxcp.errors import PassError
from onnxcp.graph.chain import Chain, chain_macs, site_macs
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.linalg.evbmf import rank_by_evbmf
from onnxcp.linalg.parallel import spread
from onnxcp.linalg.ranks import round_rank
from onnxcp.passes import Context, Pass, PassResult

Floats = npt.NDArray[np.floating[Any]]
Ranks = tuple[int, ...]
Factors = tuple[Floats, ...]

_SIZES = "rank=, energy=, cosine=, evbmf= and macs="
_NOMINAL_GRID = 32  # output positions per axis where the input's shape is unknown


class Unfolding(NamedTuple):
    """A kernel as a matrix: its singular values, all of them, and its shape."""

    spectrum: Floats
    shape: tuple[int, int]


@dataclass(frozen=True)
class FactorizePass(Pass):
    """Replaces the kernels of sites by products of smaller ones.

    Exactly one of `rank`, `energy`, `cosine`, `evbmf` and `macs` says how large the factors are.

    Attributes
    ----------
    rank
        The rank, or the ranks of a family that has several; of each group.
    energy
        Share of the kernel's squared Frobenius norm to keep, in (0, 1].
    cosine
        Cosine similarity of the kernel and what the factors stand for, at least; in (0, 1]. The
        same as an `energy` of its square.
    evbmf
        Keep what stands out of noise (`onnxcp.linalg.evbmf`); not for families without spectra.
    macs
        Share of the site's multiply-adds to keep at most, in (0, 1].
    round_to
        Ranks become multiples of this: downwards for `macs`, otherwise upwards.
    nodes, exclude
        Names of the sites to rewrite and to leave alone: patterns as of a shell, several separated
        by spaces.
    """

    searches_ranks: ClassVar[bool] = False
    """Whether a rank for an energy is found by decomposing again and again, which takes long."""

    named_only: ClassVar[bool] = False
    """Whether it is looked at only where it is named, since other families rarely leave it room."""

    cuts_outputs: ClassVar[bool] = False
    """Whether `cut` can be called."""

    mixes_outputs: ClassVar[bool] = True
    """Whether `mixed` can be called."""

    rank: int | tuple[int, ...] | None = None
    energy: float | None = None
    cosine: float | None = None
    evbmf: bool = False
    macs: float | None = None
    round_to: int = 1
    nodes: str = "*"
    exclude: str = ""

    def __post_init__(self) -> None:
        for key in ("energy", "cosine", "macs"):
            value = getattr(self, key)
            if value is not None and not 0 < value <= 1:
                raise PassError(f"Option '{key}' of pass '{self.name}' is {value}, not in (0, 1].")
        ranks = self.rank if isinstance(self.rank, tuple) else (self.rank,)
        if not ranks or any(rank is not None and rank < 1 for rank in ranks):
            raise PassError(f"Option 'rank' of pass '{self.name}' is {self.rank}, not 1 or more.")
        if self.round_to < 1:
            raise PassError(
                f"Option 'round_to' of pass '{self.name}' is {self.round_to}, not 1 or more."
            )

    @abstractmethod
    def applies(self, site: Site) -> Refusal | None:
        """Return why this family cannot express a site, or None if it can."""

    @abstractmethod
    def full_ranks(self, site: Site) -> Ranks:
        """Return the ranks at which every kernel of the site's shape is met exactly."""

    @abstractmethod
    def ranks_for_energy(self, site: Site, energy: float) -> Ranks:
        """Return the least ranks that keep a share of the kernel's squared norm."""

    def unfoldings(self, site: Site) -> tuple[list[Unfolding], ...]:  # noqa: ARG002
        """Return the matrices that ranks are ranks of: for each rank, one of every group.

        Raises
        ------
        PassError
            If this family has none.
        """
        raise PassError(f"Pass '{self.name}' has no spectrum to tell from noise: no evbmf=.")

    def ranks_above_noise(self, site: Site) -> Ranks:
        """Return the ranks that stand out of noise, the largest of all groups."""
        return tuple(
            max(rank_by_evbmf(each.spectrum, each.shape) for each in groups)
            for groups in self.unfoldings(site)
        )

    @abstractmethod
    def factor_shapes(self, site: Site, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of what `factorize` returns."""

    @abstractmethod
    def factorize(self, site: Site, ranks: Ranks) -> Factors:
        """Decompose the site's kernel; groups stand one after the other along first axes."""

    @abstractmethod
    def lower(self, site: Site, factors: Factors) -> Chain:
        """Arrange factors as the steps of a chain."""

    @abstractmethod
    def kernel(self, site: Site, factors: Factors) -> Floats:
        """Return the kernel ``(T, S / group, *k)`` that factors stand for."""

    @abstractmethod
    def refine(
        self,
        site: Site,
        factors: Factors,
        targets: Sequence[Floats],
        grams: Sequence[Floats],
        sweeps: int | None = None,
    ) -> Factors:
        """Bring factors as close as possible to given kernels in the norm of the data.

        Parameters
        ----------
        site
            The site.
        factors
            Where to start from.
        targets
            For each group, the kernel ``(T / G, S / G, *k)`` to approximate.
        grams
            For each group, the covariance ``(P, P)`` of its input patches, positive definite.
        sweeps
            Of alternating least squares at most; 0 solves the last factor only.
        """

    def whitened(
        self,
        site: Site,  # noqa: ARG002
        ranks: Ranks,  # noqa: ARG002
        targets: Sequence[Floats],  # noqa: ARG002
        grams: Sequence[Floats],  # noqa: ARG002
    ) -> Factors | None:
        """Return a start for `refine` that knows the norm of the data.

        Parameters
        ----------
        site
            The site.
        ranks
            The ranks.
        targets, grams
            As of `refine`.

        Returns
        -------
        tuple of ndarray or None
            None where `refine` finds the best factors wherever it starts.
        """
        return None

    def cut(
        self,
        site: Site,
        ranks: Ranks,
        mixings: Sequence[Floats],
        covariances: Sequence[Floats],
    ) -> tuple[Factors, Floats]:
        """Return the factors that are best where a mixing of the site's outputs is wanted.

        For a family whose last factor mixes the channels of a lower rank, and that can make any
        kernel in their place: what is best then depends on the covariance of the site's outputs
        alone, not on that of its input patches.

        Parameters
        ----------
        site
            The site.
        ranks
            The ranks.
        mixings
            For each group, what to make of its outputs: ``(T / G, T / G)``.
        covariances
            For each group, the covariance of its outputs, of the same shape.

        Returns
        -------
        factors : tuple of ndarray
        mixing : (T, T / G) ndarray
            What the factors make of the site's outputs, at the reduced rank.
        """
        raise NotImplementedError(f"{self.name} cannot be cut by what comes out")

    @abstractmethod
    def mixed(self, site: Site, factors: Factors, mixing: Floats) -> Factors:
        """Return the factors of a kernel whose output channels are mixed.

        Parameters
        ----------
        site
            The site.
        factors
            Its factors.
        mixing : (T, T / G) ndarray
            What to make of the outputs of each group.
        """

    def forms(self) -> tuple[FactorizePass, ...]:
        """Return what the family has to offer: itself, or several with paths of their own.

        All of them carry out the same ranks in the same way.
        """
        return (self,)

    def rounded(self, site: Site, ranks: Ranks, multiple: int, *, up: bool) -> Ranks:
        """Round ranks to multiples, but no further than to the full ones."""
        return tuple(
            round_rank(rank, multiple, limit, up=up)
            for rank, limit in zip(ranks, self.full_ranks(site), strict=True)
        )

    def ranks_on_path(self, site: Site, share: float) -> Ranks:
        """Return ranks that grow from ones to `full_ranks` as `share` goes from 0 to 1."""
        return tuple(max(1, math.floor(share * full)) for full in self.full_ranks(site))

    def sketch(self, site: Site, ranks: Ranks) -> Chain:
        """Return a chain of the right shape without decomposing anything; it takes no memory."""
        shapes = self.factor_shapes(site, ranks)
        return self.lower(site, tuple(np.broadcast_to(np.float32(0), shape) for shape in shapes))

    def ranks_for_macs(
        self, site: Site, share: float, round_to: int = 1, input_shape: Sequence[int] | None = None
    ) -> Ranks | Refusal:
        """Return the largest ranks whose chain costs at most a share of the site's multiply-adds.

        Parameters
        ----------
        site
            The site.
        share
            Multiply-adds of the chain over those of the site, in (0, 1].
        round_to
            Ranks are multiples of this wherever they are not full.
        input_shape
            Shape of what the site reads. Where it is unknown, a grid of usual size is assumed: it
            only matters through borders.

        Returns
        -------
        Ranks or Refusal
            The ranks, or why there are none.
        """
        shape = input_shape or nominal_input_shape(site)
        budget = share * site_macs(site, shape)

        def rounded(path_share: float) -> Ranks:
            path = self.ranks_on_path(site, path_share)
            return self.rounded(site, path, round_to, up=False)

        @functools.cache  # rounded ranks come again and again
        def fits(ranks: Ranks) -> bool:
            return chain_macs(site, self.sketch(site, ranks), shape) <= budget

        best = rounded(0.0)
        if not fits(best):
            rank = "x".join(map(str, best))
            limit = f"{100 * share:.3g}%"
            detail = f"{self.name} keeps more than {limit} of its MACs even at rank {rank}"
            return Refusal(site.name, Reason.NO_REDUCTION, detail)
        low, high = 0.0, 1.0
        for _ in range(20):  # 2^-20: finer than the largest rank
            middle = (low + high) / 2
            ranks = rounded(middle)
            if fits(ranks):
                low, best = middle, ranks
            else:
                high = middle
        return rounded(1.0) if fits(rounded(1.0)) else best

    def choose_ranks(self, site: Site, input_shape: Sequence[int] | None = None) -> Ranks | Refusal:
        """Return the ranks that this pass's options ask for at a site."""
        full = self.full_ranks(site)
        if self.rank is not None:
            ranks = self.rank if isinstance(self.rank, tuple) else (self.rank,) * len(full)
            if len(ranks) != len(full):
                raise PassError(
                    f"Option 'rank' of pass '{self.name}' takes {len(full)} ranks, "
                    f"not {len(ranks)}."
                )
            return tuple(min(rank, limit) for rank, limit in zip(ranks, full, strict=True))
        energy = self.energy if self.cosine is None else self.cosine**2
        if energy is not None or self.evbmf:
            if energy is None:
                ranks = self.ranks_above_noise(site)
            else:
                ranks = self.ranks_for_energy(site, energy)
            return self.rounded(site, ranks, self.round_to, up=True)
        if self.macs is not None:
            return self.ranks_for_macs(site, self.macs, self.round_to, input_shape)
        raise PassError(f"Pass '{self.name}' needs one of {_SIZES}.")

    def quick(self) -> FactorizePass:
        """Return the same family for estimates: faster where it searches, and less close."""
        return self

    def apply(self, site: Site, ranks: Ranks) -> Factorized:
        """Decompose a site at given ranks and measure how far the result is from the original."""
        return self.measured(site, ranks, self.factorize(site, ranks))

    def factorize_all(self, site: Site, path: Sequence[Ranks]) -> list[Factors]:
        """Decompose the site's kernel at several ranks; some families do so in one go."""
        return [self.factorize(site, ranks) for ranks in path]

    def measured(
        self, site: Site, ranks: Ranks, factors: Factors, bias: Floats | None = None
    ) -> Factorized:
        """Say how far the kernel that factors stand for is from the original."""
        original, kernel = site.kernel(), self.kernel(site, factors)
        norm = float(np.linalg.norm(original))
        error = float(np.linalg.norm(kernel - original)) / norm if norm else 0.0
        return Factorized(self, site, ranks, factors, error, bias)

    def run(self, model: Model, context: Context) -> PassResult:
        """Factorise every site that `nodes` names and this family can express.

        A site whose chain would not have fewer weights is left alone, unless its rank was given.
        """
        sizes = self.rank, self.energy, self.cosine, self.evbmf or None, self.macs
        if sum(option is not None for option in sizes) != 1:
            raise PassError(f"Pass '{self.name}' needs exactly one of {_SIZES}.")
        notes = []
        sites = [s for s in find_sites(model)[0] if selected(s.name, self.nodes, self.exclude)]
        if not sites:
            notes.append(f"no site has a name that matches '{self.nodes}'")

        def jobs() -> Iterator[tuple[Site, Sequence[int] | None]]:
            for site in sites:
                context.progress(f"{self.name}: {site.name}")
                yield site, context.shapes.get(site.input)

        found = spread(self._one, jobs())
        outcomes: dict[Site, Factorized | Refusal] = dict(zip(sites, found, strict=True))
        results = {site: each for site, each in outcomes.items() if isinstance(each, Factorized)}
        if results and context.refit is not None:
            results = dict(context.refit(model, results))
        for site, outcome in outcomes.items():
            if isinstance(outcome, Refusal):
                notes.append(str(outcome))
                continue
            ranks, error = "x".join(map(str, outcome.ranks)), results[site].error
            notes.append(f"{site.name}: {self.name} rank {ranks}, weight error {error:.3g}")
        if not results:
            return PassResult(model, changed=False, notes=tuple(notes))
        chains = {site: (self.name, result.chain) for site, result in results.items()}
        return PassResult(splice(model, chains), changed=True, notes=tuple(notes))

    def _one(self, site: Site, input_shape: Sequence[int] | None) -> Factorized | Refusal:
        refusal = self.applies(site)
        if refusal is not None:
            return refusal
        ranks = self.choose_ranks(site, input_shape)
        if isinstance(ranks, Refusal):
            return ranks
        if self.rank is None and self.sketch(site, ranks).parameters >= site.parameters:
            detail = f"a {self.name} chain of the rank asked for has no fewer weights"
            return Refusal(site.name, Reason.NO_REDUCTION, detail)
        return self.apply(site, ranks)


@dataclass(frozen=True, eq=False)
class Factorized:
    """A site's kernel at one rank of one family.

    Attributes
    ----------
    family, site, ranks
        What was decomposed, and how.
    factors
        What came of it.
    error
        Relative Frobenius error of the kernel that the factors stand for.
    bias
        What takes the place of the site's bias, ``(T,)``; None keeps it.
    """

    family: FactorizePass
    site: Site
    ranks: Ranks
    factors: Factors
    error: float
    bias: Floats | None = None

    @property
    def chain(self) -> Chain:
        """What the site becomes."""
        chain = self.family.lower(self.site, self.factors)
        return replace(chain, bias=self.bias, ranks=self.ranks)

    @property
    def kernel(self) -> Floats:
        """The kernel ``(T, S / group, *k)`` that the chain stands for, multiplied out anew."""
        return self.family.kernel(self.site, self.factors)


def apply_all(jobs: Iterable[tuple[FactorizePass, Site, Ranks]]) -> list[Factorized]:
    """Decompose sites at given ranks, several at a time (see `onnxcp.linalg.parallel`).

    What comes out is the same however many there are: a plan that is carried out again gives the
    same network.

    Parameters
    ----------
    jobs
        Family, site and ranks; taken as they are begun.
    """
    return spread(_apply, jobs)


def _apply(family: FactorizePass, site: Site, ranks: Ranks) -> Factorized:
    return family.apply(site, ranks)


def mixed_outputs(factor: Floats, mixing: Floats, group: int) -> Floats:
    """Mix the output channels ``(T, ...)`` of a factor, group by group, by ``(T, T / G)``."""
    parts = zip(np.split(mixing, group), np.split(factor, group), strict=True)
    return np.concatenate([np.tensordot(mix, part, axes=1) for mix, part in parts])


def selected(name: str, nodes: str, exclude: str = "") -> bool:
    """Tell whether a name matches one of the patterns `nodes` and none of `exclude`.

    Names with spaces or brackets are matched by themselves, too.
    """

    def matches(patterns: str) -> bool:
        parts = patterns.split()
        return name == patterns or any(name == p or fnmatch.fnmatchcase(name, p) for p in parts)

    return matches(nodes) and not matches(exclude)


def nominal_input_shape(site: Site) -> tuple[int, ...]:
    """Return an input shape to count multiply-adds on where the real one is unknown."""
    if site.geometry is None:
        return (1, site.inputs)
    strides = site.geometry.strides
    grid = [_NOMINAL_GRID * (1 if site.geometry.transposed else stride) for stride in strides]
    extent = [
        d * (k - 1) for d, k in zip(site.geometry.dilations, site.geometry.kernel, strict=True)
    ]
    return (1, site.inputs, *(g + e for g, e in zip(grid, extent, strict=True)))
