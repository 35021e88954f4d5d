"""Weights of classes in the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from search.training.class_weights import balanced_weights
from search.training.task import ImageClassification, TrainSettings, fit

SETTINGS = TrainSettings(
    max_epochs=1, batch_size=8, lr=1e-3, weight_decay=0.0, warmup=0.0, label_smoothing=0.0, clip_norm=0.0,
    drop_path_rate=0.0, accelerator="cpu",
)  # fmt: skip
LABELS = torch.tensor([0] * 6 + [1] * 2)


class Unequal:
    """One batch of eight images of three classes, of which one has none."""

    images = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))

    def train_dataloader(self, batch_size: int) -> Unequal:
        return self

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield self.images, LABELS

    def class_counts(self) -> torch.Tensor:
        return torch.bincount(LABELS, minlength=3)


class Linear(ImageClassification):
    """Keeps its losses."""

    def check_loss(self, loss: torch.Tensor) -> torch.Tensor:
        self.loss = loss.detach()
        return super().check_loss(loss)


def first_loss(settings: TrainSettings) -> tuple[float, torch.Tensor]:
    torch.manual_seed(0)
    task = Linear(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), settings, 3)
    logits = task(Unequal.images).detach()
    fit(task, Unequal(), lambda share: None)
    return float(task.loss), logits


def test_weights_are_inverse_to_frequencies_with_a_mean_of_one() -> None:
    weights = balanced_weights(torch.tensor([6, 2, 0]))
    assert weights.tolist() == pytest.approx([8 / 12, 8 / 4, 0.0])
    assert float(weights[LABELS].mean()) == pytest.approx(1.0)


def test_loss_is_weighted_only_if_asked() -> None:
    plain, logits = first_loss(SETTINGS)
    assert plain == pytest.approx(float(F.cross_entropy(logits, LABELS)))
    balanced, logits = first_loss(dataclasses.replace(SETTINGS, class_weights="balanced"))
    by_class = [float(F.cross_entropy(logits[label == LABELS], LABELS[label == LABELS])) for label in (0, 1)]
    assert balanced == pytest.approx(sum(by_class) / 2)  # both classes count the same
    assert balanced != pytest.approx(plain, rel=1e-3)


def test_weights_are_no_part_of_a_checkpoint() -> None:
    task = ImageClassification(nn.Linear(4, 3), SETTINGS, 3)
    task.class_weights = balanced_weights(torch.tensor([6, 2, 0]))
    assert not any("class_weights" in name for name in task.state_dict())


def test_unknown_weights_are_named() -> None:
    with pytest.raises(ValueError, match=r"train.class_weights=inverse must be null or balanced"):
        dataclasses.replace(SETTINGS, class_weights="inverse")
