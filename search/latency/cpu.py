"""The CPU of this machine, PyTorch in eager mode."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from models.architecture import Architecture, check_int, check_number
from models.litv2 import build
from search.latency.base import Calibration, Latency
from search.latency.protocol import time_alone, time_ratio

MIN_SETTING = 1e-4


@dataclass
class CpuTarget:
    """Measure on this CPU.

    img_size, in_chans, num_classes: of the network that is deployed. tolerance: half-width of the 95 % interval to stop at,
    relative. max_seconds: limit for one network, in seconds. calibration_seconds: how long the anchor runs alone.
    """

    img_size: int
    in_chans: int
    num_classes: int
    batch_size: int
    num_threads: int
    tolerance: float
    max_seconds: float
    calibration_seconds: float

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_threads"):
            check_int(f"latency.{name}", getattr(self, name), 1)
        for name in ("tolerance", "max_seconds", "calibration_seconds"):
            check_number(f"latency.{name}", getattr(self, name), MIN_SETTING)
        self._anchor: tuple[Architecture, Callable[[], object]] | None = None

    def fingerprint(self) -> dict[str, str | int]:
        return {
            "target": "cpu",
            "device": cpu_name(),
            "cores": os.cpu_count() or 1,
            "num_threads": self.num_threads,
            "dtype": "float32",
            "batch_size": self.batch_size,
            "input_size": f"{self.in_chans}x{self.img_size}x{self.img_size}",
            "backend": "torch eager",
            **{name: version(name) for name in ("torch", "torchvision", "timm")},
        }

    def calibrate(self, anchor: Architecture) -> Calibration:
        samples = time_alone(self._anchor_run(anchor), self.calibration_seconds)
        time = samples.interval
        return Calibration(anchor, time.median * 1e3, time.low * 1e3, time.high * 1e3, len(samples.values))

    def measure(self, architecture: Architecture, calibration: Calibration) -> Latency:
        run, anchor = self._prepare(architecture), self._anchor_run(calibration.anchor)
        samples = time_ratio(run, anchor, self.tolerance, self.max_seconds)
        ratio = samples.interval
        return Latency(
            latency_ms=ratio.median * calibration.anchor_ms,
            low_ms=ratio.low * calibration.anchor_ms,
            high_ms=ratio.high * calibration.anchor_ms,
            repetitions=len(samples.values),
            warmup_runs=samples.warmup_runs,
            converged=samples.converged,
            seconds=samples.seconds,
            ratios=samples.values,
        )

    def _anchor_run(self, anchor: Architecture) -> Callable[[], object]:
        if self._anchor is None or self._anchor[0] != anchor:
            self._anchor = (anchor, self._prepare(anchor))
        return self._anchor[1]

    def _prepare(self, architecture: Architecture) -> Callable[[], object]:
        if torch.get_num_threads() != self.num_threads:
            torch.set_num_threads(self.num_threads)
        model = build(architecture, in_chans=self.in_chans, num_classes=self.num_classes).eval()
        x = torch.rand(self.batch_size, self.in_chans, self.img_size, self.img_size)

        def run() -> object:
            with torch.inference_mode():
                return model(x)

        return run


def cpu_name() -> str:
    """The processor's model as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
