"""Weights of classes in the loss, so that rare classes count as much as frequent ones."""

from __future__ import annotations

import torch
from torch import Tensor

BALANCED = "balanced"


def check_class_weights(value: object) -> None:
    """Raises: ValueError if there are no such weights."""
    if value not in (None, BALANCED):
        raise ValueError(f"train.class_weights={value} must be null or {BALANCED}")


def balanced_weights(counts: Tensor) -> Tensor:
    """Return weights that are inverse to the numbers of images, with a mean of 1 over images; (classes,).

    Args:
        counts: Training images of each class, (classes,). A class without any gets 0.
    """
    num_present = int((counts > 0).sum())
    return torch.where(counts > 0, counts.sum() / (num_present * counts.clamp(min=1)), 0.0).float()
