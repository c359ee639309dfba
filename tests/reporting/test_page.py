from __future__ import annotations

from dataclasses import replace

import pytest

from onnxcp.optimizer import Optimized
from onnxcp.pipeline import parse_pipeline
from onnxcp.planning.goal import Goal
from onnxcp.planning.plan import plan_text
from onnxcp.reporting.page import page_of
from onnxcp.settings import Settings
from onnxcp.training import Training
from onnxcp.verification import Step
from tests.reporting.conftest import CALIBRATION, JOB, LABELLED, PLAN, SETTINGS, Make, rendered


def test_the_recipe_does_the_same_again(make: Make) -> None:
    result = make()
    recipe = page_of(result, JOB).recipe
    again = make(settings=Settings(passes=recipe, input_shapes=SETTINGS.input_shapes))
    assert again.model.proto == result.model.proto


def test_the_recipe_names_what_ended_the_rewrite_last(make: Make) -> None:
    result = make()
    (end, *_) = result.records
    end = replace(end, text="split-maxout", changed=True, notes=("2 maxouts split",))
    ended = replace(result, endings=(end,))
    *_, last = parse_pipeline(page_of(ended, JOB).recipe)
    assert last.name == "split-maxout"
    assert page_of(ended, JOB).families[-1][0] == "split-maxout"


@pytest.fixture
def lowered(make: Make) -> Optimized:
    """A result in half precision, after the same in full."""
    result = make(labelled=LABELLED)
    seen, record = result.verification, result.records[0]
    assert seen is not None
    full = Step("factorised", result.model, seen.trial, seen.differences, score=0.5)
    half = replace(full, name="factorised, fp16", model=result.original)
    records = (*result.records, replace(record, text="half", changed=True))
    return replace(result, records=records, steps=(full, half), model=result.original)


def test_the_steps_to_a_lower_precision(lowered: Optimized) -> None:
    page = page_of(lowered, JOB)
    first, *others = page.steps
    assert (first.name, first.ratio, first.interval, first.error) == (
        "as it came",
        "1.00×",
        "",
        "–",
    )
    assert [each.name for each in others] == ["factorised", "factorised, fp16"]
    assert (others[0].ratio, others[0].interval) == ("2.00×", "1.90 to 2.10")
    assert others[0].score == "50.00 %"
    text = rendered(lowered)
    assert "What each step is worth" in text
    assert text.count("<caption>") == text.count("<table")


def test_layers_are_drawn_as_they_were_before_the_precision_fell(lowered: Optimized) -> None:
    assert [each.site for each in page_of(lowered, JOB).wirings] == ["conv"]


def test_the_recipe_lowers_the_precision_last(lowered: Optimized) -> None:
    *_, last = parse_pipeline(page_of(lowered, JOB).recipe)
    assert last.name == "half"


def test_the_plan_is_the_file_that_save_plan_writes(planned: Optimized) -> None:
    page = page_of(planned, JOB)
    assert page.plan == plan_text(PLAN)
    assert page.goal == "3 times faster"


def test_what_it_was_made_from(make: Make) -> None:
    job = replace(JOB, data="pictures, at most 64 samples, seed 0", labelled="test.npz")
    result = make(data=CALIBRATION, labelled=LABELLED)
    given = dict(page_of(result, job).given)
    begin, samples, digest = given["Calibration"].partition(": 64 samples, digest ")
    assert (begin, samples != "") == (job.data, True)
    assert result.compared is not None
    assert result.compared.digest.startswith(digest.removesuffix("…"))
    assert given["Evaluation"].startswith("test.npz: 8 samples, digest ")
    assert "digest" in given["Model"]
    assert given["Result"].startswith("out.onnx, digest ")
    assert given["Result"].partition(", ")[2] != given["Model"].partition(", ")[2]
    assert given["Seeds"] == "refit 0"


def test_seeds(make: Make) -> None:
    settings = replace(SETTINGS, training=Training(seed=7))
    result = make()
    assert dict(page_of(result, JOB).given)["Seeds"] == "random inputs 0"
    trained = dict(page_of(result, replace(JOB, settings=settings)).given)
    assert trained["Seeds"] == "fine-tuning 7, random inputs 0"


def test_sites_that_stay_have_the_time_that_a_plan_found(make: Make) -> None:
    result = make(settings=replace(SETTINGS, macs=None, goal=Goal(speedup=1.5)))
    conv, _ = page_of(result, JOB).sites
    assert (conv.alone is not None, conv.seconds) == (True, None)
    left = tuple(replace(each, candidates=()) for each in result.decisions)
    conv, fc = page_of(replace(result, decisions=left), JOB).sites
    assert (conv.alone, conv.seconds) == (None, 3e-3)
    assert fc.seconds is None


def test_what_was_asked_for_and_what_families_are(make: Make) -> None:
    page = page_of(make(), JOB)
    assert page.asked == "Asked for: 50 % of each layer's MACs."
    ((name, chain),) = page.families
    assert page.sites[0].decision.startswith(name)
    assert "conv" in chain
    some = replace(SETTINGS, macs={"*": 0.5, "fc": 0.4})
    asked = page_of(make(settings=some), replace(JOB, settings=some)).asked
    assert asked == "Asked for: 50 % of each layer's MACs; of the MACs of fc: 40 %."
    rounded = replace(SETTINGS, round_to=4)
    asked = page_of(make(settings=rounded), replace(JOB, settings=rounded)).asked
    assert asked.endswith("Ranks are multiples of 4, where a layer has so many channels.")


@pytest.mark.parametrize(("scale", "warned"), [(1.0, False), (10.0, True), (0.01, True)])
def test_layers_alone_beside_the_whole(make: Make, scale: float, warned: bool) -> None:
    result = make()
    conv, fc = result.decisions
    assert conv.option is not None
    assert result.verification is not None
    saved = result.verification.trial.a.median - result.verification.trial.b.median
    before = 1.5 * saved * scale
    timing = replace(conv.option.timing, before=before, after=before / 3)
    first, *others = conv.candidates
    first = replace(first, option=replace(conv.option, timing=timing))
    conv = replace(conv, candidates=(first, *others))
    sums = page_of(replace(result, decisions=(conv, fc)), JOB).sums
    assert "the whole network went from 2.00 ms to 1.00 ms" in sums
    assert ("do not add up" in sums) is warned


def test_what_passes_rewrote_is_drawn_too(make: Make) -> None:
    settings = Settings(passes="channel-svd{rank=4}", input_shapes=SETTINGS.input_shapes)
    page = page_of(make(settings=settings), replace(JOB, settings=settings))
    assert page.sites == ()
    assert [each.site for each in page.wirings] == ["conv", "fc"]


def test_layers_are_drawn_only_where_they_are_handed_out(make: Make) -> None:
    assert [each.site for each in page_of(make(), JOB).wirings] == ["conv"]
    assert page_of(make(network_ratio=1.0), JOB).wirings == ()
