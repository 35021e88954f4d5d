"""Accuracies predicted from scores, against simulated truth."""

from __future__ import annotations

import numpy as np
import pytest

from search.accuracy.prediction import SLOPE_ERROR, Expected, draw_predictions


def inside(num_trained: int, expected: Expected, slope: float, slope_error: float, residual: float) -> float:
    """The share of networks whose true accuracy is in the central 90 % of what is predicted.

    Args:
        slope_error: standard deviation of the true slope over studies.
    """
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        scores = rng.normal(0.45, 0.03, num_trained + 5)
        truth = 0.5 + (slope + slope_error * rng.normal()) * scores + residual * rng.normal(size=len(scores))
        known = slice(None, num_trained)
        draws = draw_predictions(scores[known], truth[known], scores[num_trained:], expected, 400, rng)
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        hits.append((low <= truth[num_trained:]) & (truth[num_trained:] <= high))
    return float(np.mean(hits))


@pytest.mark.parametrize("num_trained", [1, 3, 10])
def test_predictions_are_as_sure_as_they_are_near_the_truth(num_trained: int) -> None:
    assert 0.86 <= inside(num_trained, Expected(0.8, 0.01, 24), 0.8, SLOPE_ERROR, 0.01) <= 0.94


def test_trained_networks_correct_what_was_expected() -> None:
    """A guess of half the residual and another slope: with 15 trained networks it counts little."""
    assert inside(15, Expected(1.0, 0.005, 1), 0.6, 0.0, 0.01) >= 0.85


def test_networks_with_equal_scores_are_no_obstacle() -> None:
    draws = draw_predictions(
        np.array([0.5, 0.5]), np.array([0.8, 0.82]), np.array([0.5]), Expected(1.0, 0.01, 24), 4000, np.random.default_rng(0)
    )
    assert float(np.median(draws)) == pytest.approx(0.81, abs=0.002)
