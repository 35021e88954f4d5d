"""Normalisation of images, which weights are trained with and expect ever after: files of weights contain it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from search import UserError, one_line
from search.training.metadata import NORMALISATION_KEY, read_metadata

GREY_MEAN, GREY_STD = 0.449, 0.226  # mean of ImageNet's over its channels
DIGITS = 6  # a number that cards and results show is the one that is used


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, for pixel values in [0, 1].

    Args:
        mean: Subtracted from each channel.
        std: Divides each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, counts: Tensor) -> Self:
        """Return the statistics of images. They are exact, whatever the number of threads.

        Args:
            counts: Number of pixels of each value, for each channel, (C, 256).
        """
        values, total = torch.arange(256, dtype=torch.float64) / 255, int(counts[0].sum())
        mean = (counts * values).sum(1) / total
        variance = (counts * (values - mean[:, None]) ** 2).sum(1) / max(1, total - 1)
        std = variance.sqrt().clamp_min(1e-3)
        return cls(*(tuple(round(float(value), DIGITS) for value in column) for column in (mean, std)))

    @classmethod
    def imagenet(cls, in_chans: int) -> Self:
        """Return ImageNet's statistics, which official checkpoints expect, for colour images (3) or grey ones (1)."""
        return cls(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if in_chans == 3 else cls((GREY_MEAN,), (GREY_STD,))

    @classmethod
    def from_dict(cls, data: dict[str, list[float]]) -> Self:
        """Build from plain data, the inverse of `dataclasses.asdict`."""
        return cls(tuple(map(float, data["mean"])), tuple(map(float, data["std"])))

    @classmethod
    def of_weights(cls, file: Path) -> Self | None:
        """Read the normalisation that the weights in a safetensors file expect; None if the file does not contain it.

        Raises:
            UserError: If the file cannot be read.
        """
        try:
            text = read_metadata(file).get(NORMALISATION_KEY)
            return None if text is None else cls.from_dict(json.loads(text))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} does not hold weights: {one_line(error)}") from error

    def for_channels(self, in_chans: int) -> Self:
        """Return the normalisation of images with another number of channels, for weights that are adapted to it."""
        if len(self.mean) == in_chans:
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return type(self)((round(mean, DIGITS),) * in_chans, (round(std, DIGITS),) * in_chans)

    def apply(self, images: Tensor) -> Tensor:
        """Normalise images, (B, C, H, W) with values from 0 to 255. Returns float32 of the same shape."""
        mean, std = self._tensors(images.device)
        return (images.float() / 255 - mean) / std

    def undo(self, images: Tensor) -> Tensor:
        """Return pixel values from 0 to 1 of normalised images, (B, C, H, W)."""
        mean, std = self._tensors(images.device)
        return images * std + mean

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (1, C, 1, 1)."""
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return mean, std
