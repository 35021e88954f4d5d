"""Accuracy by training the architecture's proxy by itself, from random weights or from its share of weights that exist."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from models.architecture import Architecture, check_int
from models.deploy.int8 import INT8
from models.litv2 import LITv2, build
from search.accuracy.base import Accuracy, Progress
from search.accuracy.early_stopping import PausedTraining, rungs_of
from search.accuracy.initial_weights import measuring_batches
from search.accuracy.metrics import accuracy_of
from search.accuracy.proxy_training import ProxyTraining
from search.training.data import calibration_images
from search.training.step_memory import log_step_memory
from search.training.task import ImageClassification, fit, predict, training_epochs


@dataclass
class ScratchEvaluator(ProxyTraining):
    """Train every architecture with the same images, batch order and schedule. Further arguments as in `ProxyTraining`.

    Args:
        halving: One in so many trainings continues at each rung; None to train all to the end.
        cache: Folder of trainings that stopped early.

    Attributes:
        rungs: Epochs after which trainings are compared, rising; empty without halving.

    Raises:
        ValueError: If a setting is out of range; the message names it.
    """

    scores_before_measuring: ClassVar[bool] = False

    halving: int | None = None
    cache: str = "outputs/.trainings"
    rungs: tuple[int, ...] = field(default=(), init=False)
    _is_memory_known: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.halving is not None:
            check_int("accuracy.halving", self.halving, 2)
            self.rungs = rungs_of(training_epochs(self.train, self.data), self.halving)

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        """Train the architecture's proxy and validate it.

        Raises:
            NonFiniteLoss: If training diverges.
            KeyboardInterrupt: If the user stops it.
        """
        if self.halving is None:
            return self._evaluate(architecture, seed, progress)
        paused = self._paused(architecture, seed)
        accuracy = self._evaluate(architecture, seed, progress, paused)
        paused.remove()
        return accuracy

    def evaluate_early(self, architecture: Architecture, seed: int, num_epochs: int, progress: Progress) -> Accuracy:
        """Train the architecture's proxy for some epochs of its schedule and validate it; raises as `evaluate` does."""
        paused = self._paused(architecture, seed)
        accuracy = paused.result(num_epochs)
        if accuracy is None:
            accuracy = self._evaluate(architecture, seed, progress, paused, num_epochs)
            paused.save(num_epochs, accuracy)
        return accuracy

    def _paused(self, architecture: Architecture, seed: int) -> PausedTraining:
        """The files of a training, named by everything that it depends on."""
        digest = hashlib.sha256(f"{architecture.key} {seed} {self._settings}".encode()).hexdigest()
        return PausedTraining(Path(self.cache), digest[:16])

    @cached_property
    def _settings(self) -> str:
        """Everything that trainings depend on beside architecture and seed."""
        settings = {
            "width_multiplier": self.width_multiplier,
            "train": self.train.to_dict(),
            "metric": self.metric,
            "data": self.data.fingerprint(),
            "images": self.data.contents(),
            **self.fingerprint(),
        }
        return json.dumps(settings, sort_keys=True)

    def _evaluate(
        self,
        architecture: Architecture,
        seed: int,
        progress: Progress,
        paused: PausedTraining | None = None,
        num_epochs: int | None = None,
    ) -> Accuracy:
        """Train, from where the training was paused, for so many epochs or to the end, and validate."""
        start = time.perf_counter() - (0.0 if paused is None else paused.seconds)
        self.set_threads_and_seed(seed)
        model = self.make_network(self.proxy_of(architecture))
        if not self._is_memory_known:  # of the first network: it takes half a second
            log_step_memory([model], model, self.batch_shape(architecture), self.device, self.precision)
            self._is_memory_known = True
        task = ImageClassification(model, self.train, self.data.num_classes, architecture.img_size, teacher=self.teacher)
        checkpoint = None if paused is None else paused.checkpoint
        fit(task, self.data, progress, checkpoint, num_epochs=num_epochs, precision=self.precision)
        if self.dtype == INT8:
            task.model = self.deployed_form(task.model.eval(), partial(calibration_images, self.data), architecture.img_size)
        logits, labels = predict(task, self.data.val_dataloader(), self.train)
        return accuracy_of(self.metric, logits, labels, seed, time.perf_counter() - start)

    def make_network(self, proxy: Architecture) -> LITv2:
        """Initialise a network."""
        data, drop_path_rate = self.data, self.train.drop_path_rate
        if self.init is not None:
            return self.init.network(proxy, data, measuring_batches(data), drop_path_rate)
        return build(proxy, in_chans=data.in_chans, num_classes=data.num_classes, drop_path_rate=drop_path_rate)
