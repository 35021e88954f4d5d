"""This machine: its processor's frequency, its load, and the cores that this process may use.

Everything works on Linux; other systems report less, and what cannot be read or set there is left out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

SAMPLE_SECONDS = 0.1
SLOW = 1.5  # slowdown that is worth a warning


def allowed_cores() -> list[int]:
    """Return the cores that this process may use now."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def frequency_facts() -> dict[str, str | int]:
    """Return the frequency governor and the maximum frequency in MHz, where they can be read."""
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
    """Processor time used since the start, in seconds: by all processes on all cores, and by this process."""

    all_seconds: float
    process_seconds: float

    @classmethod
    def now(cls) -> Self:
        """Read the processor time used so far."""
        system, process = psutil.cpu_times(), psutil.Process().cpu_times()
        busy = sum(system) - system.idle - getattr(system, "iowait", 0.0) - getattr(system, "guest", 0.0)
        return cls(busy, process.user + process.system)

    def others_since(self, before: Usage, seconds: float) -> float:
        """Return the processor time that other processes used since an earlier reading, in cores."""
        all_seconds = self.all_seconds - before.all_seconds
        return max(0.0, (all_seconds - (self.process_seconds - before.process_seconds)) / seconds)


def pin(allowed: Sequence[int], num_threads: int) -> None:
    """Pin all threads of this process to the least busy of the allowed cores, one core for each thread of a network."""
    if not hasattr(os, "sched_setaffinity") or num_threads >= len(allowed):
        return
    load = psutil.cpu_percent(SAMPLE_SECONDS, percpu=True)
    keep_to(sorted(allowed, key=lambda core: load[core] if core < len(load) else 0.0)[:num_threads])


def keep_to(cores: Sequence[int]) -> None:
    """Pin all threads of this process to the given cores."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(task.name), cores)


def disturbance(slowdown: float, busy_cores: float, num_threads: int, cores: int) -> str:
    """Describe what disturbed a measurement and what to do about it.

    Args:
        slowdown: The anchor's time over its calibrated time.
        busy_cores: Processor time that other processes used, in cores.
        num_threads: Threads of the measured network.
        cores: Cores of the machine.

    Returns:
        One sentence, or an empty text if nothing disturbed it.
    """
    free = max(1, int(cores - busy_cores + 0.25))
    if num_threads > 1 and num_threads > free:
        return (
            f"other processes use {busy_cores:.1f} of {cores} cores, so that {num_threads} threads spin while they wait "
            f"for each other: stop those processes or set latency.num_threads={free}"
        )
    if slowdown > SLOW:
        return (
            f"the anchor takes {slowdown:.1f} times its calibrated latency (other processes use {busy_cores:.1f} cores): "
            "the ratios hold, but stop other work or let the machine cool for narrower intervals"
        )
    return ""
