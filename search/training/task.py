"""Image classification as a LightningModule, and the lean training run around it."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from models.architecture import check_int, check_number
from models.deploy.memory import keep_freed_memory
from search import UserError, one_line
from search.accuracy.base import Progress
from search.training.data import Batches, epoch_seed

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
REPORT_EVERY = 10  # steps between two reports of progress


class TrainingImages(Protocol):
    """What a training reads: data.ImageData or streamed.StreamedData."""

    def train_dataloader(self, batch_size: int) -> Iterable[Any]: ...


class NonFiniteLoss(UserError):
    """Training diverged: a mistake of the settings, or in a search a failed trial."""


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained: AdamW without decay on norms and biases, warm-up, cosine, label smoothing, clipping.

    lr: highest learning rate. warmup: share of the steps spent rising to it. clip_norm: limit for the gradient's norm, 0
    for none. batch_size: images of a step, on each device.
    accelerator: as Lightning names it; "auto" takes a GPU if there is one.
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

    def __post_init__(self) -> None:
        check_int("train.max_epochs", self.max_epochs, 1)
        check_int("train.batch_size", self.batch_size, 1)
        check_number("train.lr", self.lr, 1e-12)
        for name in ("weight_decay", "clip_norm"):
            check_number(f"train.{name}", getattr(self, name), 0)
        for name in ("warmup", "label_smoothing", "drop_path_rate"):
            check_number(f"train.{name}", getattr(self, name), 0, 0.999)


class ImageClassification(lightning.LightningModule):
    """Cross-entropy training of any classifier. Batches: images (B, C, H, W) float, labels (B,) int64.

    lr_floor: share of the highest learning rate that the schedule ends at.
    """

    lr_floor: float = 0.0

    def __init__(self, model: nn.Module, settings: TrainSettings, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)  # type: ignore[no-any-return]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Raises: NonFiniteLoss, naming the step."""
        images, labels = batch
        return self.checked(F.cross_entropy(self(images), labels, label_smoothing=self.settings.label_smoothing))

    def checked(self, loss: Tensor) -> Tensor:
        """Raises: NonFiniteLoss, naming the step."""
        if not torch.isfinite(loss):
            raise NonFiniteLoss(f"loss is {loss.item()} at step {self.global_step}; lower train.lr={self.settings.lr:g}")
        return loss

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(finite(self(images), self.settings), labels)
        self.log("accuracy", self.accuracy, on_epoch=True, on_step=False)

    def configure_optimizers(self) -> Any:
        settings = self.settings
        optimizer = torch.optim.AdamW(self.parameter_groups(), lr=settings.lr, fused=True)
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, num_steps, settings.warmup, self.lr_floor)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = param_groups_weight_decay(self.model, self.settings.weight_decay)
        return groups


def finite(logits: Tensor, settings: TrainSettings) -> Tensor:
    """A trained network's outputs. Raises: NonFiniteLoss if some are not finite."""
    if not torch.isfinite(logits).all():
        raise NonFiniteLoss(f"the trained network's outputs are not finite; lower train.lr={settings.lr:g}")
    return logits


def warmup_cosine(step: int, num_steps: int, warmup: float, floor: float = 0.0) -> float:
    """Share of the highest learning rate at a step: a linear rise over `warmup` of the steps, half a cosine to the floor."""
    rising = max(1, round(warmup * num_steps))
    if step < rising:
        return (step + 1) / rising
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step + 1 - rising) / (num_steps + 1 - rising))) / 2


class ReportProgress(Callback):
    """Tell the share of the training that is done."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step % REPORT_EVERY == 0:
            self.progress(trainer.global_step / max(1, int(trainer.estimated_stepping_batches)))


def make_trainer(settings: TrainSettings, callbacks: Sequence[Callback] = (), **options: Any) -> lightning.Trainer:
    """A Trainer without files, bars or tables: about ten milliseconds a run. options: of lightning.Trainer, beyond that."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    lean: dict[str, Any] = {
        "max_epochs": settings.max_epochs,
        "accelerator": settings.accelerator,
        "devices": 1,
        "gradient_clip_val": settings.clip_norm,
        "callbacks": list(callbacks),
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return lightning.Trainer(**{**lean, **options})


def fit(
    task: ImageClassification,
    data: TrainingImages,
    progress: Progress,
    checkpoint: Path | None = None,
    callbacks: Sequence[Callback] = (),
    validation: Iterable[Any] | None = None,
    **options: Any,
) -> None:
    """Train a model; the batch order and everything drawn at random follow torch's current seed.

    checkpoint: a file to keep the state in after each epoch, and to go on from if it is there. validation: batches to
    validate on meanwhile. options: of lightning.Trainer.
    Raises: NonFiniteLoss if training diverges, KeyboardInterrupt if the user stops it.
    """
    keep_freed_memory()
    seed, batches = torch.initial_seed(), data.train_dataloader(task.settings.batch_size)

    done = epochs_done(checkpoint)
    if checkpoint is not None and done >= task.settings.max_epochs:  # Lightning would leave averaged weights aside
        task.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
        return
    if isinstance(batches, DataLoader):
        batches.sampler.set_epoch(done)  # type: ignore[attr-defined]  # Lightning tells the later ones in time

    def start_epoch(trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        if isinstance(batches, Batches):
            batches.epoch = trainer.current_epoch
        of_epoch = epoch_seed(seed, trainer.current_epoch)  # a resumed training draws what the first would have
        lightning.seed_everything((of_epoch + trainer.global_rank) % 2**32, verbose=False)

    callbacks = [ReportProgress(progress), LambdaCallback(on_train_epoch_start=start_epoch), *callbacks]
    if checkpoint is not None:
        callbacks.append(
            ModelCheckpoint(checkpoint.parent, checkpoint.stem, save_on_train_epoch_end=True, enable_version_counter=False)
        )
    trainer = make_trainer(task.settings, callbacks, **options)
    resumed = str(checkpoint) if done else None
    if resumed:
        log.info("going on with the training from %s", resumed)
    with quiet_loader_advice():
        try:
            trainer.fit(task, batches, validation, ckpt_path=resumed, weights_only=True)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from stop


def epochs_done(checkpoint: Path | None) -> int:
    """Epochs that a checkpoint comes after, 0 if there is none; one that cannot be read is removed."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"]) + 1
    except Exception as error:  # of pickle, zip or torch, by where it is torn
        log.warning("%s cannot be read (%s); training from the start", checkpoint, one_line(error))
        checkpoint.unlink()
        return 0


def test_accuracy(task: ImageClassification, batches: Iterable[Batch], settings: TrainSettings) -> float:
    """Top-1 accuracy of a trained model, in [0, 1]."""
    with quiet_loader_advice():
        (metrics,) = make_trainer(settings).test(task, dataloaders=batches, verbose=False)
    return float(metrics["accuracy"])


@contextlib.contextmanager
def quiet_loader_advice() -> Iterator[None]:
    """Lightning advises workers and lengths for loaders that read files; ours are tensors in memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # it holds a lock
        warnings.filterwarnings("ignore", message=".*(does not have many workers|smaller than the logging interval).*")
        warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")
        warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
        yield
