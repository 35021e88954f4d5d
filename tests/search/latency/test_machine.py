"""Pinning this process, and the load that other processes cause."""

from __future__ import annotations

import os

import pytest

from search.latency.machine import Usage, disturbance, pin


def test_pins_this_process_to_one_core() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot pin a process")
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one core")
    try:
        pin(sorted(before), 1)
        assert len(os.sched_getaffinity(0)) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_usage_does_not_count_this_process_among_others() -> None:
    before = Usage(all_seconds=10.0, process_seconds=5.0)
    assert Usage(14.0, 7.0).others_since(before, 2.0) == pytest.approx(1.0)
    assert Usage(12.0, 7.0).others_since(before, 2.0) == 0.0


def test_disturbance_names_the_remedy() -> None:
    assert disturbance(1.1, 0.0, 1, 2) == ""
    assert "latency.num_threads=1" in disturbance(9.0, 1.0, 2, 2)
    assert "2.0 times" in disturbance(2.0, 1.5, 1, 2)
    assert disturbance(1.1, 0.1, 2, 2) == ""
