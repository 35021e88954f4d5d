"""What the evaluators share: the proxy of an architecture, the images and schedule it is trained with, repeatability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import lightning
import torch
from torch import Tensor, nn

import models.deploy
from models.architecture import Architecture, check_int, check_number
from models.deploy.int8 import FLOAT32, INT8, calibrated, calibration_batches
from models.litv2 import LITv2, build
from search.accuracy.base import Metric
from search.accuracy.initial_weights import InitialWeights
from search.accuracy.metrics import check_metric
from search.training.data import ImageData
from search.training.resizing import resized
from search.training.task import TrainSettings, make_trainer
from search.training.teacher import Teacher

FULL_PRECISION = "32-true"
DTYPES = (FLOAT32, INT8)
PRECISIONS = (FULL_PRECISION, "bf16-mixed")
"""As in `lightning.Trainer`; 16-mixed would have to scale the loss of each network."""


@dataclass
class ProxyTraining:
    """Setup of the trainings that stand in for those of deployed networks.

    Args:
        data: Images to train on and to validate on.
        train: Optimiser and schedule.
        width_multiplier: Width of the proxy over the width of the architecture, in [0.001, 1000].
        num_threads: Number of threads of a training, which its result depends on; None takes torch's default.
        metric: What counts as accuracy, one of `Metric`.
        init: Weights to start from; None for random ones.
        teacher: A trained network whose outputs the trainings learn from; None for none.
        precision: Of the trainings, one of `PRECISIONS`.
        dtype: Of validation and scores: "int8" to compute accuracies as the deployed network does in 8-bit integers.

    Raises:
        ValueError: If a setting is out of range or the accelerator is missing; the message names it.
    """

    data: ImageData
    train: TrainSettings
    width_multiplier: float
    num_threads: int | None
    metric: str = field(default=Metric.TOP1.value, kw_only=True)
    init: InitialWeights | None = field(default=None, kw_only=True)
    teacher: Teacher | None = field(default=None, kw_only=True)
    precision: str = field(default=FULL_PRECISION, kw_only=True)
    dtype: str = field(default=FLOAT32, kw_only=True)

    def __post_init__(self) -> None:
        self.num_threads = torch.get_num_threads() if self.num_threads is None else self.num_threads
        check_int("accuracy.num_threads", self.num_threads, 1)
        check_metric(self.metric)
        if self.precision not in PRECISIONS:
            raise ValueError(f"accuracy.precision={self.precision} must be one of {', '.join(PRECISIONS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"the dtype {self.dtype} of accuracies must be one of {', '.join(DTYPES)}")
        check_number("proxy.width_multiplier", self.width_multiplier, 1e-3, 1e3)
        try:
            trainer = make_trainer(self.train)
        except Exception as error:  # Lightning has its own types for an unknown and for a missing accelerator
            raise ValueError(f"train.accelerator={self.train.accelerator} cannot be used: {error}") from error
        self.accelerator = type(trainer.accelerator).__name__
        self.device = trainer.strategy.root_device

    def fingerprint(self) -> dict[str, str | int]:
        """Return what accuracies depend on beyond the configuration."""
        return self.training_setup() | ({"dtype": INT8} if self.dtype == INT8 else {})

    def training_setup(self) -> dict[str, str | int]:
        """Return what trained weights depend on beyond the configuration."""
        threads = cast(int, self.num_threads)
        setup: dict[str, str | int] = {
            "num_threads": threads, "accelerator": self.accelerator, "torch": torch.__version__
        }  # fmt: skip
        if self.init is not None:
            setup["init"] = self.init.digest
        if self.teacher is not None:
            setup["teacher"] = self.teacher.fingerprint
        if self.precision != FULL_PRECISION:
            setup["precision"] = self.precision
        return setup

    def proxy_of(self, architecture: Architecture) -> Architecture:
        """Return the architecture that is trained in place of another one."""
        return architecture if self.width_multiplier == 1 else architecture.scaled(self.width_multiplier)

    def batch_shape(self, *networks: Architecture) -> tuple[int, int, int, int]:
        """Shape of a batch of training images, (B, C, H, W), of the largest size that one of the networks gets."""
        data, side = self.data, max(network.side(self.data.img_size) for network in networks)
        return min(self.train.batch_size, data.num_train), data.in_chans, side, side

    def shape_of(self, proxy: Architecture) -> LITv2:
        """Build a network without storage for its weights."""
        data, drop_path_rate = self.data, self.train.drop_path_rate
        with torch.device("meta"):
            return build(proxy, in_chans=data.in_chans, num_classes=data.num_classes, drop_path_rate=drop_path_rate)

    def deployed_form(self, network: nn.Module, images: Callable[[], Tensor], img_size: int | None) -> nn.Module:
        """Return a trained network as it is deployed.

        Args:
            network: In evaluation mode; it is used up.
            images: Returns training images to calibrate 8-bit integers with, normalised, (N, C, H, W).
            img_size: Side of the images that the network gets; None for that of the data.
        """
        prepared = models.deploy.prepare_in_place(network)
        return prepared if self.dtype != INT8 else calibrated(prepared, calibration_batches(resized(images(), img_size)))

    def set_threads_and_seed(self, seed: int) -> None:
        """Bring this process into the state that a training starts from."""
        torch.set_num_threads(cast(int, self.num_threads))  # Optuna's GPSampler changes it
        lightning.seed_everything(seed, verbose=False)
