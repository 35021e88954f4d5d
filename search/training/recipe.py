"""Training for real, beyond the short and equal trainings of a search: what modern recipes add to schedule and batches.

Mixup, CutMix and RandAugment as in timm, averaged weights, mixed precision, several devices, logs. `recipe=imagenet` has the
settings of LITv2's authors: Sec. 5.1 of arXiv 2205.13213, and the configuration of their published code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from models.architecture import check_int, check_number
from search.training.streamed import Augmentation
from search.training.task import Batch, ImageClassification, TrainSettings

LOGGERS = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}


@dataclass(frozen=True)
class Recipe:
    """augmentation: null keeps the images in memory and moves and mirrors them by data.shift and data.flip.

    mixup, cutmix: parameters of their beta distributions, 0 for none; with both, a batch gets one or the other.
    ema_decay: of an exponential moving average of the weights, which then is the result; 0 for none. offset_lr: of the
    convolutions that give deformable ones their offsets, over the learning rate. lr_floor: share of the highest learning
    rate that the schedule ends at. precision: as Lightning names it, or auto: bf16-mixed on a GPU. devices: how many to
    train on, or auto. validate_every: epochs; 0 for only at the end. logs: any of csv and tensorboard.
    """

    augmentation: Augmentation | None
    mixup: float
    cutmix: float
    ema_decay: float
    offset_lr: float
    lr_floor: float
    precision: str
    devices: int | str
    validate_every: int
    logs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix", "offset_lr"):
            check_number(f"recipe.{name}", getattr(self, name), 0)
        for name in ("ema_decay", "lr_floor"):
            check_number(f"recipe.{name}", getattr(self, name), 0, 0.99999)
        if self.devices != "auto":
            check_int("recipe.devices", self.devices, 1)
        check_int("recipe.validate_every", self.validate_every, 0)
        if unknown := [str(name) for name in self.logs if name not in LOGGERS]:
            raise ValueError(f"recipe.logs: {', '.join(unknown)} is unknown; choose of {', '.join(LOGGERS)}")
        if self.augmentation is None and self.devices not in (1, "auto"):
            raise ValueError(
                f"recipe.devices={self.devices}: images in memory feed one device; choose recipe=strong or recipe=imagenet"
            )

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def callbacks(self) -> list[Callback]:
        return [EMAWeightAveraging(decay=self.ema_decay)] if self.ema_decay else []

    def options(self, accelerator: str, folder: Path) -> dict[str, Any]:
        """For lightning.Trainer. folder: of the logs. A query of a single window is not computed and has no gradient."""
        return {
            "precision": self._precision(accelerator),
            "devices": 1 if self.augmentation is None else self.devices,
            "strategy": "ddp_find_unused_parameters_true" if self._num_devices(accelerator) > 1 else "auto",
            "logger": [self._logger(name, folder) for name in self.logs],
            "check_val_every_n_epoch": max(1, self.validate_every),
            "use_distributed_sampler": False,
        }

    def _num_devices(self, accelerator: str) -> int:
        if self.augmentation is None:
            return 1
        if isinstance(self.devices, int):
            return self.devices
        return torch.cuda.device_count() if on_cuda(accelerator) else 1

    def _precision(self, accelerator: str) -> str:
        if self.precision != "auto":
            return self.precision
        return "bf16-mixed" if on_cuda(accelerator) and torch.cuda.is_bf16_supported() else "32-true"

    def _logger(self, name: str, folder: Path) -> Logger:
        """Raises: ValueError naming the package to install if TensorBoard's is missing."""
        try:
            logger: Logger = LOGGERS[name](folder, name=name)
        except ModuleNotFoundError as error:
            raise ValueError(f"recipe.logs: {name} needs a package: pip install 'hilo-nas[tensorboard]'") from error
        return logger


def on_cuda(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


class FullTraining(ImageClassification):
    """Image classification by a recipe, validated and logged as it goes."""

    def __init__(self, model: nn.Module, settings: TrainSettings, num_classes: int, recipe: Recipe) -> None:
        super().__init__(model, settings, num_classes)
        self.recipe = recipe
        self.lr_floor = recipe.lr_floor
        self.validation_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.mix = (
            Mixup(  # type: ignore[no-untyped-call]
                recipe.mixup, recipe.cutmix, label_smoothing=settings.label_smoothing, num_classes=num_classes
            )
            if recipe.mixes
            else None
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Raises: NonFiniteLoss, naming the step."""
        if self.mix is None:
            loss = super().training_step(batch, batch_idx)
        else:
            images, targets = self.mix(*batch)
            loss = self.checked(F.cross_entropy(self(images), targets))
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict({"loss": loss.detach(), "lr": lr}, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self.validation_accuracy(self(images), labels)
        self.log("validation_accuracy", self.validation_accuracy, on_epoch=True, on_step=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """With a learning rate of their own for the convolutions that give offsets, as in the authors' code."""
        groups = super().parameter_groups()
        slow = {id(one) for name, one in self.model.named_parameters() if "conv_offset" in name}
        lr = self.settings.lr * self.recipe.offset_lr
        offsets = [{**group, "params": [one for one in group["params"] if id(one) in slow], "lr": lr} for group in groups]
        others = [{**group, "params": [one for one in group["params"] if id(one) not in slow]} for group in groups]
        return [group for group in (*others, *offsets) if group["params"]]
