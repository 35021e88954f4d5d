"""The front of accuracy (higher is better) and latencies (lower is better), and the volume it dominates.

Latencies are one number for each network or, where several devices count, one for each device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-12  # of volumes, which are in [0, 1]
DRAWS = 1000  # of a Monte Carlo estimate: its own error is at most 0.016

Numbers = Sequence[float] | Sequence[Sequence[float]] | NDArray[np.float64]
"""One latency for each network, or a row of them, one for each device."""


def front_indices(accuracies: Sequence[float] | NDArray[np.float64], latencies: Numbers) -> list[int]:
    """Indices of the points that no other point dominates, by rising (first) latency. Of equal points the first counts."""
    accuracy, latency = np.asarray(accuracies, float), _table(latencies)
    order = np.lexsort((-accuracy, *latency.T[::-1]))
    if latency.shape[1] > 1:
        return _front_of_several(accuracy, latency, order)
    if not len(order):
        return []
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(accuracy[order])[:-1]))
    return [int(index) for index in order[accuracy[order] > best_before]]


def _front_of_several(accuracy: NDArray[np.float64], latency: NDArray[np.float64], order: NDArray[np.intp]) -> list[int]:
    """In this order nothing is dominated by what comes later, so that each point meets the front so far alone."""
    costs = np.column_stack((-accuracy, latency))
    members: list[int] = []
    for index in order:
        if not (costs[members] <= costs[index]).all(axis=1).any():
            members.append(int(index))
    return members


def front_probabilities(
    accuracies: Sequence[float],
    accuracy_errors: Sequence[float],
    latencies: Numbers,
    latency_errors: Numbers,
) -> list[float]:
    """How probable it is for each point that no other one dominates it, its values being as uncertain as they are.

    accuracy_errors: standard errors. latency_errors: of the latencies' logarithms. All are taken as independent and normal;
    accuracies on the same images err alike, so that the truth is surer than this.
    """
    rng = np.random.default_rng(0)
    count = len(accuracies)
    logs, log_errors = np.log(_table(latencies)), _table(latency_errors)
    wins = np.zeros(count)
    for _ in range(DRAWS):
        accuracy = np.asarray(accuracies) + rng.normal(size=count) * accuracy_errors
        latency = logs + rng.normal(size=logs.shape) * log_errors
        wins[front_indices(accuracy, latency)] += 1
    return [float(share) for share in wins / DRAWS]


def hypervolume(accuracies: Sequence[float], latencies: Numbers, reference_latency: float | Sequence[float]) -> float:
    """Share of the box (accuracy 0 to 1, each latency 0 to its reference) that the front dominates, in [0, 1]."""
    ends = np.atleast_1d(np.asarray(reference_latency, float))
    accuracy, latency = np.asarray(accuracies, float), _table(latencies)
    inside = (latency < ends).all(axis=1)
    return _volume(accuracy[inside], latency[inside], ends) / float(ends.prod())


def gain(
    accuracies: Sequence[float],
    latencies: Numbers,
    accuracy: float,
    own: Sequence[float],
    reference_latency: Sequence[float],
) -> float:
    """What another point would add to the hypervolume of a front: its own box less what of it is dominated already."""
    ends, limits = np.asarray(reference_latency, float), np.asarray(own, float)
    if not (limits < ends).all():
        return 0.0
    clipped = np.minimum(accuracies, accuracy), np.maximum(_table(latencies), limits)
    inside = (clipped[1] < ends).all(axis=1)
    added = accuracy * float((ends - limits).prod()) - _volume(clipped[0][inside], clipped[1][inside], ends)
    share = added / float(ends.prod())
    return share if share > ROUNDING else 0.0


def _volume(accuracy: NDArray[np.float64], latency: NDArray[np.float64], ends: NDArray[np.float64]) -> float:
    """Slice by slice along the last latency, each with what is that fast at least."""
    members = front_indices(accuracy, latency)
    if latency.shape[1] == 1:
        area, best = 0.0, 0.0
        for index in members:
            area += (accuracy[index] - best) * (ends[0] - latency[index, 0])
            best = accuracy[index]
        return float(area)
    last = latency[members, -1]
    edges = np.unique(np.append(last, ends[-1]))
    volume = 0.0
    for low, high in itertools.pairwise(edges):
        fast = [index for index, value in zip(members, last, strict=True) if value <= low]
        volume += float(high - low) * _volume(accuracy[fast], latency[fast, :-1], ends[:-1])
    return volume


def _table(values: Numbers) -> NDArray[np.float64]:
    """A row for each network, a column for each device."""
    table = np.asarray(values, float)
    return table.reshape(len(table), -1) if table.size else np.empty((0, 1))
