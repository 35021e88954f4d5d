"""The curves that `benchmarks.evidence` compares, and their intervals, against simulated truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.evidence_table import ARMS, GRID, Measured, curve, difference, draw, show, summary
from search.latency.base import Latency
from search.latency.estimate import Estimate


def network(
    milliseconds: float, accuracy: float, rng: np.random.Generator, num_images: int = 2000, seeds: int = 3
) -> Measured:
    """A network whose seeds differ by 0.005, and whose test images are as hard for all networks alike."""
    hardness = np.linspace(0, 1, num_images)
    levels = accuracy + 0.005 * rng.standard_normal(3)
    correct = np.stack([hardness + 0.2 * rng.standard_normal(num_images) < level for level in levels])
    latency = Latency(Estimate(milliseconds, 0.01, 50.0), 20, 5, True, 1.0)
    return Measured(f"{milliseconds} ms", {"float32": latency}, correct, accuracy, 1000, 60.0)


def arm(gain: float, rng: np.random.Generator) -> list[Measured]:
    return [network(ms, 0.6 + 0.1 * np.log(ms) + gain, rng) for ms in (1.0, 2.0, 4.0)]


def test_accuracy_is_interpolated_over_the_logarithm_of_latency() -> None:
    grid = np.array([1.0, 2.0, 4.0])
    assert curve([4.0, 1.0], [0.8, 0.6], grid) == pytest.approx([0.6, 0.7, 0.8])


def test_network_that_is_worse_than_a_faster_one_is_passed_over() -> None:
    assert curve([1.0, 2.0, 4.0], [0.6, 0.5, 0.7], np.array([2.0])) == pytest.approx([0.6])


def test_intervals_contain_the_true_difference() -> None:
    """More often than 95 %: seeds err by their images too, which are drawn again."""
    rng, inside, widths, values = np.random.default_rng(0), [], [], []
    for seed in range(12):
        compared = difference(arm(0.02, rng), arm(0.0, rng), seed, num_resamples=100)
        assert compared is not None
        assert len(compared.latencies_ms) == GRID
        inside += list((compared.low <= 0.02) & (compared.high >= 0.02))
        widths += list(compared.high - compared.low)
        values += list(compared.value)
    assert np.mean(inside) >= 0.9
    assert np.mean(widths) < 3 * 2 * 1.96 * np.std(values)


def test_equal_arms_do_not_differ_and_better_ones_do() -> None:
    rng = np.random.default_rng(0)
    equal, better = (difference(arm(gain, rng), arm(0.0, rng), num_resamples=200) for gain in (0.0, 0.1))
    assert equal is not None
    assert better is not None
    assert (better.low > 0).all()
    assert not (equal.low > 0.01).any()


def test_arms_without_a_common_latency_are_named() -> None:
    rng = np.random.default_rng(0)
    fast, slow = [network(1.0, 0.5, rng), network(1.5, 0.6, rng)], [network(3.0, 0.6, rng), network(4.0, 0.7, rng)]
    assert difference(fast, slow) is None
    assert summary("a", "b", {"a": fast, "b": slow}) == "a and b reach no common latency"
    assert summary("a", "b", {"a": fast, "b": []}) == "a and b reach no common latency"


def test_table_and_figure_show_all_arms(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arms = {name: arm(0.01 * number, rng) for number, name in enumerate(ARMS)}
    console = Console(record=True, width=160)
    show(console, arms, ["search front: 3 networks"])
    printed = console.export_text()
    assert all(name in printed for name in ARMS)
    assert printed.count("latencies") == len(ARMS) - 1
    draw(arms, tmp_path / "evidence.png")
    assert (tmp_path / "evidence.png").stat().st_size > 10_000
