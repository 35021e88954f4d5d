"""Accuracy from shared weights: one supernet is trained once, then every network of the space is scored with its share.

`supernet_training.py` is how it is trained. Largest and smallest networks of a step refer to width and depth; attention is
random in all of them, and so is the size of images where that is a choice of the space. With the same attention in every
step, scores were 5 points lower and ranked worse. To score a network, a plain one gets a copy of its weights and new batch
statistics, at its image size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from models.architecture import Architecture, check_int, check_number
from models.elastic import Bounds, ElasticLITv2
from search import UserError
from search.accuracy.base import Accuracy, Progress
from search.accuracy.initial_weights import measuring_batches
from search.accuracy.metrics import accuracy_of
from search.accuracy.proxy_training import ProxyTraining
from search.accuracy.supernet_training import SupernetTraining
from search.accuracy.trained_supernet import TrainedSupernet
from search.files import write_bytes
from search.space.space import Size, Space
from search.training.data import Batches
from search.training.processes import train_together, world_size_and_rank
from search.training.resizing import resized
from search.training.resuming import log_resumption
from search.training.step_memory import log_step_memory
from search.training.task import check_logits, fit

log = logging.getLogger(__name__)
WEIGHTS = "supernet.safetensors"
TRAINING_VERSION = 3  # raise it with every change of the training that moves the weights: cached ones are then not used
NUM_STATISTICS_IMAGES = 256  # with 1,024 images networks rank no better, and a score takes a quarter longer
SCORING_BATCH_SIZE = 256
NUM_STEPS_OF_ESTIMATE = 4  # whose largest networks the memory of a step is estimated from


@dataclass
class SupernetEvaluator(ProxyTraining):
    """Train a supernet of a space or take it from the cache, and score networks with their share of its weights.

    The first arguments are those of `ProxyTraining`.

    Args:
        space: The networks that share weights.
        num_random: Number of networks per step beside the largest and the smallest.
        distillation: Weight of the largest network's outputs in the targets of the others, from 0 to 1.
        num_images: Largest number of validation images to score with; None for all.
        cache: Folder of trained supernets, for further studies.
        devices: Number of processes that train the supernet together, each on a device with batches of its own.

    Raises:
        ValueError: If a setting is out of range or the accelerator is missing; the message names it.
    """

    scores_before_measuring: ClassVar[bool] = True

    space: Space
    num_random: int
    distillation: float
    num_images: int | None
    cache: str
    devices: int = 1
    _trained: dict[int, TrainedSupernet] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("accuracy.num_random", self.num_random, 0)
        check_number("accuracy.distillation", self.distillation, 0, 1)
        check_int("accuracy.devices", self.devices, 1)
        if self.device.type == "cuda" and self.devices > torch.cuda.device_count():
            raise ValueError(
                f"accuracy.devices={self.devices} is above the {torch.cuda.device_count()} GPUs of this machine"
            )
        if self.data.num_train < self.devices * min(self.train.batch_size, self.data.num_train):
            raise ValueError(
                f"accuracy.devices={self.devices} with train.batch_size={self.train.batch_size} need more than the "
                f"{self.data.num_train} training images; lower one of them"
            )
        if self.num_images is not None:
            check_int("accuracy.num_images", self.num_images, 1)
        count = min(self.num_images or self.data.num_val, self.data.num_val)
        self.images = self.data.val.part(0, count)
        self.bounds = Bounds.of(map(self.proxy_of, self.space.covering()))
        if self.init is not None:
            self.init.check(self.bounds)

    def training_setup(self) -> dict[str, str | int]:
        """Return what trained weights depend on beyond the configuration."""
        return super().training_setup() | ({} if self.devices == 1 else {"devices": self.devices})

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        """Score an architecture of the space with its share of the supernet's weights.

        Raises:
            NonFiniteLoss: If training the supernet diverged.
            ValueError: If the supernet does not contain the architecture.
            KeyboardInterrupt: If the user stops the training.
        """
        self.prepare(seed, progress)
        start = time.perf_counter()
        self.set_threads_and_seed(seed)
        supernet = self._trained[seed]
        network = supernet.extract(self.proxy_of(architecture), self.device)
        form = self.deployed_form(network, lambda: supernet.normalised_images().to(self.device), architecture.img_size)
        logits = self._logits(form, architecture.img_size)
        progress(1.0)
        return accuracy_of(self.metric, logits, self.images.labels, seed, time.perf_counter() - start)

    def weights_file(self, seed: int) -> Path:
        """Return the file that holds the weights of a seed once they are trained."""
        return self.cache_folder(seed) / WEIGHTS

    def prepare(self, seed: int, progress: Progress) -> None:
        """Train the supernet of a seed unless it is in the cache; a training that was killed is resumed.

        Raises:
            NonFiniteLoss: If training diverges.
            KeyboardInterrupt: If the user stops it.
        """
        if seed in self._trained:
            return
        weights = self.weights_file(seed)
        weights.parent.mkdir(parents=True, exist_ok=True)
        with cache_lock(weights.parent):
            supernet = open_if_whole(weights)
            if supernet is not None:
                log.info("using the trained supernet %s", weights)
            else:
                supernet = self._train(weights, seed, progress)
        self._trained[seed] = supernet

    def pack(self, seed: int) -> bytes | None:
        """Return the trained weights of a seed for an evaluator in another process, or None if they do not exist."""
        weights = self.weights_file(seed)
        return weights.read_bytes() if open_if_whole(weights) is not None else None

    def unpack(self, seed: int, packed: bytes) -> None:
        """Take over the weights that another evaluator has packed, also if the cache has some that this machine trained."""
        weights = self.weights_file(seed)
        weights.parent.mkdir(parents=True, exist_ok=True)
        with cache_lock(weights.parent):
            with tempfile.TemporaryDirectory() as folder:
                received = Path(folder) / WEIGHTS
                write_bytes(received, packed)
                self._trained[seed] = TrainedSupernet.open(received)
            if open_if_whole(weights) is None:
                write_bytes(weights, packed)

    def cache_folder(self, seed: int) -> Path:
        """Return the folder of a supernet, named by everything that its weights depend on."""
        settings = {
            "version": TRAINING_VERSION,
            "architectures": sorted({self.proxy_of(architecture).key for architecture in self.space.covering()}),
            "train": self.train.to_dict(),
            "num_random": self.num_random,
            "distillation": self.distillation,
            "seed": seed,
            "data": self.data.fingerprint(),
            **self.training_setup(),
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return Path(self.cache) / digest[:16]

    def make_supernet(self, seed: int) -> ElasticLITv2:
        """Initialise a supernet: with random weights, or so that it contains those to start from."""
        self.set_threads_and_seed(seed)
        data, drop_path_rate = self.data, self.train.drop_path_rate
        if self.init is None:
            return ElasticLITv2(self.bounds, data.in_chans, data.num_classes, drop_path_rate)
        proxies = list(map(self.proxy_of, self.space.covering()))
        return self.init.supernet(proxies, data, measuring_batches(data), drop_path_rate)

    def make_task(self, elastic: ElasticLITv2, seed: int) -> SupernetTraining:
        """Make the training of a supernet; its networks depend on the seed and the step."""
        sample_networks = partial(self.sample_networks, seed)
        return SupernetTraining(elastic, self.train, self.data.num_classes, sample_networks, self.distillation, self.teacher)

    def sample_networks(self, seed: int, step: int) -> list[Architecture]:
        """Return the networks of a step of the training, the largest first."""
        others: list[Size] = ["any"] * self.num_random
        sizes: list[Size] = ["largest", "smallest", *others]
        return [self.proxy_of(self.space.sample([seed, step, index], size)) for index, size in enumerate(sizes)]

    def _train(self, weights: Path, seed: int, progress: Progress) -> TrainedSupernet:
        if self.devices > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            train_together(partial(self._train_here, weights, seed), self.devices, backend, progress)
        else:
            self._train_here(weights, seed, progress)
        return TrainedSupernet.open(weights)

    def _train_here(self, weights: Path, seed: int, progress: Progress) -> None:
        """Train in this process, alone or together with others, of which the first one writes the weights."""
        rank = world_size_and_rank()[1]
        elastic = self.make_supernet(seed)
        task = self.make_task(elastic, seed)
        if rank == 0:
            self._log_memory(task)
        checkpoint = weights.with_name("epoch.ckpt")
        if rank == 0:
            log_resumption(checkpoint)
        devices = [rank] if self.device.type == "cuda" and self.devices > 1 else 1
        fit(task, self.data, progress, checkpoint, precision=self.precision, devices=devices)
        if rank == 0:
            images = self.data.train.images[:NUM_STATISTICS_IMAGES]
            TrainedSupernet(elastic.cpu().eval(), images, self.data.normalisation).save(weights)
            checkpoint.unlink(missing_ok=True)

    def _log_memory(self, task: SupernetTraining) -> None:
        """Say what a step takes: that of the largest networks of a few steps, whose attention differs."""
        largest = {task.sample_networks(step)[0] for step in range(NUM_STEPS_OF_ESTIMATE)}
        log_step_memory(map(self.shape_of, largest), task.elastic, self.batch_shape(*largest), self.device, self.precision)

    @torch.inference_mode()
    def _logits(self, network: nn.Module, img_size: int | None) -> Tensor:
        """Outputs for each image, (images, classes), without a Trainer, whose overhead is an eighth of the time."""
        batches = Batches(self.data, self.images, SCORING_BATCH_SIZE)
        sized = (resized(images.to(self.device), img_size) for images, _ in batches)
        return torch.cat([check_logits(network(images), self.train).cpu() for images in sized])


@contextmanager
def cache_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a supernet; wait while another search trains it, so that it need not be trained again."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another search that trains this supernet (%s)", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def open_if_whole(path: Path) -> TrainedSupernet | None:
    """Open a supernet, or return None if there is none or its file is incomplete."""
    if not path.exists():
        return None
    try:
        return TrainedSupernet.open(path)
    except UserError as error:
        log.warning("%s", error)
        return None
