"""The role of a latency target, and what a measurement says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, Self

from models.architecture import Architecture

NORMAL_95 = 1.96
MIN_HALF_WIDTH = 1e-3  # relative: no interval is surer than this, however alike a few samples were


@dataclass(frozen=True)
class Calibration:
    """The anchor network's own latency on the target: what turns ratios into milliseconds. Kept with a study."""

    anchor: Architecture
    anchor_ms: float
    low_ms: float
    high_ms: float
    repetitions: int

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "anchor": self.anchor.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "anchor": Architecture.from_dict(data["anchor"])})


@dataclass(frozen=True)
class Latency:
    """One network's latency.

    latency_ms: median ratio to the anchor times the anchor's calibrated time; low_ms, high_ms: 95 % interval of the
    median (the calibration is common to all networks and not part of it).
    repetitions: timed pairs. converged: the interval got as narrow as asked for within the time limit.
    ratios: the samples, empty where only the summary was kept; after a repeat, those of the last measurement.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    repetitions: int
    warmup_runs: int
    converged: bool
    seconds: float
    ratios: tuple[float, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Everything but the samples, as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ratios"}

    def refined_by(self, newer: Latency) -> Latency:
        """Both measurements of one network as one; the samples are those of the newer one.

        Logarithms are weighted by their inverse variances. Where the two differ by more than their intervals explain, the
        interval widens accordingly (Birge ratio).
        """
        values = [math.log(m.latency_ms) for m in (self, newer)]
        variances = [max(math.log(m.high_ms / m.low_ms) / 2, MIN_HALF_WIDTH) ** 2 for m in (self, newer)]
        weights = [1 / variance for variance in variances]
        mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        disagreement = NORMAL_95 * abs(values[0] - values[1]) / math.sqrt(sum(variances))
        half = math.sqrt(1 / sum(weights)) * max(1.0, disagreement)
        return Latency(
            latency_ms=math.exp(mean),
            low_ms=math.exp(mean - half),
            high_ms=math.exp(mean + half),
            repetitions=self.repetitions + newer.repetitions,
            warmup_runs=self.warmup_runs + newer.warmup_runs,
            converged=self.converged or newer.converged,
            seconds=self.seconds + newer.seconds,
            ratios=newer.ratios,
        )


class LatencyTarget(Protocol):
    """A device and a way to run networks on it. Stays in one process, which does nothing else."""

    def fingerprint(self) -> dict[str, str | int]:
        """What measurements depend on: device, runtime, versions and settings. Studies refuse to mix different ones."""
        ...

    def calibrate(self, anchor: Architecture) -> Calibration:
        """Measure the anchor's own latency, long enough to last for a study."""
        ...

    def measure(self, architecture: Architecture, calibration: Calibration) -> Latency:
        """Latency of an architecture. Raises: any error of building or running it; never returns a guess."""
        ...
