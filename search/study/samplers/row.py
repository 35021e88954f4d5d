"""A scored or measured network, as the models of the sampler read it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from search.latency import block_model
from search.latency.base import Latency
from search.study.front import evaluated
from search.study.samplers import accuracy_model
from search.study.trial import TrialRecord

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """What the models get of a network.

    Attributes:
        accuracy: nan if it has none or exceeds a limit.
        inputs: of the model of accuracy, (inputs,).
        blocks: of the block model, (features,).
    """

    trial: TrialRecord
    accuracy: float
    inputs: Vector
    blocks: Vector

    @classmethod
    def of(cls, trial: TrialRecord, img_size: int) -> Self:
        network = trial.architecture
        accuracy = trial.accuracy if evaluated([trial]) else math.nan
        return cls(trial, accuracy, accuracy_model.inputs_of(network), block_model.features(network, img_size))

    @property
    def is_scored(self) -> bool:
        return not math.isnan(self.accuracy)

    @property
    def latencies_ms(self) -> list[float]:
        return self.trial.result.latencies_ms

    def latency_on(self, target: str) -> Latency | None:
        """None where an earlier target's limit is exceeded, so that this one was not measured."""
        return self.trial.result.latencies.get(target)
