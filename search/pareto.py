"""The front of accuracy (higher is better) and latency (lower is better), and the area it dominates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def front_indices(accuracies: Sequence[float], latencies: Sequence[float]) -> list[int]:
    """Indices of the points that no other point dominates, by rising latency. Of equal points the first counts."""
    accuracy, latency = np.asarray(accuracies, float), np.asarray(latencies, float)
    order = np.lexsort((-accuracy, latency))
    best = np.concatenate(([-np.inf], np.maximum.accumulate(accuracy[order])[:-1])) if len(order) else order
    return [int(index) for index, before in zip(order, best, strict=True) if accuracy[index] > before]


def hypervolume(accuracies: Sequence[float], latencies: Sequence[float], reference_latency: float) -> float:
    """Share of the rectangle (accuracy 0 to 1, latency 0 to the reference) that the front dominates, in [0, 1]."""
    area, best = 0.0, 0.0
    for index in front_indices(accuracies, latencies):
        if latencies[index] < reference_latency:
            area += (accuracies[index] - best) * (reference_latency - latencies[index])
            best = accuracies[index]
    return area / reference_latency
