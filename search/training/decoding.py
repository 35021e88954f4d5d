"""From encoded images of any kind to grey or colour images of 8 bits.

Images that cannot be decoded are named all at once: a folder of photos rarely has a single one. Images of more than 8 bits
have values whose range their files do not tell, such as 12 bits of a camera in files of 16: `Levels` finds it in the images.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from datasets import Dataset, Image, concatenate_datasets
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError
from PIL.Image import Resampling

from search import UserError, one_line

log = logging.getLogger(__name__)
NUM_NAMED = 10  # images that a message names
NUM_SAMPLED = 64  # images that tell whether there are any of more than 8 bits
ROWS_AT_A_TIME = 256  # that are read and decoded together
INTEGER_BITS = (8, 10, 12, 14, 16, 24, 32)  # that cameras and files have

Row = Mapping[str, Any]
"""An encoded image: its `bytes`, or the `path` of its file."""


class Undecodable(Exception):
    """An image that cannot be decoded; the message says why."""


Failure = tuple[str, Undecodable]
"""The name of an image that cannot be decoded, and why."""


@dataclass(frozen=True)
class Levels:
    """Values that become black and white in images of more than 8 bits, which have one channel.

    Args:
        integer: Lowest and highest value of images of integers.
        real: The same of images of floats.
    """

    integer: tuple[int, int] = (0, 2**16 - 1)
    real: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, *datasets: Dataset) -> Self:
        """Return the levels of all images of a training set; those that cannot be decoded are left out.

        Nothing but the headers of a few images is read if these have 8 bits.
        """
        rows = encoded(concatenate_datasets(list(datasets)))
        step = max(1, len(rows) // NUM_SAMPLED)
        if not any(map(_is_deep_file, rows.select(range(0, len(rows), step))["image"])):
            return cls()
        extremes = [values for _, _, results in _for_each(rows, _extremes) for values in results if values is not None]
        integers = [(low, high) for is_float, low, high in extremes if not is_float]
        reals = [(low, high) for is_float, low, high in extremes if is_float]
        levels = cls(_integer_levels(integers) or cls.integer, _real_levels(reals) or cls.real)
        log.info(
            "images of more than 8 bits: integers from %d to %d, or floats from %g to %g", *levels.integer, *levels.real
        )
        return levels

    def to_8_bits(self, image: PillowImage.Image) -> PillowImage.Image:
        """Convert an image of integers of 16 or 32 bits, or of floats."""
        pixels = np.asarray(image)
        if image.mode == "F":
            low, high = self.real
            scaled = np.rint((pixels.astype(np.float64) - low) / (high - low) * 255)
        else:
            bottom, top = self.integer if image.format != "PPM" else (0, 2**16 - 1)  # Pillow scales these to 16 bits
            scaled = (pixels.astype(np.int64) - bottom) * 256 // (top + 1 - bottom)
        return PillowImage.fromarray(scaled.clip(0, 255).astype(np.uint8))


def decode(row: Row | None) -> PillowImage.Image:
    """Decode an image and turn it as its EXIF data say.

    Raises:
        Undecodable: If that cannot be done, for a reason in the row or its file.
    """
    if row is None or (row["bytes"] is None and row["path"] is None):
        raise Undecodable("no image")
    try:
        with _open(row) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
    except PillowImage.DecompressionBombError as error:
        limit = 2 * (PillowImage.MAX_IMAGE_PIXELS or 0)
        raise Undecodable(f"more than {limit:,} pixels: scale it down") from error
    except UnidentifiedImageError as error:
        raise Undecodable("not an image, or of an unknown format") from error
    except FileNotFoundError as error:
        raise Undecodable("no such file") from error
    except Exception as error:  # whatever a decoder of Pillow raises: OSError, SyntaxError, ValueError, struct.error, ...
        raise Undecodable(one_line(error).removeprefix("OSError: ")) from error
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise Undecodable("values that are not finite")
    return image


def convert_image(image: PillowImage.Image, in_chans: int, levels: Levels | None = None) -> PillowImage.Image:
    """Convert an image to grey (in_chans 1) or colour (in_chans 3), with 8 bits per channel.

    Args:
        image: Of any mode.
        in_chans: 1 or 3.
        levels: Of images of more than 8 bits.

    Raises:
        Undecodable: If Pillow cannot convert its colours.
    """
    if is_deep(image):
        image = (levels or Levels()).to_8_bits(image)
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns if it is converted at once
        image = image.convert("RGBA")
    try:
        return image.convert("L" if in_chans == 1 else "RGB")
    except ValueError as error:
        raise Undecodable(str(error)) from error


@dataclass(frozen=True)
class Decoder:
    """Makes images of working size: the shorter side is resized, the centre cropped.

    Args:
        in_chans: 1 for grey images, 3 for colour images.
        img_size: Side of the images, in pixels.
        levels: Of images of more than 8 bits.
    """

    in_chans: int
    img_size: int
    levels: Levels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a working image, (C, H, W)."""
        return self.in_chans, self.img_size, self.img_size

    def decode(
        self, dataset: Dataset, numbers: Sequence[int] | NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.uint8], list[Failure]]]:
        """Decode all images of a dataset.

        Args:
            dataset: N rows of encoded images.
            numbers: Of each row, for messages.

        Yields:
            Some images in their order, (B, C, H, W), and which of them cannot be decoded.
        """
        for start, images, results in _for_each(dataset, self._decode_one):
            pixels = np.zeros((len(images), *self.shape), np.uint8)
            failures = []
            for index, result in enumerate(results):
                if isinstance(result, Undecodable):
                    failures.append((name_of(images[index], int(numbers[start + index])), result))
                else:
                    pixels[index] = result
            yield pixels, failures

    def _decode_one(self, row: Row | None) -> NDArray[np.uint8] | Undecodable:
        """Return an image, (C, H, W), or why it cannot be decoded."""
        try:
            image = convert_image(decode(row), self.in_chans, self.levels)
        except Undecodable as error:
            return error
        fitted = ImageOps.fit(image, (self.img_size, self.img_size), Resampling.BILINEAR)
        return np.asarray(fitted).reshape(self.img_size, self.img_size, self.in_chans).transpose(2, 0, 1)


def undecodable(failures: Sequence[Failure], total: int, data: str) -> UserError:
    """Describe images that cannot be decoded as a mistake of the user; the log has all of them."""
    texts = [f"{name} ({error})" for name, error in failures]
    for text in texts:
        log.debug("cannot be decoded: %s", text)
    more = f" and {len(texts) - NUM_NAMED:,} more, which the log names" if len(texts) > NUM_NAMED else ""
    return UserError(
        f"{len(texts):,} of {total:,} images of data={data} cannot be decoded: {', '.join(texts[:NUM_NAMED])}{more}; "
        "repair or remove them"
    )


def encoded(dataset: Dataset) -> Dataset:
    """Return the same rows, with images as `Row`."""
    return dataset.cast_column("image", Image(decode=False))


def in_batches(dataset: Dataset) -> Iterator[Sequence[Row | None]]:
    """Read encoded images, some at a time: rows one by one take longer."""
    rows = encoded(dataset)
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        yield rows[start : start + ROWS_AT_A_TIME]["image"]


def name_of(row: Row | None, number: int) -> str:
    """Name an image: its path, or the number of its row."""
    return f"row {number}" if row is None or not row["path"] else str(row["path"])


def is_deep(image: PillowImage.Image) -> bool:
    """Whether an image has more than 8 bits per channel, which Pillow would clip at 255."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _is_deep_file(row: Row | None) -> bool:
    """The same of an image that is not decoded; False if it cannot be opened."""
    try:
        assert row is not None
        with _open(row) as image:
            return is_deep(image)
    except Exception:  # it is named when it is decoded
        return False


def _open(row: Row) -> PillowImage.Image:
    return PillowImage.open(row["path"] if row["bytes"] is None else io.BytesIO(row["bytes"]))


def _extremes(row: Row | None) -> tuple[bool, float, float] | None:
    """Whether a deep image has floats, and its lowest and highest value; None if it is not deep or cannot be decoded."""
    try:
        image = decode(row)
    except Undecodable:
        return None
    if not is_deep(image) or image.format == "PPM":
        return None
    pixels = np.asarray(image)
    return image.mode == "F", pixels.min().item(), pixels.max().item()


def _integer_levels(extremes: Sequence[tuple[float, float]]) -> tuple[int, int] | None:
    """All values of the smallest number of bits that holds them; what occurs, if some are negative."""
    if not extremes:
        return None
    low, high = int(min(low for low, _ in extremes)), int(max(high for _, high in extremes))
    return (low, high) if low < 0 else (0, 2 ** next(bits for bits in INTEGER_BITS if high < 2**bits) - 1)


def _real_levels(extremes: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """From 0 to 1 or from 0 to 255 if all values are there, else what occurs."""
    if not extremes:
        return None
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if low >= 0 and high <= 255:
        return (0.0, 1.0 if high <= 1 else 255.0)
    return low, max(high, low + 1)


def _for_each(
    dataset: Dataset, function: Callable[[Row | None], Any]
) -> Iterator[tuple[int, Sequence[Row | None], Iterator[Any]]]:
    """Call a function for each encoded image, on all cores: Pillow decodes and resizes without Python's lock.

    Yields:
        The number of the first of some images, these images, and their results.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(num_available_cores()) as pool:
        warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)  # of half as many pixels as it refuses
        start = 0
        for images in in_batches(dataset):
            yield start, images, pool.map(function, images)
            start += len(images)


def num_available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
