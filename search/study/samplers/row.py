"""Inputs of the sampler's models, and the trials that they learn from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.architecture import Architecture
from search.latency import block_model
from search.latency.base import Latency
from search.space.dimensions import accuracy_inputs
from search.space.space import Space
from search.study.front import evaluated
from search.study.trial import TrialRecord

NUM_SAMPLES = 256  # networks that show how much inputs vary in a space

Vector = NDArray[np.float64]


def scales(space: Space, inputs_of: Callable[[Architecture], Vector]) -> Vector:
    """By how much inputs of networks vary in a space, (inputs,): their standard deviations; 1 where they do not vary."""
    rng = np.random.default_rng(0)
    networks = [space.architecture(space.child([], 1.0, rng)) for _ in range(NUM_SAMPLES)]
    deviations = np.stack([inputs_of(network) for network in networks]).std(0)
    return np.where(deviations > 1e-9, deviations, 1.0)


@dataclass(frozen=True)
class Features:
    """What is known of a network without evaluating it.

    Attributes:
        inputs: what the dimensions of the space declare, and the logarithm of the multiply-accumulates, (inputs,). A handful
            of networks show how accuracy depends on the latter.
        blocks: of the block model, (features,).
    """

    inputs: Vector
    blocks: Vector

    @staticmethod
    @lru_cache(maxsize=block_model.CACHED)
    def of(network: Architecture, img_size: int) -> Features:
        inputs = [*accuracy_inputs(network), math.log(block_model.product_macs(network, img_size))]
        return Features(np.array(inputs), block_model.features(network, img_size))


@dataclass(frozen=True)
class Row:
    """A trial, as the models read it.

    Attributes:
        trial: the finished trial.
        features: of its network.
        accuracy: nan if it has none or exceeds a limit.
    """

    trial: TrialRecord
    features: Features
    accuracy: float

    @classmethod
    def of(cls, trial: TrialRecord, img_size: int) -> Self:
        accuracy = trial.accuracy if evaluated([trial]) else math.nan
        return cls(trial, Features.of(trial.architecture, img_size), accuracy)

    @property
    def is_scored(self) -> bool:
        return not math.isnan(self.accuracy)

    @property
    def latencies_ms(self) -> list[float]:
        return self.trial.result.latencies_ms

    def latency_on(self, target: str) -> Latency | None:
        """None where an earlier target's limit is exceeded, so that this one was not measured."""
        return self.trial.result.latencies.get(target)

    def was_measured_on(self, target: str) -> bool:
        latency = self.latency_on(target)
        return latency is not None and latency.measured


def with_expected_accuracies(rows: Sequence[Row]) -> list[Row]:
    """Give networks whose training stopped early the accuracy to be expected of a whole one; leave out what has none.

    That is the accuracy at their last rung and the median of what complete trainings have gained from there.
    """
    learned, gains = list[Row](), dict[int, float]()
    for row in rows:
        if row.is_scored:
            learned.append(row)
        elif (rung := row.trial.result.stopped_after) is not None:
            if rung not in gains:
                of_complete = [
                    each.accuracy - each.trial.result.rungs[rung]
                    for each in rows
                    if each.is_scored and rung in each.trial.result.rungs
                ]
                gains[rung] = statistics.median(of_complete) if of_complete else 0.0
            learned.append(replace(row, accuracy=min(1.0, row.trial.result.rungs[rung] + gains[rung])))
    return learned
