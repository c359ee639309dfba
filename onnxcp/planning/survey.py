"""Everything that a plan is made from: what each site may become, its time and its effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnxcp.errors import ModelError
from onnxcp.graph.chain import site_macs
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site
from onnxcp.planning.distortion import ErrorTable
from onnxcp.planning.latency import WORTHWHILE, LatencyTable, Timing
from onnxcp.planning.menu import Menu, Shapes
from onnxcp.planning.offer import Offer, ladder
from onnxcp.planning.option import Option
from onnxcp.progress import Progress

Ladder = Sequence[Offer]


@dataclass(frozen=True, eq=False)
class Surveyed:
    """A site and what it may become.

    Attributes
    ----------
    site
        The site.
    macs
        Its multiply-adds for one sample; None if the shape of its input is unknown.
    options
        What is faster and what it costs, in time and in error.
    reasons
        Why families are not among them.
    """

    site: Site
    macs: int | None
    options: tuple[Option, ...] = ()
    reasons: tuple[Refusal, ...] = ()

    def without(self, options: Sequence[Option], reason: Refusal) -> Surveyed:
        """Return the same without some options."""
        left = tuple(each for each in self.options if each not in options)
        return replace(self, options=left, reasons=(*self.reasons, reason))

    def of(self, family: str) -> Surveyed:
        """Return the same with the options of one family alone."""
        others = [each for each in self.options if each.family.name != family]
        if not others:
            return self
        detail = f"a plan of {family} was closer for the whole network"
        return self.without(others, Refusal(self.site.name, Reason.NOT_NEEDED, detail))


def survey(
    sites: Sequence[Site],
    menu: Menu,
    shapes: Shapes,
    latencies: LatencyTable,
    errors: ErrorTable,
    progress: Progress,
) -> list[Surveyed]:
    """Look at every site: time its options, then find the errors of those that are faster.

    Parameters
    ----------
    sites
        The sites of the network.
    menu
        What may be chosen from.
    shapes
        Shapes of tensors, by name; a site whose input is not among them is left alone.
    latencies, errors
        Where times and errors come from.
    progress
        Called with what is being done, how many sites are done, and of how many.
    """
    macs = {each: site_macs(each, shapes[each.input]) for each in sites if each.input in shapes}
    total = sum(macs.values())
    found: dict[Site, Surveyed] = {}
    faster: dict[Site, list[Ladder]] = {}
    times: dict[Site, Mapping[Offer, Timing]] = {}
    for done, site in enumerate(sites):
        refusal = menu.refusal(site, macs.get(site), total)
        if refusal is not None:
            found[site] = Surveyed(site, macs.get(site), reasons=(refusal,))
            continue
        progress(f"{site.name}: timing chains", done, len(sites))
        ladders, reasons = _ladders(site, menu, shapes, macs[site])
        try:
            times[site] = latencies.timings(site, ladders) if ladders else {}
        except ModelError as error:
            alone = Refusal(site.name, Reason.UNSUPPORTED, f"it cannot be run alone: {error}")
            found[site] = Surveyed(site, macs[site], reasons=(*reasons, alone))
            continue
        faster[site], slow = _faster(site, ladders, times[site])
        found[site] = Surveyed(site, macs[site], reasons=(*reasons, *slow))
    looked = errors.errors({site: each for site, each in faster.items() if each})
    for site, seen in looked.items():
        options = tuple(
            Option(
                site,
                offer.family,
                offer.ranks,
                offer.macs,
                times[site][offer],
                distortion=seen.distortion(offer),
                error=seen.error(offer),
            )
            for offers in faster[site]
            for offer in offers
        )
        found[site] = replace(found[site], options=options)
    return [found[site] for site in sites]


def _ladders(
    site: Site, menu: Menu, shapes: Shapes, macs: int
) -> tuple[list[list[Offer]], list[Refusal]]:
    ladders, refusals = [], []
    for family in menu.families:
        offers = ladder(site, family, shapes[site.input], macs, menu.round_to)
        if isinstance(offers, Refusal):
            refusals.append(offers)
        else:
            ladders.append(offers)
    return ladders, refusals


def _faster(
    site: Site, ladders: Sequence[Ladder], times: Mapping[Offer, Timing]
) -> tuple[list[Ladder], list[Refusal]]:
    """Keep what beats the site by enough; say why a family has nothing that does."""
    kept: list[Ladder] = []
    refusals = []
    for offers in ladders:
        good = [each for each in offers if each in times and _pays(times[each])]
        if good:
            kept.append(good)
            continue
        best = offers[0]
        detail = f"{best} is not faster: {times[best]}"
        refusals.append(Refusal(site.name, Reason.NOT_FASTER, detail))
    return kept, refusals


def _pays(timing: Timing) -> bool:
    return timing.low > 1 and timing.ratio >= WORTHWHILE
