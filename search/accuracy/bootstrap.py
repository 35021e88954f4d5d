"""Bootstrap intervals of statistics of a sample of networks, Kendall's tau first of all.

A resample is a row of weights: how often it contains each network. A statistic is computed of all resamples at once, and
statistics of the same resamples may be subtracted: the interval of a difference of two taus is that of the differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
CONFIDENCE = 0.9  # the truth is then beyond one end of the interval in at most one of 20 samples

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistic:
    """A statistic of a sample of networks, with its 90 % interval over networks."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Array) -> Self:
        """Take the values of a statistic in the sample and in its resamples, the rows of `resample`.

        The interval is between percentiles. Those of taus and of their differences are a little wide for few networks: of
        simulated samples of 24 networks 93 to 97 % contain the truth.
        """
        ends = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
        low, high = np.quantile(values[1:], ends)
        return cls(float(values[0]), float(low), float(high))

    def __str__(self) -> str:
        return self.text(".2f")

    def text(self, form: str) -> str:
        """The value and its interval, each in a format such as "+.2f"."""
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def resample(count: int) -> Array:
    """Draw samples of as many networks with replacement.

    Returns:
        How often each sample contains each network, (1 + NUM_RESAMPLES, networks). The first row is the original sample.
    """
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), NUM_RESAMPLES)
    return np.vstack([np.ones(count), drawn])


def tau(x: Sequence[float] | Array, y: Sequence[float] | Array, weights: Array, pairs: Array | None = None) -> Array:
    """Compute Kendall's tau-b of two rankings in each resample; 0 where all values of one are equal.

    A network that is drawn twice makes no pair with itself.

    Args:
        x: (networks,).
        y: (networks,).
        weights: (resamples, networks).
        pairs: (networks, networks), 1 for the pairs that count, 0 for the others; by default all count.
    """
    order_x, order_y = _order(x), _order(y)
    counted = np.ones_like(order_x) if pairs is None else pairs

    def total(matrix: Array) -> Array:
        sums: Array = ((weights @ (matrix * counted)) * weights).sum(1)
        return sums

    norm = np.sqrt(total(order_x**2) * total(order_y**2))
    return np.divide(total(order_x * order_y), norm, out=np.zeros(len(weights)), where=norm > 0)


def _order(values: Sequence[float] | Array) -> Array:
    """1, 0 or -1 for each pair, (networks, networks)."""
    array = np.asarray(values, float)
    order: Array = np.sign(array[:, None] - array[None, :])
    return order
