"""Forms and ranks by cosine similarity: one SVD of a kernel, then a look into a table.

Of every form of a site, the smallest rank counts from which on it is as similar to the original as
is asked for (Zhang, Liu & Weng 2023). Similar are weights, where the cosine is the root of the
energy kept (`onnxcp.linalg.ranks.weight_cosines`), or on the user's data what comes out of the
activation behind the site (`onnxcp.planning.responses`). Of the forms the one that costs least at
its rank is taken, and none where the rank is not below break-even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxcp.errors import OnnxcpError
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.linalg.ranks import rank_on_curve, weight_cosines
from onnxcp.planning.offer import Offer
from onnxcp.product import SvdPass

NAME = "cosine-svd"
FAMILIES = ("channel-svd", "spatial-svd")
"""Forms that are offered where none are named; of a matrix the first is the plain SVD."""

COSTS = ("parameters", "macs")
KINDS = ("auto", "weights", "responses")

LEVELS = tuple(1 - 0.001 * 2 ** (step / 2) for step in range(18))
"""Cosines to go down through where none is asked for: from 0.999 to 0.64."""

_ROUNDING = 1e-12


@dataclass(frozen=True)
class CosineSvd:
    """What the preset ``cosine-svd`` is asked to do.

    Attributes
    ----------
    cosine
        Least cosine similarity of every site that is replaced, in (0, 1]; None: as low as the goal
        for the network allows.
    fewest
        What there shall be few of: ``"parameters"`` or ``"macs"``. The form of a site is chosen by
        it, and the sites that save most of it are the first to be replaced.
    of
        What is compared: ``"weights"``, ``"responses"`` after the activation, or ``"auto"``:
        responses where there are samples to calibrate on.
    """

    cosine: float | None = None
    fewest: str = "parameters"
    of: str = "auto"

    def __post_init__(self) -> None:
        if self.cosine is not None and not 0 < self.cosine <= 1:
            raise OnnxcpError(f"A cosine must lie in (0, 1]; {self.cosine:g} does not.")
        for what, value, known in (("fewest", self.fewest, COSTS), ("of", self.of, KINDS)):
            if value not in known:
                raise OnnxcpError(f"{NAME} has no {what} '{value}'; there are: {', '.join(known)}.")

    def of_responses(self, *, data: bool) -> bool:
        """Tell whether responses are compared, where there are data or not.

        Raises
        ------
        OnnxcpError
            If they are asked for, and there are none.
        """
        if self.of == "responses" and not data:
            raise OnnxcpError("Cosines of responses need samples to calibrate on.")
        return data and self.of != "weights"

    def __str__(self) -> str:
        return NAME if self.cosine is None else f"{NAME} at a cosine of {self.cosine:g}"


@dataclass(frozen=True, eq=False)
class Cut:
    """A form at a rank.

    Attributes
    ----------
    offer
        What the site becomes.
    cosine
        How similar it then is.
    """

    offer: Offer
    cosine: float

    def __str__(self) -> str:
        return f"{self.offer} (cosine {self.cosine:.4f})"


@dataclass(frozen=True, eq=False)
class Form:
    """A family at a site, and how similar it is at which rank.

    Attributes
    ----------
    family
        The family.
    ranks, cosines
        Ranks below break-even, rising, and the similarity at each.
    """

    family: SvdPass
    ranks: npt.NDArray[np.int64]
    cosines: npt.NDArray[np.float64]

    def at(self, cosine: float) -> int | None:
        """Return the position of the smallest rank from which on it is so similar, if there is."""
        bound = 1 - cosine + _ROUNDING
        position = rank_on_curve(1 - self.cosines, bound) - 1
        return position if 1 - self.cosines[position] <= bound else None


@dataclass(frozen=True, eq=False)
class Compared:
    """A site and its forms.

    Attributes
    ----------
    site
        The site.
    shape
        Of what it reads, batch included; None if it is not known.
    macs
        Its multiply-adds for one sample; None if the shape is not known.
    forms
        What it may become.
    reasons
        Why other families are no forms.
    """

    site: Site
    shape: tuple[int, ...] | None
    macs: int | None
    forms: tuple[Form, ...] = ()
    reasons: tuple[Refusal, ...] = ()
    _cuts: dict[tuple[Form, int], Cut] = field(default_factory=dict, repr=False)

    def cut(self, cosine: float, fewest: str) -> Cut | None:
        """Return the form that costs least where it is so similar; None where none is worth it.

        Where that is the same as at another cosine, the very same object comes back.
        """
        places = [(form, form.at(cosine)) for form in self.forms]
        cuts = [self._cut(form, place) for form, place in places if place is not None]
        return min(cuts, key=lambda each: cost(each.offer, fewest), default=None)

    def _cut(self, form: Form, position: int) -> Cut:
        if (form, position) not in self._cuts:
            assert self.shape is not None, "a site without a shape has no forms"
            rank = int(form.ranks[position])
            offer = Offer.of(self.site, form.family, (rank,), self.shape)
            self._cuts[form, position] = Cut(offer, float(form.cosines[position]))
        return self._cuts[form, position]

    def saving(self, cut: Cut, fewest: str) -> int:
        """Return how much of a cost a cut saves."""
        dense = self.site.parameters if fewest == "parameters" else self.macs
        assert dense is not None, "a site without a shape has no forms"
        return dense - cost(cut.offer, fewest)

    def refusal(self, cosine: float) -> Refusal:
        """Return why there is no form that is so similar and worth it."""
        names = " nor ".join(each.family.name for each in self.forms)
        detail = f"{names} comes to a cosine of {cosine:.4g} below break-even"
        if len(self.forms) > 1:
            detail = f"neither {detail}"
        elif self.forms:
            detail = f"{names} does not come to a cosine of {cosine:.4g} below break-even"
        return Refusal(self.site.name, Reason.NO_REDUCTION, detail)


def cost(offer: Offer, what: str) -> int:
    """Return what an offer costs, of `COSTS`."""
    return offer.parameters if what == "parameters" else offer.macs


def worthwhile(
    site: Site, family: SvdPass, shape: Sequence[int], macs: int, round_to: int
) -> npt.NDArray[np.int64] | Refusal:
    """Return the ranks at which a chain has fewer parameters and multiply-adds than its site.

    Both are proportional to the rank, so break-even is where the ratio of the site's to those of
    rank 1 is: ``S T k² / (S k² + T)`` for channel SVD, ``S T k / (S + T)`` for spatial SVD.

    Parameters
    ----------
    site, family
        The two.
    shape, macs
        Of what the site reads, batch included; its multiply-adds for one sample.
    round_to
        Ranks are multiples of this.
    """
    refusal = family.applies(site)
    if refusal is not None:
        return refusal
    one = Offer.of(site, family, (1,), shape)
    (full,) = family.full_ranks(site)
    most = min((site.parameters - 1) // one.parameters, (macs - 1) // one.macs, full)
    if most < round_to:
        detail = f"{family.name} saves nothing at rank {round_to}"
        return Refusal(site.name, Reason.NO_REDUCTION, detail)
    return np.arange(round_to, most + 1, round_to)


def form_of_weights(site: Site, family: SvdPass, ranks: npt.NDArray[np.int64]) -> Form:
    """Return how similar a family is to the weights of a site, by one spectrum of each group."""
    return Form(family, ranks, weight_cosines(np.sqrt(family.energies(site)))[ranks - 1])
