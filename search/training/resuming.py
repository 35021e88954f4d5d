"""What lets a training that is killed and resumed give the weights of one that was not: checkpoints, seeds of epochs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint

from search import one_line
from search.training.data import Batches, epoch_seed

log = logging.getLogger(__name__)


def seed_epochs(batches: Iterable[Any], seed: int) -> Callback:
    """Seed each epoch by its number, so that a resumed training draws what an uninterrupted one would."""

    def start_epoch(trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        if isinstance(batches, Batches):
            batches.epoch, batches.device = trainer.current_epoch, trainer.strategy.root_device
        seed_of_epoch = epoch_seed(seed, trainer.current_epoch)
        lightning.seed_everything((seed_of_epoch + trainer.global_rank) % 2**32, verbose=False)

    return LambdaCallback(on_train_epoch_start=start_epoch)


def stop_after(num_epochs: int) -> Callback:
    """Stop a training after some epochs of its schedule."""

    def stop(trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= num_epochs

    return LambdaCallback(on_train_epoch_end=stop)


def epoch_checkpoint(file: Path) -> Callback:
    """Write the state of the training to one file after each epoch."""
    return ModelCheckpoint(file.parent, file.stem, save_on_train_epoch_end=True, enable_version_counter=False)


def log_resumption(checkpoint: Path) -> None:
    """Say that a training which was killed goes on, if it does."""
    if num_finished_epochs(checkpoint):
        log.info("resuming the training from %s", checkpoint)


def num_finished_epochs(checkpoint: Path | None) -> int:
    """Return the number of epochs before a checkpoint, 0 if there is none. One that cannot be read is removed."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"]) + 1
    except Exception as error:  # from pickle, zip or torch, depending on where the file is cut
        log.warning("%s cannot be read (%s); training from the start", checkpoint, one_line(error))
        checkpoint.unlink()
        return 0
