"""The role of a latency target, and the data that its measurements return."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol, Self

from models.architecture import Architecture

NORMAL_95 = 1.96  # standard errors in half a 95 % interval
REPEAT = math.sqrt(2)  # the difference of two measurements has sqrt(2) times the standard error of one
MIN_HALF_WIDTH = 1e-3  # relative; a few samples that happen to be equal do not make an interval narrower than this


@dataclass(frozen=True)
class Calibration:
    """The anchor network's latency on a target, which turns ratios to the anchor into milliseconds.

    A study stores one for each of its targets.

    Attributes:
        anchor: The network that candidates are timed beside.
        anchor_ms: Median latency of the anchor.
        low_ms: Lower end of its 95 % interval.
        high_ms: Upper end of its 95 % interval.
        repetitions: Number of timed runs.
    """

    anchor: Architecture
    anchor_ms: float
    low_ms: float
    high_ms: float
    repetitions: int

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as plain data."""
        return {**asdict(self), "anchor": self.anchor.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a calibration from what `to_dict` returned."""
        return cls(**{**data, "anchor": Architecture.from_dict(data["anchor"])})


@dataclass(frozen=True)
class Round:
    """One round of timing: each run of the candidate lies between two runs of the anchor.

    Attributes:
        candidate_ms: One time for each run of the candidate.
        anchor_ms: One time for each run of the anchor; one more than candidate_ms has.
    """

    candidate_ms: tuple[float, ...]
    anchor_ms: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Each candidate time over the mean of the anchor times before and after it."""
        pairs = zip(self.anchor_ms, self.anchor_ms[1:], strict=False)
        return tuple(c / ((a + b) / 2) for c, (a, b) in zip(self.candidate_ms, pairs, strict=True))


@dataclass(frozen=True)
class Latency:
    """Latency of one network.

    Attributes:
        latency_ms: Median ratio to the anchor times the anchor's calibrated latency.
        low_ms: Lower end of the 95 % interval, in which another measurement with the same effort falls. The calibration is
            common to all networks and does not enter the interval.
        high_ms: Upper end of that interval.
        repetitions: Number of timed runs; 0 for a prediction, which only networks that are dominated anyway keep.
        warmup_runs: Number of runs before the timed ones.
        converged: True if the interval got as narrow as requested within the time limit.
        seconds: Time spent on timing, without preparation.
        outliers: Number of timed runs far off the others. They are kept; the median is robust to them.
        prepare_seconds: Time spent on building, converting and compiling.
        parity: Largest difference of the converted network's outputs from eager PyTorch's, relative to the largest output;
            None if nothing is converted.
        slowdown: The anchor's time during this measurement over its calibrated time.
        busy_cores: Processor time that other processes used meanwhile, in cores.
        warning: What disturbed the measurement and what to do about it; empty if nothing did.
        peak_bytes: Peak memory of loading and running the network; None if the system does not report it.
        rounds: All times; empty if only the summary was stored. After a repetition, those of the last measurement.
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
        """False for a prediction."""
        return self.repetitions > 0

    @property
    def half_width(self) -> float:
        """Half the width of the interval, relative."""
        return math.log(self.high_ms / self.low_ms) / 2

    @property
    def standard_error(self) -> float:
        """Standard error of the logarithm of the latency, from the 95 % interval."""
        return self.half_width / NORMAL_95

    def summary(self) -> dict[str, Any]:
        """Return everything but the samples, as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rounds"}

    def without_samples(self) -> Latency:
        """Return a copy without the samples."""
        return replace(self, rounds=())

    def refined_by(self, newer: Latency) -> Latency:
        """Combine two measurements of the same network.

        Logarithms are weighted by their inverse variances. Where the two differ by more than their intervals explain, the
        interval widens by their Birge ratio (doi:10.1103/PhysRev.40.207).

        Args:
            newer: The later measurement, whose samples and conditions the result keeps.
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
    """A device together with a way to run networks on it.

    A target stays in the process that created it, and that process does nothing else.
    """

    def fingerprint(self) -> dict[str, str | int]:
        """Return what measurements depend on: device, runtime, versions and settings.

        A study refuses to mix measurements with different fingerprints.
        """
        ...

    def calibrate(self, anchor: Architecture) -> Calibration:
        """Measure the anchor's latency, for long enough that a whole study can use it.

        Args:
            anchor: The network that all others are timed beside.
        """
        ...

    def measure(self, architecture: Architecture, calibration: Calibration) -> Latency:
        """Measure the latency of an architecture.

        Args:
            architecture: The network to measure.
            calibration: The result of `calibrate` on the same device.

        Raises:
            Exception: Any error of building, converting or running the network. A latency is never guessed instead.
        """
        ...
