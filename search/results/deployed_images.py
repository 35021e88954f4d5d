"""What deployable files need of a dataset: images that 8-bit integers are calibrated with, and a test set to run them on.

The accuracy of an int8 file is its own, computed by the runtime that it is for: neither that of the trained network nor that
of the same rounding in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.deploy.int8 import NUM_CALIBRATION_IMAGES
from search.training.data import ImageData
from search.training.images import Images
from search.training.normalisation import Normalisation
from search.training.resizing import resized

BATCH_SIZE = 64


@dataclass(frozen=True)
class FileAccuracy:
    """Top-1 accuracy of a file on the test set, in [0, 1], and the number of its images."""

    accuracy: float
    num_images: int

    @property
    def standard_error(self) -> float:
        """Standard error over the images."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_images)


@dataclass(frozen=True)
class DeployedImages:
    """Images of a dataset, as the files of a network get them.

    Attributes:
        training: (N, C, H, W) uint8.
        test: The whole test set.
        num_classes: Of the dataset.
    """

    training: Tensor
    test: Images
    num_classes: int

    @classmethod
    def of(cls, data: ImageData) -> DeployedImages:
        """Take them from a dataset. Raises: UserError if it has no test set."""
        return cls(data.train.images[:NUM_CALIBRATION_IMAGES], data.test_dataloader().images, data.num_classes)

    def calibration(self, normalisation: Normalisation, side: int) -> Tensor:
        """Return images to calibrate with, normalised, (N, C, side, side) float32."""
        return resized(normalisation.apply(self.training), side)

    def test_accuracy(self, compute: Callable[[Tensor], Tensor], normalisation: Normalisation, side: int) -> FileAccuracy:
        """Run a file on the test set, at images of a side in pixels."""
        is_right = [compute(images).argmax(1) == labels for images, labels in self._test_batches(normalisation, side)]
        return FileAccuracy(float(torch.cat(is_right).double().mean()), len(self.test.labels))

    def _test_batches(self, normalisation: Normalisation, side: int) -> Iterator[tuple[Tensor, Tensor]]:
        batches = (torch.split(tensor, BATCH_SIZE) for tensor in (self.test.images, self.test.labels))
        for images, labels in zip(*batches, strict=True):
            yield resized(normalisation.apply(images), side), labels
