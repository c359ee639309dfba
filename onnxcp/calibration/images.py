"""Pictures: how a model wants them, and reading one so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from onnxcp.calibration.preprocess import Channels, Interpolation, Layout, Preprocess, Size
from onnxcp.errors import DataError
from onnxcp.profiling.inputs import InputSpec

Pixels = npt.NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, eq=False)
class Normalize:
    """Turns pixels into numbers: (scale x - mean) / std, in float32.

    Attributes
    ----------
    scale
        What pixels are multiplied by.
    mean, std
        Of every channel, in shapes that broadcast against a batch.
    """

    scale: float
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    def __call__(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the numbers of a batch of pixels."""
        scaled = pixels.astype(np.float32) * np.float32(self.scale)
        return (scaled - self.mean) / self.std


@dataclass(frozen=True, eq=False)
class Picturing:
    """What a `Preprocess` comes to for one input: nothing is left open.

    Attributes
    ----------
    resize
        Shorter side, or (height, width), or None for pictures as large as they are.
    crop
        (height, width), or None for all of it.
    layout, channels, interpolation
        As in `Preprocess`.
    normalize
        What is left to do to pixels; None for an input of uint8, which takes them as they are.
    """

    resize: Size | None
    crop: tuple[int, int] | None
    layout: Layout
    channels: Channels
    interpolation: Interpolation
    normalize: Normalize | None

    def read(self, path: Path) -> Pixels:
        """Return the picture of a file as a batch of one, pixels still.

        A rotation that EXIF notes is carried out, transparency is dropped, and of several frames
        the first is taken.

        Raises
        ------
        DataError
            If the file is no sound picture, or smaller than the crop.
        """
        picture = self._cropped(path, self._resized(_opened(path, self.channels)))
        pixels = np.asarray(picture, dtype=np.uint8)
        pixels = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
        if self.channels == "bgr":
            pixels = pixels[:, :, ::-1]
        if self.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels[np.newaxis])

    def _resized(self, picture: Image.Image) -> Image.Image:
        if self.resize is None:
            return picture
        if isinstance(self.resize, int):
            # The longer side is cut off, not rounded, as torchvision does.
            width, height = (self.resize * side // min(picture.size) for side in picture.size)
        else:
            height, width = self.resize
        return picture.resize((width, height), _RESAMPLING[self.interpolation])

    def _cropped(self, path: Path, picture: Image.Image) -> Image.Image:
        if self.crop is None:
            return picture
        height, width = self.crop
        if picture.height < height or picture.width < width:
            raise DataError(
                f"Picture '{path}' is {picture.height}x{picture.width}, smaller than the crop of "
                f"{height}x{width}; give a larger resize."
            )
        left = round((picture.width - width) / 2)
        top = round((picture.height - height) / 2)
        return picture.crop((left, top, left + width, top + height))


def picturing(preprocess: Preprocess, spec: InputSpec) -> Picturing:
    """Settle what a preprocessing leaves to the model.

    Raises
    ------
    DataError
        If the input takes no pictures, or not those that `preprocess` makes, or if it leaves open
        what `preprocess` does not tell.
    """
    shape = spec.shape or (None,) * 4
    floats = spec.dtype != "string" and spec.dtype.kind in "fV"  # V: bfloat16
    if len(shape) != 4 or not (floats or spec.dtype == np.uint8):
        raise DataError(
            f"Pictures serve inputs of four axes and of floats or uint8; input {spec} wants "
            f"{spec.dtype}."
        )
    layout = preprocess.layout or _layout(spec, shape)
    _, *rest = shape
    depth, height, width = rest if layout == "nchw" else (rest[2], *rest[:2])
    channels = preprocess.channels or ("grey" if depth == 1 else "rgb")
    number = 1 if channels == "grey" else 3
    if isinstance(depth, int) and depth != number:
        raise DataError(
            f"Pictures of channels={channels} and layout={layout} have {number} in the place of "
            f"the {depth} channels of input {spec}."
        )
    if not floats and (preprocess.scale is not None or preprocess.mean or preprocess.std):
        raise DataError(
            f"Input {spec} wants uint8, pixels as they are; scale, mean and std have no say there."
        )
    resize, crop = _sizes(preprocess, spec, (height, width))
    return Picturing(
        resize,
        crop,
        layout,
        channels,
        preprocess.interpolation,
        _normalize(preprocess, spec, layout, number) if floats else None,
    )


def _layout(spec: InputSpec, shape: tuple[int | str | None, ...]) -> Layout:
    if shape[1] in (1, 3):
        return "nchw"
    if shape[3] in (1, 3):
        return "nhwc"
    raise DataError(
        f"Which axis of input {spec} holds the channels cannot be told; give layout=nchw or "
        "layout=nhwc."
    )


def _sizes(
    preprocess: Preprocess, spec: InputSpec, wanted: tuple[int | str | None, int | str | None]
) -> tuple[Size | None, tuple[int, int] | None]:
    """Return what to resize to and what to crop to."""
    resize, crop = preprocess.resize, preprocess.crop
    crop = (crop, crop) if isinstance(crop, int) else crop
    height, width = wanted
    fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    if resize is None and crop is None:
        if fixed is None:
            raise DataError(
                f"Input {spec} leaves the size of pictures open; give resize=HEIGHTxWIDTH."
            )
        return fixed, None
    if isinstance(resize, int) and crop is None:
        return resize, fixed
    made = crop or resize
    assert isinstance(made, tuple)
    if any(
        isinstance(side, int) and side != given for side, given in zip(wanted, made, strict=True)
    ):
        raise DataError(
            f"Pictures would be {made[0]}x{made[1]} after the preprocessing '{preprocess}', which "
            f"does not fit input {spec}."
        )
    return resize, crop


def _normalize(preprocess: Preprocess, spec: InputSpec, layout: Layout, number: int) -> Normalize:
    def each(key: str, values: tuple[float, ...], usual: float) -> npt.NDArray[np.float32]:
        if len(values) not in (0, 1, number):
            raise DataError(
                f"Of the preprocessing, {key} has {len(values)} numbers, and input {spec} has "
                f"{number} channel{'s' if number > 1 else ''}."
            )
        array = np.asarray(values or usual, dtype=np.float32).reshape(-1)
        return array[:, np.newaxis, np.newaxis] if layout == "nchw" else array

    scale = 1 / 255 if preprocess.scale is None else preprocess.scale
    return Normalize(scale, each("mean", preprocess.mean, 0.0), each("std", preprocess.std, 1.0))


def _opened(path: Path, channels: Channels) -> Image.Image:
    """Decode a file to 8 bits, grey or RGB."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16 bits, which `convert` would clip to 8
                shifted = np.clip(np.asarray(picture) >> 8, 0, 255).astype(np.uint8)
                picture = Image.fromarray(shifted)
            elif picture.mode == "F":
                raise ValueError("its pixels are floats; save them as npy")
            elif picture.mode == "P":  # the colours of a palette may come with transparency
                picture = picture.convert("RGBA")
            return picture.convert("L" if channels == "grey" else "RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's many readers raise what they like on broken files.
        detail = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(f"Picture '{path}' cannot be read: {detail}.") from error
