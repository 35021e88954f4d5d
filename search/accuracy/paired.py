"""How far the difference of two accuracies can be trusted."""

from __future__ import annotations

import math

from search.accuracy.base import Accuracy


def paired_difference(first: Accuracy, second: Accuracy) -> tuple[float, float]:
    """Return the difference of two accuracies (first minus second) and its standard error, from independent errors."""
    return first.accuracy - second.accuracy, math.hypot(first.standard_error, second.standard_error)
