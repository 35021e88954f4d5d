"""What all targets share: a network is built, made ready for the runtime, and timed in turn with the anchor.

A target names its runtime and says how a model becomes something to run; the protocol (protocol.py) does the rest.
"""

from __future__ import annotations

import copy
import logging
import os
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.architecture import Architecture, check_int, check_number
from models.deploy import prepare as prepare_model
from models.deploy.memory import keep_freed_memory
from models.litv2 import build
from search.latency.base import Calibration, Latency
from search.latency.machine import ResidentMemory, Usage, allowed_cores, cpu_name, frequency_facts, keep_to, pin
from search.latency.protocol import (
    LEAST_HALF_WIDTH,
    Run,
    Series,
    Timer,
    repeat_interval,
    scattered,
    time_alone,
    time_ratios,
    timer_on,
)

log = logging.getLogger(__name__)

MIN_SETTING = 1e-4
MAX_COPIES = 4
COPIES_BYTES = 200_000_000  # all copies of a network: where weights lie matters to small networks only
SLOW = 1.5  # times the calibrated latency: worth a word
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARITY = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Greatest difference of a converted network's outputs from eager float32, relative to the greatest output."""


class ConversionError(RuntimeError):
    """A model that a runtime cannot take, or computes otherwise."""


@dataclass(frozen=True)
class Network:
    """What is measured: how to build it, and the shape of one input, (C, H, W)."""

    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]


@dataclass(frozen=True)
class Prepared:
    """A network converted for a runtime. load: gives a copy that is ready to run."""

    load: Callable[[], Run]
    parity: float | None = None


@dataclass(frozen=True)
class Ready:
    """Copies that run, and what it took to get there."""

    copies: list[Run]
    parity: float | None
    prepare_seconds: float
    peak_bytes: int | None


@dataclass
class PairedTarget(ABC):
    """A runtime on a device.

    img_size, in_chans, num_classes: of the network that is deployed. dtype: of its weights and inputs. prepared: whether
    networks are measured as models.deploy prepares them for inference, or as they are trained. tolerance:
    half-width of the 95 % interval to stop at, relative. max_seconds: limit for timing one network, in seconds.
    calibration_seconds: how long the anchor runs alone. cores: the only ones to use; None leaves the choice to load.
    """

    img_size: int
    in_chans: int
    num_classes: int
    batch_size: int
    num_threads: int
    dtype: str
    prepared: bool
    tolerance: float
    max_seconds: float
    calibration_seconds: float
    cores: Sequence[int] | None = None

    name: ClassVar[str]
    backend: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "timm")
    extra: ClassVar[str] = ""
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    loads_copies: ClassVar[bool] = True
    runs_files: ClassVar[bool] = True  # of search.export

    def __post_init__(self) -> None:
        for setting in ("batch_size", "num_threads"):
            check_int(f"latency.{setting}", getattr(self, setting), 1)
        for setting in ("max_seconds", "calibration_seconds"):
            check_number(f"latency.{setting}", getattr(self, setting), MIN_SETTING)
        check_number("latency.tolerance", self.tolerance, LEAST_HALF_WIDTH)
        if not isinstance(self.prepared, bool):
            raise ValueError(f"latency.prepared={self.prepared} must be true or false")
        if self.dtype not in self.dtypes:
            raise ValueError(f"latency.dtype={self.dtype} is not among {', '.join(self.dtypes)}, what {self.name} runs")
        for package in self.packages:
            require(package, self.name, self.extra)
        self._allowed = allowed_cores()
        if self.cores is not None:
            check_cores(self.cores, self._allowed, self.num_threads)
        self._anchor: tuple[Architecture, Ready] | None = None

    @abstractmethod
    def prepare(self, model: nn.Module, x: Tensor) -> Prepared:
        """Convert a model in evaluation mode for this runtime. Raises: ConversionError if it cannot be converted."""

    def timer(self) -> Timer:
        """What runs are timed with on this device."""
        return timer_on(self.num_threads, partial(scattered, torch.empty))

    def device(self) -> dict[str, str | int]:
        """The device's name and what else tells it from others."""
        return {"device": cpu_name(), "cores": len(self._allowed), **frequency_facts()}

    def fingerprint(self) -> dict[str, str | int]:
        pinned: dict[str, str | int] = {"pinned": ",".join(map(str, self.cores))} if self.cores is not None else {}
        return {
            "target": self.name,
            **self.device(),
            **pinned,
            "num_threads": self.num_threads,
            "dtype": self.dtype,
            "prepared": int(self.prepared),
            "batch_size": self.batch_size,
            "input_size": f"{self.in_chans}x{self.img_size}x{self.img_size}",
            "num_classes": self.num_classes,
            "backend": self.backend,
            **{name: version(name) for name in self.packages},
        }

    def calibrate(self, anchor: Architecture) -> Calibration:
        self._settle()
        copies = self._anchor_copies(anchor)
        between = [] if len(copies) > 1 else [self._eager(anchor)]
        rounds = time_alone(copies, between, self.calibration_seconds, self.timer())
        interval = repeat_interval(rounds)
        milliseconds = (interval.median * 1e3, interval.low * 1e3, interval.high * 1e3)
        return Calibration(anchor, *milliseconds, sum(map(len, rounds)))

    def measure(self, architecture: Architecture, calibration: Calibration) -> Latency:
        return self.time([self.make_ready(self._network(architecture))], calibration)[0]

    def make_ready(self, network: Network) -> Ready:
        """Build, convert and load a network. Raises: ConversionError, or whatever building it raises."""
        self._set_threads()
        start = time.perf_counter()
        model = self._model(network)
        prepared = self.prepare(model, torch.rand(self.batch_size, *network.input_shape))
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        ready = self.ready(prepared.load, weights)
        return replace(ready, parity=prepared.parity, prepare_seconds=time.perf_counter() - start)

    def ready(self, load: Callable[[], Run], weights: int = 0) -> Ready:
        """Anything that runs on this device, loaded several times. weights: their size, in bytes."""
        first, peak = self.peak_bytes(load)
        number = max(1, min(MAX_COPIES, COPIES_BYTES // max(1, weights))) if self.loads_copies else 1
        copies = [first] + [load() for _ in range(number - 1)]
        return Ready(copies, None, 0.0, peak)

    def time(self, networks: Sequence[Ready], calibration: Calibration) -> list[Latency]:
        """Latencies of several networks, timed in turn so that their ratios hold."""
        self._settle()
        anchors = self._anchor_copies(calibration.anchor)
        before, start = Usage.now(), time.perf_counter()
        found = time_ratios([one.copies for one in networks], anchors, self.tolerance, self.max_seconds, self.timer())
        busy_cores = Usage.now().others_since(before, time.perf_counter() - start)
        return [self._latency(one, series, calibration, busy_cores) for one, series in zip(networks, found, strict=True)]

    def peak_bytes(self, load: Callable[[], Run]) -> tuple[Run, int | None]:
        """Load a copy and run it once. Returns it, and the memory it took at its peak, weights included."""
        memory = ResidentMemory()
        run = load()
        run()
        return run, memory.growth()

    def num_cores(self) -> int:
        """Of the machine that measures."""
        return os.cpu_count() or 1

    def _settle(self) -> None:
        """Set the threads, and keep to the least busy cores."""
        self._set_threads()
        if self.cores is None:
            pin(self._allowed, self.num_threads)

    def _set_threads(self) -> None:
        """And keep to the cores that were asked for; finding the least busy ones takes a tenth of a second."""
        if torch.get_num_threads() != self.num_threads:
            torch.set_num_threads(self.num_threads)
        if self.cores is not None:
            keep_to(self.cores)

    def _network(self, architecture: Architecture) -> Network:
        make = partial(build, architecture, in_chans=self.in_chans, num_classes=self.num_classes)
        return Network(make, (self.in_chans, self.img_size, self.img_size))

    def _model(self, network: Network) -> nn.Module:
        model = network.build().eval()
        if not self.prepared:
            return model
        keep_freed_memory()
        return prepare_model(model)

    def _eager(self, architecture: Architecture) -> Run:
        network = self._network(architecture)
        return eager_copy(self._model(network), torch.rand(self.batch_size, *network.input_shape), torch.float32)

    def _anchor_copies(self, anchor: Architecture) -> list[Run]:
        if self._anchor is None or self._anchor[0] != anchor:
            self._anchor = (anchor, self.make_ready(self._network(anchor)))
        return self._anchor[1].copies

    def _latency(self, ready: Ready, series: Series, calibration: Calibration, busy_cores: float) -> Latency:
        ratio = series.interval
        slowdown = statistics.median(ms for one in series.rounds for ms in one.anchor_ms) / calibration.anchor_ms
        return Latency(
            latency_ms=ratio.median * calibration.anchor_ms,
            low_ms=ratio.low * calibration.anchor_ms,
            high_ms=ratio.high * calibration.anchor_ms,
            repetitions=len(series.ratios),
            warmup_runs=series.warmup_runs,
            converged=series.converged,
            seconds=series.seconds,
            outliers=series.outliers,
            prepare_seconds=ready.prepare_seconds,
            parity=ready.parity,
            slowdown=slowdown,
            busy_cores=busy_cores,
            warning=disturbance(slowdown, busy_cores, self.num_threads, self.num_cores()),
            peak_bytes=ready.peak_bytes,
            rounds=tuple(series.rounds),
        )


def disturbance(slowdown: float, busy_cores: float, num_threads: int, cores: int) -> str:
    """What kept a measurement from being a good one and what to do about it, or nothing."""
    free = max(1, int(cores - busy_cores + 0.25))
    if num_threads > 1 and num_threads > free:
        return (
            f"other processes keep {busy_cores:.1f} of {cores} cores busy, so that {num_threads} threads spin while they "
            f"wait for each other: stop those processes or set latency.num_threads={free}"
        )
    if slowdown > SLOW:
        return (
            f"the anchor takes {slowdown:.1f} times what it took when calibrated ({busy_cores:.1f} cores busy with other "
            "work): the ratios hold, but stop other work or let the machine cool for narrower intervals"
        )
    return ""


def check_cores(cores: object, allowed: Sequence[int], num_threads: int) -> None:
    """Raises: ValueError unless these are enough different cores of those allowed, on a system that can pin."""
    listed = list(cores) if isinstance(cores, Sequence) and not isinstance(cores, str) else []
    if len(set(listed)) < max(1, num_threads) or not set(listed) <= set(allowed):
        raise ValueError(
            f"latency.cores={cores} must list {num_threads} or more (latency.num_threads) of the cores "
            f"{', '.join(map(str, allowed))}"
        )
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"latency.cores={cores}: this system keeps no process to a core; leave it at null")


def require(package: str, target: str, extra: str) -> None:
    """Raises: ValueError naming the extra to install if a package is missing."""
    try:
        version(package)
    except PackageNotFoundError:
        raise ValueError(
            f"latency={target} needs the package {package}, which is not installed: pip install 'hilo-nas[{extra}]'"
        ) from None


def check_parity(target: str, model: nn.Module, x: Tensor, output: Tensor, dtype: str) -> float:
    """Compare a converted network's output for the first image with eager float32. Returns the greatest relative difference.

    Raises: ConversionError if they differ by more than the dtype explains.
    """
    with torch.inference_mode():
        expected = model(x[:1])
    scale = float(expected.abs().max()) or 1.0  # a head that starts at zero
    difference = float((output[:1].float().cpu() - expected).abs().max()) / scale
    if not difference <= PARITY[dtype]:
        raise ConversionError(
            f"{target} computes something else than PyTorch: outputs differ by {difference:.1e}, more than {PARITY[dtype]:g}"
        )
    return difference


def eager_copy(model: nn.Module, x: Tensor, dtype: torch.dtype, device: str = "cpu") -> Callable[[], Tensor]:
    """A copy of a model in PyTorch eager mode."""
    copied, inputs = copy.deepcopy(model).to(device, dtype), x.to(device, dtype, copy=True)

    def run() -> Tensor:
        with torch.inference_mode():
            output: Tensor = copied(inputs)
            return output

    return run
