"""Printed characters, rendered with the fonts that matplotlib ships: the default dataset, which needs no network.

An image shows one of 100 characters in one of 12 typefaces, shifted, rotated, scaled, faded and noisy. MNIST digits are too
easy to tell networks apart; here accuracies differ by several times the noise of seeds, after a minute of CPU time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.architecture import check_number

# No character that differs from another one only in size.
CHARACTERS = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZabdefghijmnqrtuyΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπστφψωБДЖИЛУЦЧШЩЪЫЬЭЮЯбдвзлцю"
FACES = ("Sans", "SansMono", "Serif")
STYLES = {
    "Sans": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "SansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "Serif": ("", "-Bold", "-Italic", "-BoldItalic"),
}
FONT_SIZES = (20, 23, 26)  # pixels, on the canvas below
CANVAS = 32
MAX_SHIFT = 3  # pixels


@dataclass(frozen=True)
class Difficulty:
    """How hard characters are to recognise.

    Args:
        max_rotation: Largest angle, in degrees, to either side.
        min_contrast: Smallest contrast, as a share of full scale, which is the largest.
        noise: Standard deviation of Gaussian noise, as a share of full scale.

    Raises:
        ValueError: If a value is out of range; the message names it.
    """

    max_rotation: float = 20.0
    min_contrast: float = 0.5
    noise: float = 0.15

    def __post_init__(self) -> None:
        check_number("data.source.max_rotation", self.max_rotation, 0, 180)
        check_number("data.source.min_contrast", self.min_contrast, 0, 1)
        check_number("data.source.noise", self.noise, 0, 1)


def render(num_images: int, seed: int, difficulty: Difficulty = Difficulty()) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Render random characters. The same arguments render the same images.

    Returns:
        Images, (num_images, 32, 32), and for each the index of its character in `CHARACTERS`, (num_images,).
    """
    rng = np.random.default_rng(seed)
    fonts = _fonts()
    labels = rng.integers(len(CHARACTERS), size=num_images)
    images = np.empty((num_images, CANVAS, CANVAS), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:] = _render_character(CHARACTERS[label], fonts[rng.integers(len(fonts))], difficulty, rng)
    return images, labels


def _fonts() -> list[ImageFont.FreeTypeFont]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [folder / f"DejaVu{face}{style}.ttf" for face in FACES for style in STYLES[face]]
    return [ImageFont.truetype(str(file), size) for file in files for size in FONT_SIZES]


def _render_character(
    character: str, font: ImageFont.FreeTypeFont, difficulty: Difficulty, rng: np.random.Generator
) -> NDArray[np.uint8]:
    canvas = Image.new("L", (CANVAS, CANVAS))
    x, y = CANVAS / 2 + rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2)
    left, top, right, bottom = font.getbbox(character)
    position = (x - (left + right) / 2, y - (top + bottom) / 2)
    ImageDraw.Draw(canvas).text(position, character, fill=255, font=font)
    canvas = canvas.rotate(
        rng.uniform(-difficulty.max_rotation, difficulty.max_rotation), resample=Image.Resampling.BILINEAR
    )
    pixels = np.asarray(canvas, np.float32) * rng.uniform(difficulty.min_contrast, 1.0)
    pixels += rng.normal(0, difficulty.noise * 255, size=pixels.shape).astype(np.float32)
    image: NDArray[np.uint8] = np.clip(pixels, 0, 255).astype(np.uint8)
    return image
