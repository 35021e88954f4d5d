"""The front of accuracy (higher is better) and latency (lower is better), and the area it dominates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 1000  # of a Monte Carlo estimate: its own error is at most 0.016


def front_indices(accuracies: Sequence[float], latencies: Sequence[float]) -> list[int]:
    """Indices of the points that no other point dominates, by rising latency. Of equal points the first counts."""
    accuracy, latency = np.asarray(accuracies, float), np.asarray(latencies, float)
    order = np.lexsort((-accuracy, latency))
    best = np.concatenate(([-np.inf], np.maximum.accumulate(accuracy[order])[:-1])) if len(order) else order
    return [int(index) for index, before in zip(order, best, strict=True) if accuracy[index] > before]


def front_probabilities(
    accuracies: Sequence[float],
    accuracy_errors: Sequence[float],
    latencies: Sequence[float],
    latency_errors: Sequence[float],
) -> list[float]:
    """How probable it is for each point that no other one dominates it, its values being as uncertain as they are.

    accuracy_errors: standard errors. latency_errors: of the latencies' logarithms. All are taken as independent and normal;
    accuracies on the same images err alike, so that the truth is surer than this.
    """
    rng = np.random.default_rng(0)
    count = len(accuracies)
    wins = np.zeros(count)
    for _ in range(DRAWS):
        accuracy = np.asarray(accuracies) + rng.normal(size=count) * accuracy_errors
        latency = np.log(latencies) + rng.normal(size=count) * latency_errors
        wins[front_indices(accuracy.tolist(), latency.tolist())] += 1
    return [float(share) for share in wins / DRAWS]


def hypervolume(accuracies: Sequence[float], latencies: Sequence[float], reference_latency: float) -> float:
    """Share of the rectangle (accuracy 0 to 1, latency 0 to the reference) that the front dominates, in [0, 1]."""
    area, best = 0.0, 0.0
    for index in front_indices(accuracies, latencies):
        if latencies[index] < reference_latency:
            area += (accuracies[index] - best) * (reference_latency - latencies[index])
            best = accuracies[index]
    return area / reference_latency
