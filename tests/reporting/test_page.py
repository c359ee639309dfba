from __future__ import annotations

from dataclasses import replace

from onnxcp.optimizer import Optimized
from onnxcp.pipeline import parse_pipeline
from onnxcp.planning.goal import Goal
from onnxcp.planning.plan import plan_text
from onnxcp.reporting.page import page_of
from onnxcp.settings import Settings
from onnxcp.training import Training
from tests.reporting.conftest import CALIBRATION, JOB, PLAN, SETTINGS, Make


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


def test_the_plan_is_the_file_that_save_plan_writes(planned: Optimized) -> None:
    page = page_of(planned, JOB)
    assert page.plan == plan_text(PLAN)
    assert page.goal == "3 times faster"


def test_what_it_was_made_from(make: Make) -> None:
    job = replace(JOB, data="pictures, 64 samples, seed 0", labelled="test.npz")
    given = dict(page_of(make(data=CALIBRATION), job).given)
    assert given["Calibration"] == "pictures, 64 samples, seed 0"
    assert given["Evaluation"] == "test.npz, all samples"
    assert "digest" in given["Model"]
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


def test_what_passes_rewrote_is_drawn_too(make: Make) -> None:
    settings = Settings(passes="channel-svd{rank=4}", input_shapes=SETTINGS.input_shapes)
    page = page_of(make(settings=settings), replace(JOB, settings=settings))
    assert page.sites == ()
    assert [each.site for each in page.wirings] == ["conv", "fc"]


def test_layers_are_drawn_only_where_they_are_handed_out(make: Make) -> None:
    assert [each.site for each in page_of(make(), JOB).wirings] == ["conv"]
    assert page_of(make(network_ratio=1.0), JOB).wirings == ()
