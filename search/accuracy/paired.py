"""How far the difference of two accuracies can be trusted."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from search.accuracy.base import Accuracy


def paired_difference(first: Accuracy, second: Accuracy) -> tuple[float, float]:
    """Return the difference of two accuracies (first minus second) and its standard error, from independent errors."""
    return first.accuracy - second.accuracy, math.hypot(first.standard_error, second.standard_error)


def image_variance(accuracies: Sequence[Accuracy]) -> float:
    """Estimate the variance of an accuracy over validation images, without what all networks share on the same images.

    It is half the variance of the difference of two networks, averaged over neighbours in accuracy.
    """
    ordered = sorted(accuracies, key=lambda accuracy: accuracy.accuracy)
    if len(ordered) < 2:
        return sum(accuracy.standard_error**2 for accuracy in ordered)
    return statistics.fmean(paired_difference(high, low)[1] ** 2 / 2 for low, high in itertools.pairwise(ordered))
