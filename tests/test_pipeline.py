"""Pipeline text: what it says, what it refuses and how, and that it is read back as written."""

from __future__ import annotations

import contextlib
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.cp import Cp3, Cp4
from onnxcp_passes.fold_batchnorm import FoldBatchNorm
from onnxcp_passes.spatial_svd import SpatialSvd
from onnxcp_passes.tucker import Tucker2

from onnxcp.errors import PassError
from onnxcp.passes import Pass, registered_passes
from onnxcp.pipeline import parse_pipeline

PASSES: list[type[Pass]] = [FoldBatchNorm, ChannelSvd, SpatialSvd, Tucker2, Cp3, Cp4]


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("fold-batchnorm", [FoldBatchNorm()]),
        ("fold-batchnorm{}", [FoldBatchNorm()]),
        ("fold-batchnorm,cp4{rank=64}", [FoldBatchNorm(), Cp4(rank=64)]),
        (' cp4 { rank = 64 , nodes = "conv2*" } ', [Cp4(rank=64, nodes="conv2*")]),
        ("cp4{\n  rank=64,\n  seed=1\n},\ncp3{rank=1}", [Cp4(rank=64, seed=1), Cp3(rank=1)]),
        ("tucker2{rank=(8,16)}", [Tucker2(rank=(8, 16))]),
        ("tucker2{rank=(8)}", [Tucker2(rank=(8,))]),
        ("tucker2{rank=none}", [Tucker2()]),
        ("cp3{energy=0.9}", [Cp3(energy=0.9)]),
        ("cp3{energy=1}", [Cp3(energy=1.0)]),
        ("cp3{energy=.5}", [Cp3(energy=0.5)]),
        ("cp3{energy=5e-1}", [Cp3(energy=0.5)]),
        ("cp3{macs=0.5,round-to=8}", [Cp3(macs=0.5, round_to=8)]),
        ("cp3{macs=0.5,round_to=8}", [Cp3(macs=0.5, round_to=8)]),
        ("cp3,cp3", [Cp3(), Cp3()]),
    ],
)
def test_text_becomes_passes(text: str, passes: list[Pass]) -> None:
    assert parse_pipeline(text) == tuple(passes)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("conv2", "conv2"), ("/layer1/layer1.0/Conv*", "/layer1/layer1.0/Conv*"),
        ("*conv?[0-9]:0", "*conv?[0-9]:0"), ("a+b", "a+b"), ("é*", "é*"), ("-x", "-x"),
        ("64", "64"), ("007", "007"), ("1e3", "1e3"), ("1.10", "1.10"), ("1.2.3", "1.2.3"),
        ("1/conv", "1/conv"), ("64*", "64*"), ("true", "true"), ("none", "none"), ("inf", "inf"),
        ('"64"', "64"), ('"a b"', "a b"), ('""', ""), (r'"a\"b"', 'a"b'), (r'"\u00e9\n"', "é\n"),
        ('"a,b}{=("', "a,b}{=("),
    ],
)  # fmt: skip
def test_a_text_without_quotes_is_taken_to_the_letter(text: str, value: str) -> None:
    assert parse_pipeline(f"cp3{{nodes={text}}}") == (Cp3(nodes=value),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", 'In the pipeline "", the name of a pass was expected at its end.'),
        ("cp3,", 'In the pipeline "cp3,", the name of a pass was expected at its end.'),
        (",cp3", "In the pipeline \",cp3\", the name of a pass was expected, not ','."),
        ("cp3 cp4", "In the pipeline \"cp3 cp4\", ',' was expected, not 'cp4'."),
        ("cp3}", "In the pipeline \"cp3}\", ',' was expected, not '}'."),
        ("cp3{", 'In the pipeline "cp3{", the name of an option was expected at its end.'),
        ("cp3{rank", "In the pipeline \"cp3{rank\", '=' was expected at its end."),
        ("cp3{rank}", "In the pipeline \"cp3{rank}\", '=' was expected, not '}'."),
        ("cp3{rank=", 'In the pipeline "cp3{rank=", a value was expected at its end.'),
        ("cp3{rank=}", "In the pipeline \"cp3{rank=}\", a value was expected, not '}'."),
        (
            "cp3{rank=1,}",
            "In the pipeline \"cp3{rank=1,}\", the name of an option was expected, not '}'.",
        ),
        ("cp3{rank=(1,}", "In the pipeline \"cp3{rank=(1,}\", a value was expected, not '}'."),
        (
            "cp3{rank=1,rank=2}",
            "In the pipeline \"cp3{rank=1,rank=2}\", option 'rank' is given twice.",
        ),
        ("cp3{rank=1;}", "In the pipeline \"cp3{rank=1;}\", ';}' is not understood."),
        ('cp3{nodes="a}', 'In the pipeline "cp3{nodes="a}", \'"a}\' is not understood.'),
        (
            r'cp3{nodes="a\d"}',
            r'In the pipeline "cp3{nodes="a\d"}", "a\d" is not a text as JSON writes it.',
        ),
        (
            "cp5",
            f"There is no pass 'cp5'; there are: {', '.join(registered_passes())}.",
        ),
        (
            "cp3{depth=1}",
            "Pass 'cp3' has no option 'depth'; "
            f"its options are: {', '.join(field.name for field in fields(Cp3))}.",
        ),
        (
            "fold-batchnorm{x=1}",
            "Pass 'fold-batchnorm' has no option 'x'; its options are: none.",
        ),
        (
            "cp3{rank=big}",
            "Option 'rank' of pass 'cp3' takes an int or a tuple of ints or none, not \"big\".",
        ),
        (
            "cp3{rank=true}",
            "Option 'rank' of pass 'cp3' takes an int or a tuple of ints or none, not true.",
        ),
        (
            "cp3{rank=(1,2.5)}",
            "Option 'rank' of pass 'cp3' takes an int or a tuple of ints or none, not (1,2.5).",
        ),
        ("cp3{energy=much}", "Option 'energy' of pass 'cp3' takes a number or none, not \"much\"."),
        ("cp3{nodes=(1,2)}", "Option 'nodes' of pass 'cp3' takes a text, not (1,2)."),
        ("cp3{seed=1.5}", "Option 'seed' of pass 'cp3' takes an int, not 1.5."),
        # What an option may be beyond its type is for the pass to say.
        ("cp3{rank=0}", "Option 'rank' of pass 'cp3' is 0, not 1 or more."),
        ("cp3{rank=()}", "Option 'rank' of pass 'cp3' is (), not 1 or more."),
        ("tucker2{rank=(3,0)}", "Option 'rank' of pass 'tucker2' is (3, 0), not 1 or more."),
        ("cp3{energy=0}", "Option 'energy' of pass 'cp3' is 0.0, not in (0, 1]."),
        ("cp3{energy=nan}", "Option 'energy' of pass 'cp3' is nan, not in (0, 1]."),
        ("cp3{macs=1.5}", "Option 'macs' of pass 'cp3' is 1.5, not in (0, 1]."),
        ("cp3{round_to=0}", "Option 'round_to' of pass 'cp3' is 0, not 1 or more."),
        ("cp3{seed=-1}", "Option 'seed' of pass 'cp3' is -1, not 0 or more."),
        ("cp3{cosine=1.5}", "Option 'cosine' of pass 'cp3' is 1.5, not in (0, 1]."),
        ("cp3{solver=sgd}", "Option 'solver' of pass 'cp3' is 'sgd', not one of als, nls, auto."),
        ("spatial-svd{split=0}", "Option 'split' of pass 'spatial-svd' is 0, not 1 or more."),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(PassError) as caught:
        parse_pipeline(text)
    assert str(caught.value) == sentence


SHARES = st.floats(0, 1, exclude_min=True)
COUNTS = st.integers(1, 10**6)
OPTIONS = {
    "rank": st.none() | COUNTS | st.lists(COUNTS, min_size=1, max_size=4).map(tuple),
    "energy": st.none() | SHARES,
    "cosine": st.none() | SHARES,
    "evbmf": st.booleans(),
    "macs": st.none() | SHARES,
    "round_to": COUNTS,
    "nodes": st.text(),
    "exclude": st.text(st.sampled_from("ab*?[]{}(),=\"\\' \n\té😀\u2028")),
    "seed": st.integers(0, 2**64),
    "solver": st.sampled_from(["als", "nls", "auto"]),
    "slack": st.floats(0, 1, exclude_max=True),
}


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    kind = draw(st.sampled_from(PASSES))
    options = {field.name: draw(OPTIONS.get(field.name, COUNTS)) for field in fields(kind)}
    return kind(**options)


@given(pipeline=st.lists(passes(), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_what_is_written_is_read_back(pipeline: list[Pass]) -> None:
    text = ",".join(map(str, pipeline))
    assert parse_pipeline(text) == tuple(pipeline)
    assert ",".join(map(str, parse_pipeline(text))) == text


@given(text=st.text() | st.text(st.sampled_from('cp3{}rank=1,()"\\ ')))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_text_is_a_pipeline_or_an_error_on_purpose(text: str) -> None:
    with contextlib.suppress(PassError):
        parse_pipeline(text)


def test_the_text_of_a_pass_has_what_differs_from_the_defaults() -> None:
    assert str(FoldBatchNorm()) == "fold-batchnorm"
    assert str(Cp4(rank=64, nodes="conv2*")) == 'cp4{rank=64,nodes="conv2*"}'
    assert str(Tucker2(rank=(8, 16), energy=0.5)) == "tucker2{rank=(8,16),energy=0.5}"
    assert str(Cp3(macs=0.25)) == "cp3{macs=0.25}"
