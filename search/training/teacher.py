"""A trained network whose outputs others learn from: "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.

It sees the very images of a step, with their augmentation, as in "Knowledge distillation: A good teacher is patient and
consistent", arXiv 2106.05237.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from search.training.augmentation import grey
from search.training.normalisation import Normalisation
from search.training.resizing import resized


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network, which is not trained further.

    Args:
        network: From images to logits, in evaluation mode.
        name: What it is, for people.
        digest: Of its weights; results depend on it.
        normalisation: What it expects.
        given: Normalisation of the images that it gets, with as many channels as these have.
        img_size: Side of the images that it takes, in pixels; None for any.
        distillation: Weight of its outputs in the targets of those that learn from it; the labels have the rest.
        teaches_all: Whether all networks of a step of a supernet learn from it, or the largest alone.
    """

    network: nn.Module
    name: str
    digest: str
    normalisation: Normalisation
    given: Normalisation
    img_size: int | None
    distillation: float
    teaches_all: bool

    @property
    def fingerprint(self) -> str:
        """What results depend on, as text."""
        size = "" if self.img_size is None else f" at {self.img_size} pixels"
        return f"{self.digest}{size}, {self.distillation:g} for {'all' if self.teaches_all else 'the largest'}"

    def __str__(self) -> str:
        size = "" if self.img_size is None else f", images of {self.img_size} pixels"
        return f"{self.name}{size}, distillation {self.distillation:g}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: averaged weights are those of a copy of the training, and nobody changes a teacher."""
        return self

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probabilities of the classes, (B, num_classes), for normalised images, (B, C, H, W)."""
        logits: Tensor = self.network.to(images.device)(self.prepared(images))
        return logits.float().softmax(1)

    def prepared(self, images: Tensor) -> Tensor:
        """Bring normalised images, (B, C, H, W), into the form that the network expects."""
        if self.normalisation != self.given:
            images = _converted(self.given.undo(images), len(self.normalisation.mean))
            images = self.normalisation.apply(255 * images)
        return resized(images, self.img_size)


def _converted(images: Tensor, channels: int) -> Tensor:
    """Images of another number of channels: grey ones from colours, or three equal channels."""
    if images.shape[1] == channels:
        return images
    return grey(images) if channels == 1 else images.expand(-1, channels, -1, -1)
