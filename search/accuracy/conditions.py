"""What evaluators that train on this machine have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import lightning
import torch

from models.architecture import Architecture, check_int, check_number
from search.training.data import ImageData
from search.training.task import TrainSettings, make_trainer


@dataclass
class Training:
    """Images, schedule and the conditions under which results repeat.

    width_multiplier: width of the proxy over the width of the architecture. num_threads: of the training, which its results
    depend on; null takes torch's default.
    Raises: ValueError naming the setting that cannot be used.
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
            trainer = make_trainer(self.train)
        except Exception as error:  # Lightning's own kinds, for an unknown or a missing accelerator
            raise ValueError(f"train.accelerator={self.train.accelerator} cannot be used: {error}") from error
        self.accelerator = type(trainer.accelerator).__name__
        self.device = trainer.strategy.root_device

    def fingerprint(self) -> dict[str, str | int]:
        threads = cast(int, self.num_threads)
        return {"num_threads": threads, "accelerator": self.accelerator, "torch": torch.__version__}

    def proxy(self, architecture: Architecture) -> Architecture:
        """What is trained in an architecture's place."""
        return architecture if self.width_multiplier == 1 else architecture.scaled(self.width_multiplier)

    def seed(self, seed: int) -> None:
        torch.set_num_threads(cast(int, self.num_threads))  # Optuna's GPSampler changes it
        lightning.seed_everything(seed, verbose=False)
