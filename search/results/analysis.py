"""What the trials of a study say together: how the front grew, what mattered, and where the latency goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.latency import block_model
from search.latency.block_model import MIN_NETWORKS
from search.study.front import front, front_hypervolume, latest_of_each
from search.study.targets import FIRST
from search.study.trial import TrialRecord

LEAST_JUDGED = 8  # networks before anything is said of what mattered
PARTS = ("stem and head", "stage 1", "stage 2", "stage 3", "stage 4")


@dataclass(frozen=True)
class Influence:
    """What a dimension of the space explains: shares of the variance of accuracy and of latency, by itself.

    accuracy_gain: of its highest over its lowest value, in the mean. latency_gain: the same, relative.
    """

    dimension: str
    accuracy: float
    latency: float
    accuracy_gain: float
    latency_gain: float


def hypervolumes(trials: Sequence[TrialRecord], reference_ms: float | Sequence[float]) -> list[float]:
    """Of the front after each trial."""
    members: list[TrialRecord] = []
    seen: set[str] = set()
    volumes = []
    for count, trial in enumerate(trials, start=1):
        known = trial.architecture.key in seen  # measured again, it may leave the front to what it dominated
        members = front(list(trials[:count])) if known else front([*members, trial])
        seen.add(trial.architecture.key)
        volumes.append(front_hypervolume(members, reference_ms))
    return volumes


def influences(scored: Sequence[TrialRecord]) -> list[Influence]:
    """Of every dimension that took several values, the greatest share of accuracy first."""
    names = sorted({name for one in scored for name in one.parameters})
    accuracies = np.array([one.accuracy for one in scored])
    latencies = np.log([one.result.latencies[FIRST].latency_ms for one in scored])
    found = []
    for name in names:
        values = [one.parameters.get(name) for one in scored]
        ordered = sorted({value for value in values if value is not None})
        if len(ordered) < 2:
            continue
        low, high = ([value == end for value in values] for end in (ordered[0], ordered[-1]))
        found.append(
            Influence(
                name,
                explained(values, accuracies),
                explained(values, latencies),
                float(accuracies[high].mean() - accuracies[low].mean()),
                math.expm1(float(latencies[high].mean() - latencies[low].mean())),
            )
        )
    return sorted(found, key=lambda one: -one.accuracy)


def explained(values: Sequence[object], outcome: np.ndarray) -> float:
    """Share of an outcome's variance that lies between the groups of equal values."""
    total = float(((outcome - outcome.mean()) ** 2).sum())
    groups = [outcome[[value == own for own in values]] for value in set(values)]
    between = sum(len(group) * (group.mean() - outcome.mean()) ** 2 for group in groups)
    return float(between / total) if total else 0.0


def latency_by_stage(networks: Sequence[TrialRecord], trials: list[TrialRecord], img_size: int) -> list[list[float]]:
    """Milliseconds of each network in each of PARTS, by the block model of what was measured; none if that is too little."""
    measured = [one for one in latest_of_each(trials) if one.result.latencies[FIRST].measured]
    if len(measured) < MIN_NETWORKS:
        return []
    features = np.stack([block_model.features(one.architecture, img_size) for one in measured])
    costs = block_model.fit(features, np.array([one.result.latencies[FIRST].latency_ms for one in measured]))
    return [
        [float(costs[0]), *(float(stage @ costs) for stage in block_model.features_by_stage(one.architecture, img_size))]
        for one in networks
    ]
