"""Pictures: what a model is fed for them, number by number, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from onnxcp.calibration.data import load_data
from onnxcp.calibration.images import SUFFIXES
from onnxcp.calibration.preprocess import Preprocess
from onnxcp.errors import DataError
from onnxcp.profiling.inputs import InputSpec

FLOAT, BYTE = np.dtype(np.float32), np.dtype(np.uint8)
Pixels = npt.NDArray[np.uint8]


def spec(*shape: int | str | None, dtype: Any = FLOAT) -> InputSpec:
    return InputSpec("x", dtype, shape)


NCHW = spec("n", 3, "h", "w")


def pixels(height: int = 6, width: int = 8, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(path: Path, values: Pixels, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.squeeze()).save(path, **options)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return saved(tmp_path / "picture.png", pixels())


def fed(source: Path, want: InputSpec, text: str = "") -> npt.NDArray[Any]:
    preprocess = Preprocess.parse(text) if text else None
    (batch,) = load_data(source, [want], preprocess=preprocess).batches(100)
    return batch["x"]


def refused(source: Path, want: InputSpec, text: str = "") -> str:
    with pytest.raises(DataError) as caught:
        fed(source, want, text)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


class TestDefaults:
    def test_floats_are_scaled_to_one(self, picture: Path) -> None:
        got = fed(picture, spec(1, 3, 6, 8))
        assert got.dtype == FLOAT
        np.testing.assert_allclose(got[0], pixels().transpose(2, 0, 1) / 255, rtol=3e-7)

    def test_bytes_are_bytes(self, picture: Path) -> None:
        got = fed(picture, spec("n", 6, 8, 3, dtype=BYTE))
        assert got.dtype == BYTE
        np.testing.assert_array_equal(got[0], pixels())

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((1, 3, 6, 8), (1, 3, 6, 8)),
            ((1, 6, 8, 3), (1, 6, 8, 3)),
            ((1, 1, 6, 8), (1, 1, 6, 8)),
            ((1, 6, 8, 1), (1, 6, 8, 1)),
            ((1, 3, 6, 3), (1, 3, 6, 3)),
        ],
    )
    def test_layout_and_channels_are_the_models(
        self, picture: Path, shape: tuple[int, ...], expected: tuple[int, ...]
    ) -> None:
        assert fed(picture, spec(*shape)).shape == expected

    def test_pictures_are_stretched_to_the_models_size(self, picture: Path) -> None:
        expected = Image.fromarray(pixels()).resize((4, 5), Image.Resampling.BILINEAR)
        got = fed(picture, spec(1, 5, 4, 3, dtype=BYTE))
        np.testing.assert_array_equal(got[0], np.asarray(expected))

    @pytest.mark.parametrize(
        "shape", [("n", 3, "h", "w"), ("n", 3, 224, None), ("n", None, "w", 3)]
    )
    def test_a_size_left_open_must_be_given(
        self, picture: Path, shape: tuple[int | str | None, ...]
    ) -> None:
        assert "leaves the size of pictures open; give resize=" in refused(picture, spec(*shape))

    def test_bfloat16_is_a_float(self, picture: Path) -> None:
        import ml_dtypes

        got = fed(picture, spec(1, 3, 6, 8, dtype=np.dtype(ml_dtypes.bfloat16)))
        assert got.max() <= 1


class TestGeometry:
    @pytest.mark.parametrize(
        ("text", "height", "width"),
        [
            ("resize=3", 3, 4),
            ("resize=12", 12, 16),
            ("resize=7x5", 7, 5),
            ("crop=4", 4, 4),
            ("crop=2x7", 2, 7),
            ("resize=12,crop=5", 5, 5),
        ],
    )
    def test_sizes(self, picture: Path, text: str, height: int, width: int) -> None:
        assert fed(picture, NCHW, text).shape == (1, 3, height, width)

    def test_the_longer_side_is_cut_off_not_rounded(self, tmp_path: Path) -> None:
        upright = saved(tmp_path / "a.png", pixels(8, 3))  # 8/3 * 4 = 10.67
        assert fed(upright, NCHW, "resize=4").shape == (1, 3, 10, 4)

    def test_the_crop_is_of_the_middle(self, picture: Path) -> None:
        got = fed(picture, spec("n", "h", "w", 3, dtype=BYTE), "crop=2x4")
        np.testing.assert_array_equal(got[0], pixels()[2:4, 2:6])

    def test_a_shorter_side_is_cropped_to_a_fixed_size(self, picture: Path) -> None:
        got = fed(picture, spec(1, 6, 5, 3, dtype=BYTE), "resize=6")
        np.testing.assert_array_equal(got[0], pixels()[:, 2:7])

    @pytest.mark.parametrize("how", ["bilinear", "bicubic", "nearest"])
    def test_interpolation(self, picture: Path, how: str) -> None:
        method = Image.Resampling[how.upper()]
        expected = np.asarray(Image.fromarray(pixels()).resize((5, 4), method))
        got = fed(picture, spec("n", "h", "w", 3, dtype=BYTE), f"resize=4x5,interpolation={how}")
        np.testing.assert_array_equal(got[0], expected)

    def test_a_crop_larger_than_the_picture(self, picture: Path) -> None:
        message = refused(picture, NCHW, "crop=7")
        assert message == (
            f"Picture '{picture}' is 6x8, smaller than the crop of 7x7; give a larger resize."
        )

    @pytest.mark.parametrize("text", ["resize=5x5", "crop=6x7", "resize=9,crop=5"])
    def test_sizes_that_are_not_the_models(self, picture: Path, text: str) -> None:
        message = refused(picture, spec(1, 3, 6, 8), text)
        assert f"after the preprocessing '{text}', which does not fit input 'x' (1, 3, 6, 8)" in (
            message
        )


class TestNumbers:
    def test_scale_mean_and_std_by_channel(self, picture: Path) -> None:
        mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
        text = f"scale=1,mean={':'.join(map(str, mean))},std={':'.join(map(str, std))}"
        expected = ((pixels() - np.array(mean)) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(fed(picture, spec(1, 3, 6, 8), text)[0], expected, atol=1e-6)

    def test_means_are_in_units_after_scaling(self, picture: Path) -> None:
        expected = (pixels() / 255 - 0.5) / 0.25
        got = fed(picture, spec(1, 6, 8, 3), "mean=0.5,std=0.25")
        np.testing.assert_allclose(got[0], expected, atol=1e-6)

    def test_bgr_turns_the_channels_round_but_not_the_means(self, picture: Path) -> None:
        got = fed(picture, spec(1, 6, 8, 3), "channels=bgr,scale=1,mean=1:2:3")
        np.testing.assert_allclose(got[0], pixels()[:, :, ::-1] - np.array([1.0, 2.0, 3.0]))

    def test_grey_is_pillows(self, picture: Path) -> None:
        expected = np.asarray(Image.fromarray(pixels()).convert("L"))
        np.testing.assert_array_equal(fed(picture, spec(1, 1, 6, 8, dtype=BYTE))[0, 0], expected)

    def test_are_made_when_they_are_dealt_out(self, picture: Path) -> None:
        data = load_data(picture, [spec(1, 3, 6, 8)])
        assert data.parts[0].arrays["x"].dtype == BYTE

    @pytest.mark.parametrize("text", ["mean=0.1:0.2", "std=1:1:1:1"])
    def test_as_many_as_channels(self, picture: Path, text: str) -> None:
        assert "input 'x' (1, 3, 6, 8) has 3 channels" in refused(picture, spec(1, 3, 6, 8), text)

    @pytest.mark.parametrize("text", ["scale=1", "mean=0.5", "std=1"])
    def test_have_no_say_in_bytes(self, picture: Path, text: str) -> None:
        message = refused(picture, spec(1, 3, 6, 8, dtype=BYTE), text)
        assert "wants uint8, pixels as they are" in message


class TestModels:
    @pytest.mark.parametrize(
        ("want", "text", "words"),
        [
            (spec(1, 3, 6), "", "four axes and of floats or uint8; input 'x' (1, 3, 6)"),
            (spec(1, 3, 6, 8, dtype=np.dtype(np.int64)), "", "wants int64"),
            (spec(1, 3, 6, 8, dtype=np.dtype(np.int8)), "", "wants int8"),
            (spec("n", dtype="string"), "", "wants string"),
            (spec("n", "c", 6, 8), "", "give layout=nchw or layout=nhwc"),
            (spec(1, 4, 6, 8), "layout=nchw", "have 3 in the place of the 4 channels"),
            (spec(1, 3, 6, 8), "channels=grey", "have 1 in the place of the 3 channels"),
            (spec(1, 3, 6, 8), "layout=nhwc", "have 3 in the place of the 8 channels"),
        ],
    )
    def test_that_take_no_such_pictures(
        self, picture: Path, want: InputSpec, text: str, words: str
    ) -> None:
        assert words in refused(picture, want, text)

    def test_of_unknown_rank_take_what_is_told(self, picture: Path) -> None:
        assert fed(picture, spec(), "layout=nhwc,resize=4x5").shape == (1, 4, 5, 3)

    def test_of_several_inputs_take_none(self, picture: Path) -> None:
        with pytest.raises(DataError, match="serve a model of one input; the inputs are 'x' "):
            load_data(picture, [NCHW, InputSpec("z", FLOAT, ("n",))])


class TestFormats:
    @pytest.mark.parametrize("suffix", [*SUFFIXES, ".PNG", ".Jpeg"])
    def test_every_suffix_is_read(self, tmp_path: Path, suffix: str) -> None:
        path = saved(tmp_path / f"a{suffix}", np.full((4, 4, 3), 128, np.uint8))
        np.testing.assert_allclose(fed(path, spec(1, 3, 4, 4)), 128 / 255, atol=2 / 255)

    def test_exif_turns_the_picture(self, tmp_path: Path) -> None:
        turned = Image.Exif()
        turned[0x0112] = 6  # to be turned clockwise
        path = saved(tmp_path / "a.png", pixels(), exif=turned)
        got = fed(path, spec("n", "h", "w", 3, dtype=BYTE), "crop=8x6")
        np.testing.assert_array_equal(got[0], np.rot90(pixels(), -1))

    def test_transparency_is_dropped(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a.png", pixels(channels=4))
        got = fed(path, spec(1, 6, 8, 3, dtype=BYTE))
        np.testing.assert_array_equal(got[0], pixels(channels=4)[:, :, :3])

    def test_palettes_are_looked_up(self, tmp_path: Path) -> None:
        indexed = Image.fromarray(pixels()).quantize(16)
        indexed.save(tmp_path / "a.png", transparency=3)
        got = fed(tmp_path / "a.png", spec(1, 6, 8, 3, dtype=BYTE))
        np.testing.assert_array_equal(got[0], np.asarray(indexed.convert("RGB")))

    def test_grey_serves_for_rgb(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a.png", pixels(channels=1))
        got = fed(path, spec(1, 6, 8, 3, dtype=BYTE))
        np.testing.assert_array_equal(got[0], np.repeat(pixels(channels=1), 3, axis=2))

    def test_of_16_bits_the_upper_ones_count(self, tmp_path: Path) -> None:
        deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1300
        Image.fromarray(deep).save(tmp_path / "a.png")
        got = fed(tmp_path / "a.png", spec(1, 1, 6, 8, dtype=BYTE))
        np.testing.assert_array_equal(got[0, 0], deep // 256)

    def test_floats_are_refused(self, tmp_path: Path) -> None:
        Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
        assert "its pixels are floats" in refused(tmp_path / "a.tif", spec(1, 1, 4, 4))

    def test_of_several_frames_the_first(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert fed(tmp_path / "a.gif", spec(1, 3, 4, 4)).min() == 1

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("content", [b"", b"no picture", None])
    def test_broken_files(self, tmp_path: Path, suffix: str, content: bytes | None) -> None:
        path = saved(tmp_path / f"a{suffix}", pixels(60, 80))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content is None else content)
        assert refused(path, spec(1, 3, 6, 8)).startswith(f"Picture '{path}' cannot be read: ")


class TestFolders:
    def test_are_searched_to_the_bottom_in_order(self, tmp_path: Path) -> None:
        for seed, name in enumerate(["a.png", "b/1.bmp", "b/2.PNG", "c/d/e.tif"]):
            saved(tmp_path / name, pixels(seed=seed))
        saved(tmp_path / ".hidden.png", pixels(2, 2))
        saved(tmp_path / ".cache" / "a.png", pixels(2, 2))
        (tmp_path / "README.txt").write_text("pictures")
        got = fed(tmp_path, spec("n", 6, 8, 3, dtype=BYTE))
        np.testing.assert_array_equal(got, [pixels(seed=seed) for seed in range(4)])

    def test_pictures_of_varied_size_are_batches_of_their_own(self, tmp_path: Path) -> None:
        saved(tmp_path / "1.png", pixels(6, 8))
        saved(tmp_path / "2.png", pixels(8, 6))
        saved(tmp_path / "3.png", pixels(6, 8))
        data = load_data(tmp_path, [NCHW], preprocess=Preprocess(resize=3))
        shapes = [batch["x"].shape for batch in data.batches(8)]
        assert shapes == [(1, 3, 3, 4), (1, 3, 4, 3), (1, 3, 3, 4)]
        assert len(data) == data.used == data.batch_count(8) == 3

    def test_pictures_are_drawn_before_they_are_decoded(self, tmp_path: Path) -> None:
        for number in range(20):
            saved(tmp_path / f"{number:02}.png", np.full((2, 2, 3), number, np.uint8))
        want = [spec("n", 2, 2, 3, dtype=BYTE)]
        drawn = load_data(tmp_path, want, samples=5, seed=3).parts[0].arrays["x"][:, 0, 0, 0]
        assert len(drawn) == 5
        assert drawn.tolist() == sorted(drawn.tolist())
        for number in set(range(20)) - set(drawn.tolist()):
            (tmp_path / f"{number:02}.png").write_bytes(b"broken")
        again = load_data(tmp_path, want, samples=5, seed=3).parts[0].arrays["x"][:, 0, 0, 0]
        np.testing.assert_array_equal(again, drawn)
