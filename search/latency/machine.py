"""What the machine is and does: its processor, who uses it, and where this process may run. Linux tells all, others less."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

SAMPLE_SECONDS = 0.1


def cpu_name() -> str:
    """The processor's model as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def allowed_cores() -> list[int]:
    """Cores that this process may use now."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def frequency_facts() -> dict[str, str | int]:
    """Governor and greatest frequency in MHz, where they can be read."""
    facts: dict[str, str | int] = {}
    with contextlib.suppress(OSError):
        facts["governor"] = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    with contextlib.suppress(OSError, NotImplementedError, AttributeError):
        frequency = psutil.cpu_freq()
        if frequency and frequency.max:
            facts["max_mhz"] = round(frequency.max)
    return facts


@dataclass(frozen=True)
class Usage:
    """Processor seconds used so far: by all processes on all cores, and by this one."""

    all_seconds: float
    own_seconds: float

    @classmethod
    def now(cls) -> Self:
        everyone, own = psutil.cpu_times(), psutil.Process().cpu_times()
        busy = sum(everyone) - everyone.idle - getattr(everyone, "iowait", 0.0) - getattr(everyone, "guest", 0.0)
        return cls(busy, own.user + own.system)

    def others_since(self, before: Usage, seconds: float) -> float:
        """What other processes took, in cores."""
        everyone = self.all_seconds - before.all_seconds
        return max(0.0, (everyone - (self.own_seconds - before.own_seconds)) / seconds)


def pin(allowed: Sequence[int], num_threads: int) -> None:
    """Keep this process, all its threads, on the so many least busy of the allowed cores. Does nothing where none can."""
    if not hasattr(os, "sched_setaffinity") or num_threads >= len(allowed):
        return
    load = psutil.cpu_percent(SAMPLE_SECONDS, percpu=True)
    keep_to(sorted(allowed, key=lambda core: load[core] if core < len(load) else 0.0)[:num_threads])


def keep_to(cores: Sequence[int]) -> None:
    """Let this process, all its threads, run on these cores alone."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(task.name), cores)


class ResidentMemory:
    """The growth of this process's memory to its peak, from now on; None where the system does not tell."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # or the network moves into memory that was given back but is still counted
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self._start = _status_bytes("VmRSS")

    def growth(self) -> int | None:
        peak = _status_bytes("VmHWM")
        return None if peak is None or self._start is None else max(0, peak - self._start)


def _status_bytes(key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None
