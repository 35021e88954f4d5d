"""Accuracies of trainings, predicted from scores by a line through the networks that have both.

A supernet's scores and accuracies of trainings are on different scales, so a network that was scored cannot be compared
with one that was trained. The line puts it on the scale of trainings; how far the trained networks are from the line is its
error. Bayesian linear regression (Gelman et al., Bayesian Data Analysis, chapter 14): with few trained networks the line is
near a given slope, and its error uncertain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SLOPE_ERROR = 0.5  # standard deviation of slopes about the one that is expected


@dataclass(frozen=True)
class Expected:
    """What is expected of the line before any network is trained.

    Args:
        slope: Its slope.
        residual: Standard deviation of accuracies about it, above 0.
        num_networks: Number of networks that the residual was measured with; 1 for a guess.
    """

    slope: float
    residual: float
    num_networks: int


def draw_predictions(
    scores: Array, accuracies: Array, others: Array, expected: Expected, num_draws: int, rng: np.random.Generator
) -> Array:
    """Draw accuracies of networks that have only a score.

    Args:
        scores: Of the trained networks, (networks,), at least one.
        accuracies: Of the same networks.
        others: Scores of the networks to predict.
        expected: What is known without them.
        num_draws: Number of draws.
        rng: Source of randomness.

    Returns:
        Accuracies, (draws, others), with the errors of the line and of each network about it.
    """
    x, y = scores - scores.mean(), accuracies - accuracies.mean()
    known = max(expected.num_networks - 2, 1)
    prior = (expected.residual / SLOPE_ERROR) ** 2
    slope = (x @ y + prior * expected.slope) / (x @ x + prior)
    squares = known * expected.residual**2 + ((y - slope * x) ** 2).sum() + prior * (slope - expected.slope) ** 2
    freedom = known + len(scores) - 1
    residuals = np.sqrt(squares / rng.chisquare(freedom, size=(num_draws, 1)))
    slopes = slope + residuals / np.sqrt(x @ x + prior) * rng.normal(size=(num_draws, 1))
    offsets = accuracies.mean() + residuals / np.sqrt(len(scores)) * rng.normal(size=(num_draws, 1))
    errors = residuals * rng.normal(size=(num_draws, len(others)))
    return np.asarray(offsets + slopes * (others - scores.mean()) + errors)
