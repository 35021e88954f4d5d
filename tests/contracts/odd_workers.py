"""A target and an evaluator that do what an architecture's width asks for, in whichever process: engines must cope with it.

8 answers, 16 dies, 24 hangs, 32 raises, 40 takes its time. Both record when they worked, for tests of what may overlap.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from models.architecture import Architecture, StageSpec
from search.accuracy.base import Accuracy, Progress
from search.latency.base import Calibration, Latency
from search.latency.estimate import Estimate

log = logging.getLogger("search.odd")
SLOW_SECONDS = 0.3


def wide(width: int) -> Architecture:
    return Architecture(width, (StageSpec(1),) * 4, patch_size=2, downsample="conv")


CALIBRATION = Calibration(wide(8), Estimate(1.0, 0.01, 7.0), 1)


@dataclass(frozen=True)
class Stretch:
    """When something worked, and in which role."""

    role: str
    pid: int
    start: float
    end: float

    def overlaps(self, other: Stretch) -> bool:
        return self.start < other.end and other.start < self.end


def stretches(folder: Path) -> list[Stretch]:
    recorded = []
    for file in folder.glob("*.times"):
        for line in file.read_text().splitlines():
            role, pid, start, end = line.split()
            recorded.append(Stretch(role, int(pid), float(start), float(end)))
    return recorded


@contextmanager
def recording(folder: str, role: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    with (Path(folder) / f"{role}-{os.getpid()}.times").open("a") as file:
        file.write(f"{role} {os.getpid()} {start} {time.monotonic()}\n")


def behave(width: int) -> None:
    if width == 16:
        os.kill(os.getpid(), signal.SIGKILL)
    if width == 24:
        time.sleep(600)
    if width == 32:
        raise ValueError("stage 2 does not fit")
    if width == 40:
        time.sleep(SLOW_SECONDS)


@dataclass
class OddTarget:
    folder: str
    name: str = "first"

    def fingerprint(self) -> dict[str, str | int]:
        return {"pid": os.getpid(), "threads": torch.get_num_threads(), "name": self.name}

    def calibrate(self, anchor: Architecture, repeated: Sequence[Architecture] = ()) -> Calibration:
        return Calibration(anchor, CALIBRATION.estimate, 1)

    def measure(self, architecture: Architecture, calibration: Calibration) -> Latency:
        with recording(self.folder, self.name):
            behave(architecture.embed_dim)
        return Latency(Estimate(float(architecture.embed_dim), 0.01, 7.0), 20, 6, True, 0.1)


@dataclass
class OddEvaluator:
    """Its shared weights are a word."""

    folder: str
    scores_before_measuring = False

    def fingerprint(self) -> dict[str, str | int]:
        return {"pid": os.getpid()}

    def weights_file(self, seed: int) -> Path:
        return Path(self.folder) / "shared"

    def prepare(self, seed: int, progress: Progress) -> None:
        progress(0.5)

    def pack(self, seed: int) -> bytes:
        return b"shared"

    def unpack(self, seed: int, packed: bytes) -> None:
        assert packed == b"shared"

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        progress(0.25)
        log.info("training a network of width %d", architecture.embed_dim)
        with recording(self.folder, "training"):
            behave(architecture.embed_dim)
        return Accuracy(0.5, 10, seed, 0.0)
