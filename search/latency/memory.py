"""Peak memory of loading and running a network, on this machine or on a device: the standard library alone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path


class ResidentMemory:
    """Growth of this process's memory from now to its peak."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # else the network takes memory that was freed but still counts
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._start = _status_bytes("VmRSS")

    def growth(self) -> int | None:
        """Return the growth in bytes, or None if the system does not report it."""
        peak = _status_bytes("VmHWM")
        return None if peak is None or self._start is None else max(0, peak - self._start)


def _status_bytes(key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None
