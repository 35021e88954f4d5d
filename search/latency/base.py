"""The role of a latency target, and what a measurement says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, Self

from models.architecture import Architecture


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
    ratios: the samples, empty where only the summary was kept.
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

    @property
    def interval_percent(self) -> float:
        """Half the interval's width, in percent of the latency."""
        return 50 * (self.high_ms - self.low_ms) / self.latency_ms

    def refined_by(self, other: Latency) -> Latency:
        """Both measurements of one network as one: logarithms weighted by their inverse variances."""
        values = [math.log(m.latency_ms) for m in (self, other)]
        variances = [max(math.log(m.high_ms / m.low_ms) / 2, 1e-6) ** 2 for m in (self, other)]
        weights = [1 / variance for variance in variances]
        mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        half = math.sqrt(1 / sum(weights))
        return Latency(
            latency_ms=math.exp(mean),
            low_ms=math.exp(mean - half),
            high_ms=math.exp(mean + half),
            repetitions=self.repetitions + other.repetitions,
            warmup_runs=self.warmup_runs + other.warmup_runs,
            converged=self.converged or other.converged,
            seconds=self.seconds + other.seconds,
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
