"""Image classification as a LightningModule, and a resumable training run with a minimal Lightning Trainer.

Every random number of an epoch depends on the seed and the epoch alone: a training that is killed and resumed gives the same
weights as one that was not.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from models.deploy.int8 import FakeQuantisedLayers
from models.deploy.memory import keep_freed_memory
from search import UserError
from search.training.class_weights import balanced_weights
from search.training.data import Batches
from search.training.processes import world_size_and_rank
from search.training.progress import Progress
from search.training.resizing import resized
from search.training.resuming import epoch_checkpoint, num_finished_epochs, seed_epochs, stop_after
from search.training.schedule import epochs_within, warmup_cosine
from search.training.settings import TrainSettings as TrainSettings
from search.training.teacher import Teacher

Batch = tuple[Tensor, Tensor]
REPORT_INTERVAL = 10  # steps between two reports of progress


class TrainingData(Protocol):
    """Images to train on: `data.ImageData` or `streamed.StreamedData`."""

    def train_dataloader(self, batch_size: int) -> Batches | DataLoader[Any]: ...

    def class_counts(self) -> Tensor: ...


class NonFiniteLoss(UserError):
    """Training diverged: a mistake in the settings, or in a search a failed trial."""


class ImageClassification(lightning.LightningModule):
    """Train any classifier with cross-entropy. Batches: images (B, C, H, W) float32; labels (B,) int64, or
    probabilities of classes, (B, num_classes).

    Args:
        model: From images to logits, (B, num_classes).
        settings: Optimiser and schedule.
        num_classes: Labels lie in [0, num_classes).
        img_size: Side of the images that the model gets, in pixels; None for that of the data.
        teacher: A trained network whose outputs the model learns from too; None for none.
    """

    class_weights: Tensor | None  # (num_classes,), set when the training starts
    lr_floor: float = 0.0  # final learning rate over settings.lr
    warmup_prefix: bool = True  # whether the cosine begins after the warm-up

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        num_classes: int,
        img_size: int | None = None,
        *,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.model, self.settings, self.img_size, self.teacher = model, settings, img_size, teacher
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.register_buffer("class_weights", None, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        is_rounded = self.training and self.settings.quantise is not None
        with FakeQuantisedLayers() if is_rounded else contextlib.nullcontext():
            return self.model(resized(images, self.img_size))  # type: ignore[no-any-return]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        return self.check_loss(self.taught_loss(self(images), labels, self.soft_targets(images)))

    def soft_targets(self, images: Tensor) -> Tensor | None:
        """Return the teacher's probabilities, (B, num_classes), for normalised images; None without a teacher."""
        return None if self.teacher is None else self.teacher.probabilities(images)

    def taught_loss(self, logits: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
        """Return the loss of logits, (B, num_classes), against labels and, unless None, the teacher's probabilities."""
        loss = self.label_loss(logits, labels)
        if taught is None or self.teacher is None:
            return loss
        return torch.lerp(loss, F.cross_entropy(logits, taught), self.teacher.distillation)

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of logits, (B, num_classes), with labels, smoothed and weighted as the settings say."""
        return F.cross_entropy(logits, labels, self.class_weights, label_smoothing=self.settings.label_smoothing)

    def check_loss(self, loss: Tensor) -> Tensor:
        """Return a loss that is finite. Raises: NonFiniteLoss, naming the step."""
        if not torch.isfinite(loss):
            raise NonFiniteLoss(f"loss is {loss.item()} at step {self.global_step}; lower train.lr={self.settings.lr:g}")
        return loss

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(check_logits(self(images), self.settings), labels)
        self.log("accuracy", self.accuracy, on_epoch=True, on_step=False)

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return the model's outputs, (B, num_classes), and the labels, (B,)."""
        images, labels = batch
        return check_logits(self(images), self.settings), labels

    def configure_optimizers(self) -> Any:
        groups = self.parameter_groups()
        # Lightning clips no gradients of a fused optimiser in mixed precision, since it might still have to unscale them.
        is_fused = "mixed" not in str(self.trainer.precision)
        optimizer = torch.optim.AdamW(groups, lr=self.settings.lr, fused=is_fused)
        peaks = [float(group.get("lr", self.settings.lr)) for group in groups]
        # LambdaLR: Lightning steps and checkpoints torch's schedulers, and timm's CosineLRScheduler is not one of them.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, list(map(self.learning_rate_factor, peaks)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def learning_rate_factor(self, peak: float) -> Callable[[int], float]:
        """Return the schedule of a group, from a step to its learning rate over its peak; all groups end at one rate.

        Args:
            peak: Largest learning rate of the group; one below the final rate of the others keeps it.
        """
        num_steps, last = int(self.trainer.estimated_stepping_batches), self.lr_floor * self.settings.lr
        return partial(
            warmup_cosine,
            num_steps=num_steps,
            warmup=self.settings.warmup,
            floor=last / peak if last < peak else 1.0,
            warmup_prefix=self.warmup_prefix,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups: parameters with weight decay, and norms and biases without."""
        groups: list[dict[str, Any]] = param_groups_weight_decay(self.model, self.settings.weight_decay)
        return groups


def check_logits(logits: Tensor, settings: TrainSettings) -> Tensor:
    """Return the outputs of a trained network, (B, num_classes). Raises: NonFiniteLoss if they are not finite."""
    if not torch.isfinite(logits).all():
        raise NonFiniteLoss(f"the trained network's outputs are not finite; lower train.lr={settings.lr:g}")
    return logits


class ReportProgress(Callback):
    """Report the fraction of the training that is done."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step % REPORT_INTERVAL == 0:
            self.progress(trainer.global_step / max(1, int(trainer.estimated_stepping_batches)))


def make_trainer(settings: TrainSettings, callbacks: Sequence[Callback] = (), **options: Any) -> lightning.Trainer:
    """Make a Trainer without files, bars and tables, which starts in about ten milliseconds.

    Args:
        settings: Epochs, accelerator and clipping.
        callbacks: Callbacks of the Trainer.
        options: Further arguments of `lightning.Trainer`, which take precedence.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    defaults: dict[str, Any] = {
        "max_epochs": settings.max_epochs,
        "accelerator": settings.accelerator,
        "devices": 1,
        "gradient_clip_val": settings.clip_norm,
        "accumulate_grad_batches": settings.accumulate,
        "callbacks": list(callbacks),
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    arguments = {**defaults, **options}
    if arguments["devices"] == 1 or arguments.get("strategy") == "auto":  # one process
        arguments["plugins"] = [single_process()]
    return lightning.Trainer(**arguments)


def single_process() -> LightningEnvironment:
    """The environment of a training in this process alone.

    Lightning would read that of SLURM, whose tasks are not necessarily for it to divide the training among: a search is one.
    """
    environment = LightningEnvironment()
    environment.set_global_rank(0)  # or SLURM_PROCID would be this process's rank, and only rank 0 writes files
    return environment


def fit(
    task: ImageClassification,
    data: TrainingData,
    progress: Progress,
    checkpoint: Path | None = None,
    callbacks: Sequence[Callback] = (),
    validation: Iterable[Any] | None = None,
    num_epochs: int | None = None,
    **options: Any,
) -> int:
    """Train a model. Batch order and everything random follow torch's current seed.

    Args:
        task: The model with its settings.
        data: Images to train on.
        progress: Called with the fraction of the training that is done.
        checkpoint: File that holds the state after each epoch; training resumes from it if it exists.
        callbacks: Further callbacks of the Trainer.
        validation: Batches to validate on during the training.
        num_epochs: Of the schedule's epochs, those to train for; None for all. With a checkpoint, training can continue.
        options: Further arguments of `lightning.Trainer`.

    Returns:
        Number of epochs.

    Raises:
        NonFiniteLoss: If training diverges.
        KeyboardInterrupt: If the user stops it.
    """
    keep_freed_memory()
    if task.settings.class_weights is not None:
        task.class_weights = balanced_weights(data.class_counts())
    seed, batches = torch.initial_seed(), data.train_dataloader(task.settings.batch_size)
    epochs = epochs_of(task.settings, len(batches))
    last = epochs if num_epochs is None else num_epochs

    num_finished = num_finished_epochs(checkpoint)
    if checkpoint is not None and num_epochs is not None and num_finished > num_epochs:  # too far for a comparison there
        checkpoint.unlink()
        num_finished = 0
    if checkpoint is not None and num_finished >= last:  # Lightning would ignore averaged weights
        task.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
        return last
    if isinstance(batches, DataLoader):
        batches.sampler.set_epoch(num_finished)  # type: ignore[attr-defined]  # Lightning sets that of later epochs in time
    if checkpoint is not None and world_size_and_rank()[1] == 0:
        callbacks = [*callbacks, epoch_checkpoint(checkpoint)]
    if last < epochs:
        callbacks = [*callbacks, stop_after(last)]
    callbacks = [ReportProgress(progress), seed_epochs(batches, seed), *callbacks]
    trainer = make_trainer(task.settings, callbacks, **{"max_epochs": epochs, **options})
    resume_from = str(checkpoint) if num_finished else None
    with ignore_loader_warnings():
        try:
            trainer.fit(task, batches, validation, ckpt_path=resume_from, weights_only=True)
        except SystemExit as stop:  # Lightning turns Ctrl-C into it
            raise KeyboardInterrupt from stop
    return last


def training_epochs(settings: TrainSettings, data: TrainingData) -> int:
    """Return the number of epochs of a whole training."""
    return epochs_of(settings, len(data.train_dataloader(settings.batch_size)))


def epochs_of(settings: TrainSettings, num_batches: int) -> int:
    """Return the number of epochs of a whole training with so many batches an epoch."""
    return epochs_within(settings.max_epochs, settings.max_steps, -(-num_batches // settings.accumulate))


def test_accuracy(task: ImageClassification, batches: Iterable[Batch], settings: TrainSettings) -> float:
    """Return the top-1 accuracy of a trained model, in [0, 1]. Raises: NonFiniteLoss if its outputs are not finite."""
    with ignore_loader_warnings():
        (metrics,) = make_trainer(settings).test(task, dataloaders=batches, verbose=False)
    return float(metrics["accuracy"])


def predict(task: ImageClassification, batches: Iterable[Batch], settings: TrainSettings) -> tuple[Tensor, Tensor]:
    """Return a trained model's outputs, (images, classes), and the labels. Raises: NonFiniteLoss if they are not finite."""
    with ignore_loader_warnings():
        predicted: Any = make_trainer(settings).predict(task, dataloaders=batches)
    logits, labels = zip(*predicted, strict=True)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


@contextlib.contextmanager
def ignore_loader_warnings() -> Iterator[None]:
    """Ignore Lightning's warnings about data loaders: they are meant for loaders that read files."""
    with warnings.catch_warnings():
        # Its folder holds a lock, or an architecture.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", message=".*(does not have many workers|smaller than the logging interval).*")
        warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")
        warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
        yield
