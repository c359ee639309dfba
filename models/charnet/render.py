"""Render CharNet's data: 24×24 grey pictures of one character of a word in a scene.

A picture shows a character of a random font under a random rotation, shear, stretch and shift,
with its neighbours in the word at the borders, thinned, thickened, outlined or shadowed, in ink on
a textured ground of either polarity and any contrast, blurred and noisy. Equal seeds give equal
pictures on equal fonts (Debian 12; the packages are in `models.charnet.fonts`):

    apt-get install --no-install-recommends $(python -m models.charnet.render --packages)
    python -m models.charnet.render --side test --count 5400 --seed 2 test.npz
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from models.charnet.fonts import (
    ALPHABET,
    CAP_HEIGHT,
    CELL,
    TEST_PACKAGES,
    TRAIN_PACKAGES,
    Typeface,
    split,
)

SIDE = 24
"""Height and width of a picture, in pixels."""

# Scenes are drawn at twice the size of the picture and averaged down, against jagged edges.
CANVAS = 2 * SIDE
BLOCK = 1000


def render(
    typefaces: Sequence[Typeface], count: int, seed: int, *, workers: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Render `count` pictures; the classes take turns, so any 36 in a row have one of each.

    A family is drawn with a chance that grows with the root of its number of fonts, and then one
    of its fonts.

    Returns
    -------
    image
        uint8 ``(count, 1, 24, 24)``.
    label
        int64 ``(count,)``, an index into `ALPHABET`.
    """
    families = [face.family for face in typefaces]
    weight = np.array([families.count(family) ** -0.5 for family in families])
    label = np.arange(count, dtype=np.int64) % len(ALPHABET)
    block = partial(_render_block, typefaces, weight / weight.sum(), label, seed)
    starts = range(0, count, BLOCK)
    if workers == 1:
        image = list(map(block, starts))
    else:
        # One chunk for each worker: a quarter of a gigabyte of typefaces travels with every chunk.
        with ProcessPoolExecutor(workers) as pool:
            image = list(pool.map(block, starts, chunksize=-(-len(starts) // workers)))
    return np.concatenate(image)[:, None], label


def _render_block(
    typefaces: Sequence[Typeface], weight: np.ndarray, label: np.ndarray, seed: int, start: int
) -> np.ndarray:
    """Pictures ``start`` to ``start + BLOCK``: seeded alone, so that blocks can run anywhere."""
    rng = np.random.default_rng([seed, start])
    labels = label[start : start + BLOCK]
    faces = rng.choice(len(typefaces), size=len(labels), p=weight)
    pictures = [
        draw(typefaces[face].glyphs, character, rng)
        for face, character in zip(faces, labels, strict=True)
    ]
    return np.stack(pictures)


def draw(glyphs: np.ndarray, character: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one picture, uint8 (24, 24), of a character of a font's `glyphs`."""
    ink = _word(glyphs, character, rng)
    paper, pen = _two_greys(rng)
    contrast = abs(pen - paper)
    ground = _ground(rng) * min(1, contrast / 110)
    scene = paper + ground
    if rng.random() < 0.2:
        shade = np.roll(ink, rng.integers(-3, 4, size=2), axis=(0, 1))
        scene += shade * rng.uniform(-0.6, 0.6) * contrast
    # The ink carries a little of the ground's texture, as paint does.
    scene += ink * (pen + rng.uniform(0, 0.7) * ground - scene)
    scene = gaussian_filter(scene, rng.uniform(0, 1) ** 2 * 2.4, truncate=3)
    small = scene.reshape(SIDE, 2, SIDE, 2).mean(axis=(1, 3))
    small += rng.normal(size=small.shape) * rng.uniform(0, 1) ** 2 * 0.25 * contrast
    return np.clip(small.round(), 0, 255).astype(np.uint8)


def _word(glyphs: np.ndarray, character: int, rng: np.random.Generator) -> np.ndarray:
    """Coverage, float of 0 to 1 (CANVAS, CANVAS), of a character and perhaps its neighbours."""
    # The map from a cell to the canvas: rotation · shear · scale.
    height = rng.uniform(24, 42) / CAP_HEIGHT
    scale = np.diag([height * math.exp(rng.normal() * 0.12), height])
    shear = np.array([[1, rng.normal() * 0.12], [0, 1]])
    angle = rng.normal() * math.radians(7)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    to_canvas = rotation @ shear @ scale
    to_cell = np.linalg.inv(to_canvas)
    centre = CANVAS / 2 + rng.normal(size=2) * 1.8
    ink = _place(glyphs[character], to_cell, centre)
    for side in (-1, 1):
        if rng.random() < 0.6:
            other = glyphs[rng.integers(len(glyphs))]
            gap = rng.uniform(0.06, 0.35) * CAP_HEIGHT
            step = side * (gap + (_width(glyphs[character]) + _width(other)) / 2)
            ink = np.maximum(ink, _place(other, to_cell, centre + to_canvas @ [step, 0]))
    return _restroke(ink, rng).astype(np.float32) / 255


def _place(glyph: np.ndarray, to_cell: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Lay a cell's glyph on the canvas, its middle at `centre`; uint8 (CANVAS, CANVAS)."""
    offset = CELL / 2 - to_cell @ centre
    image = Image.fromarray(glyph).transform(
        (CANVAS, CANVAS),
        Image.Transform.AFFINE,
        (*to_cell[0], offset[0], *to_cell[1], offset[1]),
        Image.Resampling.BICUBIC,
    )
    return np.asarray(image)


def _width(glyph: np.ndarray) -> int:
    """Width of the inked part of a cell, in pixels."""
    columns = np.flatnonzero(glyph.any(axis=0))
    return int(columns[-1] - columns[0] + 1)


def _restroke(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sometimes thicken, thin, outline or wear off the strokes."""
    image = Image.fromarray(ink)
    kind = rng.random()
    if kind < 0.15:
        return np.asarray(image.filter(ImageFilter.MaxFilter(3)))
    if kind < 0.22:
        thin = np.asarray(image.filter(ImageFilter.MinFilter(3)))
        # Hairlines would vanish: half of the stroke's darkness stays.
        return np.maximum(thin, ink // 2)
    if kind < 0.30:
        return np.asarray(image.filter(ImageFilter.MaxFilter(5))) - ink
    if kind < 0.42:
        return (ink * np.clip(0.8 + _texture(rng, 12), 0.2, 1)).astype(np.uint8)
    return ink


def _two_greys(rng: np.random.Generator) -> tuple[float, float]:
    """Grey levels of paper and pen, of either polarity, at least 44 apart."""
    contrast = 44 + 180 * rng.random() ** 1.2
    low = rng.uniform(0, 255 - contrast)
    greys = (low, low + contrast)
    return greys if rng.random() < 0.5 else greys[::-1]


def _ground(rng: np.random.Generator) -> np.ndarray:
    """Unevenness of the paper, in grey levels about 0: a gradient, textures and a bar or two."""
    across = np.linspace(-1, 1, CANVAS)
    slope = rng.normal(size=2) * 18 * rng.random()
    ground = slope[0] * across[:, None] + slope[1] * across[None, :]
    if rng.random() < 0.6:
        ground = ground + _texture(rng, int(rng.integers(3, 16))) * rng.uniform(0, 45)
    for _ in range(rng.choice(3, p=(0.7, 0.2, 0.1))):
        # A bar: the space between two parallel lines at any place and angle.
        angle = rng.uniform(0, math.pi)
        distance = math.cos(angle) * across[:, None] + math.sin(angle) * across[None, :]
        bar = np.abs(distance - rng.uniform(-1.2, 1.2)) < rng.uniform(0.03, 0.4)
        ground = ground + bar * rng.normal() * 30
    return ground


def _texture(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise about 0 with `cells` bumps to a side, mostly within ±1; (CANVAS, CANVAS)."""
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32) / 2)
    return np.asarray(coarse.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.charnet.render", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("output", nargs="?", type=Path, help="the .npz to write: image and label")
    parser.add_argument("--side", choices=("train", "test"), default="train", help="whose fonts")
    parser.add_argument("--count", type=int, default=1000, help="pictures (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--no-labels", action="store_true", help="write images alone")
    parser.add_argument("--packages", action="store_true", help="print the font packages and stop")
    return parser


def main() -> None:
    """Run the command line."""
    parser = _arguments()
    options = parser.parse_args()
    if options.packages:
        print(*TRAIN_PACKAGES, *TEST_PACKAGES)
        return
    if options.output is None:
        parser.error("name the .npz to write")
    typefaces = split()[options.side == "test"]
    image, label = render(typefaces, options.count, options.seed, workers=options.workers)
    arrays = {"image": image} if options.no_labels else {"image": image, "label": label}
    np.savez_compressed(options.output, **arrays)


if __name__ == "__main__":
    main()
