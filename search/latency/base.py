"""The role of a latency target, and what a measurement says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol, Self

from models.architecture import Architecture

NORMAL_95 = 1.96  # standard errors in half a 95 % interval
REPEAT = math.sqrt(2)  # two measurements differ by so many standard errors of one
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
class Round:
    """One stretch of timing: a candidate's times, each between two of the anchor's. A run each, in milliseconds."""

    candidate_ms: tuple[float, ...]
    anchor_ms: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Each candidate time over the mean of the anchor times before and after it."""
        pairs = zip(self.anchor_ms, self.anchor_ms[1:], strict=False)
        return tuple(c / ((a + b) / 2) for c, (a, b) in zip(self.candidate_ms, pairs, strict=True))


@dataclass(frozen=True)
class Latency:
    """One network's latency.

    latency_ms: median ratio to the anchor times the anchor's calibrated time. low_ms, high_ms: its 95 % interval, where
    another measurement made with the same effort falls (the calibration is common to all networks and not part of it).
    repetitions: timed runs. outliers: how many of them lie far off the others; they count, the median bears them.
    converged: the interval got as narrow as asked for within the time limit. seconds: of timing, preparing left out.
    prepare_seconds: of building, converting and compiling. parity: greatest difference of the converted network's outputs
    from eager PyTorch's, relative to the greatest output; None where nothing is converted.
    slowdown: the anchor's time over its calibrated time. busy_cores: what other processes took meanwhile, in cores.
    warning: what disturbed the measurement and what to do, or empty. peak_bytes: memory, where the system tells.
    rounds: all times, empty where only the summary was kept; after a repeat, those of the last measurement.
    Without repetitions it is a prediction, which only networks that are dominated anyway are left with.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    repetitions: int
    warmup_runs: int
    converged: bool
    seconds: float
    outliers: int = 0
    prepare_seconds: float = 0.0
    parity: float | None = None
    slowdown: float = 1.0
    busy_cores: float = 0.0
    warning: str = ""
    peak_bytes: int | None = None
    rounds: tuple[Round, ...] = ()

    @property
    def measured(self) -> bool:
        return self.repetitions > 0

    @property
    def half_width(self) -> float:
        """Of the interval, relative."""
        return math.log(self.high_ms / self.low_ms) / 2

    @property
    def standard_error(self) -> float:
        """Of the logarithm, relative: what the 95 % interval stands for."""
        return self.half_width / NORMAL_95

    def summary(self) -> dict[str, Any]:
        """Everything but the samples, as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rounds"}

    def without_samples(self) -> Latency:
        return replace(self, rounds=())

    def refined_by(self, newer: Latency) -> Latency:
        """Both measurements of one network as one; the samples and the conditions are those of the newer one.

        Logarithms are weighted by their inverse variances. Where the two differ by more than their intervals explain, the
        interval widens accordingly (as the Birge ratio does).
        """
        values = [math.log(m.latency_ms) for m in (self, newer)]
        variances = [max(m.half_width, MIN_HALF_WIDTH) ** 2 for m in (self, newer)]
        weights = [1 / variance for variance in variances]
        mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        disagreement = REPEAT * abs(values[0] - values[1]) / math.sqrt(sum(variances))
        half = math.sqrt(1 / sum(weights)) * max(1.0, disagreement)
        return replace(
            newer,
            latency_ms=math.exp(mean),
            low_ms=math.exp(mean - half),
            high_ms=math.exp(mean + half),
            repetitions=self.repetitions + newer.repetitions,
            warmup_runs=self.warmup_runs + newer.warmup_runs,
            converged=self.converged or newer.converged,
            seconds=self.seconds + newer.seconds,
            outliers=self.outliers + newer.outliers,
            prepare_seconds=self.prepare_seconds + newer.prepare_seconds,
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
