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
from typing import Any

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
    def half_width(self) -> float:
        """Relative half-width of the 95 % confidence interval of a measurement of very many rounds."""
        return student((1 + LEVEL) / 2, self.degrees_of_freedom) * self.deviation

    @property
    def least_half_width(self) -> float:
        """What that surely exceeds, even if the deviation is as small as its lower 95 % limit.

        The quantile of chi-squared is Wilson's and Hilferty's (doi:10.1073/pnas.17.12.684).
        """
        normal, spread = statistics.NormalDist(), 2 / (9 * self.degrees_of_freedom)
        chi_squared = (1 - spread + normal.inv_cdf(LEVEL) * math.sqrt(spread)) ** 3  # over its degrees of freedom
        return normal.inv_cdf((1 + LEVEL) / 2) * self.deviation / math.sqrt(chi_squared)

    def __str__(self) -> str:
        origin = f"{self.num_measurements} measurements" if self.num_measurements else "assumed"
        return f"{self.deviation:.2%} ({origin})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Repeatability:
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
    total = sum((len(group) - 1) * statistics.variance(group) for group in logs if len(group) > 1) / freedom
    within = statistics.fmean(estimate.standard_error**2 for group in measurements for estimate in group)
    variance = max(total - within, LEAST_DEVIATION**2)
    # A difference is less sure than what it is taken from.
    remaining = max(2.0, freedom * min(1.0, variance / max(total, LEAST_DEVIATION**2)))
    return Repeatability(math.sqrt(variance), remaining, sum(map(len, measurements)))


def unreachable(tolerance: float, repeatability: Repeatability) -> str:
    """Say why surely no measurement on a target that repeats like this could reach the tolerance; empty if one may.

    What was measured may be due to other work on the device, so it is no reason to refuse a search.
    """
    least = repeatability.least_half_width
    if tolerance >= least:
        return ""
    remedy = f"set latency.tolerance={math.ceil(repeatability.half_width * 1e3 + 1) / 1e3:g} or more"
    if repeatability.num_measurements:
        remedy += ", or stop other work on the device"
    return (
        f"latency.tolerance={tolerance:g}: separate measurements of a network differ by a standard deviation of "
        f"{repeatability}, so the half-width of the 95 % confidence interval stays above {least:.2%}; {remedy}"
    )
