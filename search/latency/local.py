"""This machine as a host: networks run in this process, on its CPU or on a GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch

from search.latency.host import Timing
from search.latency.machine import Usage, allowed_cores, frequency_facts, keep_to, pin
from search.latency.memory import ResidentMemory
from search.latency.processor import cpu_name
from search.latency.protocol import Run, Timer, scatter_heap, time_alone, time_ratios, timer_on
from search.latency.repeatability import Repeatability
from search.latency.runtime import Converted, Runtime
from search.latency.target import PairedTarget, TargetSettings


class Processor(Protocol):
    """The part of this machine that networks run on."""

    def facts(self) -> dict[str, str | int]:
        """Return the processor's name and what else distinguishes it."""
        ...

    def timer(self, num_threads: int) -> Timer:
        """Return the clocks that runs on this processor are timed by."""
        ...

    def first_copy(self, load: Callable[[], Run]) -> tuple[Run, int | None]:
        """Load a network and run it once.

        Returns:
            The network, and the memory in bytes that this took at its peak, weights included; None if it is unknown.
        """
        ...


@dataclass(frozen=True)
class Cpu:
    """This machine's CPU. num_cores: cores that this process may use."""

    num_cores: int = field(default_factory=lambda: len(allowed_cores()))

    def facts(self) -> dict[str, str | int]:
        return {"device": cpu_name(), "cores": self.num_cores, **frequency_facts()}

    def timer(self, num_threads: int) -> Timer:
        return timer_on(num_threads, partial(scatter_heap, torch.empty))

    def first_copy(self, load: Callable[[], Run]) -> tuple[Run, int | None]:
        memory = ResidentMemory()
        run = load()
        run()
        return run, memory.growth()


@dataclass(frozen=True)
class LoadedNetwork:
    """Copies of a network that are ready to run. parity, peak_bytes, file_bytes: as in `Timing`."""

    copies: list[Run]
    parity: float | None
    peak_bytes: int | None
    file_bytes: int | None = None


class LocalHost:
    """This machine, in this process.

    Args:
        processor: Where networks run.
        num_threads: Threads of one network.
        cores: The only cores to use; None for the least busy ones.

    Raises:
        ValueError: If cores do not exist, are too few or cannot be set.
    """

    def __init__(self, processor: Processor, num_threads: int, cores: Sequence[int] | None) -> None:
        self.processor = processor
        self.num_threads = num_threads
        self.cores = cores
        self._allowed = allowed_cores()
        self._is_pinned = False
        if cores is not None:
            check_cores(cores, self._allowed, num_threads)

    @property
    def num_cores(self) -> int:
        return os.cpu_count() or 1

    def facts(self) -> dict[str, str | int]:
        return self.processor.facts()

    def set_up(self) -> None:
        """Set the threads of this process and, the first time, its cores: runtimes look at both when they convert."""
        if self._is_pinned and self.cores is None:  # finding the least busy cores takes a tenth of a second
            self._set_threads()
        else:
            self._settle()

    def load(self, network: Converted, num_copies: int) -> LoadedNetwork:
        first, peak_bytes = self.processor.first_copy(network.load)
        copies = [first] + [network.load() for _ in range(num_copies - 1)]
        return LoadedNetwork(copies, network.parity, peak_bytes, network.file_bytes)

    def time_alone(self, anchor: LoadedNetwork, make_other: Callable[[], Run], seconds: float) -> list[list[float]]:
        between = [] if len(anchor.copies) > 1 else [make_other()]
        self._settle()
        return time_alone(anchor.copies, between, seconds, self.processor.timer(self.num_threads))

    def time_ratios(
        self,
        networks: Sequence[LoadedNetwork],
        anchor: LoadedNetwork,
        tolerance: float,
        max_seconds: float,
        repeatability: Repeatability,
    ) -> list[Timing]:
        self._settle()
        before, start = Usage.now(), time.perf_counter()
        copies = [network.copies for network in networks]
        timer = self.processor.timer(self.num_threads)
        all_series = time_ratios(copies, anchor.copies, tolerance, max_seconds, timer, repeatability)
        busy_cores = Usage.now().others_since(before, time.perf_counter() - start)
        return [
            Timing(series, busy_cores, network.parity, network.peak_bytes, network.file_bytes)
            for network, series in zip(networks, all_series, strict=True)
        ]

    def _settle(self) -> None:
        """Set the threads, and pin this process to the cores that were given or to the least busy ones."""
        self._set_threads()
        if self.cores is not None:
            keep_to(self.cores)
        else:
            pin(self._allowed, self.num_threads)
        self._is_pinned = True

    def _set_threads(self) -> None:
        if torch.get_num_threads() != self.num_threads:
            torch.set_num_threads(self.num_threads)


def local_target(runtime: Runtime[Converted], settings: TargetSettings, processor: Processor | None = None) -> PairedTarget:
    """Build the target of a runtime on this machine.

    Args:
        runtime: How networks run.
        settings: What is measured and how.
        processor: Where they run; None for the CPU.

    Raises:
        ValueError: If a setting is invalid here, or a package of the runtime is missing.
    """
    host = LocalHost(processor or Cpu(), settings.num_threads, settings.cores)
    return PairedTarget(settings, runtime, host)


def check_cores(cores: object, allowed: Sequence[int], num_threads: int) -> None:
    """Check the cores that a user asked for.

    Raises:
        ValueError: If they are not enough different ones of those allowed, or this system cannot pin a process.
    """
    listed = list(cores) if isinstance(cores, Sequence) and not isinstance(cores, str) else []
    if len(set(listed)) < max(1, num_threads) or not set(listed) <= set(allowed):
        raise ValueError(
            f"latency.cores={cores} must list {num_threads} or more (latency.num_threads) of the cores "
            f"{', '.join(map(str, allowed))}"
        )
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"latency.cores={cores}: this system cannot pin a process to cores; set it to null")
