"""Training of a supernet by the sandwich rule of "Universally Slimmable Networks", arXiv 1903.05134.

A training step computes one largest, one smallest and some random networks. All learn from the labels; all but the largest
may learn from its outputs too (in-place distillation), and those that `teacher` says from the outputs of a trained network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.architecture import Architecture
from models.elastic import ElasticLITv2
from search.training.processes import average_gradients
from search.training.resizing import resized
from search.training.task import Batch, ImageClassification, TrainSettings
from search.training.teacher import Teacher


class SupernetTraining(ImageClassification):
    """Train a supernet.

    Args:
        elastic: The supernet.
        settings: Optimiser and schedule.
        num_classes: Labels lie in [0, num_classes).
        sample_networks: Returns the networks of a step, the largest first.
        distillation: Weight of the first network's outputs in the targets of the others; the labels have the rest.
        teacher: A trained network whose outputs all networks, or the first one, learn from; None for none.
    """

    def __init__(
        self,
        elastic: ElasticLITv2,
        settings: TrainSettings,
        num_classes: int,
        sample_networks: Callable[[int], Sequence[Architecture]],
        distillation: float = 0.0,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(elastic, settings, num_classes, teacher=teacher)
        self.elastic = elastic
        self.sample_networks = sample_networks
        self.distillation = distillation

    def forward(self, images: Tensor) -> Tensor:
        """Classify images by the active network, at its image size if it has one."""
        assert self.elastic.active is not None
        return super().forward(resized(images, self.elastic.active.img_size))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add up the gradients of a step, one network after the other, so that activations of only one are in memory.

        Returns:
            The mean loss of the networks. Its gradient, which Lightning adds, is that of the last network.
        """
        images, labels = batch
        networks = self.sample_networks(self.global_step)
        taught = self.soft_targets(images)
        outputs: Tensor | None = None  # probabilities, of the largest
        rest = torch.zeros((), device=images.device)
        # The largest comes last unless others learn from it: this is the order in which a backward pass of the sum of all
        # losses would add up the gradients.
        numbers = range(len(networks)) if self.distillation else range(len(networks))[::-1]
        for number in numbers:
            self.elastic.activate(networks[number])
            logits = self(images)
            is_largest = number == 0
            learns = self.teacher is not None and (is_largest or self.teacher.teaches_all)
            loss = self.taught_loss(logits, labels, taught if learns else None)
            if outputs is not None:
                loss = torch.lerp(loss, F.cross_entropy(logits, outputs), self.distillation)
            if is_largest and self.distillation:
                outputs = logits.detach().softmax(1)
            loss = loss / len(networks)
            if number != numbers[-1]:
                self.add_gradients(loss)
                rest += loss.detach()
        return self.check_loss(loss + rest)

    def add_gradients(self, loss: Tensor) -> None:
        """Add the gradients of a part of a step's loss, outside of mixed precision as Lightning does."""
        with torch.autocast(loss.device.type, enabled=False):
            (loss / self.settings.accumulate).backward()  # type: ignore[no-untyped-call]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        average_gradients(self.elastic.parameters())

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Do nothing: Lightning calls this when the gradients of most networks are there already."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()
