"""The name of the processor that networks run on, which distinguishes one device from another.

PCs name it in /proc/cpuinfo. ARM kernels name none there, or the same one for different boards ("ARMv7 Processor rev 3"):
the board's name is in the device tree, or in /proc/cpuinfo where a container hides that, and the cores have numbers of
their maker and design (https://developer.arm.com/documentation/ddi0595, MIDR_EL1). Also runs on devices over ssh, so it
needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path


def cpu_name(root: Path = Path("/")) -> str:
    """Return the processor's model as the system names it; on ARM the board, and the designs of its cores.

    Args:
        root: Where proc/cpuinfo and proc/device-tree/model are.
    """
    entries = cpuinfo_entries(read(root / "proc/cpuinfo"))
    models = entries.get("model name", [])
    cores = [
        f"{maker}/{part}"
        for maker, part in sorted({*zip(entries.get("CPU implementer", []), entries.get("CPU part", []))})  # noqa: B905
    ]
    if models and not cores:
        return models[0]
    names = [read(root / "proc/device-tree/model"), *entries.get("Model", []), *entries.get("Hardware", []), *models]
    name = next(filter(None, names), "") or platform.processor() or platform.machine()
    return f"{name}, CPU {' and '.join(cores)}" if cores else name


def cpuinfo_entries(text: str) -> dict[str, list[str]]:
    """Return the values of each key of /proc/cpuinfo, one for each core that has it."""
    entries: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            entries.setdefault(key.strip(), []).append(value.strip())
    return entries


def read(path: Path) -> str:
    """Return the text of a file of the kernel's without the byte that ends it, or an empty one if it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    return ""
