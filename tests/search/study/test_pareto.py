"""Front and hypervolume against their definitions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from search.study.pareto import front_indices, front_probabilities, gain, hypervolume, mean_accuracy

DRAWS = 1000


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and a != b


@pytest.mark.parametrize("seed", range(20))
def test_front_is_what_nothing_dominates(seed: int) -> None:
    rng = random.Random(seed)
    points = [(rng.randint(0, 8) / 8, float(rng.randint(1, 8))) for _ in range(rng.randint(1, 30))]
    indices = front_indices(*zip(*points, strict=True))
    members = {points[i] for i in indices}
    assert members == {p for p in points if not any(dominates(q, p) for q in points)}
    assert len(members) == len(indices)  # of equal points one
    assert [points[i][1] for i in indices] == sorted(points[i][1] for i in indices)


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_is_the_dominated_share(seed: int) -> None:
    rng = random.Random(seed)
    points = [(rng.random(), rng.uniform(0, 12)) for _ in range(10)]
    draws = [(rng.random(), rng.uniform(0, 10)) for _ in range(20000)]
    share = sum(any(p[0] >= d[0] and p[1] <= d[1] for p in points) for d in draws) / len(draws)
    assert hypervolume(*zip(*points, strict=True), references=10.0) == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("seed", range(5))
def test_mean_accuracy_is_that_of_the_best_network_within_a_latency(seed: int) -> None:
    rng = random.Random(seed)
    points = [(rng.random(), rng.uniform(0.5, 20)) for _ in range(10)]
    latencies = np.geomspace(1.0, 10.0, 20001)
    best = [max((accuracy for accuracy, ms in points if ms <= latency), default=0.0) for latency in latencies]
    assert mean_accuracy(*zip(*points, strict=True), [1.0], [10.0]) == pytest.approx(np.mean(best), abs=1e-3)


def test_mean_accuracy_over_two_targets() -> None:
    points = [[1.0, 1.0], [2.0, 4.0]]  # the second is within half of the first axis and nothing of the other
    assert mean_accuracy([0.5, 0.8], points, [1.0, 1.0], [4.0, 4.0]) == pytest.approx(0.5)
    assert mean_accuracy([0.5, 0.8], [[1.0, 1.0], [2.0, 2.0]], [1.0, 1.0], [4.0, 4.0]) == pytest.approx(0.5 + 0.3 / 4)


def test_nothing_dominates_nothing() -> None:
    assert front_indices([], []) == []
    assert hypervolume([], [], 5.0) == 0.0
    assert hypervolume([0.9], [6.0], 5.0) == 0.0


def probabilities(
    accuracies: Sequence[float], errors: Sequence[float], latencies: Sequence[float], latency_errors: Sequence[float]
) -> list[float]:
    """Front probabilities of points whose accuracies err independently."""
    rng = np.random.default_rng(0)
    draws = np.array(accuracies) + rng.normal(size=(DRAWS, len(accuracies))) * np.array(errors)
    return front_probabilities(draws, latencies, latency_errors, rng)


def test_certain_points_are_surely_on_the_front_or_not() -> None:
    shares = probabilities([0.5, 0.6, 0.55], [0.0] * 3, [1.0, 2.0, 3.0], [0.0] * 3)
    assert shares == [1.0, 1.0, 0.0]


def test_uncertain_points_share_the_front() -> None:
    """Two points that differ by less than their errors, and one far from both."""
    alike = probabilities([0.600, 0.601, 0.3], [0.01] * 3, [2.0, 2.0, 1.0], [0.01] * 3)
    assert all(0.3 < share < 0.95 for share in alike[:2])
    assert alike[2] == 1.0


def test_probability_of_beating_a_point_is_the_normal_distribution_s() -> None:
    """Faster for certain, so that it is dominated exactly if the other is at least as accurate: one standard error away."""
    share = probabilities([0.5, 0.5 + 0.01], [0.01 / 2**0.5] * 2, [1.0, 2.0], [0.0, 0.0])
    assert share[0] == 1.0
    assert share[1] == pytest.approx(0.841, abs=4 * (0.25 / DRAWS) ** 0.5)


@pytest.mark.parametrize("seed", range(10))
def test_front_over_several_devices_is_what_nothing_dominates(seed: int) -> None:
    rng = random.Random(seed)
    points = [(rng.randint(0, 5) / 5, float(rng.randint(1, 5)), float(rng.randint(1, 5))) for _ in range(30)]
    indices = front_indices([point[0] for point in points], [point[1:] for point in points])
    members = {points[i] for i in indices}

    def beats(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2] and a != b

    assert members == {p for p in points if not any(beats(q, p) for q in points)}
    assert len(members) == len(indices)


@pytest.mark.parametrize("devices", [2, 3])
def test_hypervolume_over_several_devices_is_the_dominated_share(devices: int) -> None:
    rng = random.Random(devices)
    ends = [10.0, 5.0, 2.0][:devices]
    points = [(rng.random(), [rng.uniform(0, 1.2 * end) for end in ends]) for _ in range(12)]
    draws = [(rng.random(), [rng.uniform(0, end) for end in ends]) for _ in range(20000)]
    hits = sum(
        any(accuracy >= d and all(a <= b for a, b in zip(costs, drawn, strict=True)) for accuracy, costs in points)
        for d, drawn in draws
    )
    share = hypervolume([accuracy for accuracy, _ in points], [latencies for _, latencies in points], ends)
    assert share == pytest.approx(hits / len(draws), abs=0.015)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_gain_is_what_a_point_adds(devices: int) -> None:
    rng = random.Random(devices)
    ends = [10.0, 5.0, 2.0][:devices]
    accuracies = [rng.random() for _ in range(12)]
    latencies = [[rng.uniform(0, 1.2 * end) for end in ends] for _ in accuracies]
    before = hypervolume(accuracies, latencies, ends)
    for _ in range(30):
        accuracy, costs = rng.random(), [rng.uniform(0, 1.2 * end) for end in ends]
        after = hypervolume([*accuracies, accuracy], [*latencies, costs], ends)
        assert gain(accuracies, latencies, accuracy, costs, ends) == pytest.approx(after - before, abs=1e-12)
