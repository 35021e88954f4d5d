"""Accuracy by training the architecture's proxy from scratch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from models.architecture import Architecture
from models.litv2 import build
from search.accuracy.base import Accuracy, Progress
from search.accuracy.metrics import accuracy_of
from search.accuracy.proxy_training import ProxyTraining
from search.training.task import ImageClassification, fit, predict


@dataclass
class ScratchEvaluator(ProxyTraining):
    """Train every architecture with the same images, batch order and schedule. Arguments as in `ProxyTraining`."""

    scores_before_measuring: ClassVar[bool] = False

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        """Train the architecture's proxy and validate it.

        Raises:
            NonFiniteLoss: If training diverges.
            KeyboardInterrupt: If the user stops it.
        """
        start = time.perf_counter()
        self.set_threads_and_seed(seed)
        model = build(
            self.proxy_of(architecture),
            in_chans=self.data.in_chans,
            num_classes=self.data.num_classes,
            drop_path_rate=self.train.drop_path_rate,
        )
        task = ImageClassification(model, self.train, self.data.num_classes)
        fit(task, self.data, progress)
        logits, labels = predict(task, self.data.val_dataloader(), self.train)
        return accuracy_of(self.metric, logits, labels, seed, time.perf_counter() - start)
