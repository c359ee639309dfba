"""The preset ``cosine-svd``: forms and ranks by similarity, layers by what the network loses.

Zhang, Liu & Weng, "SVD compression without fine-tuning by cosine similarity" (J. Real-Time Image
Processing 20(4):64, 2023), as far as its abstract tells: for each layer the form and the rank by
cosine similarity (`onnxcp.planning.cosine`), then which layers are decomposed at all under a limit
on what the network loses (`onnxcp.planning.strategy`). Nothing is trained. Networks are tried with
factors of the weights; what is accepted is then refitted in closed form as any other plan, if there
are data and the settings ask for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from onnxcp.building import Builder
from onnxcp.errors import OnnxcpError
from onnxcp.finishing import seconds_of_original
from onnxcp.graph.chain import site_macs
from onnxcp.graph.refusal import Reason, Refusal
from onnxcp.graph.site import Site, find_sites
from onnxcp.planned import Planned, decided, head_of, row_of
from onnxcp.planning.cosine import (
    FAMILIES,
    LEVELS,
    NAME,
    Compared,
    CosineSvd,
    Cut,
    Form,
    form_of_weights,
    worthwhile,
)
from onnxcp.planning.goal import Goal
from onnxcp.planning.latency import SiteBench, timing_of
from onnxcp.planning.menu import Menu
from onnxcp.planning.option import Option
from onnxcp.planning.plan import Plan
from onnxcp.planning.planner import Choice, Forecast
from onnxcp.planning.responses import forms_of_responses
from onnxcp.planning.search import Round
from onnxcp.planning.strategy import accept
from onnxcp.planning.survey import Surveyed
from onnxcp.product import SvdPass
from onnxcp.profiling.compare import Batch, batch_size
from onnxcp.rewriting import Rewrite, families, fold, menu, settled
from onnxcp.trials import MOST, Chosen, Trials
from onnxcp.work import Work

_SAMPLES = 256  # whose responses are compared
_BATCH = 32
_PRESET = "Forms and ranks were chosen by the cosine similarity of {}."
_STEPS = 40  # of a bisection between cosines of 0 and 1


def by_cosine(work: Work, preset: CosineSvd, goal: Goal) -> tuple[Rewrite, Planned]:
    """Choose by similarity what keeps to a goal, build it, and refit it if that is to be done."""
    bare, compared = _compared(work, preset)
    trials = Trials(work, bare, goal, compared)
    chosen, refused, shortfall = _chosen(trials, preset, goal)
    if trials.ended:
        shortfall = f"The search ended after {MOST} trials; more might be saved."
    kept = _why(trials, preset, goal, chosen, refused)
    taken = {site: (cut.offer.family, cut.offer.ranks, cut.cosine) for site, cut in chosen.items()}
    decisions = decided(work, bare.prepared, [each.site for each in compared], taken, kept)
    rewrite, given_up = _settled(work, replace(bare, decisions=decisions), trials)
    rounds = trials.told(chosen, rewrite)
    return rewrite, _planned(work, preset, goal, compared, rounds, f"{shortfall} {given_up}")


def outlined_by_cosine(work: Work, preset: CosineSvd, goal: Goal) -> tuple[Plan, Planned]:
    """Choose by similarity alone, and time it with random weights; nothing is built."""
    bare, compared = _compared(work, preset)
    trials = Trials(work, bare, goal, compared)
    chosen, refused, shortfall = _chosen(trials, preset, goal)
    options = {site: _timed(work, bare, cut) for site, cut in chosen.items()}
    rounds = trials.told(chosen, None)
    if chosen:
        builder = Builder(work, bare, goal, seconds_of_original(work))
        trial = builder.time(Choice(options))
        before, after = trial.a.median, trial.b.median
        expected = Forecast(before, after, math.nan, math.nan)
        rounds = (replace(rounds[0], forecast=expected, before=before, after=after),)
    planned = _planned(work, preset, goal, compared, rounds, shortfall)
    kept = _why(trials, preset, goal, chosen, refused)
    rows = tuple(row_of(each.site, options.get(each.site), kept[each.site]) for each in compared)
    return Plan(**head_of(work, wanted(preset, goal), planned.kept), sites=rows), planned


def _timed(work: Work, bare: Rewrite, cut: Cut) -> Option:
    """Time what a site becomes, alone."""
    offer = cut.offer
    work.progress(f"{offer.site.name}: timing", 0, 1)
    shape = work.shapes[offer.site.input]
    bench = SiteBench(bare.prepared, offer.site, shape, work.settings.machine)
    timing = timing_of(*bench.trials([offer.sketch]))
    return Option(offer.site, offer.family, offer.ranks, offer.macs, timing, cosine=cut.cosine)


def wanted(preset: CosineSvd, goal: Goal) -> str:
    """Return what is asked for, in words."""
    return f"{preset}, {goal}" if is_limited(preset, goal) or _share(goal) else str(preset)


def is_limited(preset: CosineSvd, goal: Goal) -> bool:
    """Tell whether networks have to be tried: not where a cosine or a share says it all."""
    if _share(goal) is not None:
        return False
    return preset.cosine is None or goal != Goal()


def _compared(work: Work, preset: CosineSvd) -> tuple[Rewrite, list[Compared]]:
    """Find the forms of all sites, and how similar they are at which rank."""
    prepared, records = fold(work.original)
    sites, refusals = find_sites(prepared)
    offered, cut = _menu(work)
    bare = Rewrite(prepared, None, (), tuple(refusals), records)
    found: dict[Site, Compared] = {}
    cuttable = {}
    for site in sites:
        shape = work.shapes.get(site.input)
        macs = None if shape is None else site_macs(site, shape)
        refusal = offered.refusal(site, macs, 0)  # no share of the multiply-adds is too small here
        found[site] = Compared(site, shape, macs, reasons=() if refusal is None else (refusal,))
        if refusal is not None or shape is None or macs is None:
            continue
        looks = {family: worthwhile(site, family, shape, macs, offered.round_to) for family in cut}
        reasons = tuple(each for each in looks.values() if isinstance(each, Refusal))
        found[site] = replace(found[site], reasons=reasons)
        cuttable[site] = [(f, each) for f, each in looks.items() if not isinstance(each, Refusal)]
    forms: dict[Site, tuple[Form, ...]] = {}
    if preset.of_responses(data=work.calibration is not None):
        forms = forms_of_responses(
            prepared,
            {site: each for site, each in cuttable.items() if each},
            _batches(work),
            work.settings.machine,
            memory_limit=work.settings.refit.memory_limit,
            progress=work.progress,
        )
    for done, (site, worth) in enumerate(cuttable.items()):
        if site not in forms:
            work.progress(f"{site.name}: singular values", done, len(cuttable))
            forms[site] = tuple(form_of_weights(site, *each) for each in worth)
        found[site] = replace(found[site], forms=forms[site])
    return bare, list(found.values())


def _menu(work: Work) -> tuple[Menu, list[SvdPass]]:
    """Return what is offered, all of which an SVD makes, and its families by themselves."""
    settings = work.settings
    installed = families()
    names = settings.families or tuple(each for each in FAMILIES if each in installed)
    # Without a multiple, ranks are what the rule says: the preset is about parameters.
    ruled = replace(settings, families=names, round_to=settings.round_to or 1)
    offered = menu(ruled, work.cache, searching=True)
    cut: list[SvdPass] = []
    for family in offered.families:
        if not isinstance(family, SvdPass):
            known = ", ".join(n for n, each in installed.items() if isinstance(each, SvdPass))
            raise OnnxcpError(
                f"{NAME} cannot choose ranks of {family.name} by one SVD; it can of: {known}."
            )
        cut.append(family)
    return offered, cut


def _batches(work: Work) -> list[Batch]:
    """Return batches of the samples whose responses are compared."""
    assert work.calibration is not None
    found: list[Batch] = []
    count = 0
    for batch in work.calibration.batches(max(batch_size(work.feeds), _BATCH)):
        found.append(batch)
        count += batch_size(batch)
        if count >= _SAMPLES:
            break
    return found


def _chosen(
    trials: Trials, preset: CosineSvd, goal: Goal
) -> tuple[Chosen, Mapping[Site, Cut], str]:
    """Return what sites become, what was refused, and a sentence where a goal is out of reach."""
    if _share(goal) is not None:
        return _for_share(trials, preset, goal)
    levels = LEVELS if preset.cosine is None else (preset.cosine,)
    choices = [_level(trials.compared, each, preset.fewest) for each in levels]
    if not is_limited(preset, goal):
        return choices[0], {}, ""
    accepted, refused = accept(choices, trials)
    lost = refused and not accepted
    short = f"No layer can be decomposed at all within the goal: {goal}." if lost else ""
    return accepted, refused, short


def _level(compared: Iterable[Compared], cosine: float, fewest: str) -> dict[Site, Cut]:
    """Return the cut of every site at a cosine; those come first that save most."""
    cuts = [(each, each.cut(cosine, fewest)) for each in compared]
    worth = [(each, cut) for each, cut in cuts if cut is not None]
    worth.sort(key=lambda pair: -pair[0].saving(pair[1], fewest))
    return {each.site: cut for each, cut in worth}


def _share(goal: Goal) -> tuple[str, float] | None:
    """Return what a goal wants few of, and how much of it may be left."""
    if goal.parameters is not None:
        return "parameters", goal.parameters
    return None if goal.macs is None else ("macs", goal.macs)


def _for_share(
    trials: Trials, preset: CosineSvd, goal: Goal
) -> tuple[Chosen, Mapping[Site, Cut], str]:
    """Return the choice of the highest cosine, the same for all sites, that comes to a share."""
    share = _share(goal)
    assert share is not None
    what, most = share

    def fits(chosen: Chosen) -> bool:
        left = trials.left(chosen)[what]
        return left is not None and left <= most

    low, high = 0.0, 1.0
    best = _level(trials.compared, low, preset.fewest)
    if not fits(best):
        left = trials.left(best)[what]
        closest = "" if left is None else f"; the least is {100 * left:.3g} %"
        return best, {}, f"No cosine brings it to {goal}{closest}."
    for _ in range(_STEPS):
        middle = (low + high) / 2
        chosen = _level(trials.compared, middle, preset.fewest)
        if fits(chosen):
            low, best = middle, chosen
        else:
            high = middle
    return best, {}, ""


def _why(
    trials: Trials, preset: CosineSvd, goal: Goal, chosen: Chosen, refused: Mapping[Site, Cut]
) -> dict[Site, tuple[Refusal, ...]]:
    """Return why sites stay as they are, where they do."""
    least = LEVELS[-1] if preset.cosine is None else preset.cosine
    if _share(goal) is not None:  # the cosine that came to the share
        least = min((cut.cosine for cut in chosen.values()), default=0.0)

    def why(each: Compared) -> tuple[Refusal, ...]:
        cut = refused.get(each.site)
        if cut is None:
            return (*each.reasons, each.refusal(least)) if each.forms else each.reasons
        detail = f"with {cut} the network misses the goal: {goal}"
        if not trials.tried(cut):
            detail = f"the search ended before {cut} was tried"
        return (*each.reasons, Refusal(each.site.name, Reason.INACCURATE, detail))

    return {each.site: why(each) for each in trials.compared}


def _settled(work: Work, rewrite: Rewrite, trials: Trials) -> tuple[Rewrite, str]:
    """Build and refit, and say so where that left what the goal allows and was given up."""
    fitted = settled(work, rewrite)
    preset, goal = work.settings.preset, work.settings.goal
    assert preset is not None
    if fitted.model is None or not fitted.unfitted or not is_limited(preset, goal):
        return fitted, ""
    if trials.within(fitted)[0]:
        return fitted, ""
    plain = settled(work, replace(rewrite, given_up=True))
    return plain, f"A refit took the network out of what the goal allows, and was given up: {goal}."


def _planned(
    work: Work,
    preset: CosineSvd,
    goal: Goal,
    compared: Sequence[Compared],
    rounds: tuple[Round, ...],
    shortfall: str,
) -> Planned:
    sites = tuple(Surveyed(each.site, each.macs, reasons=each.reasons) for each in compared)
    how = "what comes out of layers, behind their activations"
    if not preset.of_responses(data=work.calibration is not None):
        how = "weights"
    return Planned(goal, rounds, shortfall.strip(), sites, work.cache.problem, _PRESET.format(how))
