"""The typefaces behind CharNet's data, split by family into a training and a test side.

All come from Debian 12 packages of free fonts. A package is taken for a family; the lists keep
metric-compatible relatives (Liberation, Croscore, FreeFont, Nimbus, TeX Gyre, ...) on the training
side, and `split` measures that no training font draws the shapes of a test font.
``python -m models.charnet.render --packages`` prints the packages for ``apt-get install``.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# fmt: off
TRAIN_PACKAGES = (
    "fonts-3270", "fonts-adf-accanthis", "fonts-adf-baskervald", "fonts-adf-berenis",
    "fonts-adf-gillius", "fonts-adf-ikarius", "fonts-adf-irianis", "fonts-adf-libris",
    "fonts-adf-mekanus", "fonts-adf-romande", "fonts-adf-switzera", "fonts-adf-tribun",
    "fonts-adf-universalis", "fonts-adf-verana", "fonts-agave", "fonts-allerta",
    "fonts-anonymous-pro", "fonts-arapey", "fonts-atarismall", "fonts-averia-sans-gwf",
    "fonts-averia-serif-gwf", "fonts-beteckna", "fonts-breip", "fonts-bwht", "fonts-cardo",
    "fonts-cmu", "fonts-comfortaa", "fonts-compagnon", "fonts-courier-prime", "fonts-croscore",
    "fonts-crosextra-caladea", "fonts-dejavu-core", "fonts-dejavu-extra", "fonts-dkg-handwriting",
    "fonts-dosis", "fonts-dustin", "fonts-engadget", "fonts-essays1743", "fonts-eurofurence",
    "fonts-fantasque-sans", "fonts-fanwood", "fonts-firacode", "fonts-freefont-otf",
    "fonts-gemunu-libre", "fonts-georgewilliams", "fonts-gfs-didot", "fonts-gfs-neohellenic",
    "fonts-gnutypewriter", "fonts-go", "fonts-goudybookletter", "fonts-humor-sans", "fonts-inter",
    "fonts-isabella", "fonts-jetbrains-mono", "fonts-johnsmith-induni", "fonts-junicode",
    "fonts-kaushanscript", "fonts-lato", "fonts-league-mono", "fonts-liberation", "fonts-lmodern",
    "fonts-lobstertwo", "fonts-manrope", "fonts-monofur", "fonts-monoid-tight", "fonts-mononoki",
    "fonts-mplus", "fonts-nanum", "fonts-national-park", "fonts-noto-core", "fonts-noto-mono",
    "fonts-ocr-a", "fonts-open-sans", "fonts-opendyslexic", "fonts-osifont", "fonts-paratype",
    "fonts-prociono", "fonts-quicksand", "fonts-radisnoir", "fonts-roadgeek",
    "fonts-roboto-unhinted", "fonts-rufscript", "fonts-sil-charis", "fonts-sil-galatia",
    "fonts-sil-gentium-basic", "fonts-sixtyfour", "fonts-sjfonts", "fonts-smiley-sans",
    "fonts-sora", "fonts-stix", "fonts-summersby", "fonts-texgyre", "fonts-tiresias",
    "fonts-tlwg-garuda-ttf", "fonts-tlwg-kinnari-ttf", "fonts-tlwg-norasi-ttf",
    "fonts-tlwg-purisa-ttf", "fonts-tlwg-sawasdee-ttf", "fonts-tlwg-typist-ttf",
    "fonts-tlwg-umpush-ttf", "fonts-tlwg-waree-ttf", "fonts-tomsontalks", "fonts-tuffy",
    "fonts-urw-base35", "fonts-yanone-kaffeesatz", "fonts-yrsa-rasa",
)
TEST_PACKAGES = (
    "fonts-b612", "fonts-cabin", "fonts-cantarell", "fonts-clear-sans", "fonts-comic-neue",
    "fonts-dancingscript", "fonts-ebgaramond", "fonts-elstob", "fonts-gfs-artemisia",
    "fonts-hermit", "fonts-inconsolata", "fonts-junction", "fonts-jura", "fonts-karla",
    "fonts-league-spartan", "fonts-lindenhill", "fonts-linuxlibertine", "fonts-ocr-b",
    "fonts-oldstandard", "fonts-oxygen", "fonts-play", "fonts-quattrocento", "fonts-roboto-slab",
    "fonts-sil-andika", "fonts-vollkorn",
)
# fmt: on

BOXED = ("LinBiolinum_K.otf", "OCRBE.otf", "OCRBX.otf")
"""Fonts that draw every letter in a box, as on a key or a form."""

CELL = 80
"""Side of the square in which a glyph is drawn, in pixels."""

CAP_HEIGHT = 40
"""Height of the letter H in a cell, in pixels."""

# Mean absolute differences of box-filling glyphs, of 1. Copies of one design were seen at up to
# 0.044; the nearest designs of the two sides (Inter Thin and Cantarell Thin) are 0.055 apart.
CLONE_DISTANCE = 0.05
TWIN_DISTANCE = 0.02


@dataclass(frozen=True)
class Typeface:
    """One font file: its family (a Debian package) and its 36 glyphs, uint8 (36, CELL, CELL)."""

    family: str
    path: Path
    glyphs: np.ndarray


def split() -> tuple[list[Typeface], list[Typeface]]:
    """Load the training and the test typefaces.

    Raises
    ------
    subprocess.CalledProcessError
        A package is not installed.
    ValueError
        A training font draws the shapes of a test font.
    """
    train = [face for package in TRAIN_PACKAGES for face in load_package(package)]
    test = [face for package in TEST_PACKAGES for face in load_package(package)]
    test_shapes = np.stack([_signature(face.glyphs) for face in test])
    for face in train:
        distances = np.abs(test_shapes - _signature(face.glyphs)).mean(axis=(1, 2, 3))
        if distances.min() < CLONE_DISTANCE:
            twin = test[int(distances.argmin())]
            raise ValueError(
                f"{face.path.name} (train) draws the shapes of {twin.path.name} (test)"
            )
    return train, test


def load_package(package: str) -> list[Typeface]:
    """Load the usable fonts of an installed Debian package, in order of path."""
    listing = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=True)
    files = {
        Path(line).resolve()
        for line in listing.stdout.splitlines()
        if line.lower().endswith((".ttf", ".otf"))
    }
    # Noto draws most scripts of the world in one file each, with the same Latin in many.
    if package == "fonts-noto-core":
        plain = ("NotoSans-", "NotoSerif-", "NotoSansDisplay-", "NotoSerifDisplay-")
        files = {path for path in files if path.name.startswith(plain)}
    files = {path for path in files if path.name not in BOXED}
    faces = [(path, draw_alphabet(path)) for path in sorted(files) if has_alphabet(path)]
    return [Typeface(package, path, glyphs) for path, glyphs in faces if glyphs is not None]


def has_alphabet(path: Path) -> bool:
    """Whether a font maps all 36 characters to glyphs."""
    try:
        with TTFont(path, lazy=True) as font:
            characters = font.getBestCmap() or {}
    except TTLibError:
        return False
    return all(ord(character) in characters for character in ALPHABET)


def draw_alphabet(path: Path) -> np.ndarray | None:
    """Draw the 36 glyphs, each centred in its cell; None where they cannot be told apart.

    A font is unusable when a glyph is blank or does not fit its cell, or when two are twins, as 0
    and O or 1 and I are in some.
    """
    font = ImageFont.truetype(str(path), 100)
    _, top, _, bottom = font.getbbox("H", anchor="ls")
    if bottom - top < 20:
        return None
    font = font.font_variant(size=round(100 * CAP_HEIGHT / (bottom - top)))
    glyphs = []
    for character in ALPHABET:
        left, top, right, bottom = font.getbbox(character, anchor="ls")
        if not (0 < right - left <= CELL and 0 < bottom - top <= CELL):
            return None
        image = Image.new("L", (CELL, CELL))
        origin = ((CELL - left - right) / 2, (CELL - top - bottom) / 2)
        ImageDraw.Draw(image).text(origin, character, fill=255, font=font, anchor="ls")
        if image.getbbox() is None:
            return None
        glyphs.append(np.asarray(image))
    drawn = np.stack(glyphs)
    shapes = _signature(drawn)
    distance = np.abs(shapes[:, None] - shapes[None]).mean(axis=(2, 3))
    distance += np.eye(len(ALPHABET))
    return drawn if distance.min() > TWIN_DISTANCE else None


def _signature(glyphs: np.ndarray) -> np.ndarray:
    """Every glyph stretched to fill a 16×16 box, of 1: blind to size, width and position."""
    boxes = []
    for glyph in glyphs:
        image = Image.fromarray(glyph)
        boxes.append(np.asarray(image.resize((16, 16), Image.Resampling.BOX, image.getbbox())))
    return np.stack(boxes).astype(np.float32) / 255
