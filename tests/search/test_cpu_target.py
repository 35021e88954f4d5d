"""The CPU target keeps the contract of a latency target, and its own promises."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from search.latency.cpu import CpuTarget
from tests.contracts.latency_target import *  # noqa: F403
from tests.contracts.latency_target import LARGE


@pytest.fixture(scope="module")
def target() -> CpuTarget:
    return CpuTarget(
        img_size=32, in_chans=1, num_classes=10, batch_size=1, num_threads=1, tolerance=0.05, max_seconds=2.0,
        calibration_seconds=0.5,
    )  # fmt: skip


def test_uses_the_threads_it_names(target: CpuTarget) -> None:
    torch.set_num_threads(2)
    target.calibrate(LARGE)
    assert torch.get_num_threads() == 1


def test_larger_batch_takes_longer(target: CpuTarget) -> None:
    one = target.calibrate(LARGE)
    eight = dataclasses.replace(target, batch_size=8).calibrate(LARGE)
    assert eight.low_ms > one.high_ms


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("num_threads", -1), ("tolerance", 0.0), ("max_seconds", -3.0)]
)
def test_impossible_settings_name_the_value(target: CpuTarget, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"latency\.{name}={value}"):
        dataclasses.replace(target, **{name: value})
