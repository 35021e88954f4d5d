"""The latency target: a network is built, converted by a runtime, loaded by a host, and timed beside the anchor.

The runtime (runtime.py, and a module for each) and the host (host.py, local.py, remote/) are separate things, which this
target combines. The timing itself is in protocol.py.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from models.architecture import Architecture, check_int, check_number
from models.deploy import prepare as prepare_model
from models.deploy.autotune import NO_KERNELS, Kernels, autotune
from models.deploy.memory import keep_freed_memory
from models.litv2 import build
from search import UserError
from search.latency.base import Calibration, Latency
from search.latency.estimate import Estimate
from search.latency.host import Host, Timing
from search.latency.machine import disturbance
from search.latency.protocol import LEAST_ROUNDS, ROUND_SECONDS, Run, median_of_rounds
from search.latency.repeatability import ASSUMED, Repeatability, estimate_repeatability, unreachable
from search.latency.runtime import Converted, Form, Runtime, check_form, eager_copy

MIN_SETTING = 1e-4
MAX_COPIES = 4
COPIES_BYTES = 200_000_000  # of all copies of a network: where weights lie in memory matters to small networks only
MIN_REPEATS = 3  # measurements of a network that show how well a target repeats
MAX_EXTENSION = 3  # how many times calibration_seconds they may take where networks are slow

EXECUTION_KEYS = frozenset(
    {"host", "python", "port", "identity_file", "known_hosts", "connect_seconds", "reconnect_seconds"}
)
"""Keys of `latency` that only say how a device is reached; results depend on all others.

A study accepts a change of the former and refuses a change of the latter.
"""


@dataclass(frozen=True)
class TargetSettings:
    """The settings that all targets share; each is a key of `latency`, or describes the deployed network.

    Attributes:
        img_size: Side of the deployed network's images, in pixels, where a network has none of its own.
        in_chans: Number of image channels.
        num_classes: Number of classes; 0 for a network without a head.
        batch_size: Images in one run.
        num_threads: Threads of one network.
        dtype: Type of weights and inputs.
        prepared: True to measure networks as models.deploy prepares them for inference, False as they are trained.
        tolerance: Relative half-width of the 95 % confidence interval at which timing stops.
        max_seconds: Time limit for timing one network, in seconds.
        calibration_seconds: How long the anchor runs alone, and how long each network is measured that shows how well the
            target repeats, in seconds.
        cores: The only cores to use; None for the least busy ones.

    Raises:
        ValueError: If a setting is invalid on any host.
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

    def __post_init__(self) -> None:
        for setting in ("batch_size", "num_threads"):
            check_int(f"latency.{setting}", getattr(self, setting), 1)
        for setting in ("tolerance", "max_seconds", "calibration_seconds"):
            check_number(f"latency.{setting}", getattr(self, setting), MIN_SETTING)
        if not isinstance(self.prepared, bool):
            raise ValueError(f"latency.prepared={self.prepared} must be true or false")


@dataclass(frozen=True)
class Network:
    """A network to measure.

    Attributes:
        build: Builds it.
        input_shape: Shape of one input, (C, H, W).
    """

    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]


@dataclass(frozen=True)
class Ready:
    """A network that its target's host has loaded.

    Attributes:
        loaded: What the host has made of it.
        prepare_seconds: Time spent on building, converting and loading.
        kernels: The kernels that its layers run on, where they were chosen by timing them.
        knows_memory: True if the memory of loading and running it is its own: converting what loads only once has left its
            own memory behind.
    """

    loaded: Any  # LoadedT of the host
    prepare_seconds: float = 0.0
    knows_memory: bool = True
    kernels: Kernels = field(default_factory=dict)


@dataclass
class PairedTarget:
    """A latency target that times networks in turn with an anchor network.

    Attributes:
        settings: What is measured and how.
        runtime: How networks run.
        host: Where they run; loads what the runtime converts.

    Raises:
        ValueError: If the runtime does not support the dtype, or one of its packages is missing.
    """

    settings: TargetSettings
    runtime: Runtime[Any]
    host: Host[Any, Any]
    _anchor: tuple[Architecture, Ready] | None = field(default=None, init=False, repr=False)
    _kernels: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _chooses_kernels: bool = field(default=True, init=False, repr=False)  # or their layers' sizes tell, as in older studies

    def __post_init__(self) -> None:
        dtype, runtime = self.settings.dtype, self.runtime
        check_form(Form(runtime, dtype), f"latency.dtype={dtype}", f"latency={runtime.name}")

    def fingerprint(self) -> dict[str, str | int]:
        """Return what measurements depend on, as in `LatencyTarget`."""
        settings = self.settings
        pinned = {} if settings.cores is None else {"pinned": ",".join(map(str, settings.cores))}
        return {
            "target": self.runtime.name,
            **self.host.facts(),
            **pinned,
            "num_threads": settings.num_threads,
            "dtype": settings.dtype,
            "prepared": int(settings.prepared),
            "batch_size": settings.batch_size,
            "input_size": f"{settings.in_chans}x{settings.img_size}x{settings.img_size}",
            "num_classes": settings.num_classes,
            "backend": self.runtime.backend,
            **{package: version(package) for package in self.runtime.packages},
        }

    def calibrate(self, anchor: Architecture, repeated: Sequence[Architecture] = ()) -> Calibration:
        """Measure the anchor's latency and how well the target repeats, as in `LatencyTarget`."""
        loaded = self._load_anchor(anchor)
        repeatability = self._repeatability(loaded, repeated)
        if (problem := unreachable(self.settings.tolerance, repeatability)) and not repeatability.num_measurements:
            raise UserError(problem)
        rounds = self.host.time_alone(loaded, partial(self._eager, anchor), self.settings.calibration_seconds)
        seconds = median_of_rounds(rounds).widened(repeatability.deviation, repeatability.degrees_of_freedom)
        kernels = dict(self._kernels) if self._autotunes(self._form) else None
        return Calibration(anchor, seconds.scaled(1e3), sum(map(len, rounds)), repeatability, kernels)

    def measure(self, architecture: Architecture, calibration: Calibration) -> Latency:
        """Measure the latency of an architecture, as in `LatencyTarget`."""
        self.use_kernels(calibration)
        return self.time([self.make_ready(self._network(architecture))], calibration)[0]

    def make_ready(self, network: Network, form: Form | None = None) -> Ready:
        """Build, convert and load a network.

        Args:
            network: The network.
            form: Another runtime of the same host, to compare with; None for the target's.

        Raises:
            ConversionError: If the runtime cannot take the network.
            Exception: Whatever building it raises.
        """
        start = time.perf_counter()
        load, kernels = self._loader(network, form)
        loaded = load()
        runtime = self.runtime if form is None else form.runtime
        return Ready(loaded, time.perf_counter() - start, runtime.loads_copies, kernels)

    def ready(self, load: Callable[[], Run]) -> Ready:
        """Make anything ready that runs in this process, such as a deployable file.

        Only for targets whose runtime has `runs_files`.

        Args:
            load: Returns a copy that is ready to run.
        """
        return Ready(self.host.load(Converted(load), self._num_copies(0)))

    def file_ready(self, content: bytes, x: Tensor, dtype: str) -> Ready:
        """Make an ONNX file ready to run on the host.

        Only for targets whose runtime has `convert_file`.

        Args:
            content: The file.
            x: An input, (B, C, H, W) float32.
            dtype: That the file computes in.
        """
        assert self.runtime.convert_file is not None
        return Ready(self.host.load(self.runtime.convert_file(content, x, dtype), self._num_copies(len(content))))

    def time(self, networks: Sequence[Ready], calibration: Calibration) -> list[Latency]:
        """Time several networks in turn, so that the ratios between them hold.

        Args:
            networks: Networks from `make_ready` or `ready` of this target.
            calibration: The result of `calibrate` on the same device.

        Returns:
            The latency of each network, in the order of networks.
        """
        self.use_kernels(calibration)
        anchor = self._load_anchor(calibration.anchor)
        loaded = [network.loaded for network in networks]
        settings = self.settings
        timings = self.host.time_ratios(loaded, anchor, settings.tolerance, settings.max_seconds, calibration.repeatability)
        return [self._latency(timing, calibration, network) for network, timing in zip(networks, timings, strict=True)]

    def _network(self, architecture: Architecture) -> Network:
        settings = self.settings
        make = partial(build, architecture, in_chans=settings.in_chans, num_classes=settings.num_classes)
        side = architecture.side(settings.img_size)
        return Network(make, (settings.in_chans, side, side))

    def _model(self, network: Network) -> nn.Module:
        model = network.build().eval()
        if not self.settings.prepared:
            return model
        keep_freed_memory()
        return prepare_model(model)

    def _eager(self, architecture: Architecture) -> Run:
        network = self._network(architecture)
        return eager_copy(self._model(network), torch.rand(self.settings.batch_size, *network.input_shape), torch.float32)

    def _loader(self, network: Network, form: Form | None = None) -> tuple[Callable[[], Any], Kernels]:
        """Build and convert a network, as `make_ready` does. Returns how to load it, each time anew, and its kernels."""
        self.host.set_up()
        model = self._model(network)
        x = torch.rand(self.settings.batch_size, *network.input_shape)
        form = form or self._form
        kernels = self._autotune(model, x) if self._autotunes(form) else NO_KERNELS
        converted = form.runtime.convert(model, x, form.dtype, self.settings.num_threads)
        num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        return partial(self.host.load, converted, self._num_copies(num_bytes, form.runtime)), kernels

    @property
    def _form(self) -> Form:
        return Form(self.runtime, self.settings.dtype)

    def _autotunes(self, form: Form) -> bool:
        """True if the kernels of layers are chosen by timing them."""
        return self._chooses_kernels and self.settings.prepared and form.runtime.autotunes and form.dtype == "float32"

    def _autotune(self, model: nn.Module, x: Tensor) -> Kernels:
        """Choose the kernels of a prepared model, or take those of earlier networks."""
        kernels = autotune(model, x, self._kernels)
        self._kernels |= kernels
        return kernels

    def use_kernels(self, calibration: Calibration) -> None:
        """Take the kernels of the networks that were measured with a calibration."""
        if self.runtime.autotunes and calibration.kernels is None:
            self._chooses_kernels = False
        self._kernels |= calibration.kernels or {}

    def _repeatability(self, anchor: Any, repeated: Sequence[Architecture]) -> Repeatability:
        """Measure each network several times, loaded anew each time, for `calibration_seconds` or until there are enough.

        Short measurements: a standard deviation needs many of them rather than long ones.
        """
        if not self.runtime.loads_copies or self.settings.calibration_seconds < MIN_REPEATS * LEAST_ROUNDS * ROUND_SECONDS:
            return ASSUMED
        loaders = [self._loader(self._network(architecture))[0] for architecture in repeated]
        measurements: list[list[Estimate]] = [[] for _ in loaders]
        seconds, start = self.settings.calibration_seconds * len(loaders), time.perf_counter()
        for repeat in itertools.count():
            if time.perf_counter() - start >= seconds * (1 if repeat >= MIN_REPEATS else MAX_EXTENSION):
                break
            for load, estimates in zip(loaders, measurements, strict=True):
                (timing,) = self.host.time_ratios([load()], anchor, self.settings.tolerance, 0.0, ASSUMED)
                estimates.append(timing.series.within)
        return estimate_repeatability(measurements)

    def _load_anchor(self, anchor: Architecture) -> Any:
        if self._anchor is None or self._anchor[0] != anchor:
            self._anchor = (anchor, self.make_ready(self._network(anchor)))
        return self._anchor[1].loaded

    def _num_copies(self, num_bytes: int, runtime: Runtime[Any] | None = None) -> int:
        """Copies to load of a network whose weights take so many bytes, in the target's runtime or another one."""
        loads_copies = (runtime or self.runtime).loads_copies
        return max(1, min(MAX_COPIES, COPIES_BYTES // max(1, num_bytes))) if loads_copies else 1

    def _latency(self, timing: Timing, calibration: Calibration, network: Ready) -> Latency:
        series = timing.series
        slowdown = statistics.median(ms for round_ in series.rounds for ms in round_.anchor_ms) / calibration.anchor_ms
        return Latency(
            estimate=series.estimate.scaled(calibration.anchor_ms),
            repetitions=len(series.ratios),
            warmup_runs=series.warmup_runs,
            converged=series.converged,
            seconds=series.seconds,
            outliers=series.outliers,
            prepare_seconds=network.prepare_seconds,
            parity=timing.parity,
            slowdown=slowdown,
            busy_cores=timing.busy_cores,
            warning=disturbance(slowdown, timing.busy_cores, self.settings.num_threads, self.host.num_cores),
            peak_bytes=timing.peak_bytes if network.knows_memory else None,
            file_bytes=timing.file_bytes,
            kernels=dict(network.kernels),
            rounds=tuple(series.rounds),
        )
