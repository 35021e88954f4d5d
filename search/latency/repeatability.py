"""How well a target repeats: by how much separate measurements of one network differ beyond what their rounds explain.

Each measurement loads a network anew, and where its weights lie, what else is in the caches and how the machine is disposed
then stay the same through all its rounds. No number of rounds tells of that, so it is measured when a target is calibrated,
and enters the error of every latency. Needs the standard library alone, like protocol.py.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from search.latency.estimate import LEVEL, Estimate, student

LEAST_DEVIATION = 5e-4  # a few measurements that happen to agree do not make a target repeat better than this
MIN_FREEDOM = 6  # below it a standard deviation is little more than a guess


@dataclass(frozen=True)
class Repeatability:
    """Standard deviation between separate measurements of a network.

    Attributes:
        deviation: Of the logarithm of the latency, without what the differences between rounds explain.
        degrees_of_freedom: How well the deviation is known.
        num_measurements: That it was estimated from; 0 if it is assumed.
    """

    deviation: float
    degrees_of_freedom: float
    num_measurements: int = 0

    @property
    def least_half_width(self) -> float:
        """Relative half-width of the 95 % confidence interval that no number of rounds gets below."""
        return student((1 + LEVEL) / 2, self.degrees_of_freedom) * self.deviation

    def __str__(self) -> str:
        origin = f"{self.num_measurements} measurements" if self.num_measurements else "assumed"
        return f"{self.deviation:.2%} ({origin})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned."""
        return cls(**data)


# On a shared server, intervals with 0.005 covered the latency of another pass in 80 % of 128 cases, with 0.009 in 99 % of
# 144 (benchmarks.latency_fidelity).
ASSUMED = Repeatability(0.008, 100.0)
"""For targets where it is not measured."""


def estimate_repeatability(measurements: Sequence[Sequence[Estimate]]) -> Repeatability:
    """Estimate it from several measurements of each of a few networks.

    The variance between the measurements of a network is that of the target and that of the rounds, which is known.

    Args:
        measurements: By network; their errors are those that the rounds tell of.

    Returns:
        The estimate; `ASSUMED` if there are too few measurements.
    """
    freedom = sum(len(group) - 1 for group in measurements)
    if freedom < MIN_FREEDOM:
        return ASSUMED
    logs = [[math.log(estimate.value) for estimate in group] for group in measurements]
    squares = sum((len(group) - 1) * statistics.variance(group) for group in logs if len(group) > 1)
    within = statistics.fmean(estimate.standard_error**2 for group in measurements for estimate in group)
    deviation = math.sqrt(max(squares / freedom - within, LEAST_DEVIATION**2))
    return Repeatability(deviation, float(freedom), sum(map(len, measurements)))
