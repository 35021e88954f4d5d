"""Full training of one network: what a modern recipe adds to the short trainings of a search.

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
from search.training.teacher import Teacher

LOGGERS = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}


@dataclass(frozen=True)
class Recipe:
    """Augmentation, regularisation and hardware of a full training.

    Args:
        augmentation: None decodes the images once and changes them by `augment`.
        mixup: Parameter of mixup's beta distribution; 0 for none.
        cutmix: Parameter of CutMix's beta distribution; 0 for none. With both, each batch gets one of them.
        ema_decay: Decay of an exponential moving average of the weights, which is then the result; 0 for none.
        offset_lr: Learning rate of the weights of convolutions that predict the offsets of deformable ones, over
            `train.lr`. Their biases are trained like all others.
        lr_floor: Final learning rate over `train.lr`, of all parameters.
        precision: As in `lightning.Trainer`; "auto" is bf16-mixed on a GPU that supports it, else 32-true.
        devices: Number of devices to train on; "auto" uses all of them.
        validate_every: Number of epochs between two validations; 0 validates only after the training.
        logs: Any of "csv" and "tensorboard".
        warmup_prefix: Whether the cosine begins after the warm-up; else the warm-up replaces its first part.

    Raises:
        ValueError: If a setting is out of range; the message names it.
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
    warmup_prefix: bool = True

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix", "offset_lr"):
            check_number(f"recipe.{name}", getattr(self, name), 0)
        for name in ("ema_decay", "lr_floor"):
            check_number(f"recipe.{name}", getattr(self, name), 0, 0.99999)
        if self.devices != "auto":
            check_int("recipe.devices", self.devices, 1)
        check_int("recipe.validate_every", self.validate_every, 0)
        if unknown := [str(name) for name in self.logs if name not in LOGGERS]:
            raise ValueError(f"recipe.logs: {', '.join(unknown)} is unknown; choose from {', '.join(LOGGERS)}")
        if self.augmentation is None and self.devices not in (1, "auto"):
            raise ValueError(
                f"recipe.devices={self.devices}: images that are decoded once feed one device; set recipe.devices=1, "
                "recipe=strong or recipe=imagenet"
            )

    @property
    def mixes_images(self) -> bool:
        """Whether mixup or CutMix pairs the images of a batch."""
        return self.mixup > 0 or self.cutmix > 0

    def callbacks(self) -> list[Callback]:
        """Return the callbacks that the Trainer needs for it."""
        return [EMAWeightAveraging(decay=self.ema_decay)] if self.ema_decay else []

    def trainer_options(self, accelerator: str, folder: Path) -> dict[str, Any]:
        """Return arguments of `lightning.Trainer`.

        Args:
            accelerator: As in `lightning.Trainer`.
            folder: Where the logs go.

        Raises:
            ValueError: If a package for the logs is missing; the message names it.
        """
        return {
            "precision": self._precision(accelerator),
            "devices": 1 if self.augmentation is None else self.devices,
            # Some parameters get no gradient: attention over a single window does not compute its query.
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
        return torch.cuda.device_count() if uses_cuda(accelerator) else 1

    def _precision(self, accelerator: str) -> str:
        if self.precision != "auto":
            return self.precision
        return "bf16-mixed" if uses_cuda(accelerator) and torch.cuda.is_bf16_supported() else "32-true"

    def _logger(self, name: str, folder: Path) -> Logger:
        try:
            logger: Logger = LOGGERS[name](folder, name=name)
        except ModuleNotFoundError as error:
            raise ValueError(f"recipe.logs: {name} needs another package; pip install 'hilo-nas[tensorboard]'") from error
        return logger


def uses_cuda(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


class FullTraining(ImageClassification):
    """Image classification by a recipe, with validation and logging during the training.

    Args:
        recipe: Mixing of images, learning rates; the other arguments are those of `ImageClassification`.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        num_classes: int,
        recipe: Recipe,
        img_size: int | None = None,
        *,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(model, settings, num_classes, img_size, teacher=teacher)
        self.recipe = recipe
        self.lr_floor, self.warmup_prefix = recipe.lr_floor, recipe.warmup_prefix
        self.validation_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.mixup = (
            Mixup(  # type: ignore[no-untyped-call]
                recipe.mixup, recipe.cutmix, label_smoothing=settings.label_smoothing, num_classes=num_classes
            )
            if recipe.mixes_images
            else None
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch if self.mixup is None else self.mixup(*batch), batch_idx)
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict({"loss": loss.detach(), "lr": lr}, on_step=False, on_epoch=True)
        return loss

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy; labels of mixed images, (B, num_classes), are smoothed already."""
        if self.mixup is None:
            return super().label_loss(logits, labels)
        return F.cross_entropy(logits, labels, self.class_weights)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self.validation_accuracy(self(images), labels)
        self.log("validation_accuracy", self.validation_accuracy, on_epoch=True, on_step=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Give the weights of convolutions that predict offsets their own learning rate, as in the authors' code."""
        groups = super().parameter_groups()
        offsets = [p for name, p in self.model.named_parameters() if name.endswith("conv_offset.weight")]
        if not offsets:
            return groups
        ids = set(map(id, offsets))
        others = [{**group, "params": [p for p in group["params"] if id(p) not in ids]} for group in groups]
        lr, weight_decay = self.settings.lr * self.recipe.offset_lr, self.settings.weight_decay
        return [*others, {"params": offsets, "lr": lr, "weight_decay": weight_decay}]
