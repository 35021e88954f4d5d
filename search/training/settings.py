"""Settings of a training: optimiser and schedule."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from models.architecture import check_int, check_number
from search.training.class_weights import check_class_weights


@dataclass(frozen=True)
class TrainSettings:
    """Optimiser and schedule: AdamW without weight decay on norms and biases, linear warm-up, cosine decay.

    Args:
        max_epochs: Number of passes over the training images.
        batch_size: Number of images per device that are computed at a time.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Fraction of the steps in which the learning rate rises to its peak, in [0, 1).
        label_smoothing: Probability that is spread over all classes, in [0, 1).
        clip_norm: Largest norm of the gradient; 0 for no limit.
        drop_path_rate: Stochastic depth of the last block, in [0, 1).
        accelerator: As in `lightning.Trainer`; "auto" uses a GPU if there is one.
        class_weights: "balanced" to weight the loss of each image by the inverse frequency of its class; None for equal
            weights.
        max_steps: Largest number of steps, in whole epochs, of which there is at least one; None for no limit.
        accumulate: Number of batches per step, whose gradients are averaged.
        quantise: "int8" to train with linear layers rounded to 8-bit integers (`models.deploy.int8`); None for no rounding.

    Raises:
        ValueError: If a setting is out of range; the message names it.
    """

    max_epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup: float
    label_smoothing: float
    clip_norm: float
    drop_path_rate: float
    accelerator: str
    class_weights: str | None = None
    max_steps: int | None = None
    accumulate: int = 1
    quantise: str | None = None

    def __post_init__(self) -> None:
        check_class_weights(self.class_weights)
        check_int("train.accumulate", self.accumulate, 1)
        check_int("train.max_epochs", self.max_epochs, 1)
        if self.quantise not in (None, "int8"):
            raise ValueError(f"train.quantise={self.quantise} must be int8 or null")
        if self.max_steps is not None:
            check_int("train.max_steps", self.max_steps, 1)
        check_int("train.batch_size", self.batch_size, 1)
        check_number("train.lr", self.lr, 1e-12)
        for name in ("weight_decay", "clip_norm"):
            check_number(f"train.{name}", getattr(self, name), 0)
        for name in ("warmup", "label_smoothing", "drop_path_rate"):
            check_number(f"train.{name}", getattr(self, name), 0, 0.999)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, without optional settings that are at their defaults: a new one changes no digest."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}
