"""Random changes of batches of training images, for every training: `augment=none|light|photo`.

They work on whole batches, on the device that trains, and depend on their generator alone: the same seed and epoch give the
same batches.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from models.architecture import check_int, check_number

LOG_RATIO = math.log(4 / 3)  # of width to height of a crop, at most; as in torchvision's RandomResizedCrop
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and torchvision convert colours


class BatchAugmentation(Protocol):
    """Changes training images and, where it mixes them, their labels."""

    def __call__(
        self, images: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: (B, C, H, W) uint8, on any device.
            labels: (B,) int64.
            num_classes: Labels lie in [0, num_classes).
            generator: Source of randomness, of the CPU.

        Returns:
            Images of the same shape with values from 0 to 255; and the labels, or probabilities of classes,
            (B, num_classes).
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return what trainings depend on, as plain data."""
        ...


@dataclass(frozen=True)
class ShiftAndFlip:
    """`augment=light`, and without both `augment=none`.

    Args:
        shift: Each image is shifted by up to this number of pixels in both directions; its border is repeated.
        flip: Half of the images are mirrored.
    """

    shift: int
    flip: bool

    def __post_init__(self) -> None:
        check_int("data.shift", self.shift, 0)

    def __call__(
        self, images: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        batch, _, height, width = images.shape
        if self.shift:
            rows, columns = (
                (torch.randint(-self.shift, self.shift + 1, (batch, 1), generator=generator) + torch.arange(side))
                .clamp_(0, side - 1)
                .to(images.device)
                for side in (height, width)
            )
            index = torch.arange(batch, device=images.device)[:, None, None]
            shifted = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
            images = shifted.permute(0, 3, 1, 2)
        if self.flip:
            mirrored = (torch.rand(batch, generator=generator) < 0.5).to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images, labels

    def fingerprint(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PhotoAugmentation:
    """`augment=photo`: random resized crops, mirroring, colour jitter, and mixup or CutMix.

    Args:
        min_scale: Smallest fraction of an image's area that a crop takes, in [0.01, 1].
        flip: Whether half of the images are mirrored.
        brightness: Largest change of the brightness, relative to it; 0 for none.
        contrast: The same of the contrast.
        saturation: The same of the saturation of colours.
        mixup: Parameter of mixup's beta distribution; 0 for none.
        cutmix: Parameter of CutMix's beta distribution; 0 for none. With both, each batch gets one of them.

    Raises:
        ValueError: If a setting is out of range; the message names it.
    """

    min_scale: float
    flip: bool
    brightness: float
    contrast: float
    saturation: float
    mixup: float
    cutmix: float

    def __post_init__(self) -> None:
        check_number("augment.min_scale", self.min_scale, 0.01, 1)
        for name in ("brightness", "contrast", "saturation"):
            check_number(f"augment.{name}", getattr(self, name), 0, 1)
        for name in ("mixup", "cutmix"):
            check_number(f"augment.{name}", getattr(self, name), 0)

    def __call__(
        self, images: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        images = self._jitter(self._crop(images.float(), generator), generator)
        return self._mix(images, labels, num_classes, generator)

    def fingerprint(self) -> dict[str, Any]:
        return {"augment": "photo", **asdict(self)}

    def _crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Cut a part out of each image and resize it to the image's size, mirrored or not; in one interpolation."""
        batch = len(images)
        area, ratio, x, y, mirrored = torch.rand(5, batch, generator=generator)
        scale = (self.min_scale + (1 - self.min_scale) * area).sqrt()
        stretch = ((2 * ratio - 1) * LOG_RATIO / 2).exp()
        width, height = (scale * stretch).clamp(max=1), (scale / stretch).clamp(max=1)
        sign = torch.where(mirrored < 0.5, -1.0, 1.0) if self.flip else torch.ones(batch)
        transform = torch.zeros(batch, 2, 3)  # from places in the result to places in the image, both from -1 to 1
        transform[:, 0, 0], transform[:, 1, 1] = width * sign, height
        transform[:, 0, 2], transform[:, 1, 2] = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
        grid = F.affine_grid(transform.to(images.device), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _jitter(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change brightness, contrast and saturation of each image, as torchvision does with one image."""
        strengths = torch.tensor([self.brightness, self.contrast, self.saturation])[:, None]
        factors = 1 + strengths * (2 * torch.rand(3, len(images), generator=generator) - 1)
        brightness, contrast, saturation = factors[:, :, None, None, None].to(images.device)
        images = (images * brightness).clamp(0, 255)
        images = _blend(images, grey(images).mean((1, 2, 3), keepdim=True), contrast)
        return _blend(images, grey(images), saturation) if images.shape[1] == 3 else images

    def _mix(self, images: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        choices = [
            transform(alpha=alpha, num_classes=num_classes)
            for transform, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
            if alpha > 0
        ]
        if not choices:
            return images, labels
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the CPU's global generator
            torch.default_generator.manual_seed(seed)
            mixed, probabilities = v2.RandomChoice(choices)(images, labels)
        return mixed, probabilities


def grey(images: Tensor) -> Tensor:
    """Grey values, (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(GREY, device=images.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    return (images * share + others * (1 - share)).clamp(0, 255)
