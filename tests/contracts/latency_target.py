"""What every latency target must do. A target's test module makes a fixture `target` and imports these tests."""

from __future__ import annotations

import pickle

import pytest

from models.architecture import Architecture, StageSpec
from search.latency.base import Calibration, Latency, LatencyTarget

SMALL = Architecture(8, (StageSpec(1),) * 4, patch_size=2, downsample="conv")
LARGE = Architecture(32, (StageSpec(4, 2, 0.5, 2),) * 4, patch_size=2, downsample="conv")


@pytest.fixture(scope="module")
def calibration(target: LatencyTarget) -> Calibration:
    return target.calibrate(SMALL)


def test_calibration_names_its_anchor(target: LatencyTarget, calibration: Calibration) -> None:
    assert calibration.anchor == SMALL
    assert 0 < calibration.low_ms <= calibration.anchor_ms <= calibration.high_ms
    assert Calibration.from_dict(calibration.to_dict()) == calibration


def test_anchor_measured_against_itself_is_its_own_latency(target: LatencyTarget, calibration: Calibration) -> None:
    latency = target.measure(SMALL, calibration)
    assert latency.latency_ms == pytest.approx(calibration.anchor_ms, rel=0.2)


def test_measurement_is_complete(target: LatencyTarget, calibration: Calibration) -> None:
    latency = target.measure(LARGE, calibration)
    assert 0 < latency.low_ms <= latency.latency_ms <= latency.high_ms
    assert latency.repetitions == len(latency.ratios) > 1
    assert latency.seconds > 0
    assert "ratios" not in latency.summary()
    assert Latency(**latency.summary()).latency_ms == latency.latency_ms


def test_much_larger_network_ranks_slower(target: LatencyTarget, calibration: Calibration) -> None:
    assert target.measure(LARGE, calibration).low_ms > target.measure(SMALL, calibration).high_ms


def test_fingerprint_names_the_device_and_stays(target: LatencyTarget) -> None:
    first = target.fingerprint()
    assert {"target", "device", "dtype", "batch_size", "input_size", "backend"} <= set(first)
    assert all(isinstance(value, str | int) for value in first.values())
    assert target.fingerprint() == first


def test_travels_to_its_process(target: LatencyTarget) -> None:
    pickle.loads(pickle.dumps(target.fingerprint()))
