"""The role of an accuracy evaluator, and what an evaluation says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

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

    quick: once prepared it takes no longer than measuring a latency does.
    """

    quick: ClassVar[bool]

    def shared_weights(self, seed: int) -> Path | None:
        """The file of weights that networks are scored with, if they share any."""
        ...

    def fingerprint(self) -> dict[str, str | int]:
        """What accuracies depend on beyond the configuration, such as threads. Studies refuse to mix different ones."""
        ...

    def prepare(self, seed: int, progress: Progress) -> None:
        """Do once what all evaluations with a seed share; without it the first evaluation does."""
        ...

    def pack(self, seed: int) -> bytes | None:
        """What all evaluations with a seed share, if it is there: for an evaluator elsewhere."""
        ...

    def unpack(self, seed: int, packed: bytes) -> None:
        """Take over what another evaluator has prepared."""
        ...

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        """Raises: any error of building or training it, such as a loss that is not finite; never returns a guess."""
        ...


def unpacked(make: Callable[[], AccuracyEvaluator], seed: int, packed: bytes) -> AccuracyEvaluator:
    """An evaluator that need not prepare what another one has."""
    evaluator = make()
    evaluator.unpack(seed, packed)
    return evaluator
