"""The plan file: what was written is read again, and what hands got wrong is said in a sentence."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.cp import Cp3
from onnxcp_passes.tucker import Tucker2
from pydantic import ValidationError

from onnxcp.errors import OutputError, PlanError
from onnxcp.factorize import FactorizePass
from onnxcp.graph.model import load
from onnxcp.graph.site import Site, find_sites
from onnxcp.planning.plan import (
    Numbers,
    Plan,
    PlannedModel,
    Row,
    load_plan,
    plan_choices,
    plan_text,
    save_plan,
)
from tests.networks import model_of, noise

TEXT = """\
onnxcp_plan: 1
model: {name: charnet, digest: 3f00}
made_on:
  cpu: Some CPU
  threads: '2'
goal: 2 times faster
predicted: {before_ms: 12.1, after_ms: 6.0, error: 0.05}
measured: {before_ms: 12.2}
sites:
- {site: conv2, family: cp3, ranks: [48], before_ms: 1.2, after_ms: 0.3, error: 0.02, distortion: \
0.001}
- {site: conv3, family: tucker2, ranks: [16, 24]}
- {site: conv1, keep: 'cp3 is not faster: 1.2 ms'}
"""
PLAN = Plan(
    model=PlannedModel(name="charnet", digest="3f00"),
    made_on={"cpu": "Some CPU", "threads": "2"},
    goal="2 times faster",
    predicted=Numbers(before_ms=12.1, after_ms=6.0, error=0.05),
    measured=Numbers(before_ms=12.2),
    sites=(
        Row(
            site="conv2", family="cp3", ranks=(48,), before_ms=1.2, after_ms=0.3, error=0.02,
            distortion=0.001,
        ),
        Row(site="conv3", family="tucker2", ranks=(16, 24)),
        Row(site="conv1", keep="cp3 is not faster: 1.2 ms"),
    ),
)  # fmt: skip

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.none() | st.floats(0, 1e308)
RANKS = st.lists(st.integers(1, 2**40), min_size=1, max_size=4).map(tuple)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    values: dict[str, Any] = {
        name: draw(NUMBERS) for name in ("before_ms", "after_ms", "error", "distortion")
    }
    if draw(st.booleans()):
        return Row(site=draw(TEXTS), keep=draw(TEXTS), **values)
    return Row(site=draw(TEXTS), family=draw(TEXTS), ranks=draw(RANKS), **values)


BLOCKS = st.builds(Numbers, before_ms=NUMBERS, after_ms=NUMBERS, error=NUMBERS)
PLANS = st.builds(
    Plan,
    model=st.builds(PlannedModel, name=TEXTS, digest=TEXTS),
    made_on=st.dictionaries(TEXTS, TEXTS, max_size=3),
    goal=TEXTS,
    predicted=BLOCKS,
    measured=BLOCKS,
    sites=st.lists(rows(), max_size=4, unique_by=lambda row: row.site).map(tuple),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


class TestWritten:
    def test_is_for_people(self, tmp_path: Path) -> None:
        assert plan_text(PLAN) == TEXT
        save_plan(PLAN, tmp_path / "p.yaml")
        assert (tmp_path / "p.yaml").read_text() == TEXT
        assert load_plan(tmp_path / "p.yaml") == PLAN

    def test_leaves_out_what_is_not_known(self) -> None:
        assert plan_text(Plan(sites=())) == "onnxcp_plan: 1\nsites: []\n"

    @given(plan=PLANS)
    def test_is_read_again_as_it_was(self, plan: Plan, folder: Path) -> None:
        save_plan(plan, folder / "p.yaml")
        assert load_plan(folder / "p.yaml") == plan

    @given(plan=PLANS)
    def test_is_yaml_for_others_with_a_row_on_a_line(self, plan: Plan) -> None:
        text = plan_text(plan)
        rows = [row.model_dump(exclude_defaults=True) for row in plan.sites]
        for row in rows:
            row |= {"ranks": list(row["ranks"])} if "ranks" in row else {}
        assert yaml.safe_load(text)["sites"] == rows
        begin = text.index("\nsites:") + 1
        assert text[begin:].count("\n") == 1 + len(rows)

    def test_repeats_what_is_said_twice(self) -> None:
        ranks = (16,)
        twice = [Row(site=name, family="cp3", ranks=ranks) for name in "ab"]
        assert plan_text(Plan(sites=tuple(twice))).count("[16]") == 2

    @pytest.mark.parametrize(
        ("value", "text"),
        [(12.123456, "12.12"), (0.000123456, "0.0001235"), (123456.7, "123500.0"), (0, "0.0")],
    )
    def test_rounds_to_four_digits(self, value: float, text: str) -> None:
        plan = Plan(sites=[Row(site="a", keep="b", before_ms=value, distortion=-value)])
        assert (
            plan_text(plan).splitlines()[-1].startswith(f"- {{site: a, keep: b, before_ms: {text},")
        )
        assert plan.sites[0].before_ms == float(text)

    def test_needs_a_place(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="does not exist"):
            save_plan(PLAN, tmp_path / "no" / "p.yaml")


def read(text: str | bytes, folder: Path) -> Plan:
    path = folder / "p.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_plan(path)


def refused(text: str | bytes, folder: Path) -> str:
    """Return the sentence that a file is refused with, without the file's folder."""
    with pytest.raises(PlanError) as caught:
        read(text, folder)
    message = str(caught.value)
    assert re.fullmatch(r"[A-Z'][^\n]*[^.\n]\.", message), message
    return message.replace(f"{folder}{os.sep}", "")


def one(row: str) -> str:
    """Return a plan of which the second row is `row`."""
    return f"onnxcp_plan: 1\nsites:\n- {{site: ok, keep: it is small}}\n- {row}\n"


GIVE = "give family and ranks, or keep with a reason"
BESIDE = "keep cannot stand beside family and ranks"
FIELDS = "site, family, ranks, keep, fixed, before_ms, after_ms, error, distortion, cosine"
POSITIVE = "must be a finite number from 0 on"
A_ROW = "a row must be a mapping such as {site: conv1, family: cp3, ranks: [16]}"


class TestReadFromHand:
    def test_in_whatever_style(self, tmp_path: Path) -> None:
        text = """
# made by hand
sites:
  - site: "conv2"   # the large one
    family: cp3
    ranks:
      - 48
  - {keep: yes, site: 12}
onnxcp_plan: 1
"""
        expected = (Row(site="conv2", family="cp3", ranks=(48,)), Row(site="12", keep="yes"))
        assert read(text, tmp_path) == Plan(sites=expected)
        assert read(text.replace("\n", "\r\n"), tmp_path) == Plan(sites=expected)
        assert read(text.encode("utf-8-sig"), tmp_path) == Plan(sites=expected)

    def test_as_json(self, tmp_path: Path) -> None:
        text = '{"onnxcp_plan": 1, "sites": [{"site": "a", "family": "cp3", "ranks": [3]}]}'
        assert read(text, tmp_path).sites == (Row(site="a", family="cp3", ranks=(3,)),)

    @pytest.mark.parametrize("name", ["12", "1e5", "0x1f", "no", "null", "1:30", "2024-01-01", "~"])
    def test_names_as_they_stand_there(self, name: str, tmp_path: Path) -> None:
        """YAML would make numbers, dates and nothing of them."""
        assert read(one(f"{{site: {name}, keep: a}}"), tmp_path).sites[1].site == name
        assert (
            read(plan_text(Plan(sites=[Row(site=name, keep="a")])), tmp_path).sites[0].site == name
        )

    @pytest.mark.parametrize("number", ["0.00001", "1e-5", "1.0e-05", "'1e-5'", "+1E-5"])
    def test_numbers_however_written(self, number: str, tmp_path: Path) -> None:
        plan = read(one(f"{{site: a, keep: b, error: {number}}}"), tmp_path)
        assert plan.sites[1].error == 1e-5

    def test_reasons_of_any_text(self, tmp_path: Path) -> None:
        for reason in ("", "yes", "12", "null"):
            plan = read(one(f"{{site: a, keep: {reason}}}"), tmp_path)
            assert plan.sites[1] == Row(site="a", keep=reason)


class TestARowIsRefused:
    @pytest.mark.parametrize(
        ("row", "sentence"),
        [
            ("{site: c, family: f, ranks: [x]}", "ranks must be whole numbers from 1 on, not 'x'"),
            (
                "{site: c, family: f, ranks: [3, 0]}",
                "ranks must be whole numbers from 1 on, not '0'",
            ),
            (
                "{site: c, family: f, ranks: [-3]}",
                "ranks must be whole numbers from 1 on, not '-3'",
            ),
            (
                "{site: c, family: f, ranks: [1.5]}",
                "ranks must be whole numbers from 1 on, not '1.5'",
            ),
            (
                "{site: c, family: f, ranks: [yes]}",
                "ranks must be whole numbers from 1 on, not 'yes'",
            ),
            (
                "{site: c, family: f, ranks: [[3]]}",
                "ranks must be whole numbers from 1 on, not ['3']",
            ),
            (
                "{site: c, family: f, ranks: 48}",
                "ranks must be a list of whole numbers from 1 on, not '48'",
            ),
            (
                "{site: c, family: f, ranks: []}",
                "ranks must be a list of whole numbers from 1 on, not []",
            ),
            (
                "{site: c, family: f, ranks: {a: 3}}",
                "ranks must be a list of whole numbers from 1 on, not {'a': '3'}",
            ),
            ("{site: c}", GIVE),
            ("{site: c, family: f}", GIVE),
            ("{site: c, ranks: [3]}", GIVE),
            ("{site: c, keep: a, family: f, ranks: [3]}", BESIDE),
            ("{site: c, keep: a, family: f}", BESIDE),
            ("{site: c, keep: a, ranks: [3]}", BESIDE),
            ("{site: c, family: [f], ranks: [3]}", "family must be text, not ['f']"),
            ("{site: c, keep: {a: b}}", "keep must be text, not {'a': 'b'}"),
            ("{site: c, keep: a, before_ms: fast}", f"before_ms {POSITIVE}, not 'fast'"),
            ("{site: c, keep: a, after_ms: -1}", f"after_ms {POSITIVE}, not '-1'"),
            ("{site: c, keep: a, error: nan}", f"error {POSITIVE}, not 'nan'"),
            ("{site: c, keep: a, error: }", f"error {POSITIVE}, not ''"),
            ("{site: c, keep: a, error: yes}", f"error {POSITIVE}, not 'yes'"),
            (
                "{site: c, keep: a, distortion: inf}",
                "distortion must be a finite number, not 'inf'",
            ),
            ("{site: c, family: f, rank: [3]}", f"there is no field 'rank'; there are: {FIELDS}"),
        ],
    )
    def test_by_its_number_and_site(self, row: str, sentence: str, tmp_path: Path) -> None:
        assert refused(one(row), tmp_path) == f"Plan 'p.yaml': row 2, 'c': {sentence}."

    @pytest.mark.parametrize(
        ("row", "sentence"),
        [
            ("{keep: a}", "site is missing"),
            ("{}", "site is missing"),
            ("{site: [c], keep: a}", "site must be text, not ['c']"),
            ("{sit: c, keep: a}", f"there is no field 'sit'; there are: {FIELDS}"),
            ("conv1", f"{A_ROW}, not 'conv1'"),
            ("[conv1]", f"{A_ROW}, not ['conv1']"),
            ("", f"{A_ROW}, not ''"),
        ],
    )
    def test_by_its_number_where_there_is_no_site(
        self, row: str, sentence: str, tmp_path: Path
    ) -> None:
        assert refused(one(row), tmp_path) == f"Plan 'p.yaml': row 2: {sentence}."

    def test_that_is_there_twice(self, tmp_path: Path) -> None:
        text = one("{site: a, keep: b}\n- {site: ok, family: cp3, ranks: [3]}")
        assert refused(text, tmp_path) == "Plan 'p.yaml': rows 1 and 3 are both for 'ok'."

    def test_the_first_of_many(self, tmp_path: Path) -> None:
        text = one("{site: b, keep: b, error: c}\n- {site: c}")
        assert "row 2, 'b': error" in refused(text, tmp_path)

    def test_without_printing_all_of_it(self, tmp_path: Path) -> None:
        assert (
            len(refused(one("{site: c, family: f, ranks: [%s]}" % ("x" * 10000)), tmp_path)) < 200
        )


class TestAFileIsRefused:
    @pytest.mark.parametrize(
        ("rest", "sentence"),
        [
            ("", "sites is missing"),
            ("sites:", "sites must be a list of rows, not ''"),
            ("sites: {conv1: cp3}", "sites must be a list of rows, not {'conv1': 'cp3'}"),
            ("sites: []\nmodel: net", "model must be a mapping, not 'net'"),
            (
                "sites: []\nmodel: {nam: net}",
                "model: there is no field 'nam'; there are: name, digest",
            ),
            ("sites: []\nmodel: {name: [a]}", "model: name must be text, not ['a']"),
            ("sites: []\nmade_on: here", "made_on must be a mapping, not 'here'"),
            ("sites: []\nmade_on: {cpu: [a, b]}", "made_on: cpu must be text, not ['a', 'b']"),
            ("sites: []\ngoal: [a]", "goal must be text, not ['a']"),
            ("sites: []\npredicted: 3", "predicted must be a mapping, not '3'"),
            ("sites: []\nmeasured: {error: x}", f"measured: error {POSITIVE}, not 'x'"),
            (
                "sites: []\nmeasured: {after: 3}",
                "measured: there is no field 'after'; there are: before_ms, after_ms, error",
            ),
            (
                "site: []",
                "there is no field 'site'; there are: onnxcp_plan, model, made_on, goal, finish, "
                "refitted, predicted, measured, sites",
            ),
        ],
    )
    def test_where_a_block_is_wrong(self, rest: str, sentence: str, tmp_path: Path) -> None:
        assert refused(f"onnxcp_plan: 1\n{rest}", tmp_path) == f"Plan 'p.yaml': {sentence}."

    @pytest.mark.parametrize("text", ["", "\n# nothing\n", "hello", "[]", "sites: []", '{"a": 1}'])
    def test_that_is_no_plan(self, text: str, tmp_path: Path) -> None:
        expected = "'p.yaml' is not a plan: there is no 'onnxcp_plan' in it."
        assert refused(text, tmp_path) == expected

    @pytest.mark.parametrize(
        ("version", "shown"), [("2", "'2'"), ("", "''"), ("one", "'one'"), ("[1]", "['1']")]
    )
    def test_of_another_version(self, version: str, shown: str, tmp_path: Path) -> None:
        expected = f"Plan 'p.yaml' is of version {shown}; this onnxcp reads version 1."
        assert refused(f"onnxcp_plan: {version}\nother: things", tmp_path) == expected

    @pytest.mark.parametrize(
        ("text", "line", "reason"),
        [
            ("onnxcp_plan: 1\nsites: a: b", 2, "mapping values are not allowed here"),
            (one("{site: a"), 5, "while parsing a flow mapping, expected ',' or '}'"),
            ("onnxcp_plan: 1\nsites:\n\t- a", 3, "found character '\\t' that cannot start"),
            ("onnxcp_plan: 1\n- a", 2, "while parsing a block mapping, expected <block end>"),
            ("onnxcp_plan: 1\ngoal: 'x", 2, "found unexpected end of stream"),
            ("onnxcp_plan: 1\n---\nsites: []", 2, "but found another document"),
            ("onnxcp_plan: 1\ngoal: *x", 2, "found undefined alias 'x'"),
            ("onnxcp_plan: 1\nsites: &a [*a]", 2, "found unconstructable recursive node"),
            ("onnxcp_plan: 1\n? [a]\n: b", 2, "found unhashable key"),
            ("onnxcp_plan: 1\n\ngoal: \x01", 3, "it holds the character U+0001"),
            ("onnxcp_plan: 1\ngoal: a\ngoal: b", 3, "'goal' is given twice"),
            ("onnxcp_plan: 1\nmodel: {name: a, 'name': a}", 2, "'name' is given twice"),
            (one("{site: a, keep: b, keep: c}"), 4, "'keep' is given twice"),
        ],
    )
    def test_that_is_not_yaml(self, text: str, line: int, reason: str, tmp_path: Path) -> None:
        message = refused(text, tmp_path)
        assert message.startswith(f"'p.yaml' is not YAML at line {line}: ")
        assert reason in message

    def test_of_other_bytes(self, tmp_path: Path) -> None:
        expected = "'p.yaml' is not a plan: line 2 is not UTF-8."
        assert refused(b"onnxcp_plan: 1\ngoal: \xff\n", tmp_path) == expected

    def test_that_is_nested_too_deeply(self, tmp_path: Path) -> None:
        expected = "'p.yaml' is not a plan: it is nested too deeply."
        assert refused("[" * 5000, tmp_path) == expected

    def test_without_running_anything(self, tmp_path: Path) -> None:
        text = one('{site: !!python/object/apply:os.system ["exit 1"], keep: b}')
        assert "site must be text" in refused(text, tmp_path)

    def test_that_is_missing_or_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(PlanError) as caught:
            load_plan(tmp_path / "no.yaml")
        assert str(caught.value) == f"There is no file '{tmp_path / 'no.yaml'}'."
        with pytest.raises(PlanError) as caught:
            load_plan(tmp_path)
        assert str(caught.value) == f"'{tmp_path}' is a directory; name the file of a plan."

    def test_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def deny(*_: object) -> bytes:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "read_bytes", deny)
        expected = "Cannot read 'p.yaml': Permission denied."
        assert refused("", tmp_path) == expected

    def test_whose_name_no_file_can_have(self) -> None:
        with pytest.raises(PlanError, match=r"^Cannot read .*null byte\.$"):
            load_plan(Path("p\0.yaml"))


class TestMadeByCode:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: Row(site="a"),
            lambda: Row(site="a", keep="b", family="cp3", ranks=(3,)),
            lambda: Row(site="a", family="cp3", ranks=(0,)),
            lambda: Row(site="a", family="cp3", ranks=()),
            lambda: Row(site="a", keep="b", error=float("nan")),
            lambda: Numbers(before_ms=-1.0),
            lambda: Numbers(before_ms=1.7976e308),
            lambda: Plan(sites=(PLAN.sites[0], PLAN.sites[0])),
            lambda: Plan.model_validate({"onnxcp_plan": 2, "sites": []}),
        ],
    )
    def test_is_held_to_the_same(self, make: Callable[[], object]) -> None:
        with pytest.raises(ValidationError):
            make()

    def test_is_frozen(self) -> None:
        with pytest.raises(ValidationError):
            PLAN.sites[0].site = "other"  # type: ignore[misc]


FAMILIES: dict[str, FactorizePass] = {
    family.name: family for family in (ChannelSvd(), Cp3(), Tucker2())
}


def network() -> list[Site]:
    """Return three sites: a 3x3 convolution of 6 to 8 channels, a 1x1 of 8 to 4, and a matrix."""
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["h"], name="conv1"),
        helper.make_node("Conv", ["h", "w"], ["i"], name="conv2"),
        helper.make_node("GlobalAveragePool", ["i"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "u"], ["y"], name="head"),
    ]
    weights = {"v": noise(8, 6, 3, 3), "w": noise(4, 8, 1, 1), "u": noise(4, 5)}
    sites, _ = find_sites(load(model_of(nodes, inputs={"x": (1, 6, 9, 9)}, weights=weights)))
    return sites


SITES = network()
CONV1, CONV2, HEAD = SITES


class TestChoices:
    def test_are_what_changes_in_the_order_of_the_plan(self) -> None:
        plan = Plan(
            sites=(
                Row(site="head", family="channel-svd", ranks=(2,)),
                Row(site="conv2", keep="it is small"),
                Row(site="conv1", family="tucker2", ranks=(6, 8)),
            )
        )
        choices = plan_choices(plan, SITES, FAMILIES, "p.yaml")
        assert list(choices.items()) == [
            (HEAD, (FAMILIES["channel-svd"], (2,))),
            (CONV1, (FAMILIES["tucker2"], (6, 8))),
        ]
        for site, (family, ranks) in choices.items():
            assert family.apply(site, ranks).ranks == ranks

    def test_may_be_none(self) -> None:
        assert plan_choices(Plan(sites=()), SITES, FAMILIES, "p.yaml") == {}

    @pytest.mark.parametrize(
        ("row", "sentence"),
        [
            (
                Row(site="cnv1", family="cp3", ranks=(3,)),
                "row 2, 'cnv1': the model has no such site; the nearest is 'conv1'",
            ),
            (
                Row(site="con2", keep="it is small"),
                "row 2, 'con2': the model has no such site; the nearest is 'conv2'",
            ),
            (
                Row(site="/layer/MatMul", keep="a"),
                "row 2, '/layer/MatMul': the model has no such site",
            ),
            (
                Row(site="conv1", family="cp5", ranks=(3,)),
                "row 2, 'conv1': there is no family 'cp5'; there are: channel-svd, cp3, tucker2",
            ),
            (
                Row(site="conv2", family="cp3", ranks=(3,)),
                "row 2, 'conv2': cp3 on a 1x1 kernel is a channel-svd with a step too many",
            ),
            (
                Row(site="conv1", family="cp3", ranks=(3, 4)),
                "row 2, 'conv1': cp3 takes 1 rank, not 2",
            ),
            (
                Row(site="conv1", family="tucker2", ranks=(3,)),
                "row 2, 'conv1': tucker2 takes 2 ranks, not 1",
            ),
            (
                Row(site="conv1", family="tucker2", ranks=(3, 9)),
                "row 2, 'conv1': ranks of tucker2 are at most [6, 8] here, not [3, 9]",
            ),
            (
                Row(site="conv1", family="channel-svd", ranks=(9,)),
                "row 2, 'conv1': ranks of channel-svd are at most [8] here, not [9]",
            ),
        ],
    )
    def test_that_do_not_fit_are_refused(self, row: Row, sentence: str) -> None:
        plan = Plan(sites=(Row(site="head", keep="it is small"), row))
        with pytest.raises(PlanError) as caught:
            plan_choices(plan, SITES, FAMILIES, "p.yaml")
        assert str(caught.value) == f"Plan 'p.yaml': {sentence}."
