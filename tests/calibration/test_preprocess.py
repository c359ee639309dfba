"""The text of `--preprocess`: what it means, that it comes back, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcp.calibration.preprocess import Preprocess
from onnxcp.errors import DataError


def refused(text: str) -> str:
    with pytest.raises(DataError) as caught:
        Preprocess.parse(text)
    message = str(caught.value)
    assert message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resize=256", Preprocess(resize=256)),
        ("resize=240x320", Preprocess(resize=(240, 320))),
        ("crop=224", Preprocess(crop=224)),
        ("crop=1x2", Preprocess(crop=(1, 2))),
        ("layout=nhwc", Preprocess(layout="nhwc")),
        ("channels=bgr", Preprocess(channels="bgr")),
        ("scale=1/128", Preprocess(scale=1 / 128)),
        ("scale=1,mean=127.5,std=127.5", Preprocess(scale=1, mean=(127.5,), std=(127.5,))),
        ("mean=0.4:0.5:0.6", Preprocess(mean=(0.4, 0.5, 0.6))),
        ("std=1/2:0.25:1e-1", Preprocess(std=(0.5, 0.25, 0.1))),
        (" interpolation = bicubic , crop = 8 ", Preprocess(interpolation="bicubic", crop=8)),
    ],
)
def test_texts(text: str, expected: Preprocess) -> None:
    assert Preprocess.parse(text) == expected


SIZES = st.none() | st.integers(1, 10**6) | st.tuples(st.integers(1, 9999), st.integers(1, 9999))
POSITIVE = st.floats(1e-30, 1e30)


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    scale = draw(st.none() | POSITIVE)
    top = 255 * (1 / 255 if scale is None else scale)
    return Preprocess(
        resize=draw(SIZES),
        crop=draw(SIZES),
        layout=draw(st.sampled_from([None, "nchw", "nhwc"])),
        channels=draw(st.sampled_from([None, "rgb", "bgr", "grey"])),
        scale=scale,
        mean=tuple(draw(st.lists(st.floats(0, top), max_size=3))),
        std=tuple(draw(st.lists(POSITIVE, max_size=3))),
        interpolation=draw(st.sampled_from(["bilinear", "bicubic", "nearest"])),
    )


@given(preprocesses())
def test_parsing_undoes_formatting(preprocess: Preprocess) -> None:
    if text := str(preprocess):
        assert Preprocess.parse(text) == preprocess
    else:
        assert preprocess == Preprocess()


def test_only_what_is_not_the_default_is_written() -> None:
    assert str(Preprocess()) == ""
    assert str(Preprocess(resize=256, mean=(0.5, 0.25))) == "resize=256,mean=0.5:0.25"


@pytest.mark.parametrize("text", ["", "resize", "=3", "size=3", "crop=1,,scale=1"])
def test_keys(text: str) -> None:
    assert refused(text).endswith(
        "write KEY=VALUE separated by commas, with the keys resize, crop, layout, channels, "
        "scale, mean, std, interpolation."
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resize=", "resize must be a length"),
        ("crop=1,crop=2", "gives 'crop' twice"),
        ("resize=0", "resize must be a length in pixels, such as 224, or HEIGHTxWIDTH, not '0'"),
        ("crop=224x0", "not '224x0'"),
        ("crop=big", "crop must be a length"),
        ("crop=-3", "not '-3'"),
        ("resize=1x2x3", "not '1x2x3'"),
        (f"resize={'9' * 5000}", "resize must be a length"),
        ("layout=chw", "layout must be nchw or nhwc, not 'chw'"),
        ("channels=gray", "channels must be rgb or bgr or grey, not 'gray'"),
        ("interpolation=area", "interpolation must be bilinear or bicubic or nearest"),
        ("scale=x", "scale must be a number, such as 0.5 or 1/255, not 'x'"),
        ("scale=1/0", "not '1/0'"),
        ("scale=0", "scale must be a number above 0"),
        ("scale=inf", "scale must be a number above 0"),
        ("mean=1:", "mean must be a number, such as 0.5 or 1/255, not ''"),
        ("std=0:1:1", "std must be numbers above 0, not '0.0:1.0:1.0'"),
        ("std=nan", "std must be numbers above 0"),
        ("mean=nan", "mean must be numbers that scaled pixels have, 0 to 1"),
    ],
)
def test_values(text: str, words: str) -> None:
    assert words in refused(text)


@pytest.mark.parametrize(
    "text", ["mean=123.675:116.28:103.53", "mean=0.5:-0.1", "scale=2,mean=511"]
)
def test_means_that_no_scaled_pixel_reaches(text: str) -> None:
    """Means for bytes on pixels of 0..1 would pass unseen, and spoil everything."""
    assert "(with scale=1: 0 to 255)" in refused(text)


@pytest.mark.parametrize("given", [{"layout": "NCHW"}, {"crop": (3, 0)}, {"std": (0.0,)}])
def test_values_are_checked_in_python_too(given: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Preprocess(**given)
