"""Front and hypervolume against their definitions."""

from __future__ import annotations

import random

import pytest

from search.pareto import front_indices, hypervolume


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and a != b


@pytest.mark.parametrize("seed", range(20))
def test_front_is_what_nothing_dominates(seed: int) -> None:
    rng = random.Random(seed)
    points = [(rng.randint(0, 8) / 8, float(rng.randint(1, 8))) for _ in range(rng.randint(1, 30))]
    indices = front_indices(*zip(*points, strict=True))
    found = {points[i] for i in indices}
    assert found == {p for p in points if not any(dominates(q, p) for q in points)}
    assert len(found) == len(indices)  # of equal points one
    assert [points[i][1] for i in indices] == sorted(points[i][1] for i in indices)


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_is_the_dominated_share(seed: int) -> None:
    rng = random.Random(seed)
    points = [(rng.random(), rng.uniform(0, 12)) for _ in range(10)]
    draws = [(rng.random(), rng.uniform(0, 10)) for _ in range(20000)]
    share = sum(any(p[0] >= d[0] and p[1] <= d[1] for p in points) for d in draws) / len(draws)
    assert hypervolume(*zip(*points, strict=True), reference_latency=10.0) == pytest.approx(share, abs=0.015)


def test_nothing_dominates_nothing() -> None:
    assert front_indices([], []) == []
    assert hypervolume([], [], 5.0) == 0.0
    assert hypervolume([0.9], [6.0], 5.0) == 0.0
