"""Accuracy by training the architecture's proxy by itself, from random weights or from its share of weights that exist."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from models.architecture import Architecture
from models.deploy.int8 import INT8
from models.litv2 import LITv2, build
from search.accuracy.base import Accuracy, Progress
from search.accuracy.initial_weights import measuring_batches
from search.accuracy.metrics import accuracy_of
from search.accuracy.proxy_training import ProxyTraining
from search.training.data import calibration_images
from search.training.step_memory import log_step_memory
from search.training.task import ImageClassification, fit, predict


@dataclass
class ScratchEvaluator(ProxyTraining):
    """Train every architecture with the same images, batch order and schedule. Arguments as in `ProxyTraining`."""

    scores_before_measuring: ClassVar[bool] = False

    _is_memory_known: bool = field(default=False, init=False, repr=False)

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        """Train the architecture's proxy and validate it.

        Raises:
            NonFiniteLoss: If training diverges.
            KeyboardInterrupt: If the user stops it.
        """
        start = time.perf_counter()
        self.set_threads_and_seed(seed)
        model = self.make_network(self.proxy_of(architecture))
        if not self._is_memory_known:  # of the first network: it takes half a second
            log_step_memory([model], model, self.batch_shape(architecture), self.device, self.precision)
            self._is_memory_known = True
        task = ImageClassification(model, self.train, self.data.num_classes, architecture.img_size, teacher=self.teacher)
        fit(task, self.data, progress, precision=self.precision)
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
