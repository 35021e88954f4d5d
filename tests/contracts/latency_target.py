"""The contract of latency targets. A target's test module defines a fixture `target` and imports these tests."""

from __future__ import annotations

import pickle

import pytest

from models.architecture import Architecture, StageSpec
from models.complexity import cost
from search.latency.base import Calibration, Latency, LatencyTarget

SMALL = Architecture(8, (StageSpec(1),) * 4, patch_size=2, downsample="conv")
LARGE = Architecture(32, (StageSpec(2, 2, 0.5, 2),) * 4, patch_size=2, downsample="conv")


@pytest.fixture(scope="module")
def calibration(target: LatencyTarget) -> Calibration:
    return target.calibrate(SMALL)


@pytest.fixture(scope="module")
def small(target: LatencyTarget, calibration: Calibration) -> Latency:
    return target.measure(SMALL, calibration)


@pytest.fixture(scope="module")
def large(target: LatencyTarget, calibration: Calibration) -> Latency:
    return target.measure(LARGE, calibration)


def test_calibration_names_its_anchor(target: LatencyTarget, calibration: Calibration) -> None:
    assert calibration.anchor == SMALL
    assert 0 < calibration.estimate.low < calibration.anchor_ms < calibration.estimate.high
    assert Calibration.from_dict(calibration.to_dict()) == calibration


def test_anchor_measured_against_itself_is_its_own_latency(small: Latency, calibration: Calibration) -> None:
    assert small.latency_ms == pytest.approx(calibration.anchor_ms, rel=0.2)


def test_measurement_is_complete(large: Latency) -> None:
    assert 0 < large.low_ms < large.latency_ms < large.high_ms
    assert large.repetitions == sum(len(round_.candidate_ms) for round_ in large.rounds) > 1
    assert large.seconds > 0
    assert large.slowdown > 0
    assert large.busy_cores >= 0
    assert "rounds" not in large.summary()
    assert Latency.from_summary(large.summary()) == large.without_samples()


def test_much_larger_network_takes_more_file_and_memory(target: LatencyTarget, small: Latency, large: Latency) -> None:
    assert set(small.resources) == set(large.resources)
    assert ("file_mb" in large.resources) == (target.fingerprint()["target"] in ("onnxruntime", "executorch", "ssh"))
    assert all(large.resources[name] > small.resources[name] for name in large.resources)
    num_params, _ = cost(LARGE, in_chans=1, num_classes=10, img_size=32)
    if "file_mb" in large.resources:
        is_int8 = target.fingerprint()["dtype"] == "int8"
        assert large.resources["file_mb"] == pytest.approx(
            (1.15e-6 if is_int8 else 4e-6) * num_params, rel=0.15 if is_int8 else 0.05
        )


def test_much_larger_network_ranks_slower(small: Latency, large: Latency) -> None:
    assert large.low_ms > small.high_ms


def test_fingerprint_names_the_device_and_stays_the_same(target: LatencyTarget) -> None:
    fingerprint = target.fingerprint()
    assert {"target", "device", "dtype", "batch_size", "input_size", "num_classes", "backend", "torch"} <= set(fingerprint)
    assert all(isinstance(value, str | int) for value in fingerprint.values())
    assert target.fingerprint() == fingerprint


def test_results_can_be_pickled(small: Latency, calibration: Calibration) -> None:
    assert pickle.loads(pickle.dumps(calibration)) == calibration
    assert pickle.loads(pickle.dumps(small)) == small
