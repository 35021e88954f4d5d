"""Studies whose true accuracies and latencies are known, with the errors that measured ones have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.latency.base import Latency
from search.latency.estimate import Estimate
from search.study.pareto import front_indices
from search.study.targets import FIRST
from search.study.trial import TrialRecord, TrialResult
from tests.support.known_engine import SPACE

LATENCY_ERROR = 0.005  # standard error of the logarithm
LATENCY_FREEDOM = 1000.0
SHARED = 0.7  # of what decides whether a network is right on an image: how hard the image is for all

Numbers = NDArray[np.float64]


@cache
def distinct_networks(count: int) -> list[Architecture]:
    """Networks of the known space, all different."""
    networks: dict[str, Architecture] = {}
    number = 0
    while len(networks) < count:
        network = SPACE.sample([number])
        networks[network.key] = network
        number += 1
    return list(networks.values())


def correctness(accuracies: Numbers, num_images: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether networks of these true accuracies are right on random images, (networks, images); they err alike."""
    hardness = rng.normal(size=num_images)
    by_itself = rng.normal(size=(len(accuracies), num_images))
    return norm.ppf(accuracies)[:, None] > np.sqrt(SHARED) * hardness + np.sqrt(1 - SHARED) * by_itself


def latency(latency_ms: float, error: float = LATENCY_ERROR) -> Latency:
    """A measurement whose logarithm has this standard error."""
    return Latency(Estimate(latency_ms, error, LATENCY_FREEDOM), 20, 6, True, 0.1)


def record(number: int, accuracy: Accuracy, measured: Latency, architecture: Architecture | None = None) -> TrialRecord:
    """A finished trial."""
    network = architecture or distinct_networks(number + 1)[number]
    return TrialRecord(number, network, TrialResult({FIRST: measured}, accuracy, True), 1000, 2000, "sampled")


@dataclass(frozen=True)
class KnownStudy:
    """A study with what is true of its networks.

    Attributes:
        accuracies: of long trainings.
        on_front: whether no other network dominates it in truth.
    """

    trials: list[TrialRecord]
    accuracies: Numbers
    on_front: NDArray[np.bool_]


def known_study(seed: int, num_networks: int, num_images: int, residual: float, scatter: float = 0.03) -> KnownStudy:
    """A study of random networks: the slower the more accurate, but for a scatter.

    Args:
        residual: standard deviation of what a long training's accuracy differs from the supernet's by.
    """
    rng = np.random.default_rng(seed)
    logs = rng.uniform(np.log(0.5), np.log(5), num_networks)
    scores = 0.75 + 0.04 * (logs - np.log(0.5)) + scatter * rng.normal(size=num_networks)
    accuracies = scores + residual * rng.normal(size=num_networks)
    measured_ms = np.exp(logs + LATENCY_ERROR * rng.normal(size=num_networks))
    trials = [
        record(number, Accuracy.of(correct, 0, 1.0), latency(float(ms)))
        for number, (correct, ms) in enumerate(zip(correctness(scores, num_images, rng), measured_ms, strict=True))
    ]
    on_front = np.zeros(num_networks, bool)
    on_front[front_indices(accuracies, np.exp(logs))] = True
    return KnownStudy(trials, accuracies, on_front)
