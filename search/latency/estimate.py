"""Estimates with their errors. Every interval that is shown is made from one, and says what it is.

Errors are those of the logarithm, so they are relative, and no interval reaches below 0. This module also runs on devices
over ssh, so it needs nothing but the standard library.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

LEVEL = 0.95  # of intervals unless another one is named

# Version 0.1 stored, as low_ms and high_ms, the 95 % interval of another measurement, of at least 8 rounds.
EARLIER_FREEDOM = 7.0


class Interval(NamedTuple):
    """Both ends of an interval."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Estimate:
    """An estimate of a quantity above 0, such as a latency or a ratio of two.

    Attributes:
        value: The estimate.
        standard_error: Standard error of its logarithm.
        degrees_of_freedom: How well the standard error itself is known: those of the Student's t distribution that the
            logarithm's error over `standard_error` follows.
    """

    value: float
    standard_error: float
    degrees_of_freedom: float

    def confidence_interval(self, level: float = LEVEL) -> Interval:
        """Return the interval that contains the true value with this probability."""
        return self._interval(level, self.standard_error)

    def prediction_interval(self, level: float = LEVEL) -> Interval:
        """Return the interval in which the next estimate of the same standard error falls with this probability."""
        return self._interval(level, math.sqrt(2) * self.standard_error)

    @property
    def low(self) -> float:
        """Lower end of the 95 % confidence interval."""
        return self.confidence_interval().low

    @property
    def high(self) -> float:
        """Upper end of the 95 % confidence interval."""
        return self.confidence_interval().high

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % confidence interval, relative."""
        return student((1 + LEVEL) / 2, self.degrees_of_freedom) * self.standard_error

    def is_above(self, limit: float, confidence: float) -> bool:
        """Return True if the true value is above a limit with this confidence: the one-sided lower limit is."""
        return self.value > limit * math.exp(student(confidence, self.degrees_of_freedom) * self.standard_error)

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate times a number that is known exactly."""
        return Estimate(self.value * factor, self.standard_error, self.degrees_of_freedom)

    def widened(self, deviation: float, degrees_of_freedom: float) -> Estimate:
        """Return the estimate with a further, independent error of its logarithm."""
        terms = ((self.standard_error**2, self.degrees_of_freedom), (deviation**2, degrees_of_freedom))
        return Estimate(self.value, math.hypot(self.standard_error, deviation), freedom_of_sum(*terms))

    def over(self, other: Estimate) -> Estimate:
        """Return the ratio of this quantity to another one, whose error is independent."""
        ratio = Estimate(self.value / other.value, self.standard_error, self.degrees_of_freedom)
        return ratio.widened(other.standard_error, other.degrees_of_freedom)

    def combined(self, other: Estimate) -> Estimate:
        """Combine two independent estimates of the same quantity.

        Logarithms are weighted by their inverse variances. Where the two differ by more than their errors explain, the
        standard error grows by the Birge ratio, the root of chi-squared over its degrees of freedom, here one
        (doi:10.1103/PhysRev.40.207).
        """
        first, second = self.standard_error**2, other.standard_error**2
        share = second / (first + second)  # weight of this estimate
        difference = math.log(other.value / self.value)
        birge_ratio = abs(difference) / math.sqrt(first + second)
        terms = ((share**2 * first, self.degrees_of_freedom), ((1 - share) ** 2 * second, other.degrees_of_freedom))
        return Estimate(
            self.value * math.exp((1 - share) * difference),
            math.sqrt(first * second / (first + second)) * max(1.0, birge_ratio),
            freedom_of_sum(*terms),
        )

    def __str__(self) -> str:
        return f"{self.value:.2f} {self.confidence_interval()}"

    def _interval(self, level: float, deviation: float) -> Interval:
        reach = math.exp(student((1 + level) / 2, self.degrees_of_freedom) * deviation)
        return Interval(self.value / reach, self.value * reach)

    def to_dict(self, key: str) -> dict[str, float]:
        """Return the estimate, in milliseconds, as plain data with its 95 % confidence interval. key: of the value."""
        low, high = self.confidence_interval()
        return {
            key: self.value,
            "low_ms": low,
            "high_ms": high,
            "standard_error": self.standard_error,
            "degrees_of_freedom": self.degrees_of_freedom,
        }

    @classmethod
    def from_dict(cls, key: str, data: Mapping[str, Any]) -> Estimate:
        """Read what `to_dict` returned, or what version 0.1 stored: an interval of another measurement alone."""
        if "standard_error" in data:
            return cls(data[key], data["standard_error"], data["degrees_of_freedom"])
        half_width = math.log(data["high_ms"] / data["low_ms"]) / 2
        error = half_width / (student((1 + LEVEL) / 2, EARLIER_FREEDOM) * math.sqrt(2))
        return cls(data[key], error, EARLIER_FREEDOM)


ESTIMATE_KEYS = frozenset({"low_ms", "high_ms", "standard_error", "degrees_of_freedom"})
"""Keys of `Estimate.to_dict` beside that of the value."""


def freedom_of_sum(*terms: tuple[float, float]) -> float:
    """Return the degrees of freedom of a sum of independent variances by the Welch-Satterthwaite equation.

    Args:
        terms: Each variance with its own degrees of freedom.
    """
    total = sum(variance for variance, _ in terms)
    if total == 0:
        return min(freedom for _, freedom in terms)
    return 1 / sum((variance / total) ** 2 / freedom for variance, freedom in terms)


def student(confidence: float, degrees_of_freedom: float) -> float:
    """Return the one-sided quantile of Student's t distribution.

    Expansion 26.7.5 of Abramowitz and Stegun: the 97.5 % quantile is within 1 % from 2 degrees of freedom on. Not SciPy's,
    because devices over ssh need no SciPy.
    """
    z = statistics.NormalDist().inv_cdf(confidence)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees_of_freedom**power for power, term in enumerate(terms))
