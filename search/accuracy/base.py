"""The role of an accuracy evaluator, the result of an evaluation, and the optional role of evaluators that share weights."""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from models.architecture import Architecture
from search.training.progress import Progress as Progress

PACKED = ("correct", "deviations")
OF_METRICS = ("metric", "error", "deviations")
"""Fields of `Accuracy` that hold single images, and those of metrics other than top-1 accuracy."""
EXECUTION_KEYS: frozenset[str] = frozenset({"cache"})
"""Keys below the configuration group `accuracy` that only say how the work is done; accuracies depend on all others."""


class Metric(StrEnum):
    """What counts as accuracy; computed in metrics.py."""

    TOP1 = "top1"
    BALANCED = "balanced"
    MACRO_F1 = "macro_f1"
    AUROC = "auroc"


NAMES = {
    Metric.TOP1: "accuracy",
    Metric.BALANCED: "balanced accuracy",
    Metric.MACRO_F1: "macro F1",
    Metric.AUROC: "AUROC",
}


def metric_name(metric: str) -> str:
    """Return the name of a metric for people."""
    return NAMES[Metric(metric)]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a network on the validation split.

    Args:
        accuracy: Top-1 accuracy or the value of another metric, in [0, 1].
        num_images: Number of validation images.
        seed: Seed of the training.
        seconds: Duration of the evaluation.
        correct: One bit per validation image, set where the network is right, packed and in base64: 500 characters for
            3,000 images. Networks that are wrong on the same images can be compared more precisely (`paired.py`). None in
            results of earlier versions.
        metric: One of `Metric`.
        error: Standard error over validation images, of a metric other than top-1 accuracy.
        deviations: How far each image moves such a metric, packed: what `correct` is to top-1 accuracy.
    """

    accuracy: float
    num_images: int
    seed: int
    seconds: float
    correct: str | None = field(default=None, repr=False)
    metric: str = Metric.TOP1.value
    error: float | None = None
    deviations: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, correct: NDArray[np.bool_], seed: int, seconds: float) -> Self:
        """Make the result of an evaluation.

        Args:
            correct: Whether the network is right, for each validation image, (images,).
            seed: Seed of the training.
            seconds: Duration of the evaluation.
        """
        packed = base64.b64encode(np.packbits(correct).tobytes()).decode()
        return cls(float(correct.mean()), len(correct), seed, seconds, packed)

    @classmethod
    def of_metric(
        cls, metric: str, value: float, error: float, deviations: NDArray[np.float64], seed: int, seconds: float
    ) -> Self:
        """Make the result of an evaluation by another metric than top-1 accuracy.

        Args:
            metric: One of `Metric`.
            value: In [0, 1].
            error: Standard error over validation images.
            deviations: How far each image moves the metric, (images,).
            seed: Seed of the training.
            seconds: Duration of the evaluation.
        """
        packed = base64.b64encode(zlib.compress(deviations.astype(np.float32).tobytes())).decode()
        return cls(value, len(deviations), seed, seconds, metric=str(metric), error=error, deviations=packed)

    @property
    def standard_error(self) -> float:
        """Standard error over validation images, binomial for top-1 accuracy. It does not contain the noise of seeds."""
        if self.error is not None:
            return self.error
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_images)

    def correct_images(self) -> NDArray[np.bool_] | None:
        """Return whether the network is right, for each validation image, (images,); None if that was not kept."""
        if self.correct is None:
            return None
        packed = np.frombuffer(base64.b64decode(self.correct), np.uint8)
        return np.unpackbits(packed, count=self.num_images).astype(bool)

    def image_values(self) -> NDArray[np.float64] | None:
        """Return what each validation image contributes, (images,), or None if that was not kept.

        The accuracy is their mean, and its error and what it shares with that of another network follow from them.
        """
        if self.deviations is None:
            correct = self.correct_images()
            return None if correct is None else correct.astype(np.float64)
        packed = np.frombuffer(zlib.decompress(base64.b64decode(self.deviations)), np.float32)
        return self.accuracy + packed.astype(np.float64)

    @property
    def name(self) -> str:
        """The metric's name for people."""
        return metric_name(self.metric)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data; the metric and what belongs to it only if it is not top-1 accuracy."""
        fields = asdict(self)
        return fields if self.metric != Metric.TOP1 else {name: fields[name] for name in fields if name not in OF_METRICS}

    def summary(self) -> dict[str, Any]:
        """Return everything but the single images, as plain data for people."""
        return {name: value for name, value in self.to_dict().items() if name not in PACKED}


class AccuracyEvaluator(Protocol):
    """Gives architectures their accuracy. On one CPU, the same architecture and seed give the same accuracy.

    Attributes:
        scores_before_measuring: Whether an evaluation, once prepared, takes no longer than measuring a latency, so that
            it comes first.
    """

    scores_before_measuring: ClassVar[bool]

    def fingerprint(self) -> dict[str, str | int]:
        """Return what accuracies depend on beyond the configuration, such as threads. A study refuses to mix them."""
        ...

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        """Evaluate one architecture.

        Args:
            architecture: The network whose accuracy is wanted.
            seed: Seed of the training.
            progress: Called with the fraction of the work that is done.

        Raises:
            Exception: Any error of building or training the network, such as `NonFiniteLoss`. An evaluator never
                returns a guess.
        """
        ...


@runtime_checkable
class SharedWeights(Protocol):
    """Optional role of an `AccuracyEvaluator` that trains one set of weights and scores every architecture with them."""

    def weights_file(self, seed: int) -> Path:
        """Return the file that holds the weights of a seed once they are trained."""
        ...

    def prepare(self, seed: int, progress: Progress) -> None:
        """Train the weights of a seed unless they exist; without this call the first evaluation does it.

        Args:
            seed: Seed of the training.
            progress: Called with the fraction of the training that is done.
        """
        ...

    def pack(self, seed: int) -> bytes | None:
        """Return the trained weights of a seed for an evaluator in another process, or None if they do not exist."""
        ...

    def unpack(self, seed: int, packed: bytes) -> None:
        """Take over the weights that another evaluator has packed."""
        ...


@runtime_checkable
class StopsEarly(Protocol):
    """Optional role of an `AccuracyEvaluator` whose trainings can stop after some epochs, and continue later.

    Attributes:
        halving: One in so many trainings continues at each rung; None if all do.
        rungs: Epochs after which trainings are compared, rising; empty without halving.
    """

    halving: int | None
    rungs: tuple[int, ...]

    def evaluate_early(self, architecture: Architecture, seed: int, num_epochs: int, progress: Progress) -> Accuracy:
        """Evaluate an architecture after some epochs of its training; `evaluate` continues it.

        Args:
            architecture: The network whose accuracy is wanted.
            seed: Seed of the training.
            num_epochs: One of `rungs`.
            progress: Called with the fraction of the whole training that is done.
        """
        ...


def digest_of(packed: bytes) -> str:
    """Return a digest of shared weights; scores compare only if they come from the same ones."""
    return hashlib.sha256(packed).hexdigest()[:16]


def with_shared_weights(make: Callable[[], AccuracyEvaluator], seed: int, packed: bytes) -> AccuracyEvaluator:
    """Make an evaluator that uses weights trained elsewhere.

    Args:
        make: Makes the evaluator, which must have the role `SharedWeights`.
        seed: Seed of the weights.
        packed: What `SharedWeights.pack` returned.
    """
    evaluator = make()
    assert isinstance(evaluator, SharedWeights)
    evaluator.unpack(seed, packed)
    return evaluator
