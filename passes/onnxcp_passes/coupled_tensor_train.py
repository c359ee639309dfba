"""Coupled tensor train: layers share most of a Tucker-2 chain, and keep a small one each.

Of a group of N convolutions, every kernel is taken for the sum of one that all share and of one of
its own (Sun et al. 2021; `onnxcp.linalg.coupled_tensor_train`)::

    K_n[t, s, k] ~ sum_pq V[t, q] F[q, p, k] U[s, p]  +  sum_pq V_n[t, q] F_n[q, p, k] U_n[s, p]

    S --(1x1 U)--> p --(k F; strides, pads, dilations)--> q --(1x1 V; bias)--> T --+
    S --(1x1 U_n)--> p' --(k F_n; the same)--> q' --(1x1 V_n)--> T -----------(Add)--

U, F and V are one initializer each, which N nodes read: the file holds them once. Coupled
partially, as by default, U is each layer's own, and layers may differ in their input channels. This
makes the file smaller, not the network faster, since every node computes for itself.

1. The two rows are summed by an Add and not joined by concatenating their ends: what is
   concatenated is no shared initializer any more.
2. Nothing of a single layer, such as the scale of its BatchNormalization, can go into V. Folding
   comes first, so that what is fitted has the scales in it; what follows an Add is not folded.
3. A refit moves the second row and the bias of each layer; U stays, even where it is not shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcp.errors import PassError
from onnxcp.factorize import Factorized, Factors, Floats, Ranks, selected
from onnxcp.graph.chain import Chain
from onnxcp.graph.model import Model
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site, find_sites
from onnxcp.graph.splice import splice
from onnxcp.linalg.coupled_ranks import coupled_parameters, fit_within
from onnxcp.linalg.coupled_tensor_train import Coupled, Train, coupled_tensor_train
from onnxcp.passes import Context, PassResult, ShrinkPass
from onnxcp_passes.refusals import needs_kernel
from onnxcp_passes.tucker import Tucker2

Group = tuple[Site, ...]
Pair = tuple[int, int]

METRICS = ("auto", "weights", "data")
_OWN = Tucker2()


@dataclass(frozen=True)
class CoupledTensorTrain(ShrinkPass):
    """Couples groups of convolutions; give `parameters`, or `common` and `independent`.

    Attributes
    ----------
    common, independent
        Rank, or ranks of the input and the output channels, of what a group shares and of what each
        layer has for itself.
    partial
        Whether each layer keeps an input factor of its own beside what is shared: then layers of a
        group may differ in their input channels.
    groups
        The groups: patterns of names as of a shell, those of one group separated by spaces, groups
        by semicolons. By default layers with the same output channels and spatial axes are a group;
        where coupled fully, with the same kernel shape.
    metric
        ``"data"``: errors are of what layers put out on the samples; ``"weights"``; or ``"auto"``:
        of the data where there are any.
    """

    common: int | tuple[int, ...] | None = None
    independent: int | tuple[int, ...] | None = None
    partial: bool = True
    groups: str = ""
    metric: str = "auto"

    name = "coupled-tensor-train"
    summary = "a chain of tucker2 that several layers share, and a small one of each; summed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in METRICS:
            raise PassError(
                f"Option 'metric' of pass '{self.name}' is '{self.metric}', "
                f"not one of {', '.join(METRICS)}."
            )
        for key in ("common", "independent"):
            self._pair(key)

    def run(self, model: Model, context: Context) -> PassResult:
        """Couple every group, refit what each layer has for itself, and splice."""
        ranks = self._pair("common"), self._pair("independent")
        if self.parameters is not None and ranks != (None, None):
            raise PassError(f"Pass '{self.name}' takes either parameters= or ranks, not both.")
        if self.parameters is None and None in ranks:
            raise PassError(f"Pass '{self.name}' needs parameters=, or common= and independent=.")
        if self.metric == "data" and context.grams is None:
            raise PassError(f"Pass '{self.name}' with metric=data needs samples: give some data.")
        groups, refusals = self._groups(model)
        notes = [str(each) for each in refusals]
        results: dict[Site, Factorized] = {}
        grams: Mapping[Site, Floats] = {}
        if context.grams is not None and self.metric != "weights":
            context.progress(f"{self.name}: looking at the data")
            grams = context.grams(model, [site for group in groups for site in group])
        for group in groups:
            context.progress(f"{self.name}: {group[0].name} and {len(group) - 1} more")
            fitted, told = self._couple(group, grams)
            results |= fitted
            notes.append(told)
        if context.refit is not None:
            results = dict(context.refit(model, results))
        for site, result in results.items():
            notes.append(f"{site.name}: {self.name}, weight error {result.error:.3g}")
        chains = {site: (self.name, result.chain) for site, result in results.items()}
        return PassResult(splice(model, chains), changed=True, notes=tuple(notes))

    def keeping(self, model: Model, removed: int) -> CoupledTensorTrain:
        """Return the pass with a share of parameters at which a model loses so many weights.

        Raises
        ------
        PassError
            If there are not so many weights to spare.
        """
        groups, _ = self._groups(model)
        total = sum(site.parameters for group in groups for site in group)
        if removed >= total:
            raise PassError(
                f"Pass '{self.name}' cannot spare {removed:,} weights: "
                f"the layers that it couples have {total:,}."
            )
        return replace(self, parameters=1 - max(removed, 1) / total)

    def _pair(self, key: str) -> Pair | None:
        value: int | tuple[int, ...] | None = getattr(self, key)
        pair = (value, value) if isinstance(value, int) else value
        if pair is not None and (len(pair) != 2 or min(pair) < 1):
            raise PassError(
                f"Option '{key}' of pass '{self.name}' is {value}, not one or two ranks from 1 on."
            )
        return None if pair is None else (pair[0], pair[1])

    def _groups(self, model: Model) -> tuple[list[Group], list[Refusal]]:
        """Return the groups to couple, and why sites are in none."""
        refusals = []
        sites = []
        for site in find_sites(model)[0]:
            if selected(site.name, self.nodes, self.exclude):
                refusal = _inexpressible(site)
                if refusal is None:
                    sites.append(site)
                else:
                    refusals.append(refusal)
        if self.groups:
            return self._given(sites), []
        found: dict[tuple[object, ...], list[Site]] = {}
        for site in sites:
            found.setdefault(_likeness(site, partial=self.partial), []).append(site)
        for alone in (group[0] for group in found.values() if len(group) == 1):
            detail = "no other layer has a kernel that it could be coupled with"
            refusals.append(Refusal(alone.name, Reason.INEXPRESSIBLE, detail))
        groups = [tuple(group) for group in found.values() if len(group) > 1]
        if not groups:
            raise PassError(
                f"Pass '{self.name}' finds no two layers to couple among the {len(sites)} with "
                f"spatial kernels that '{self.nodes}' names."
            )
        return groups, refusals

    def _given(self, sites: Sequence[Site]) -> list[Group]:
        """Return the groups of the option `groups`."""
        made: list[Group] = []
        taken: dict[Site, str] = {}
        for patterns in filter(None, (each.strip() for each in self.groups.split(";"))):
            group = tuple(site for site in sites if selected(site.name, patterns))
            if len(group) < 2:
                what = f"only '{group[0].name}'" if group else "no convolution"
                raise PassError(
                    f"Group '{patterns}' of pass '{self.name}' has {what} in it; "
                    "two layers at least can be coupled."
                )
            for site in group:
                if site in taken:
                    raise PassError(
                        f"Layer '{site.name}' is in two groups of pass '{self.name}', "
                        f"'{taken[site]}' and '{patterns}'."
                    )
                taken[site] = patterns
            _check_alike(group, partial=self.partial)
            made.append(group)
        return made

    def _couple(
        self, group: Group, grams: Mapping[Site, Floats]
    ) -> tuple[dict[Site, Factorized], str]:
        """Fit a group; return what every site becomes, and a sentence."""
        kernels = [site.kernel() for site in group]
        # Each counts by its own size: how large a kernel is says nothing of how much it matters.
        powers = [float(np.vdot(kernel, kernel)) for kernel in kernels]
        unseen = [site for site in group if site not in grams]
        if unseen and self.metric == "data":
            raise PassError(
                f"Pass '{self.name}' with metric=data cannot look at what layer "
                f"'{unseen[0].name}' reads: it is transposed, too large, or not finite."
            )
        metric = None if unseen else [grams[site] for site in group]
        if metric is not None:
            flat = [kernel.reshape(len(kernel), -1) for kernel in kernels]
            pairs = zip(flat, metric, strict=True)
            powers = [float(np.vdot(weight, weight @ gram)) for weight, gram in pairs]
        weights = [1 / power if power else 1.0 for power in powers]
        common, independent = self._pair("common"), self._pair("independent")
        if self.parameters is not None:
            budget = self.parameters * sum(site.parameters for site in group)
            try:
                fit, common, independent = fit_within(
                    kernels, budget, partial=self.partial, weights=weights, grams=metric
                )
            except ValueError as error:
                raise PassError(f"Layer '{group[0].name}' and those like it: {error}.") from None
        else:
            assert common is not None
            assert independent is not None
            fit = coupled_tensor_train(
                kernels, common, independent, partial=self.partial, weights=weights, grams=metric
            )
        shapes = [site.kernel_shape for site in group]
        kept = coupled_parameters(shapes, common, independent, partial=self.partial)
        told = (
            f"{len(group)} layers, '{group[0].name}' to '{group[-1].name}': common rank "
            f"{common[0]}x{common[1]}, independent {independent[0]}x{independent[1]}, "
            f"{kept:,} of {sum(site.parameters for site in group):,} weights"
        )
        if unseen and grams:
            told += f"; by errors of weights, since '{unseen[0].name}' could not be looked at"
        return _results(group, fit), told


@dataclass(frozen=True)
class _Member(Tucker2):
    """One layer of a group: three factors that are shared, then three that are not.

    Of the shared ones nothing is changed by a fit.
    """

    name = CoupledTensorTrain.name
    summary = CoupledTensorTrain.summary
    mixes_outputs = False

    def lower(self, site: Site, factors: Factors) -> Chain:
        """Put the row that is the layer's own beside the shared one."""
        shared, own = (_OWN.lower(site, part).steps for part in _halves(factors))
        return Chain(shared, beside=(own,))

    def kernel(self, site: Site, factors: Factors) -> Floats:
        """Add up the two parts."""
        shared, own = (_OWN.kernel(site, part) for part in _halves(factors))
        return shared + own

    def refine(
        self,
        site: Site,
        factors: Factors,
        targets: Sequence[Floats],
        grams: Sequence[Floats],
        sweeps: int | None = None,
    ) -> Factors:
        """Fit the layer's own factors to what the shared ones leave."""
        shared, own = _halves(factors)
        rests = [targets[0] - _OWN.kernel(site, shared)]
        return *shared, *_OWN.refine(site, own, rests, grams, sweeps)

    def whitened(
        self,
        site: Site,  # noqa: ARG002
        ranks: Ranks,  # noqa: ARG002
        targets: Sequence[Floats],  # noqa: ARG002
        grams: Sequence[Floats],  # noqa: ARG002
    ) -> Factors | None:
        """Return None: what is shared is not known from ranks."""
        return None


def _results(group: Group, fit: Coupled) -> dict[Site, Factorized]:
    """Return what every site becomes; what is shared is of the same values in all of them."""
    made = {}
    for site, common, own in zip(group, fit.common, fit.independent, strict=True):
        ranks = (*common.core.shape[1::-1], *own.core.shape[1::-1])
        factors = (*_stored(site, common), *_stored(site, own))
        made[site] = _Member().measured(site, ranks, factors)
    return made


def _stored(site: Site, train: Train) -> Factors:
    """Return the factors of a train as weights of convolutions, in the order of the chain."""
    work = np.float64 if site.dtype == np.float64 else np.float32
    ones = (1,) * site.spatial_rank
    first, last = train.first.T, train.last
    weights = first.reshape(*first.shape, *ones), train.core, last.reshape(*last.shape, *ones)
    return tuple(np.ascontiguousarray(each, work) for each in weights)


def _halves(factors: Factors) -> tuple[Factors, Factors]:
    return factors[:3], factors[3:]


def _inexpressible(site: Site) -> Refusal | None:
    if site.group > 1:
        detail = f"{CoupledTensorTrain.name} couples no convolutions of several groups"
        return Refusal(site.name, Reason.INEXPRESSIBLE, detail)
    return needs_kernel(site, CoupledTensorTrain.name)


def _likeness(site: Site, *, partial: bool) -> tuple[object, ...]:
    """Return what layers must have in common to be coupled."""
    shape = site.kernel_shape
    return site.op, site.dtype, (shape[0], *shape[2:]) if partial else shape


def _check_alike(group: Group, *, partial: bool) -> None:
    first = group[0]
    for other in group[1:]:
        if _likeness(first, partial=partial) != _likeness(other, partial=partial):
            one, two = ("×".join(map(str, each.kernel_shape)) for each in (first, other))
            partially = not partial and _likeness(first, partial=True) == _likeness(
                other, partial=True
            )
            way = "; give partial=true, since only their inputs differ" if partially else ""
            raise PassError(
                f"Layers '{first.name}' ({first.op} {one}) and '{other.name}' ({other.op} {two}) "
                f"of one group have unequal kernels{way}."
            )
