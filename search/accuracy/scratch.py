"""Accuracy by training the architecture's proxy from scratch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from models.architecture import Architecture
from models.litv2 import build
from search.accuracy.base import Accuracy, Progress
from search.accuracy.conditions import Training
from search.training.task import ImageClassification, fit, test_accuracy


@dataclass
class ScratchEvaluator(Training):
    """Train every architecture alike: same images, same order, same schedule."""

    scores_before_measuring: ClassVar[bool] = False

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        start = time.perf_counter()
        self.seed(seed)
        model = build(
            self.proxy(architecture),
            in_chans=self.data.in_chans,
            num_classes=self.data.num_classes,
            drop_path_rate=self.train.drop_path_rate,
        )
        task = ImageClassification(model, self.train, self.data.num_classes)
        fit(task, self.data, progress)
        accuracy = test_accuracy(task, self.data.val_dataloader(), self.train)
        return Accuracy(accuracy, self.data.num_val, seed, time.perf_counter() - start)
