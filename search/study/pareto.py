"""Pareto fronts of accuracy (higher is better) and latencies (lower is better), and the volume they dominate.

Latencies are one number per network or, where several targets are objectives, a row of them. Non-domination and
hypervolume are computed by moocore (https://multi-objective.github.io/moocore).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-12  # of volumes, which are in [0, 1]

Numbers = Sequence[float] | Sequence[Sequence[float]] | NDArray[np.float64]
"""One latency per network, or a row of them, one per target."""


def front_indices(accuracies: Sequence[float] | NDArray[np.float64], latencies: Numbers) -> list[int]:
    """Find the points that no other point dominates.

    Args:
        accuracies: (points,).
        latencies: (points,) or (points, targets).

    Returns:
        Their indices, by rising (first) latency. Of equal points the first counts.
    """
    table = _table(latencies)
    if not len(table):
        return []
    is_member = moocore.is_nondominated(_costs(accuracies, table))
    return sorted((int(index) for index in np.flatnonzero(is_member)), key=lambda index: float(table[index, 0]))


def nondominated_fronts(accuracies: Sequence[float] | NDArray[np.float64], latencies: Numbers) -> Iterator[list[int]]:
    """Sort points into fronts: those that no other one dominates, then those that no other one of the rest does, and so on.

    Args:
        accuracies: (points,).
        latencies: (points,) or (points, targets).

    Yields:
        Indices of a front, as `front_indices` returns them.
    """
    values, table = np.asarray(accuracies, float), _table(latencies)
    left = np.arange(len(values))
    while len(left):
        members = left[front_indices(values[left], table[left])]
        yield [int(index) for index in members]
        left = np.setdiff1d(left, members)


def front_probabilities(
    accuracy_draws: NDArray[np.float64], latencies: Numbers, latency_errors: Numbers, rng: np.random.Generator
) -> list[float]:
    """Estimate how probable it is for each point that no other one dominates it, given the errors of all values.

    Args:
        accuracy_draws: accuracies that could be the true ones, (draws, points).
        latency_errors: standard errors of the latencies' logarithms; these errors are independent and normal.
        rng: source of randomness.

    Returns:
        Shares of the draws in which each point is on the front.
    """
    logs, log_errors = np.log(_table(latencies)), _table(latency_errors)
    wins = np.zeros(accuracy_draws.shape[1])
    for accuracies in accuracy_draws:
        wins[front_indices(accuracies, logs + rng.normal(size=logs.shape) * log_errors)] += 1
    return [float(share) for share in wins / len(accuracy_draws)]


def hypervolume(accuracies: Sequence[float], latencies: Numbers, references: float | Sequence[float]) -> float:
    """Share of the box (accuracy 0 to 1, each latency 0 to its reference) that the points dominate, in [0, 1]."""
    ends = np.atleast_1d(np.asarray(references, float))
    return _volume(np.asarray(accuracies, float), _table(latencies), ends) / float(ends.prod())


def mean_accuracy(accuracies: Sequence[float], latencies: Numbers, lows: Sequence[float], highs: Sequence[float]) -> float:
    """Average, over latencies at equal ratios, the accuracy of the best point within each latency.

    Args:
        accuracies: (points,), in [0, 1].
        latencies: (points,) or (points, targets).
        lows: least latency on each target that counts.
        highs: largest latency on each target that counts, above the least.

    Returns:
        The average over the logarithms of latency, in [0, 1]; no point within a latency counts as accuracy 0.
    """
    starts, ends = np.log(np.asarray(lows, float)), np.log(np.asarray(highs, float))
    logs = np.maximum(np.log(_table(latencies)), starts)
    return _volume(np.asarray(accuracies, float), logs, ends) / float((ends - starts).prod())


def gain(
    accuracies: Sequence[float],
    latencies: Numbers,
    accuracy: float,
    point_latencies: Sequence[float],
    references: Sequence[float],
) -> float:
    """Compute what a further point would add to the hypervolume of a front.

    It is the point's own box less what the front dominates of that box: no difference of two large volumes.
    """
    ends, limits = np.asarray(references, float), np.asarray(point_latencies, float)
    if not (limits < ends).all():
        return 0.0
    clipped = np.minimum(accuracies, accuracy), np.maximum(_table(latencies), limits)
    added = accuracy * float((ends - limits).prod()) - _volume(*clipped, ends)
    share = added / float(ends.prod())
    return share if share > ROUNDING else 0.0


def _volume(accuracy: NDArray[np.float64], latency: NDArray[np.float64], ends: NDArray[np.float64]) -> float:
    return float(moocore.hypervolume(_costs(accuracy, latency), ref=[0.0, *ends])) if len(latency) else 0.0


def _costs(accuracy: Sequence[float] | NDArray[np.float64], latency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns to minimise."""
    return np.column_stack((-np.asarray(accuracy, float), latency))


def _table(values: Numbers) -> NDArray[np.float64]:
    """A row per network, a column per target."""
    table = np.asarray(values, float)
    return table.reshape(len(table), -1) if table.size else np.empty((0, 1))
