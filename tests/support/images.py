"""Folders of small images."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from search.training import sources
from search.training.data import ImageData


def write_images(folder: Path, names: Iterable[str], brightness: int = 100) -> None:
    """Write grey images with these names, `CLASS/NAME.png`; their folders are made."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), brightness).save(file)


def write_classes(folder: Path, classes: Iterable[str] = ("cat", "dog"), count: int = 8) -> None:
    """Write a folder of images for each class."""
    write_images(folder, [f"{name}/{number}.png" for name in classes for number in range(count)])


def folder_data(folder: Path, **changes: Any) -> ImageData:
    """Read a folder of images, of which two are to validate on."""
    return source_data(partial(sources.imagefolder, path=str(folder)), **changes)


def parquet_data(folder: Path, **changes: Any) -> ImageData:
    """Read a folder of parquet files, of whose images two are to validate on."""
    return source_data(partial(sources.parquet, path=str(folder), image="image", label="label"), **changes)


def source_data(source: Any, **changes: Any) -> ImageData:
    settings: dict[str, Any] = {
        "name": "photos", "source": source, "img_size": 16, "in_chans": 1, "train_size": None, "val_size": 2, "seed": 0,
        "shift": 0, "flip": False,
    }  # fmt: skip
    return ImageData(**{**settings, **changes})


def brightness_of(data: ImageData) -> list[list[int]]:
    """The colours of all images, of the middle of each, in order: (R, G, B), or the grey value."""
    middle = np.concatenate([data.train.images.numpy(), data.val.images.numpy()])[:, :, 8, 8]
    return sorted(middle.tolist())
