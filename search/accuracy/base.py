"""The role of an accuracy evaluator, and what an evaluation says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from models.architecture import Architecture

Progress = Callable[[float], None]
"""Takes the share of the work that is done, in [0, 1]."""


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy on the validation split, in [0, 1], of a network trained with this seed."""

    accuracy: float
    num_images: int
    seed: int
    seconds: float

    @property
    def standard_error(self) -> float:
        """From the size of the validation split alone; seeds come on top."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_images)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class AccuracyEvaluator(Protocol):
    """Gives an architecture its accuracy. The same architecture and seed give the same accuracy on one CPU.

    Attributes:
        scores_before_measuring: whether, once prepared, it takes no longer than measuring a latency does.
    """

    scores_before_measuring: ClassVar[bool]

    def fingerprint(self) -> dict[str, str | int]:
        """What accuracies depend on beyond the configuration, such as threads. Studies refuse to mix different ones."""
        ...

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        """Raises: any error of building or training it, such as a loss that is not finite; never returns a guess."""
        ...


@runtime_checkable
class SharedWeights(Protocol):
    """An evaluator whose networks share weights, which are trained once and handed to evaluators elsewhere."""

    def weights_file(self, seed: int) -> Path:
        """The file of the weights that networks are scored with."""
        ...

    def prepare(self, seed: int, progress: Progress) -> None:
        """Train the weights that all evaluations with a seed share; without it the first evaluation does."""
        ...

    def pack(self, seed: int) -> bytes | None:
        """The shared weights for an evaluator elsewhere, or None if they are not trained."""
        ...

    def unpack(self, seed: int, packed: bytes) -> None:
        """Take over the weights that another evaluator has trained."""
        ...


def with_shared_weights(make: Callable[[], AccuracyEvaluator], seed: int, packed: bytes) -> AccuracyEvaluator:
    """An evaluator that takes over the weights of another one."""
    evaluator = make()
    assert isinstance(evaluator, SharedWeights)
    evaluator.unpack(seed, packed)
    return evaluator
