"""Decoded images in memory, or mapped from a file that all processes of a machine share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search import UserError

IMAGES_AT_A_TIME = 4096  # that are read together; a file need not fit into memory


@dataclass(frozen=True)
class Facts:
    """What is computed from all images and labels, and stored with a file of images.

    Args:
        digest: SHA-256 of images and labels.
        counts: Number of pixels of each value, for each channel, (C, 256).
    """

    digest: str
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Images:
    """Decoded images with their labels.

    To another process goes the name of the file instead of the images, if they are mapped from one.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        file: Of the images, of which these are `images`, from number `start` on; None for images in memory.
        start: As above.
        facts: What is known of these images.
    """

    images: Tensor
    labels: Tensor
    file: Path | None = None
    start: int = 0
    facts: Facts | None = None

    def digest(self) -> str:
        """Return a SHA-256 of images and labels."""
        if self.facts is not None:
            return self.facts.digest
        digest = hashlib.sha256()
        for tensor in (*pieces(self.images), self.labels):
            digest.update(tensor.contiguous().numpy().reshape(-1).data)
        return digest.hexdigest()

    def counts(self) -> Tensor:
        """Return the number of pixels of each value, for each channel, (C, 256) int64."""
        return count_values(self.images) if self.facts is None else torch.tensor(self.facts.counts)

    def part(self, start: int, stop: int) -> Images:
        """Return images from `start` to before `stop`, without copying them."""
        return Images(self.images[start:stop], self.labels[start:stop], self.file, self.start + start)

    def __reduce__(self) -> tuple[Callable[..., Images], tuple[Any, ...]]:
        if self.file is None:
            return Images, (self.images, self.labels, None, self.start, self.facts)
        return open_images, (self.file, self.labels.clone(), self.start, self.facts)


def open_images(file: Path, labels: Tensor, start: int = 0, facts: Facts | None = None) -> Images:
    """Map images from a file of NumPy's format.

    Args:
        file: Holds (M, C, H, W) uint8.
        labels: Of N images.
        start: Number of the first of them in the file.
        facts: What is known of these images.

    Raises:
        UserError: If there is no such file, or it is incomplete.
    """
    try:
        mapped = np.load(file, mmap_mode="c")  # "r" would make torch warn; nobody writes
    except (OSError, ValueError) as error:
        raise UserError(
            f"the decoded images {file} cannot be read on this machine ({error}); set data.cache_folder to a folder that "
            "all machines share, or data.cache=memory"
        ) from error
    return Images(torch.from_numpy(mapped)[start : start + len(labels)], labels, file, start, facts)


def pieces(images: Tensor) -> Iterator[Tensor]:
    """Images in parts that fit into memory."""
    for start in range(0, len(images), IMAGES_AT_A_TIME):
        yield images[start : start + IMAGES_AT_A_TIME]


def count_values(images: Tensor) -> Tensor:
    """Return the number of pixels of each value, for each channel, (C, 256) int64."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for piece in pieces(images):
        counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in piece.unbind(1)])
    return counts
