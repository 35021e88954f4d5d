"""The name of a processor, from what kernels of PCs and of ARM boards print."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.latency.processor import cpu_name
from search.latency.remote import runner

ARM_CORE = (
    "processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
    "CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n\n"
)
PI_4 = "".join(ARM_CORE.format(number=number, part="0xd08") for number in range(4)) + (
    "Hardware\t: BCM2835\nRevision\t: c03114\nSerial\t\t: 10000000a1b2c3d4\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"
)
PI_5 = "".join(ARM_CORE.format(number=number, part="0xd0b") for number in range(4)) + (
    "Revision\t: c04170\nSerial\t\t: a1b2c3d410000000\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
)
PI_3_OF_32_BITS = (
    "processor\t: 0\nmodel name\t: ARMv7 Processor rev 4 (v7l)\nBogoMIPS\t: 38.40\n"
    "Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32\n"
    "CPU implementer\t: 0x41\nCPU architecture: 7\nCPU variant\t: 0x0\nCPU part\t: 0xd03\nCPU revision\t: 4\n\n"
    "Hardware\t: BCM2835\nRevision\t: a020d3\nModel\t\t: Raspberry Pi 3 Model B Plus Rev 1.3\n"
)
TWO_KINDS = "".join(ARM_CORE.format(number=number, part="0xd08" if number > 3 else "0xd03") for number in range(6))
PC = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7763 64-Core Processor\nstepping\t: 1\n\n"
NAMES = {
    "Pi 4": (PI_4, "Raspberry Pi 4 Model B Rev 1.4\0", "Raspberry Pi 4 Model B Rev 1.4, CPU 0x41/0xd08"),
    "Pi 5": (PI_5, "Raspberry Pi 5 Model B Rev 1.0\0", "Raspberry Pi 5 Model B Rev 1.0, CPU 0x41/0xd0b"),
    "Pi 4 in a container that hides the device tree": (PI_4, None, "Raspberry Pi 4 Model B Rev 1.4, CPU 0x41/0xd08"),
    "Pi 3 with 32 bits": (
        PI_3_OF_32_BITS,
        "Raspberry Pi 3 Model B Plus Rev 1.3\0",
        "Raspberry Pi 3 Model B Plus Rev 1.3, CPU 0x41/0xd03",
    ),
    "cores of two kinds": (TWO_KINDS, "FriendlyElec NanoPi M4\0", "FriendlyElec NanoPi M4, CPU 0x41/0xd03 and 0x41/0xd08"),
    "PC": (PC, None, "AMD EPYC 7763 64-Core Processor"),
}


@pytest.mark.parametrize("device", NAMES)
def test_boards_have_names_of_their_own(device: str, tmp_path: Path) -> None:
    cpuinfo, model, name = NAMES[device]
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo, encoding="utf-8")
    if model is not None:
        (tmp_path / "proc/device-tree/model").write_text(model, encoding="utf-8")
    assert cpu_name(tmp_path) == name


def test_server_without_a_board_is_told_by_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(ARM_CORE.format(number=0, part="0xd0c"), encoding="utf-8")
    monkeypatch.setattr("platform.processor", lambda: "aarch64")
    assert cpu_name(tmp_path) == "aarch64, CPU 0x41/0xd0c"


def test_system_without_these_files_has_a_name(tmp_path: Path) -> None:
    assert cpu_name(tmp_path)


def test_devices_over_ssh_are_named_in_the_same_way() -> None:
    assert runner.cpu_name is cpu_name
