"""The schedule of a training: how many epochs it has, and its learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def epochs_within(max_epochs: int, max_steps: int | None, steps_per_epoch: int) -> int:
    """Return the number of epochs of a training: at least one, at most `max_epochs`, and else at most `max_steps` steps."""
    return max_epochs if max_steps is None else max(1, min(max_epochs, max_steps // max(1, steps_per_epoch)))


def duration_text(train: Mapping[str, Any]) -> str:
    """Describe how long a training lasts by its settings."""
    steps = train.get("max_steps")
    return f"{train['max_epochs']} epochs" if steps is None else f"at most {train['max_epochs']} epochs or {steps:,} steps"


def warmup_cosine(step: int, num_steps: int, warmup: float, floor: float = 0.0, warmup_prefix: bool = True) -> float:
    """Return the learning rate at a step over its peak: a linear rise, then half a cosine down to the floor.

    Args:
        step: Number of the step, from 0.
        num_steps: Number of steps of the training.
        warmup: Fraction of the steps in which the rate rises.
        floor: Value after the last step.
        warmup_prefix: Whether the cosine begins after the warm-up; else the warm-up replaces its first part. As in timm.
    """
    num_warmup = max(1, round(warmup * num_steps))
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step + 1 - num_warmup) / (num_steps + 1 - num_warmup) if warmup_prefix else step / num_steps
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
