"""The role of a latency target, and the data that its measurements return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self

from models.architecture import Architecture
from search.latency.estimate import ESTIMATE_KEYS, Estimate
from search.latency.repeatability import ASSUMED, Repeatability
from search.latency.rounds import Round


@dataclass(frozen=True)
class Calibration:
    """The anchor network's latency on a target, which turns ratios to the anchor into milliseconds.

    A study stores one for each of its targets.

    Attributes:
        anchor: The network that candidates are timed beside.
        estimate: The anchor's latency in milliseconds.
        repetitions: Number of timed runs.
        repeatability: How far separate measurements on the target differ.
        kernels: The kernels that layers run on, as `models.deploy.autotune` chose them; None if their size tells.
    """

    anchor: Architecture
    estimate: Estimate
    repetitions: int
    repeatability: Repeatability = ASSUMED
    kernels: Mapping[str, str] | None = None

    @property
    def anchor_ms(self) -> float:
        """Median latency of the anchor."""
        return self.estimate.value

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as plain data."""
        return {
            "anchor": self.anchor.to_dict(),
            **self.estimate.to_dict("anchor_ms"),
            "repetitions": self.repetitions,
            "repeatability": self.repeatability.to_dict(),
            **({} if self.kernels is None else {"kernels": dict(self.kernels)}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a calibration from what `to_dict` returned, or version 0.1 stored."""
        return cls(
            Architecture.from_dict(data["anchor"]),
            Estimate.from_dict("anchor_ms", data),
            data["repetitions"],
            Repeatability.from_dict(data["repeatability"]) if "repeatability" in data else ASSUMED,
            data.get("kernels"),
        )

    def with_kernels_of(self, latency: Latency) -> Calibration:
        """Return a calibration with the kernels of one more network, where kernels are chosen."""
        if self.kernels is None or not latency.kernels:
            return self
        return replace(self, kernels={**latency.kernels, **self.kernels})


@dataclass(frozen=True)
class Latency:
    """Latency of one network.

    Attributes:
        estimate: Milliseconds: the median ratio to the anchor times the anchor's calibrated latency. The error is that of
            the ratio: the calibration is common to all networks.
        repetitions: Number of timed runs; 0 for a prediction, which only networks that are dominated anyway keep.
        warmup_runs: Number of runs before the timed ones.
        converged: True if the 95 % confidence interval got as narrow as requested within the time limit.
        seconds: Time spent on timing, without preparation.
        outliers: Number of timed runs far off the others. They are kept; the median is robust to them.
        prepare_seconds: Time spent on building, converting and compiling.
        parity: Largest difference of the converted network's outputs from eager PyTorch's, relative to the largest output;
            None if nothing is converted.
        slowdown: The anchor's time during this measurement over its calibrated time.
        busy_cores: Processor time that other processes used meanwhile, in cores.
        warning: What disturbed the measurement and what to do about it; empty if nothing did.
        peak_bytes: Peak memory of loading and running the network; None if the system does not report it.
        file_bytes: Size of the ONNX file that the network was loaded from; None where the runtime loads no such file.
        kernels: The kernels that its layers ran on, where `models.deploy.autotune` chose them.
        rounds: All times; empty if only the summary was stored. After a repetition, those of the last measurement.
    """

    estimate: Estimate
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
    file_bytes: int | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    rounds: tuple[Round, ...] = ()

    @property
    def latency_ms(self) -> float:
        """The estimate."""
        return self.estimate.value

    @property
    def low_ms(self) -> float:
        """Lower end of the 95 % confidence interval."""
        return self.estimate.low

    @property
    def high_ms(self) -> float:
        """Upper end of the 95 % confidence interval."""
        return self.estimate.high

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % confidence interval, relative."""
        return self.estimate.half_width

    @property
    def standard_error(self) -> float:
        """Standard error of the logarithm of the latency."""
        return self.estimate.standard_error

    @property
    def measured(self) -> bool:
        """False for a prediction."""
        return self.repetitions > 0

    @property
    def resources(self) -> dict[str, float]:
        """File and peak memory in millions of bytes, as far as they are known."""
        sizes = {"file_mb": self.file_bytes, "peak_memory_mb": self.peak_bytes}
        return {name: size / 1e6 for name, size in sizes.items() if size is not None}

    def summary(self) -> dict[str, Any]:
        """Return everything but the samples, as plain data; low_ms and high_ms are the 95 % confidence interval."""
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("estimate", "rounds", "kernels")}
        kernels = {"kernels": dict(self.kernels)} if self.kernels else {}
        return {**self.estimate.to_dict("latency_ms"), **rest, **kernels}

    @classmethod
    def from_summary(cls, data: Mapping[str, Any]) -> Self:
        """Read what `summary` returned, or version 0.1 stored."""
        rest = {key: value for key, value in data.items() if key not in ESTIMATE_KEYS and key != "latency_ms"}
        return cls(Estimate.from_dict("latency_ms", data), **rest)

    def without_samples(self) -> Latency:
        """Return a copy without the samples."""
        return replace(self, rounds=())

    def refined_by(self, newer: Latency) -> Latency:
        """Combine two measurements of the same network, as `Estimate.combined` does.

        Args:
            newer: The later measurement, whose samples and conditions the result keeps.
        """
        return replace(
            newer,
            estimate=self.estimate.combined(newer.estimate),
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

    def calibrate(self, anchor: Architecture, repeated: Sequence[Architecture] = ()) -> Calibration:
        """Measure the anchor's latency, for long enough that a whole study can use it, and how well the target repeats.

        Args:
            anchor: The network that all others are timed beside.
            repeated: Networks that are measured several times, to see how far their latencies differ; without any, the
                target is assumed to repeat as `ASSUMED` says.

        Raises:
            UserError: If the target repeats too badly for the requested tolerance.
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
