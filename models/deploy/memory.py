"""Reuse of memory that a process frees and soon needs again."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Let the C library keep up to a gigabyte that this process frees, instead of returning it to the system.

    PyTorch frees what lies between layers, and glibc by default returns most of it: each run then faults in thousands of
    pages again. That is a tenth of LITv2-S's time at 224 pixels, and of a small network's training step. The setting is for
    the whole process, and does nothing where the library is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
