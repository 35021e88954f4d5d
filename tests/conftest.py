"""Fixtures that several tests share."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the processes that share the tests would spin for each other

import pytest
import torch
from safetensors import safe_open

from models.architecture import Architecture, StageSpec

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell ignores it for what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)
CORES, THREADS = os.sched_getaffinity(0), torch.get_num_threads()
# The files that take longest come first, so that the processes which share them end together.
LONGEST = [
    "run",
    "targets",
    "storage",
    "coordinator",
    "local",
    "kill",
    "ssh",
    "deployment",
    "cli",
    "parallel",
    "confirm",
    "deploy",
    "onnx",
]
GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    """Give networks the same random weights in every run and order of the tests."""
    torch.manual_seed(0)


@pytest.fixture
def architecture() -> Architecture:
    """A small network with attention of every kind: none, HiLo, and plain."""
    stages = (StageSpec(1), StageSpec(1, 2, 0.5, 2), StageSpec(2, 2, 0.75, 4), StageSpec(1, 1, 0.0, 4))
    return Architecture(8, stages, patch_size=2, downsample="conv")


def load_golden(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Read a golden file. Returns its configuration, the official weights, and its other tensors."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return config, state, {key: value for key, value in tensors.items() if not key.startswith("state.")}


@pytest.fixture(autouse=True)
def _all_threads_and_cores() -> Iterator[None]:
    """Undo what measuring in the tests' own process, in a fixture of a module too, has set, before the next module's."""
    _use_all_threads_and_cores()
    yield
    _use_all_threads_and_cores()


def _use_all_threads_and_cores() -> None:
    os.sched_setaffinity(0, CORES)
    torch.set_num_threads(THREADS)
