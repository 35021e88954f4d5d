"""Accuracy by training the architecture's proxy from scratch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import lightning
import torch

from models.architecture import Architecture, check_int, check_number
from models.litv2 import build
from search.accuracy.base import Accuracy, Progress
from search.data import ImageData
from search.task import TrainSettings, fit, make_trainer, test_accuracy


@dataclass
class ScratchEvaluator:
    """Train every architecture alike: same images, same order, same schedule.

    width_multiplier: width of the proxy over the width of the architecture. num_threads: of the training, which its results
    depend on; null takes torch's default.
    """

    data: ImageData
    train: TrainSettings
    width_multiplier: float
    num_threads: int | None

    def __post_init__(self) -> None:
        self.num_threads = torch.get_num_threads() if self.num_threads is None else self.num_threads
        check_int("accuracy.num_threads", self.num_threads, 1)
        check_number("proxy.width_multiplier", self.width_multiplier, 1e-3, 1e3)
        try:
            self.accelerator = type(make_trainer(self.train).accelerator).__name__
        except Exception as error:  # Lightning's own kinds, for an unknown or a missing accelerator
            raise ValueError(f"train.accelerator={self.train.accelerator} cannot be used: {error}") from error

    def fingerprint(self) -> dict[str, str | int]:
        threads = cast(int, self.num_threads)
        return {"num_threads": threads, "accelerator": self.accelerator, "torch": torch.__version__}

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        start = time.perf_counter()
        torch.set_num_threads(cast(int, self.num_threads))  # Optuna's GPSampler changes it
        lightning.seed_everything(seed, verbose=False)
        proxy = architecture if self.width_multiplier == 1 else architecture.scaled(self.width_multiplier)
        model = build(
            proxy,
            in_chans=self.data.in_chans,
            num_classes=self.data.num_classes,
            drop_path_rate=self.train.drop_path_rate,
        )
        task = fit(model, self.data, self.train, progress)
        accuracy = test_accuracy(task, self.data.val_dataloader(), self.train)
        return Accuracy(accuracy, self.data.num_val, seed, time.perf_counter() - start)
