"""Accuracy from shared weights: one supernet is trained once, then every network of the space is scored with its share.

A step trains a largest network on the labels, and a smallest and some random ones on what the largest says: the sandwich
rule and in-place distillation of "Universally Slimmable Networks", arXiv 1903.05134. Largest and smallest are so in width
and depth; their attention is drawn at random like that of the others: with the same in every step, scores were 5 points
lower and ranked worse. A network is scored as a plain one that has a copy of its weights and batch statistics of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import models.deploy
from models.architecture import Architecture, check_int
from models.elastic import Bounds, ElasticLITv2, recalibrate
from search import UserError, one_line
from search.accuracy.base import Accuracy, Progress
from search.accuracy.conditions import Training
from search.space.space import Size, Space
from search.training.data import Batches, Images
from search.training.task import Batch, ImageClassification, TrainSettings, finite, fit

log = logging.getLogger(__name__)
WEIGHTS = "supernet.safetensors"
VERSION = 1  # of how it is trained: raise it with every change that moves the weights, or kept ones are taken for new ones
CALIBRATION_BATCH = 256  # images for batch statistics: with 1,024 networks rank no better and a score takes a quarter longer
SCORING_BATCH = 256


class SupernetTraining(ImageClassification):
    """Sandwich rule with in-place distillation.

    networks: gives those of a step; the first one learns from the labels, the others from it.
    """

    def __init__(
        self,
        elastic: ElasticLITv2,
        settings: TrainSettings,
        num_classes: int,
        networks: Callable[[int], Sequence[Architecture]],
    ) -> None:
        super().__init__(elastic, settings, num_classes)
        self.elastic = elastic
        self.networks = networks

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Raises: NonFiniteLoss, naming the step."""
        images, labels = batch
        teacher, *students = self.networks(self.global_step)
        self.elastic.activate(teacher)
        logits = self(images)
        losses = [F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)]
        targets = logits.detach().softmax(1)
        for architecture in students:
            self.elastic.activate(architecture)
            losses.append(F.cross_entropy(self(images), targets))
        return self.checked(torch.stack(losses).mean())


@dataclass
class SupernetEvaluator(Training):
    """Train a supernet of a space or find it in the cache, and score networks with their share of its weights.

    num_random: networks of a step beside the largest and the smallest. num_images: of the validation split to score with, at
    most; None for all. cache: folder that keeps supernets by what they were
    trained on, for further studies.
    """

    quick: ClassVar[bool] = True

    space: Space
    num_random: int
    num_images: int | None
    cache: str
    _trained: dict[int, ElasticLITv2] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("accuracy.num_random", self.num_random, 0)
        if self.num_images is not None:
            check_int("accuracy.num_images", self.num_images, 1)
        count = min(self.num_images or self.data.num_val, self.data.num_val)
        self.images = Images(self.data.val.images[:count], self.data.val.labels[:count])
        self.bounds = Bounds.of(map(self.proxy, self.space.covering()))

    def prepare(self, seed: int, progress: Progress) -> None:
        """Train the supernet of this seed, unless it was before; a training that was cut off goes on.

        Raises: NonFiniteLoss if training diverges, KeyboardInterrupt if the user stops it.
        """
        if seed in self._trained:
            return
        folder = self.folder(seed)
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / WEIGHTS
        with locked(folder / ".lock"):
            elastic = kept(weights)
            if elastic is not None:
                log.info("the supernet is there already: %s", weights)
            else:
                elastic = self.untrained(seed)
                checkpoint = folder / "epoch.ckpt"
                fit(self.training(elastic, seed), self.data, progress, checkpoint)
                save(elastic, weights)
                checkpoint.unlink(missing_ok=True)
        self._trained[seed] = elastic.eval()

    def pack(self, seed: int) -> bytes | None:
        weights = self.shared_weights(seed)
        return weights.read_bytes() if kept(weights) is not None else None

    def unpack(self, seed: int, packed: bytes) -> None:
        weights = self.shared_weights(seed)
        weights.parent.mkdir(parents=True, exist_ok=True)
        with locked(weights.parent / ".lock"):
            elastic = kept(weights)
            if elastic is None:
                partial = weights.with_suffix(".partial")
                partial.write_bytes(packed)
                partial.replace(weights)
                elastic = open_supernet(weights)
        self._trained[seed] = elastic.eval()

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        self.prepare(seed, progress)
        start = time.perf_counter()
        self.seed(seed)
        network = self._trained[seed].extract(self.proxy(architecture)).to(self.device)
        recalibrate(network, [self._calibration_images()])
        accuracy = self._top1(models.deploy.prepare_in_place(network))
        progress(1.0)
        return Accuracy(accuracy, len(self.images.labels), seed, time.perf_counter() - start)

    def shared_weights(self, seed: int) -> Path:
        """The file that keeps this supernet."""
        return self.folder(seed) / WEIGHTS

    def folder(self, seed: int) -> Path:
        """Where this supernet is kept: named by all that its weights depend on."""
        settings = {
            "version": VERSION,
            "architectures": sorted({self.proxy(architecture).key for architecture in self.space.covering()}),
            "train": asdict(self.train),
            "num_random": self.num_random,
            "seed": seed,
            "data": self.data.fingerprint(),
            **self.fingerprint(),
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return Path(self.cache) / digest[:16]

    def untrained(self, seed: int) -> ElasticLITv2:
        self.seed(seed)
        data = self.data
        return ElasticLITv2(self.bounds, data.in_chans, data.num_classes, self.train.drop_path_rate)

    def training(self, elastic: ElasticLITv2, seed: int) -> SupernetTraining:
        def drawn(step: int, index: int) -> Architecture:
            size: Size = "largest" if index == 0 else "smallest" if index == 1 else "any"
            return self.proxy(self.space.sample([seed, step, index], size))

        def networks(step: int) -> list[Architecture]:
            return [drawn(step, index) for index in range(2 + self.num_random)]

        return SupernetTraining(elastic, self.train, self.data.num_classes, networks)

    def _calibration_images(self) -> Tensor:
        images, _ = next(iter(Batches(self.data, self.data.train, CALIBRATION_BATCH)))
        return images.to(self.device)

    @torch.inference_mode()
    def _top1(self, network: nn.Module) -> float:
        """Accuracy on the validation split, without a Trainer, which would take an eighth of the time."""
        correct = 0
        for images, labels in Batches(self.data, self.images, SCORING_BATCH):
            correct += int((finite(network(images.to(self.device)), self.train).argmax(1).cpu() == labels).sum())
        return correct / len(self.images.labels)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for another search that trains the same supernet, which then need not be trained again."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another search that trains this supernet (%s)", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def kept(path: Path) -> ElasticLITv2 | None:
    """The supernet of an earlier search, or None if there is none or it is not whole."""
    if not path.exists():
        return None
    try:
        elastic = open_supernet(path)
    except UserError as error:
        log.warning("%s", error)
        return None
    return elastic


def save(elastic: ElasticLITv2, path: Path) -> None:
    """Write the weights, and what they are for, whole or not at all."""
    shape = {
        "bounds": asdict(elastic.bounds),
        "in_chans": elastic.weights.in_chans,
        "num_classes": elastic.weights.num_classes,
    }
    partial = path.with_suffix(".partial")
    save_file(elastic.state_dict(), partial, {"shape": json.dumps(shape)})
    partial.replace(path)


def open_supernet(path: Path) -> ElasticLITv2:
    """A supernet as it was kept. Raises: UserError if the file is missing or not whole."""
    try:
        with safe_open(path, "pt") as file:
            shape = json.loads(file.metadata()["shape"])
        elastic = ElasticLITv2(Bounds.from_dict(shape.pop("bounds")), **shape)
        elastic.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the supernet {path} cannot be read ({one_line(error)}); a search trains it anew") from error
    return elastic
